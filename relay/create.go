package relay

import (
	"context"
	"io"
	"runtime"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/link"
	"cepa/pace"
	"cepa/stream"
)

// maxCreateWait is how long a CREATE may wait and still be served: the client's patience
// is over by then, and what it gets is of no use. Source: doc/spec.md section 12.
const maxCreateWait = 5 * time.Second

// creator answers CREATE: a bounded pool of workers with a short queue.
type creator struct {
	relay   *Relay
	workers int
	queue   *createQueue

	// respond is handshake.HopRespond.
	respond func(*handshake.OnionKey, handshake.HopParams, []byte, io.Reader) ([]byte, *handshake.Keys, error)
}

// createJob is one CREATE that waits.
type createJob struct {
	circuit  *link.Circuit
	near     *neighbour
	key      *handshake.OnionKey // that it is for
	index    uint8
	message1 [cell.HopMessage1Size]byte
	since    time.Time // when it came
	next     *createJob
}

func newCreator(r *Relay) *creator {
	n := r.cfg.CreateWorkers
	if n == 0 {
		// Half of the cores, so that a flood of handshakes leaves the other half
		// to cells that are on their way.
		n = (runtime.GOMAXPROCS(0) + 1) / 2
	}
	return &creator{relay: r, workers: n, queue: newCreateQueue(&r.limits, n), respond: handshake.HopRespond}
}

// run starts the workers; they end with ctx.
func (c *creator) run(ctx context.Context) {
	for range c.workers {
		c.relay.spawn(func() {
			var share createShare
			for j := c.queue.take(); j != nil; j = c.queue.take() {
				took := c.serve(j)
				if took > 0 {
					if rest := share.pause(took, letOthersGo()); rest > 0 {
						wait(ctx, rest)
						took += rest
					}
				}
				c.queue.done(took)
			}
		})
	}
	c.relay.spawn(func() {
		<-ctx.Done()
		c.queue.close()
	})
}

// drain gives up what no worker will take any more. The links are closed: there
// is nobody left to tell.
func (c *creator) drain() {
	for _, j := range c.queue.drain() {
		j.near.creating.leave()
		c.relay.forget(j.near)
	}
}

// serve does one job, or gives it up when nobody wants it any more. It returns how
// long the handshake took, 0 when there was none.
func (c *creator) serve(j *createJob) time.Duration {
	start := time.Now()
	switch {
	case j.circuit.Ended():
	case start.Sub(j.since) > maxCreateWait:
		c.relay.load.dropped(start)
		j.circuit.Destroy(cell.ReasonResource)
	default:
		c.create(j)
		return time.Since(start)
	}
	j.near.creating.leave()
	c.relay.forget(j.near)
	return 0
}

// onCreate is called on a link's reader: it checks and queues.
func (c *creator) onCreate(near *neighbour, lc *link.Circuit, body []byte) {
	if why := c.enqueue(near, lc, body); why != cell.ReasonNone {
		lc.Destroy(why)
	}
}

func (c *creator) enqueue(near *neighbour, lc *link.Circuit, body []byte) cell.Reason {
	r := c.relay
	m, err := cell.ParseCreate(body)
	fromRelay := r.isRelay(lc.Link())
	key := r.onion.find(m.KeyID, r.cfg.Now())
	switch {
	case err != nil:
		return cell.ReasonProtocol
	case m.Index != 1 && !fromRelay:
		// Only a relay may say how far a circuit has come: anybody else would
		// get longer ones, and exits at the first hop.
		return cell.ReasonRefused
	case key == nil:
		return cell.ReasonUnknownKey
	case m.Suite != uint8(r.cfg.Suite):
		return cell.ReasonRefused
	}
	if !r.takes() {
		return cell.ReasonResource
	}
	now := time.Now()
	if !fromRelay && !r.addresses.mayCreate(near.addr, now) {
		r.load.creates.Add(1)
		return cell.ReasonResource
	}
	if !near.circuits.enter(forClient(fromRelay, r.limits.clientCircuits, r.limits.circuits)) {
		r.load.creates.Add(1)
		return cell.ReasonResource
	}
	if !r.circuits.enter(r.limits.circuits) {
		r.load.dropped(now)
		near.circuits.leave()
		return cell.ReasonResource
	}
	if !near.creating.enter(forClient(fromRelay, r.limits.clientCreating, r.limits.createQueue)) {
		r.load.creates.Add(1)
		r.forget(near)
		return cell.ReasonResource
	}
	j := &createJob{circuit: lc, near: near, key: key, index: m.Index, since: now}
	copy(j.message1[:], m.Message1)
	if !c.queue.add(j, fromRelay) {
		r.load.dropped(now)
		near.creating.leave()
		r.forget(near)
		return cell.ReasonResource
	}
	return cell.ReasonNone
}

