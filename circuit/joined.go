package circuit

import (
	"errors"
	"fmt"
	"net"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// This file is the layer end to end over two circuits that a rendezvous point has
// joined (doc/spec.md section 4), at either end: one more hop of the Origin, behind
// the rendezvous point, with a window of its own. Its layer's index is
// cell.JoinedIndex wherever it stands.

// JoinConfig is what a joined hop is made of.
type JoinConfig struct {
	Suite layer.Suite
	// Forward (client to service) and Backward are the keys. The service's come
	// from its open instead.
	Forward, Backward [32]byte
	// Handler takes the streams that the client opens: the service's, where it is
	// needed.
	Handler stream.Handler
	// MaxStreams bounds open streams, as in stream.Config.
	MaxStreams int
	// Local and Remote are what streams answer as their addresses.
	Local, Remote net.Addr
}

// first is what a service waits for: the client's first body.
type firstWait struct {
	hop   *hop
	suite layer.Suite
	open  func(first []byte) (forward, backward [32]byte, err error)
}

// newJoined makes the joined hop, without its layers.
func (o *Origin) newJoined(cfg JoinConfig, pos int, serves bool) *hop {
	h := &hop{origin: o, pos: pos, index: cell.JoinedIndex, serves: serves, win: newWindow(o.cfg.Flow)}
	h.mux = stream.NewMux(stream.Config{
		Carrier: h, Pool: o.cfg.Pool, Handler: cfg.Handler, MaxStreams: cfg.MaxStreams, Local: cfg.Local, Remote: cfg.Remote,
	})
	return h
}

// Join is the client's half of the end: it sends first, of cell.JoinedSize bytes,
// and adds the joined hop, whose streams it returns. It is for a circuit that has
// received JOINED. After an error the circuit is destroyed: it is of no other use.
func (o *Origin) Join(cfg JoinConfig, first []byte) (*stream.Mux, error) {
	fwd, err := layer.New(cfg.Suite, cfg.Forward)
	if err != nil {
		return nil, o.joinFailed(err)
	}
	back, err := layer.New(cfg.Suite, cfg.Backward)
	if err != nil {
		return nil, o.joinFailed(err)
	}
	if len(first) != cell.JoinedSize {
		return nil, o.joinFailed(fmt.Errorf("a first body of %d bytes, not %d", len(first), cell.JoinedSize))
	}
	cfg.Handler = nil
	h, err := o.join(cfg, fwd, back, first)
	if err != nil {
		return nil, o.joinFailed(err)
	}
	o.out.Kick()
	return h.mux, nil
}

func (o *Origin) join(cfg JoinConfig, fwd, back *layer.State, first []byte) (*hop, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return nil, o.err
	}
	if o.role != roleReplied {
		return nil, errors.New("the circuit has not received JOINED, or is joined")
	}
	hops := *o.hops.Load()
	c := o.cfg.Pool.Get()
	c.SetCommand(cell.Relay)
	copy(c.Body(), first)
	o.wrapLocked(len(hops), c.Body(), len(first))
	o.sending.Push(c)
	if err := o.out.Send(&o.sending); err != nil {
		return nil, err
	}
	h := o.newJoined(cfg, len(hops)+1, false)
	h.fwd, h.back = fwd, back
	o.publishLocked(h)
	o.role = roleJoined
	return h, nil
}

// Rendezvous is the service's half: it sends RENDEZVOUS with payload to the last hop,
// which is the rendezvous point, and returns the streams that the client will open.
// Nothing more is sent before the client's first body has come. That is given to
// open, once, on the link's reader: open must not wait nor keep it, and returns the
// keys; when it fails, the circuit is destroyed. After an error of Rendezvous the
// circuit is destroyed too.
func (o *Origin) Rendezvous(payload []byte, cfg JoinConfig, open func(first []byte) (forward, backward [32]byte, err error)) (*stream.Mux, error) {
	if _, err := cell.ParseRendezvous(payload); err != nil {
		return nil, o.joinFailed(err)
	}
	if cfg.Handler == nil || open == nil || !cfg.Suite.Valid() {
		return nil, o.joinFailed(errors.New("Rendezvous needs a Handler, open, and a suite that is known"))
	}
	h := o.newJoined(cfg, o.Len()+1, true)
	err := o.takeRole(cell.Rendezvous, payload, roleMeeting, func() {
		o.first = &firstWait{hop: h, suite: cfg.Suite, open: open}
	})
	if err != nil {
		return nil, o.joinFailed(err)
	}
	o.out.Kick()
	return h.mux, nil
}

// joinFailed destroys the circuit because of err, unless it has ended.
func (o *Origin) joinFailed(err error) error {
	err = fmt.Errorf("circuit: joining: %w", err)
	o.destroy(cell.ReasonFinished, err)
	return err
}

// beyond takes content that the last hop passes on: the client's first body, when a
// service waits for it. Nothing else is lawful.
func (o *Origin) beyond(content []byte) error {
	o.mu.Lock()
	w := o.first
	o.mu.Unlock()
	if w == nil {
		return fmt.Errorf("%w: content beyond the last hop", ErrProtocol)
	}
	if !cell.IsZero(content[cell.JoinedSize:]) {
		return fmt.Errorf("%w: bytes behind the first joined body", ErrProtocol)
	}
	forward, backward, err := w.open(content[:cell.JoinedSize])
	if err != nil {
		return fmt.Errorf("%w: the first joined body: %w", ErrProtocol, err)
	}
	fwd, err := layer.New(w.suite, backward) // away from this origin, towards the client
	if err != nil {
		return err
	}
	if w.hop.back, err = layer.New(w.suite, forward); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return nil
	}
	w.hop.fwd = fwd
	o.publishLocked(w.hop)
	o.role, o.first = roleJoined, nil
	return nil
}

// publishLocked adds a hop behind the others.
func (o *Origin) publishLocked(h *hop) {
	old := *o.hops.Load()
	grown := append(append(make([]*hop, 0, len(old)+1), old...), h)
	o.hops.Store(&grown)
}
