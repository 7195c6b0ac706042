package stream

import (
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"cepa/cell"
)

// errLost is how the tests lose a circuit.
var errLost = errors.New("the test's circuit was lost")

// carrier is a Carrier whose messages lie in a queue until deliver hands them
// to the Mux at the other end. It stands for one direction of a hop: with room
// bytes a DATA message and a window that opens by 32.
type carrier struct {
	pool   *cell.Pool
	room   int
	window int // DATA waits while this many messages are unacknowledged

	mu      sync.Mutex // last in the order, like the lock of a circuit
	cond    sync.Cond
	held    cell.List // until Kick
	rtt     time.Duration
	queue   cell.List
	unacked int
	partial int
	blocked bool
	err     error
	sent    map[cell.MessageCommand]int
}

func (c *carrier) Send(cmd cell.MessageCommand, id uint16, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.putLocked(cmd, id, payload)
	return nil
}

func (c *carrier) putLocked(cmd cell.MessageCommand, id uint16, payload []byte) {
	x := c.pool.Get()
	cell.PutMessage(x.Body()[:c.room+cell.MessageHeaderSize], cmd, id, payload)
	c.held.Push(x)
	c.sent[cmd]++
	c.unacked++
}

func (c *carrier) RTT() time.Duration { return c.rtt }

// Kick lets go what is held; without it the other end gets nothing.
func (c *carrier) Kick() {
	c.mu.Lock()
	c.queue.Append(&c.held)
	c.cond.Signal()
	c.mu.Unlock()
}

func (c *carrier) SendData(id uint16, p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	sent := 0
	for range min(46, c.window-c.unacked) {
		k := min(len(p)-sent, c.room)
		if k == 0 {
			break
		}
		c.putLocked(cell.Data, id, p[sent:sent+k])
		sent += k
	}
	c.blocked = c.blocked || sent == 0
	return sent, nil
}

// take returns the next message, and whether taking it has opened the window
// for somebody who waits.
func (c *carrier) take(wait bool) (x *cell.Cell, reopened bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for wait && c.queue.Len() == 0 && c.err == nil {
		c.cond.Wait()
	}
	if x = c.queue.Pop(); x == nil {
		return nil, false
	}
	if c.partial++; c.partial == 32 {
		c.partial = 0
		c.unacked -= 32
		reopened = c.blocked && c.unacked < c.window
		c.blocked = c.blocked && !reopened
	}
	return x, reopened
}

func (c *carrier) fail(err error) {
	c.mu.Lock()
	c.err = err
	c.pool.PutList(&c.queue)
	c.pool.PutList(&c.held)
	c.cond.Broadcast()
	c.mu.Unlock()
}

// relayHandler gives what the origin asks for to a test's functions.
type relayHandler struct {
	begin    func(*Stream, cell.BeginBody)
	beginDir func(*Stream)
	resolve  func(*Lookup, cell.ResolveBody)
}

func (h *relayHandler) Begin(s *Stream, b cell.BeginBody)     { h.begin(s, b) }
func (h *relayHandler) BeginDir(s *Stream)                    { h.beginDir(s) }
func (h *relayHandler) Resolve(l *Lookup, b cell.ResolveBody) { h.resolve(l, b) }

// pair is the two Muxes of one hop, joined by plain function calls.
type pair struct {
	t             testing.TB
	pool          *cell.Pool
	handler       *relayHandler
	origin, relay *Mux
	out, back     *carrier  // towards the relay, towards the origin
	begun         []*Stream // what the relay was asked for
	lookups       []*Lookup
	running       sync.WaitGroup
}

func newPair(t testing.TB) *pair {
	p := &pair{t: t, pool: new(cell.Pool), handler: new(relayHandler)}
	p.handler.begin = func(s *Stream, _ cell.BeginBody) { p.begun = append(p.begun, s) }
	p.handler.beginDir = func(s *Stream) { p.begun = append(p.begun, s) }
	p.handler.resolve = func(l *Lookup, _ cell.ResolveBody) { p.lookups = append(p.lookups, l) }
	for _, c := range []**carrier{&p.out, &p.back} {
		*c = &carrier{pool: p.pool, room: cell.Room(3), window: 512, sent: map[cell.MessageCommand]int{}}
		(*c).cond.L = &(*c).mu
	}
	p.origin = NewMux(Config{Carrier: p.out, Pool: p.pool})
	p.relay = NewMux(Config{Carrier: p.back, Pool: p.pool, Handler: p.handler})
	return p
}

