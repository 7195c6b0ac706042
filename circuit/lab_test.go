package circuit

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/layer"
	"cepa/stream"
)

// tube is one direction of one circuit on one link of a lab: an Outlet in which
// cells lie until settle moves them. Users of streams may send at any time; all
// else is the test's goroutine.
type tube struct {
	pool  *cell.Pool
	to    Receiver
	back  *tube // the other direction
	limit int
	moved int       // cells delivered
	seen  *[][]byte // when not nil: their bodies
	told  bool      // the other side has heard Closed

	mu     sync.Mutex
	cells  cell.List
	frozen bool // settle leaves it alone
	gone   bool // destroyed by the side that sends into it
	dead   bool // that side has heard Closed: it is no use any more
	reason cell.Reason
}

func (w *tube) Send(l *cell.List) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone || w.dead || w.cells.Len()+l.Len() > w.limit {
		w.pool.PutList(l)
		return ErrClosed
	}
	w.cells.Append(l)
	return nil
}

// Kick implements Outlet. What is in the tube goes when the test says so.
func (w *tube) Kick() {}

func (w *tube) Destroy(reason cell.Reason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.gone {
		w.gone, w.reason = true, reason
	}
	w.pool.PutList(&w.cells)
}

func (w *tube) destroyed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone
}

// kill ends the tube because its far end is gone.
func (w *tube) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
	w.pool.PutList(&w.cells)
}

// lose cuts the link: both sides hear of it, unless they ended the circuit.
func (w *tube) lose() {
	for _, x := range []*tube{w, w.back} {
		x.kill()
		x.told = true
		if !x.back.destroyed() {
			x.to.Closed(cell.ReasonLinkLost)
		}
	}
}

// move delivers one batch, or the end, as a link's reader does.
func (w *tube) move() (moved bool) {
	w.mu.Lock()
	if w.frozen || w.told || w.dead || !w.gone && w.cells.Len() == 0 {
		w.mu.Unlock()
		return false
	}
	var cells cell.List
	for w.cells.Len() > 0 && cells.Len() < batch {
		cells.Push(w.cells.Pop())
	}
	w.told = w.gone
	w.mu.Unlock()
	if w.told {
		if !w.back.destroyed() {
			w.back.kill()
			w.to.Closed(w.reason)
		}
		return true
	}
	for c := cells.Pop(); c != nil; c = cells.Pop() {
		if !w.back.destroyed() { // after its own Destroy nothing reaches a side
			if w.seen != nil {
				*w.seen = append(*w.seen, append([]byte(nil), c.Body()...))
			}
			w.to.Receive(c.Command(), c.Body())
			w.moved++
		}
		w.pool.Put(c)
	}
	w.to.Flush()
	w.to.Kick()
	return true
}

// lab is a circuit without goroutines, handshakes and links, in which nothing
// moves but by settle. Its keys are known.
type lab struct {
	t      testing.TB
	pool   *cell.Pool
	suite  layer.Suite
	origin *Origin
	relays []*labRelay
	keys   []*handshake.Keys
	// out[k] carries towards hop k+1, in[k] from it.
	out, in []*tube
	cause   error // why the origin ended
	streams []*stream.Stream
}

// labRelay is the Handler of one relay: it accepts every stream.
type labRelay struct {
	*Transit
	onionNode
	refuse  bool // do not accept
	begun   []*stream.Stream
	lookups []*stream.Lookup
	extends []cell.ExtendBody
	closed  int
}

func (r *labRelay) Begin(s *stream.Stream, _ cell.BeginBody) {
	r.begun = append(r.begun, s)
	if !r.refuse {
		s.Accept(cell.ConnectedBody{})
	}
}
func (r *labRelay) BeginDir(s *stream.Stream) { r.Begin(s, cell.BeginBody{}) }
func (r *labRelay) Resolve(l *stream.Lookup, _ cell.ResolveBody) {
	r.lookups = append(r.lookups, l)
}
func (r *labRelay) Extend(_ *Transit, e cell.ExtendBody) { r.extends = append(r.extends, e) }
func (r *labRelay) Closed(*Transit)                      { r.closed++ }

func newLab(t testing.TB, hops int, suite layer.Suite) *lab {
	return newLabIn(t, new(cell.Pool), hops, suite)
}

