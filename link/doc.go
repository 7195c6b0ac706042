// Package link is the authenticated, encrypted connection between two nodes
// and the circuits on it (doc/spec.md sections 1 and 3). A link has one reader
// and one writer goroutine and serves relays and clients alike:
//
//	                       reader goroutine
//	1 reader.run           socket -> buffer; the only place where it waits
//	2 reader.record        open one record of 0..46 cells in place
//	3 dispatch.cell        circuit ID -> Circuit, once a run of equal IDs
//	4 Receiver.Receive     body handed over in place; Flush after the batch,
//	                       then Kick
//
//	                       whoever sends
//	5 Circuit.Send         a list of cells -> the circuit's queue
//	6 Circuit.Kick         takes hold of the writer if nobody has; then
//
//	                       whoever holds the writer
//	7 scheduler.take       fair choice among the circuits that have cells
//	8 writer.fill          copy, seal; cells go back to their pool
//	9 writer.runInline     buffer -> socket, without waiting; or, for what does
//	                       not fit at once and where a rate must be waited for,
//	  writer.run           the same on the writer's own goroutine
//
// Nothing on this path allocates, or waits but where it says so. All queues are bounded:
// a circuit's by Config.QueueCells, circuits and IDs that wait for the peer's
// DESTROY by Config.MaxCircuits, answers that the peer does not read by a
// multiple of it. Whoever breaks a rule of the spec loses the link, with a
// *ProtocolError that names the rule: only the link's peer can have sent it.
//
// Circuit IDs, per side that chose them:
//
//	ours     fresh ── CREATE queued ─▶ creating ── CREATE leaves ─▶ pending ── CREATED ─▶ open
//	theirs   offered ── CREATED queued ─▶ open
//	any      ── Destroy ─▶ destroyed (drops what arrives until the peer's DESTROY)
//	any      ── peer's DESTROY, end of the link ─▶ closed
package link