// deliver hands one message over, towards the relay or the origin, and reports
// whether there was one.
func (p *pair) deliver(toRelay, wait bool) (bool, error) {
	c, from, to := p.back, p.relay, p.origin
	if toRelay {
		c, from, to = p.out, p.origin, p.relay
	}
	x, reopened := c.take(wait)
	if x == nil {
		return false, nil
	}
	m, err := cell.ParseMessage(x.Body()[:c.room+cell.MessageHeaderSize])
	if err != nil {
		p.t.Errorf("a malformed message was sent: %v", err)
	}
	kept, err := to.Handle(m, x)
	to.cfg.Carrier.Kick() // as a link does after a batch
	if !kept {
		p.pool.Put(x)
	}
	if reopened {
		from.WindowOpened()
	}
	return true, err
}

// settle delivers until nothing is under way.
func (p *pair) settle() {
	p.t.Helper()
	for {
		a, err := p.deliver(true, false)
		if err != nil {
			p.t.Fatalf("at the relay: %v", err)
		}
		b, err := p.deliver(false, false)
		if err != nil {
			p.t.Fatalf("at the origin: %v", err)
		}
		if !a && !b {
			return
		}
	}
}

// run delivers in two goroutines, as two links do, until close.
func (p *pair) run() {
	for _, toRelay := range []bool{true, false} {
		p.running.Go(func() {
			for {
				more, err := p.deliver(toRelay, true)
				if err != nil {
					p.t.Errorf("to the relay %v: %v", toRelay, err)
				}
				if !more {
					return
				}
			}
		})
	}
}

// lose ends the circuit on both sides.
func (p *pair) lose(err error) {
	p.out.fail(err)
	p.back.fail(err)
	p.origin.Close(err)
	p.relay.Close(err)
	p.running.Wait()
}

// open returns the two ends of a new stream that the relay has accepted.
func (p *pair) open() (near, far *Stream) {
	p.t.Helper()
	near, err := p.origin.Open(cell.BeginBody{Host: "example.test", Port: 80})
	if err != nil {
		p.t.Fatal(err)
	}
	p.settle()
	far = p.begun[len(p.begun)-1]
	if err := far.Accept(cell.ConnectedBody{}); err != nil {
		p.t.Fatal(err)
	}
	p.settle()
	return near, far
}

// done closes streams and checks that neither side holds anything any more.
func (p *pair) done(streams ...*Stream) {
	p.t.Helper()
	for _, s := range streams {
		s.Close()
	}
	p.settle()
	p.empty()
}

// forgotten checks that both sides have forgotten all streams.
func (p *pair) forgotten(what string) {
	p.t.Helper()
	if a, b := p.origin.Len(), p.relay.Len(); a != 0 || b != 0 {
		p.t.Errorf("%s: %d streams are left at the origin, %d at the relay", what, a, b)
	}
}

func (p *pair) empty() {
	p.t.Helper()
	p.forgotten("at the end")
	if n := p.origin.closing + p.relay.closing; n != 0 {
		p.t.Errorf("%d streams count as unanswered", n)
	}
	if n := p.pool.Outstanding(); n != 0 {
		p.t.Errorf("%d cells were not returned", n)
	}
}

// handle gives m one message as its peer might, and returns its verdict.
func (p *pair) handle(m *Mux, cmd cell.MessageCommand, id uint16, payload []byte) error {
	x := p.pool.Get()
	cell.PutMessage(x.Body(), cmd, id, payload)
	msg, err := cell.ParseMessage(x.Body())
	if err != nil {
		p.t.Fatal(err)
	}
	kept, err := m.Handle(msg, x)
	m.cfg.Carrier.Kick()
	if !kept {
		p.pool.Put(x)
	}
	if err != nil && (!errors.Is(err, ErrUnlawful) || kept) {
		p.t.Errorf("%v: error %v does not say that it is unlawful, or a cell was kept (%v)", cmd, err, kept)
	}
	return err
}

// readNow reads what s holds without waiting for more.
func readNow(t testing.TB, s *Stream) (data []byte, err error) {
	t.Helper()
	buf := make([]byte, 1000)
	for {
		n, err := s.tryRead(buf)
		data = append(data, buf[:n]...)
		if n == 0 {
			return data, err
		}
	}
}

// wantRead checks what can be read without waiting, and the error after it.
func wantRead(t testing.TB, s *Stream, data string, want error) {
	t.Helper()
	got, err := readNow(t, s)
	if string(got) != data || !errors.Is(err, want) || want == nil && err != nil || errors.Is(err, io.EOF) != (want == io.EOF) {
		t.Errorf("stream %d: read %q, then %v; want %q, then %v", s.id, got, err, data, want)
	}
}

func mustWrite(t testing.TB, s *Stream, data string) {
	t.Helper()
	if n, err := s.Write([]byte(data)); n != len(data) || err != nil {
		t.Errorf("stream %d: wrote %d of %d bytes, error %v", s.id, n, len(data), err)
	}
}