func newLabIn(t testing.TB, pool *cell.Pool, hops int, suite layer.Suite) *lab {
	l := &lab{t: t, pool: pool, suite: suite}
	l.origin = NewOrigin(OriginConfig{Pool: l.pool, OnClose: func(err error) { l.cause = err }})
	var side Receiver = l.origin
	for k := 1; k <= hops; k++ {
		keys := &handshake.Keys{}
		for i, key := range []*[32]byte{&keys.Forward, &keys.Backward, &keys.Exporter} {
			key[0], key[1] = byte(k), byte(i+1)
		}
		l.keys = append(l.keys, keys)
		out, in := l.tubes(side)
		r := new(labRelay)
		var err error
		r.Transit, err = NewTransit(TransitConfig{Pool: l.pool, Handler: r, Prev: in, Index: uint8(k), Suite: suite, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		out.to = r.Prev()
		if k == 1 {
			l.origin.Attach(out)
		} else {
			l.relays[k-2].joined(side.(*nextSide), out)
		}
		l.relays = append(l.relays, r)
		if err := l.origin.addHop(k, HopSpec{Suite: suite}, keys, 0); err != nil {
			t.Fatal(err)
		}
		if k < hops {
			side = r.Next()
		}
	}
	return l
}

// nobody is at the far end of a link until there is a relay.
type nobody struct{}

func (nobody) Receive(cell.Command, []byte) {}
func (nobody) Flush()                       {}
func (nobody) Kick()                        {}
func (nobody) Closed(cell.Reason)           {}

// tubes adds a link whose near end is side.
func (l *lab) tubes(side Receiver) (out, in *tube) {
	out, in = &tube{pool: l.pool, limit: QueueCells, to: nobody{}}, &tube{pool: l.pool, limit: QueueCells, to: side}
	out.back, in.back = in, out
	l.out, l.in = append(l.out, out), append(l.in, in)
	return out, in
}

// joined makes a relay extended, as if CREATED had come.
func (r *labRelay) joined(side *nextSide, out Outlet) {
	r.mu.Lock()
	r.state, r.side, r.nextOut = extended, side, out
	r.mu.Unlock()
	r.next.Store(&out)
}

// settle moves cells until nothing can move.
func (l *lab) settle() {
	for l.move() {
	}
}

// move lets each link move what it has, and tells whether there was anything.
func (l *lab) move() (moved bool) {
	for k := range l.out {
		for l.out[k].move() || l.in[k].move() {
			moved = true
		}
	}
	return moved
}

func (l *lab) exit() *labRelay { return l.relays[len(l.relays)-1] }

// open returns the ends of a new stream to the last hop.
func (l *lab) open() (near, far *stream.Stream) {
	l.t.Helper()
	near, err := l.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
	if err != nil {
		l.t.Fatal(err)
	}
	l.settle()
	l.streams = append(l.streams, near)
	return near, l.exit().begun[len(l.exit().begun)-1]
}

// verdict says where the circuit was found faulty: "origin", "hop k", or "" when
// it lives. Everybody must have heard of it.
func (l *lab) verdict() string {
	l.t.Helper()
	var at []string
	ended := 0
	note := func(who string, err error) {
		if err != nil {
			ended++
		}
		if errors.Is(err, ErrProtocol) {
			at = append(at, who)
		}
	}
	note("origin", l.origin.Err())
	for i, r := range l.relays {
		note(fmt.Sprint("hop ", i+1), r.err)
		if (r.closed == 1) != (r.err != nil) || r.closed > 1 {
			l.t.Errorf("hop %d: the Handler heard of %d ends, the circuit's error is %v", i+1, r.closed, r.err)
		}
	}
	if ended != 0 && ended != 1+len(l.relays) {
		l.t.Errorf("of %d parties only %d know that the circuit ended", 1+len(l.relays), ended)
	}
	return strings.Join(at, ", ")
}

// end makes sure that the circuit has ended, so that a test that found that it
// has not does not wait for ever.
func (l *lab) end() {
	for k := range l.out {
		l.out[k].frozen, l.in[k].frozen = false, false
	}
	l.origin.Close()
	l.settle()
}

// close ends everything and checks that no cell is missing.
func (l *lab) close() {
	l.t.Helper()
	l.end()
	for _, s := range l.streams {
		s.Close()
	}
	for _, r := range l.relays {
		for _, s := range r.begun {
			s.Close()
		}
	}
	if n := l.pool.Outstanding(); n != 0 {
		l.t.Errorf("%d cells were not returned", n)
	}
}

// raw seals an inner body, for hop k from the origin or from hop k to it, as a
// party that has the keys but does not keep to the rules could.
func (l *lab) rawOut(k int, kind byte, inner []byte) {
	l.t.Helper()
	o := l.origin
	c := o.cfg.Pool.Get()
	c.SetCommand(cell.Relay)
	body := c.Body()
	copy(body, inner)
	clear(body[len(inner):])
	hops := *o.hops.Load()
	for ; k >= 1; k-- {
		sealLayer(hops[k-1].fwd, k, kind, body, body)
		kind = kindForward
	}
	var list cell.List
	list.Push(c)
	if err := o.out.Send(&list); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) rawIn(k int, kind byte, inner []byte) {
	l.t.Helper()
	r := l.relays[k-1]
	c := r.cfg.Pool.Get()
	c.SetCommand(cell.Relay)
	body := c.Body()
	copy(body, inner)
	clear(body[len(inner):])
	sealLayer(r.back, k, kind, body, body)
	clear(body[sealedSize(k):])
	var list cell.List
	list.Push(c)
	if err := r.cfg.Prev.Send(&list); err != nil {
		l.t.Fatal(err)
	}
}

// readAll reads what a stream of a dead circuit still holds, and the error then.
func readAll(t testing.TB, s *stream.Stream) (string, error) {
	t.Helper()
	got, err := io.ReadAll(s)
	if err == nil {
		t.Error("a stream of a circuit that was destroyed ends with io.EOF")
	}
	return string(got), err
}

func mustWrite(t testing.TB, s *stream.Stream, data string) {
	t.Helper()
	if n, err := s.Write([]byte(data)); n != len(data) || err != nil {
		t.Errorf("wrote %d of %d bytes, error %v", n, len(data), err)
	}
}

// TestLab: the lab itself carries data both ways.
func TestLab(t *testing.T) {
	for hops := 1; hops <= cell.MaxHops; hops++ {
		l := newLab(t, hops, layer.AES256GCM)
		near, far := l.open()
		for i := range 100 {
			for _, s := range []*stream.Stream{near, far} {
				mustWrite(t, s, fmt.Sprint("cell ", i))
			}
			l.settle()
			for _, s := range []*stream.Stream{near, far} {
				buf := make([]byte, 100)
				if n, err := s.Read(buf); string(buf[:n]) != fmt.Sprint("cell ", i) || err != nil {
					t.Fatalf("%d hops: read %q, error %v", hops, buf[:n], err)
				}
			}
		}
		near.Close()
		far.Close()
		l.settle()
		if v := l.verdict(); v != "" || l.origin.Err() != nil {
			t.Errorf("%d hops: ended at %q", hops, v)
		}
		l.close()
	}
}

// TestLost cuts each link of circuits of each length: both parts of the circuit
// hear of it, and nobody is told a reason across hops.
func TestLost(t *testing.T) {
	for hops := 1; hops <= cell.MaxHops; hops++ {
		for link := range hops {
			l := newLab(t, hops, layer.AES256GCM)
			near, far := l.open()
			mustWrite(t, near, "under way")
			l.settle()
			l.out[link].lose()
			l.settle()
			if v := l.verdict(); v != "" || !errors.Is(l.origin.Err(), ErrDestroyed) || !errors.Is(l.cause, ErrDestroyed) {
				t.Errorf("%d hops, link %d: %q, the origin says %v", hops, link+1, v, l.origin.Err())
			}
			for k := range hops {
				if l.out[k].reason != cell.ReasonNone || l.in[k].reason != cell.ReasonNone {
					t.Errorf("%d hops, link %d: link %d carries a reason", hops, link+1, k+1)
				}
			}
			l.end()
			if got, _ := readAll(t, far); got != "under way" {
				t.Errorf("%d hops, link %d: %q left the exit", hops, link+1, got)
			}
			l.close()
		}
	}
}
