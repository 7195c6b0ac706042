package circuit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
	"cepa/stream"
)

// HopSpec names the relay of a hop and the keys to use with it.
type HopSpec struct {
	Identity [32]byte
	OnionKey [32]byte
	Suite    layer.Suite
}

// OriginConfig is what an Origin is made of.
type OriginConfig struct {
	Pool *cell.Pool // needed
	// Rand feeds the handshakes; crypto/rand when nil.
	Rand io.Reader
	// OnClose, when not nil, is called once when the circuit has ended, with
	// the reason. It must not wait.
	OnClose func(error)
	Flow    Flow
}

// Origin is the client's end of a circuit. Make it, open a circuit on a link
// with it as the Receiver, Attach the Outlet, and Extend hop by hop. It is
// safe for concurrent use.
type Origin struct {
	cfg OriginConfig

	hops atomic.Pointer[[]*hop] // grows by replacement; read by the link's reader

	// broken is the link's reader's: a cell was refused, and none after it is
	// taken, also while the circuit is still being taken down. A stream may
	// end early, but it must have no holes.
	broken bool

	mu      sync.Mutex // guards sealing and queueing in order, and what follows
	out     Outlet     // does not change from the first Extend on
	sending cell.List  // empty between calls; here, so that it is not allocated
	pending *question
	padding *padWait   // the exchange of padding that is under way
	role    originRole // what it is for; see ask.go
	// What the roles need:
	introduced func(payload []byte) // takes INTRODUCED
	joinReply  chan []byte          // depth 1: takes JOINED
	first      *firstWait           // takes the client's first joined body
	err        error                // why it ended
	done       chan struct{}        // closed when it ended
}

// hop is one hop of an Origin.
type hop struct {
	origin *Origin
	pos    int          // where it stands, from 1
	index  int          // of its layer: the same, or cell.JoinedIndex
	serves bool         // joined, and ours is the service's end
	fwd    *layer.State // guarded by Origin.mu
	win    window       // guarded by Origin.mu
	back   *layer.State // the link's reader
	mux    *stream.Mux  // set before the hop is published
	keys   [32]byte     // exporter
	spec   HopSpec
	took   time.Duration // from the request for it to its answer; set before the hop is published
}

// NewOrigin returns an Origin without hops.
func NewOrigin(cfg OriginConfig) *Origin {
	o := &Origin{cfg: cfg, done: make(chan struct{})}
	o.hops.Store(&[]*hop{})
	return o
}

// Attach gives the Origin its way out. It must be called once, before Extend.
func (o *Origin) Attach(out Outlet) {
	o.mu.Lock()
	o.out = out
	err := o.err
	o.mu.Unlock()
	if err != nil { // the link died in between
		out.Destroy(cell.ReasonFinished)
	}
}

// Len returns the number of hops, with the joined one, if there is one.
func (o *Origin) Len() int { return len(*o.hops.Load()) }

// Done returns a channel that is closed when the circuit has ended.
func (o *Origin) Done() <-chan struct{} { return o.done }

// Err returns why the circuit ended, or nil while it lives.
func (o *Origin) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// Mux returns the streams over the last hop, or nil before the first.
func (o *Origin) Mux() *stream.Mux {
	hops := *o.hops.Load()
	if len(hops) == 0 {
		return nil
	}
	return hops[len(hops)-1].mux
}

// Exporter returns a secret of 32 bytes that only the origin and the relay at
// hop k (from 1) know. It is zero for a joined hop.
func (o *Origin) Exporter(k int) [32]byte { return (*o.hops.Load())[k-1].keys }

// Flow returns how the window towards hop k (from 1) stands.
func (o *Origin) Flow(k int) FlowStatus {
	h := (*o.hops.Load())[k-1]
	o.mu.Lock()
	defer o.mu.Unlock()
	return h.win.status()
}

// Extend adds a hop and waits for it. Hops are added one at a time, to a
// circuit without streams. When the relay before it says that it cannot extend,
// the error is a cell.ExtendError and the circuit lives; so it does when the
// call was wrong and nothing was sent. After any other error, a ctx that ended
// included, it is destroyed, since there is no way back.
func (o *Origin) Extend(ctx context.Context, spec HopSpec) error {
	k := o.Len() + 1
	init, err := handshake.NewHopInitiator(handshake.HopParams{
		Identity: spec.Identity, OnionKey: spec.OnionKey, Index: uint8(k), Suite: uint8(spec.Suite),
	}, o.cfg.Rand)
	if err != nil {
		return fmt.Errorf("circuit: hop %d: %w", k, err)
	}
	p := newQuestion(cell.Extended)
	if err := o.reserve(k, p); err != nil {
		return err
	}
	asked := time.Now()
	if err := o.askHop(k, spec, init.Message1()); err != nil {
		o.destroy(cell.ReasonResource, fmt.Errorf("%w: hop %d: %w", ErrDestroyed, k, err))
		return o.Err()
	}
	o.out.Kick()
	var reply []byte
	select {
	case reply = <-p.reply:
	case err := <-p.fail:
		return err
	case <-o.done:
		return o.Err()
	case <-ctx.Done():
		err := fmt.Errorf("circuit: hop %d: %w", k, ctx.Err())
		o.destroy(cell.ReasonFinished, err)
		return err
	}
	took := time.Since(asked)
	keys, err := init.Finish(reply)
	if err != nil {
		err = fmt.Errorf("%w: hop %d: %w", ErrProtocol, k, err)
		o.destroy(cell.ReasonProtocol, err)
		return err
	}
	return o.addHop(k, spec, keys, took)
}

