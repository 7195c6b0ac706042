package relay

import (
	"context"
	"runtime"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/link"
	"cepa/stream"
)

// creator answers CREATE: a bounded pool of workers with a short queue.
type creator struct {
	relay *Relay
	queue chan createJob
}

type createJob struct {
	circuit  *link.Circuit
	near     *neighbour
	index    uint8
	message1 [cell.HopMessage1Size]byte
}

func newCreator(r *Relay) *creator {
	return &creator{relay: r, queue: make(chan createJob, r.limits.createQueue)}
}

// run starts the workers; they end with ctx.
func (c *creator) run(ctx context.Context) {
	n := c.relay.cfg.CreateWorkers
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	for range n {
		c.relay.spawn(func() {
			for {
				select {
				case j := <-c.queue:
					c.create(&j)
				case <-ctx.Done():
					return
				}
			}
		})
	}
}

// drain gives up what no worker will take any more. The links are closed: there
// is nobody left to tell.
func (c *creator) drain() {
	for {
		select {
		case j := <-c.queue:
			j.near.creating.leave()
			c.relay.forget(j.near)
		default:
			return
		}
	}
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
	switch {
	case err != nil:
		return cell.ReasonProtocol
	case m.Index != 1 && !fromRelay:
		// Only a relay may say how far a circuit has come: anybody else would
		// get longer ones, and exits at the first hop.
		return cell.ReasonRefused
	case m.KeyID != r.cfg.OnionKey.ID():
		return cell.ReasonUnknownKey
	case m.Suite != uint8(r.cfg.Suite):
		return cell.ReasonRefused
	}
	if !fromRelay && !r.addresses.mayCreate(near.addr, time.Now()) {
		return cell.ReasonResource
	}
	if !near.circuits.enter(forClient(fromRelay, r.limits.clientCircuits, r.limits.circuits)) {
		return cell.ReasonResource
	}
	if !r.circuits.enter(r.limits.circuits) {
		near.circuits.leave()
		return cell.ReasonResource
	}
	if !near.creating.enter(forClient(fromRelay, r.limits.clientCreating, r.limits.createQueue)) {
		r.forget(near)
		return cell.ReasonResource
	}
	j := createJob{circuit: lc, near: near, index: m.Index}
	copy(j.message1[:], m.Message1)
	select {
	case c.queue <- j:
		return cell.ReasonNone
	default:
		near.creating.leave()
		r.forget(near)
		return cell.ReasonResource
	}
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
	reply, keys, err := handshake.HopRespond(r.cfg.OnionKey, handshake.HopParams{
		Identity: r.Identity(), Index: j.index, Suite: uint8(r.cfg.Suite),
	}, j.message1[:], r.cfg.Rand)
	if err != nil {
		j.circuit.Destroy(cell.ReasonProtocol)
		r.forget(j.near)
		return
	}
	h := &circuitHandler{relay: r, prev: j.circuit.Link(), near: j.near}
	h.ctx, h.cancel = context.WithCancel(r.ctx)
	t, err := circuit.NewTransit(circuit.TransitConfig{
		Pool: r.cfg.Pool, Handler: h, Prev: j.circuit, Index: j.index,
		Suite: r.cfg.Suite, Keys: keys, Local: stream.Addr("circuit"),
	})
	if err != nil {
		h.cancel()
		j.circuit.Destroy(cell.ReasonProtocol)
		r.forget(j.near)
		return
	}
	h.transit = t
	// From here on the circuit's end is told to h, whatever it comes from.
	if err := j.circuit.SetReceiver(t.Prev()); err != nil {
		t.Close(cell.ReasonNone) // it was destroyed meanwhile
		return
	}
	if err := t.Created(reply); err != nil {
		t.Close(cell.ReasonResource)
	}
}

// circuitHandler does for one circuit what takes time, and ends it with the
// circuit.
type circuitHandler struct {
	relay   *Relay
	prev    *link.Link
	near    *neighbour // of prev
	transit *circuit.Transit
	ctx     context.Context // ends with the circuit
	cancel  context.CancelFunc

	streams gauge // to the internet, and look-ups
	dirs    gauge // to the directory
}

// Closed implements circuit.Handler.
func (h *circuitHandler) Closed(*circuit.Transit) {
	h.cancel()
	h.relay.forget(h.near)
}
