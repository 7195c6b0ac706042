package relay

import (
	"context"
	"runtime"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/link"
	"cepa/stream"
)

// createQueue is how many handshakes may wait for a worker: at 122 µs each,
// 2,048 on one core are a quarter of a second. Beyond it CREATE is refused at
// once, so that what is accepted is also served.
const createQueue = 2048

// creator answers CREATE: a bounded pool of workers with a short queue.
type creator struct {
	relay *Relay
	queue chan createJob
}

type createJob struct {
	circuit  *link.Circuit
	index    uint8
	message1 [cell.HopMessage1Size]byte
}

func newCreator(r *Relay) *creator {
	return &creator{relay: r, queue: make(chan createJob, createQueue)}
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

// onCreate is called on a link's reader: it checks and queues.
func (c *creator) onCreate(lc *link.Circuit, body []byte) {
	m, err := cell.ParseCreate(body)
	_, fromRelay := lc.Link().Peer()
	switch {
	case err != nil:
		lc.Destroy(cell.ReasonProtocol)
		return
	case m.Index != 1 && !fromRelay:
		// Only a relay that proved its identity may say how far a circuit
		// has come; anybody else would get longer ones.
		lc.Destroy(cell.ReasonRefused)
		return
	case m.KeyID != c.relay.cfg.OnionKey.ID():
		lc.Destroy(cell.ReasonUnknownKey)
		return
	case m.Suite != uint8(c.relay.cfg.Suite):
		lc.Destroy(cell.ReasonRefused)
		return
	}
	j := createJob{circuit: lc, index: m.Index}
	copy(j.message1[:], m.Message1)
	select {
	case c.queue <- j:
	default:
		lc.Destroy(cell.ReasonResource)
	}
}

// create does the handshake and answers with CREATED.
func (c *creator) create(j *createJob) {
	r := c.relay
	reply, keys, err := handshake.HopRespond(r.cfg.OnionKey, handshake.HopParams{
		Identity: r.Identity(), Index: j.index, Suite: uint8(r.cfg.Suite),
	}, j.message1[:], r.cfg.Rand)
	if err != nil {
		j.circuit.Destroy(cell.ReasonProtocol)
		return
	}
	h := &circuitHandler{relay: r, prev: j.circuit.Link()}
	h.ctx, h.cancel = context.WithCancel(r.ctx)
	t, err := circuit.NewTransit(circuit.TransitConfig{
		Pool: r.cfg.Pool, Handler: h, Prev: j.circuit, Index: j.index,
		Suite: r.cfg.Suite, Keys: keys, Local: stream.Addr("circuit"),
	})
	if err != nil {
		h.cancel()
		j.circuit.Destroy(cell.ReasonProtocol)
		return
	}
	h.transit = t
	r.circuits.Add(1)
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
	transit *circuit.Transit
	ctx     context.Context // ends with the circuit
	cancel  context.CancelFunc
}

// Closed implements circuit.Handler.
func (h *circuitHandler) Closed(*circuit.Transit) {
	h.cancel()
	h.relay.circuits.Add(-1)
}
