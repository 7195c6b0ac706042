package link

import "sync/atomic"

// Stats counts what a link has done since its handshake.
type Stats struct {
	BytesRead, BytesWritten     uint64 // TCP payload, records with their framing
	RecordsRead, RecordsWritten uint64
	CellsRead, CellsWritten     uint64 // of all commands
	PaddingRead, PaddingWritten uint64 // PADDING cells among them
	LateCells                   uint64 // cells dropped because we had destroyed their circuit
	DroppedCells                uint64 // queued cells that went back to the pool unsent
	RefusedCircuits             uint64 // CREATEs beyond Config.MaxCircuits
	OwnCircuits, PeerCircuits   int    // now, by who created them
	QueuedCells                 int    // now, of all circuits
}

// counters are the Stats that the two goroutines count, one add a record.
type counters struct {
	bytesRead, bytesWritten     atomic.Uint64
	recordsRead, recordsWritten atomic.Uint64
	cellsRead, cellsWritten     atomic.Uint64
	paddingRead, paddingWritten atomic.Uint64
	late, dropped, refused      atomic.Uint64
}

// Stats returns the link's counts; it may be called at any time.
func (l *Link) Stats() Stats {
	l.mu.Lock()
	s := Stats{OwnCircuits: l.ownCount, PeerCircuits: l.peerCount, QueuedCells: l.sched.queued}
	l.mu.Unlock()
	c := &l.counters
	s.BytesRead, s.BytesWritten = c.bytesRead.Load(), c.bytesWritten.Load()
	s.RecordsRead, s.RecordsWritten = c.recordsRead.Load(), c.recordsWritten.Load()
	s.CellsRead, s.CellsWritten = c.cellsRead.Load(), c.cellsWritten.Load()
	s.PaddingRead, s.PaddingWritten = c.paddingRead.Load(), c.paddingWritten.Load()
	s.LateCells, s.DroppedCells, s.RefusedCircuits = c.late.Load(), c.dropped.Load(), c.refused.Load()
	return s
}
