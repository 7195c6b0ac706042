package circuit

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
	"cepa/stream"
)

// Handler does for a Transit what takes time. Its methods are called on a
// link's reader: they start work elsewhere and return.
type Handler interface {
	stream.Handler
	// Extend is asked to lengthen the circuit. It answers with Connect, once
	// it has a circuit on a link to the next relay with Next as Receiver,
	// or with ExtendFailed. e is the Handler's own.
	Extend(t *Transit, e cell.ExtendBody)
	// EstablishIntro is asked to be an introduction point. It answers with
	// INTRO_ESTABLISHED, or destroys the circuit.
	EstablishIntro(t *Transit, b cell.EstablishIntroBody)
	// IntroWork is told which work to ask for; t is an introduction point.
	IntroWork(t *Transit, b cell.IntroWorkBody)
	// Introduce is asked to pass an introduction on. It answers with
	// INTRODUCE_ACK.
	Introduce(t *Transit, b cell.IntroduceBody)
	// EstablishRendezvous is asked to be a rendezvous point. It answers with
	// RENDEZVOUS_ESTABLISHED, or destroys the circuit.
	EstablishRendezvous(t *Transit, cookie [cell.CookieSize]byte)
	// Rendezvous is asked to join t to the circuit that waits with this cookie:
	// Join, or destroys the circuit.
	Rendezvous(t *Transit, b cell.RendezvousBody)
	// Closed is called once, when the circuit has ended.
	Closed(t *Transit)
}

// TransitConfig is what a Transit is made of. All but Local are needed.
type TransitConfig struct {
	Pool    *cell.Pool
	Handler Handler
	Prev    Outlet // towards the origin
	Index   uint8  // this relay's hop index, 1…cell.MaxHops
	Suite   layer.Suite
	Keys    *handshake.Keys
	// Local is what the circuit's streams answer as their remote address: a
	// word without meaning to anybody else.
	Local net.Addr
	Flow  Flow
}

// Transit is a relay's part of a circuit: one side towards the origin and,
// once it has been extended, one towards the exit. It either extends, or
// carries streams, or has a role of an onion service. It is safe for concurrent
// use.
//
// State of the far side, guarded by mu:
//
//	alone -> asked (EXTEND) -> creating (CREATE sent) -> extended
//	 |        |                  |
//	 |        +------------------+--> alone (EXTEND_FAILED)
//	 +-> introductionAsked (ESTABLISH_INTRO) -> introductionPoint
//	 +-> introducing (INTRODUCE) -> introduced
//	 +-> rendezvousAsked (ESTABLISH_RENDEZVOUS) -> rendezvousPoint -> joinedTo
//	 +-> rendezvousMet (RENDEZVOUS) -> joinedTo
type Transit struct {
	cfg TransitConfig
	k   int // hop index
	mux *stream.Mux

	exporter [32]byte // of the handshake

	// The reader of the previous link alone:
	fwd    *layer.State
	out    cell.List // opened, waiting for Flush
	broken bool      // a cell was refused; see Origin.broken

	next   atomic.Pointer[Outlet] // set once extended or joined
	joined bool                   // set before next: next is a joint

	mu       sync.Mutex // guards sealing and queueing towards the origin in order, and what follows
	back     *layer.State
	win      window
	backList cell.List // sealed, waiting for Flush
	state    farState
	side     *nextSide // the present attempt
	nextOut  Outlet    // its Outlet, from creating on, or the joint
	pad      padding   // what of it the origin has asked for
	err      error     // why it ended
}

type farState uint8

const (
	alone farState = iota
	asked
	creating
	extended
	introductionAsked
	introductionPoint
	introducing
	introduced
	rendezvousAsked
	rendezvousPoint
	rendezvousMet
	joinedTo
)

// NewTransit returns the relay's part of a circuit with the keys of its
// handshake.
func NewTransit(cfg TransitConfig) (*Transit, error) {
	if cfg.Index < 1 || cfg.Index > cell.MaxHops {
		return nil, fmt.Errorf("circuit: hop index %d is not 1…%d", cfg.Index, cell.MaxHops)
	}
	t := &Transit{cfg: cfg, k: int(cfg.Index), exporter: cfg.Keys.Exporter, win: newWindow(cfg.Flow)}
	var err error
	if t.fwd, err = layer.New(cfg.Suite, cfg.Keys.Forward); err != nil {
		return nil, err
	}
	if t.back, err = layer.New(cfg.Suite, cfg.Keys.Backward); err != nil {
		return nil, err
	}
	t.mux = stream.NewMux(stream.Config{Carrier: t, Pool: cfg.Pool, Handler: cfg.Handler, Remote: cfg.Local})
	return t, nil
}