// forget counts a circuit as ended.
func (r *Relay) forget(near *neighbour) {
	near.circuits.leave()
	r.circuits.leave()
}

// create does the handshake and answers with CREATED.
func (c *creator) create(j *createJob) {
	r := c.relay
	defer j.near.creating.leave()
	reply, keys, err := c.respond(j.key, handshake.HopParams{
		Identity: r.Identity(), Index: j.index, Suite: uint8(r.cfg.Suite),
	}, j.message1[:], r.cfg.Rand)
	if err != nil {
		j.circuit.Destroy(cell.ReasonProtocol)
		r.forget(j.near)
		return
	}
	h := &circuitHandler{relay: r, prev: j.circuit.Link(), near: j.near, share: r.shareOf(j.circuit.Link(), j.near)}
	j.circuit.SetShare(h.share)
	h.ctx, h.cancel = context.WithCancel(r.ctx)
	t, err := circuit.NewTransit(circuit.TransitConfig{
		Pool: r.cfg.Pool, Handler: h, Prev: j.circuit, Index: j.index,
		Suite: r.cfg.Suite, Keys: keys, Local: stream.Addr("circuit"), Flow: circuit.FlowOf(r.params().Get),
	})
	if err != nil {
		h.cancel()
		j.circuit.Destroy(cell.ReasonProtocol)
		r.forget(j.near)
		return
	}
	h.transit = t
	r.memory.add(h)
	// From here on the circuit's end is told to h, whatever it comes from.
	if err := j.circuit.SetReceiver(t.Prev()); err != nil {
		t.Close(cell.ReasonNone) // it was destroyed meanwhile
		return
	}
	if err := t.Created(reply); err != nil {
		t.Close(cell.ReasonResource)
	}
}

// shareOf returns with what else a circuit from this link shares the relay's rate:
// with all of its client's address, or, as a relay's link carries circuits of many
// clients, with nothing but its own other direction.
func (r *Relay) shareOf(l *link.Link, near *neighbour) *pace.Share {
	if r.isRelay(l) {
		return new(pace.Share)
	}
	return r.addresses.share(near.addr)
}

// circuitHandler does for one circuit what takes time, and ends it with the
// circuit.
type circuitHandler struct {
	relay   *Relay
	prev    *link.Link
	near    *neighbour  // of prev
	share   *pace.Share // of the rate
	transit *circuit.Transit
	ctx     context.Context // ends with the circuit
	cancel  context.CancelFunc

	streams gauge // to the internet, and look-ups
	dirs    gauge // to the directory
	uploads gauge // of descriptors of onion services

	point   *introPoint // of which service it is the circuit; guarded by introTable.mu
	meeting *meeting    // that it waits for; guarded by meetingTable.mu
	joined  bool        // it is a service's that is joined to a client's; likewise
}

// Closed implements circuit.Handler.
func (h *circuitHandler) Closed(*circuit.Transit) {
	h.cancel()
	h.relay.intros.leave(h)
	h.relay.meetings.leave(h)
	h.relay.memory.remove(h)
	h.relay.forget(h.near)
}