// reserve makes p the one pending hop, which will be hop k.
func (o *Origin) reserve(k int, p *question) error {
	// Asked before mu is taken: the lock of the Mux comes first in the order.
	mux := o.Mux()
	busy := mux != nil && mux.Len() > 0
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.err != nil:
		return o.err
	case o.out == nil:
		return errors.New("circuit: Extend before Attach")
	case o.pending != nil || o.padding != nil || k != o.Len()+1:
		return errors.New("circuit: another Extend, or PadSetup, is under way")
	case o.role != noRole:
		return errors.New("circuit: Extend of a circuit that has a role of an onion service")
	case busy:
		return errors.New("circuit: Extend of a circuit that carries streams")
	}
	o.pending = p
	return nil
}

// askHop sends CREATE or EXTEND.
func (o *Origin) askHop(k int, spec HopSpec, message1 []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	id := handshake.KeyID(spec.OnionKey)
	if k == 1 {
		c := o.cfg.Pool.Get()
		c.SetCommand(cell.Create)
		body := cell.CreateBody{Index: 1, KeyID: id, Suite: uint8(spec.Suite), Message1: message1}
		c.SetBody(body.AppendTo(make([]byte, 0, cell.BodySize)))
		var l cell.List
		l.Push(c)
		return o.out.Send(&l)
	}
	hops := *o.hops.Load()
	body := cell.ExtendBody{Identity: spec.Identity, KeyID: id, Suite: uint8(spec.Suite), Message1: message1}
	return o.sendLocked(hops[k-2], cell.Extend, 0, body.AppendTo(make([]byte, 0, cell.ExtendSize)))
}

func (o *Origin) addHop(k int, spec HopSpec, keys *handshake.Keys, took time.Duration) error {
	h := &hop{origin: o, pos: k, index: k, spec: spec, keys: keys.Exporter, win: newWindow(o.cfg.Flow), took: took}
	var err error
	if h.fwd, err = layer.New(spec.Suite, keys.Forward); err == nil {
		h.back, err = layer.New(spec.Suite, keys.Backward)
	}
	if err != nil {
		o.destroy(cell.ReasonProtocol, err)
		return err
	}
	h.mux = stream.NewMux(stream.Config{Carrier: h, Pool: o.cfg.Pool})
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	o.publishLocked(h)
	o.pending = nil
	return nil
}

// Receive implements Receiver.
func (o *Origin) Receive(cmd cell.Command, body []byte) {
	if o.broken {
		return
	}
	var err error
	switch cmd {
	case cell.Created:
		err = o.created(body)
	case cell.Relay:
		err = o.open(body)
	default:
		err = fmt.Errorf("%w: %s from the first relay", ErrProtocol, cmd)
	}
	if err != nil {
		o.broken = true
		o.destroy(cell.ReasonProtocol, err)
	}
}

// Flush implements Receiver. What an Origin answers is on the link already.
func (o *Origin) Flush() {}

// Kick implements Receiver. There is no other side.
func (o *Origin) Kick() {}

// Closed implements Receiver.
func (o *Origin) Closed(reason cell.Reason) {
	o.end(fmt.Errorf("%w: %s", ErrDestroyed, reason))
}

// Close destroys the circuit; its streams end with ErrClosed.
func (o *Origin) Close() { o.destroy(cell.ReasonFinished, ErrClosed) }

func (o *Origin) destroy(reason cell.Reason, err error) {
	if out := o.end(err); out != nil {
		out.Destroy(reason)
	}
}

// end marks the circuit as ended, once, and returns its Outlet then.
func (o *Origin) end(err error) Outlet {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return nil
	}
	o.err = err
	out := o.out
	first := o.first
	o.first = nil
	close(o.done)
	o.mu.Unlock()
	if first != nil {
		first.hop.mux.Close(err)
	}
	for _, h := range *o.hops.Load() {
		h.mux.Close(err)
	}
	if o.cfg.OnClose != nil {
		o.cfg.OnClose(err)
	}
	return out
}