// Index returns the hop index.
func (t *Transit) Index() uint8 { return uint8(t.k) }

// Streams returns how many streams are open here.
func (t *Transit) Streams() int { return t.mux.Len() }

// Created sends CREATED with the reply of the handshake.
func (t *Transit) Created(reply []byte) error {
	c := t.cfg.Pool.Get()
	c.SetCommand(cell.Created)
	c.SetBody(reply)
	var l cell.List
	l.Push(c)
	err := t.cfg.Prev.Send(&l)
	t.cfg.Prev.Kick()
	return err
}

// Close destroys the circuit on both sides.
func (t *Transit) Close(reason cell.Reason) { t.destroy(reason, reason, ErrClosed) }

// destroy ends the circuit, once, telling each side its reason; noTell: that
// side knows already.
func (t *Transit) destroy(prev, next cell.Reason, err error) { t.end(prev, next, err, t.mux.Close) }

// end is destroy with a way to end the streams.
func (t *Transit) end(prev, next cell.Reason, err error, endStreams func(error)) {
	t.mu.Lock()
	if t.err != nil {
		t.mu.Unlock()
		return
	}
	t.err = err
	nextOut := t.nextOut
	t.cfg.Pool.PutList(&t.backList)
	t.pad.stop()
	t.mu.Unlock()
	endStreams(err)
	if prev != noTell {
		t.cfg.Prev.Destroy(prev)
	}
	if nextOut != nil && next != noTell {
		nextOut.Destroy(next)
	}
	t.cfg.Handler.Closed(t)
}

// noTell is not a reason of the wire.
const noTell cell.Reason = 255

// Prev returns the side towards the origin.
func (t *Transit) Prev() Receiver { return prevSide{t} }

type prevSide struct{ t *Transit }

// Receive takes a cell on its way to the exit.
func (s prevSide) Receive(cmd cell.Command, body []byte) {
	if s.t.broken {
		return
	}
	if err := s.t.forward(cmd, body); err != nil {
		s.t.broken = true
		reason := cell.ReasonProtocol
		if errors.Is(err, errRefused) {
			reason = cell.ReasonRefused
		}
		s.t.destroy(reason, cell.ReasonNone, err)
	}
}

func (s prevSide) Flush() {
	t := s.t
	if t.out.Len() == 0 {
		return
	}
	next := t.next.Load()
	if next == nil {
		t.cfg.Pool.PutList(&t.out)
		return
	}
	if err := (*next).Send(&t.out); err != nil {
		t.destroy(cell.ReasonNone, cell.ReasonResource, fmt.Errorf("%w: next side: %w", ErrDestroyed, err))
	}
}

func (s prevSide) Kick() {
	if next := s.t.next.Load(); next != nil {
		(*next).Kick()
	}
}

func (s prevSide) Closed(reason cell.Reason) {
	s.t.destroy(noTell, cell.ReasonNone, fmt.Errorf("%w: previous side: %s", ErrDestroyed, reason))
}

// forward peels this hop's layer and passes the inner body on, or takes the
// message in it.
func (t *Transit) forward(cmd cell.Command, body []byte) error {
	if cmd != cell.Relay {
		return fmt.Errorf("%w: %s from the previous side", ErrProtocol, cmd)
	}
	n := sealedSize(t.k)
	var tag [cell.TagSize]byte
	copy(tag[:], body[n-cell.TagSize:n])
	c := t.cfg.Pool.Get()
	dst := c.Body()
	kind, err := openLayer(t.fwd, t.k, dst, body)
	if err == nil && kind == kindForward {
		switch {
		case t.next.Load() == nil:
			err = fmt.Errorf("%w: content for a next hop that is not there", ErrProtocol)
		case t.joined && !cell.IsZero(dst[cell.JoinedSize:innerSize(t.k)]):
			err = fmt.Errorf("%w: bytes behind a joined body", ErrProtocol)
		default:
			clear(dst[innerSize(t.k):])
			c.SetCommand(cell.Relay)
			t.out.Push(c)
			return nil
		}
	}
	kept := false
	if err == nil {
		kept, err = t.message(dst[:innerSize(t.k)], kind == kindAsking, tag, c)
	}
	if !kept {
		t.cfg.Pool.Put(c)
	}
	return err
}

// message takes one message for this hop, which may ask for an ACK. kept says
// that c was taken over.
func (t *Transit) message(inner []byte, asks bool, tag [cell.TagSize]byte, c *cell.Cell) (kept bool, err error) {
	m, err := cell.ParseMessage(inner)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if asks {
		if !m.Command.Rule().Counts {
			return false, fmt.Errorf("%w: %s asks for an ACK", ErrProtocol, m.Command)
		}
		if err := t.Send(cell.Ack, 0, tag[:]); err != nil {
			return false, err
		}
	}
	t.mu.Lock()
	lawful := t.state.takes(m.Command.Rule().Relay)
	t.mu.Unlock()
	if !lawful {
		return false, fmt.Errorf("%w: %s at hop %d", ErrProtocol, m.Command, t.k)
	}
	switch m.Command {
	case cell.Ack:
		return false, t.acked(m.Payload)
	case cell.Extend:
		return false, t.extend(m.Payload)
	case cell.PadNegotiate:
		return false, t.padNegotiate(m.Payload)
	case cell.Drop:
		return false, t.padDone(m.Payload)
	case cell.EstablishIntro, cell.IntroWork, cell.Introduce, cell.EstablishRendezvous, cell.Rendezvous:
		return false, t.role(m)
	default:
		kept, err := t.mux.Handle(m, c)
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		return kept, err
	}
}

func (t *Transit) acked(p []byte) error {
	tag, err := cell.ParseAck(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	t.mu.Lock()
	reopened, err := t.win.acked(tag)
	t.mu.Unlock()
	if reopened {
		t.mux.WindowOpened()
	}
	return err
}

// Send implements stream.Carrier: one message from this hop to the origin.
func (t *Transit) Send(cmd cell.MessageCommand, id uint16, payload []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sendLocked(cmd, id, payload)
}

func (t *Transit) sendLocked(cmd cell.MessageCommand, id uint16, payload []byte) error {
	if t.err != nil {
		return t.err
	}
	c := t.cfg.Pool.Get()
	err := t.sealLocked(c, cmd, id, payload)
	t.backList.Push(c) // behind what was sealed before it
	if err == nil {
		err = t.cfg.Prev.Send(&t.backList)
	}
	if err != nil {
		t.failed(err)
	}
	return err
}

// failed destroys the circuit after a send that failed; see Origin.failed.
func (t *Transit) failed(err error) {
	if t.err == nil {
		go t.destroy(cell.ReasonResource, cell.ReasonNone, fmt.Errorf("%w: previous side: %w", ErrDestroyed, err))
	}
}

// RTT implements stream.Carrier.
func (t *Transit) RTT() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.win.rttMin
}

// Kick implements stream.Carrier.
func (t *Transit) Kick() { t.cfg.Prev.Kick() }

// SendData implements stream.Carrier.
func (t *Transit) SendData(id uint16, p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return 0, t.err
	}
	n, err := sendData(&t.win, t.cfg.Pool, t.cfg.Prev, &t.backList, cell.Room(t.k), p, func(c *cell.Cell, part []byte) error {
		return t.sealLocked(c, cell.Data, id, part)
	})
	if err != nil {
		t.failed(err)
	}
	return n, err
}

func (t *Transit) sealLocked(c *cell.Cell, cmd cell.MessageCommand, id uint16, payload []byte) error {
	c.SetCommand(cell.Relay)
	body := c.Body()
	cell.PutMessage(body[:innerSize(t.k)], cmd, id, payload)
	counts := cmd.Rule().Counts
	asks := counts && t.win.asks()
	sealLayer(t.back, t.k, messageKind(asks), body, body)
	n := sealedSize(t.k)
	clear(body[n:])
	if counts {
		return t.win.sent(body[n-cell.TagSize:n], asks)
	}
	return nil
}
