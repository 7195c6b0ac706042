package relay

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/layer"
	"cepa/link"
	"cepa/simnet"
)

// dialled records where relays open connections to.
type dialled struct {
	mu sync.Mutex
	to []netip.AddrPort
}

func watchDials(w *world, from *node) *dialled {
	d := new(dialled)
	w.sim.Tap(func(e simnet.TapEvent) {
		if e.Kind == simnet.TapOpen && e.From.Addr() == from.host.Addr() && e.To.Addr() != w.auth.Addr() {
			d.mu.Lock()
			d.to = append(d.to, e.To)
			d.mu.Unlock()
		}
	})
	return d
}

func (d *dialled) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.to)
}

// wantExtend asks the end of o for one more hop, and checks the answer and how long
// it took.
func wantExtend(w *world, o *circuit.Origin, spec circuit.HopSpec, want error, took time.Duration) {
	w.Helper()
	began := time.Now()
	err := o.Extend(w.within(time.Minute), spec)
	if !errors.Is(err, want) {
		w.Errorf("Extend: %v, want %v", err, want)
	}
	const slack = 100 * time.Millisecond
	if d := time.Since(began); d < took-slack || d > took+slack {
		w.Errorf("Extend: answered after %v, want %v", d, took)
	}
}

// TestExtendRefusals: where a relay does not go, and that the circuit lives on.
func TestExtendRefusals(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b, c := w.relay("a", nil), w.relay("b", nil), w.relay("c", nil)
		down := w.relay("down", nil)
		elsewhere := w.relay("elsewhere", nil)
		w.agree()
		unlisted := w.relay("unlisted", nil)
		down.stop()
		// Somebody else sits where the consensus says that it is.
		elsewhere.stop()
		cfg, _, _ := w.config("impostor")
		cfg.Addresses = []netip.AddrPort{elsewhere.at}
		r, err := New(cfg)
		w.must(err)
		ln, err := elsewhere.host.Listen("tcp", elsewhere.at.String())
		w.must(err)
		w.start(&node{Relay: r, world: w, name: "impostor", host: elsewhere.host, at: elsewhere.at}, ln)

		o := w.path(a, b)
		dials := watchDials(w, b)
		wantExtend(w, o, specOf(b), cell.ExtendNotAllowed, 0)
		wantExtend(w, o, specOf(a), cell.ExtendNotAllowed, 0)
		wantExtend(w, o, specOf(unlisted), cell.ExtendUnknownRelay, 0)
		wantExtend(w, o, circuit.HopSpec{OnionKey: c.cfg.OnionKey.Public(), Suite: layer.AES256GCM}, cell.ExtendUnknownRelay, 0)
		if n := dials.count(); n != 0 {
			t.Errorf("the relay opened %d connections for that", n)
		}
		wantExtend(w, o, specOf(down), cell.ExtendConnect, 0)
		wantExtend(w, o, specOf(elsewhere), cell.ExtendIdentity, 0)
		wrong := specOf(c)
		wrong.OnionKey = a.cfg.OnionKey.Public()
		wantExtend(w, o, wrong, cell.ExtendRefused, 0)
		wantExtend(w, o, specOf(c), nil, 0)
		if o.Len() != 3 {
			t.Errorf("the circuit has %d hops", o.Len())
		}
		synctest.Wait()
		if n := b.extending.now(); n != 0 {
			t.Errorf("%d EXTENDs are counted and none is under way", n)
		}
	})
}

// TestExtendConsensus: relays of the last 24 h are known, with their consensus and
// no longer; nobody is when the relay's own consensus has expired.
func TestExtendConsensus(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b, c := w.relay("a", nil), w.relay("b", nil), w.relay("c", nil)
		o := w.path(a)
		wantExtend(w, o, specOf(b), cell.ExtendUnknownRelay, 0) // there is none yet
		w.agree()
		w.shift.Add(int64(time.Hour))
		w.agree(a, b) // without c
		wantExtend(w, w.path(a), specOf(c), nil, 0)
		w.shift.Add(int64(22*time.Hour + 59*time.Minute))
		wantExtend(w, w.path(a), specOf(c), nil, 0)
		w.shift.Add(int64(time.Minute)) // the first consensus has expired
		wantExtend(w, w.path(a), specOf(c), cell.ExtendUnknownRelay, 0)
		wantExtend(w, w.path(a), specOf(b), nil, 0)
		w.shift.Add(int64(time.Hour)) // and now the second
		wantExtend(w, w.path(a), specOf(b), cell.ExtendUnknownRelay, 0)
	})
}

// TestExtendTimeout: an EXTEND to a relay that does not answer fails after exactly
// its time, and not because of another one's.
func TestExtendTimeout(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b, c := w.relay("a", nil), w.relay("b", nil), w.relay("c", nil)
		w.agree()
		w.sim.Partition(a.host, b.host, true)
		o := w.path(a)
		wantExtend(w, o, specOf(b), cell.ExtendTimeout, extendTimeout)

		// One that fails at once, and 6 s later one that hangs: it has its
		// own 10 s.
		wrong := specOf(c)
		wrong.OnionKey = a.cfg.OnionKey.Public()
		wantExtend(w, o, wrong, cell.ExtendRefused, 0)
		time.Sleep(6 * time.Second)
		wantExtend(w, o, specOf(b), cell.ExtendTimeout, extendTimeout)

		// One whose link stands, and whose CREATE is swallowed.
		w.sim.Partition(a.host, b.host, false)
		wantExtend(w, w.path(a), specOf(b), nil, 0)
		w.sim.Partition(a.host, b.host, true)
		wantExtend(w, o, specOf(b), cell.ExtendTimeout, extendTimeout)
		w.sim.Partition(a.host, b.host, false)
		// What arrives late from that attempt disturbs nobody.
		time.Sleep(time.Second)
		wantExtend(w, o, specOf(b), nil, 0)
		if o.Len() != 2 {
			t.Errorf("the circuit has %d hops", o.Len())
		}
	})
}

// TestExtendShares: circuits to one relay share a link, also when they come at once,
// and over the link that this relay opened.
func TestExtendShares(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b, c := w.relay("a", nil), w.relay("b", nil), w.relay("c", nil)
		w.agree()
		da, db := watchDials(w, a), watchDials(w, b)
		l := w.link(a, nil)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := w.tryOrigin(l, a, b, c); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if da.count() != 1 || db.count() != 1 {
			t.Errorf("%d links to the second hop and %d to the third, want 1 each", da.count(), db.count())
		}
		// b has a's link already.
		wantExtend(w, w.path(b), specOf(a), nil, 0)
		if db.count() != 1 {
			t.Error("a second link between the same two relays was opened")
		}
	})
}

// TestExtendLinkEnds: a link to the next relay that is gone is replaced, and one that
// goes while CREATE is under way is told as what it is.
func TestExtendLinkEnds(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		o := w.path(a, b)
		for _, l := range b.pool.Links() {
			l.Close()
		}
		select {
		case <-o.Done():
		case <-time.After(time.Second):
			t.Error("the circuit outlives the link to its second hop")
		}
		wantExtend(w, w.path(a), specOf(b), nil, 0)

		o = w.path(a)
		w.sim.Partition(a.host, b.host, true) // CREATE leaves and does not arrive
		go func() {
			time.Sleep(3 * time.Second)
			for _, l := range a.pool.Links() {
				l.Abort(errors.New("cut by the test"))
			}
		}()
		wantExtend(w, o, specOf(b), cell.ExtendConnect, 3*time.Second)
		w.sim.Partition(a.host, b.host, false)
		wantExtend(w, o, specOf(b), nil, 0)
	})
}

// TestExtendLimits: a client that asks for more at once than its share is told no,
// and others are served.
func TestExtendLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		tune   func(*Relay)
		others error
	}{
		{"of a client", func(r *Relay) { r.limits.clientExtending = 2 }, nil},
		{"of the relay", func(r *Relay) { r.limits.extending = 2 }, cell.ExtendConnect},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				a := w.relay("a", nil, c.tune)
				b, d := w.relay("b", nil), w.relay("d", nil)
				w.agree()
				w.sim.Partition(a.host, b.host, true)
				l := w.link(a, nil)
				var wg sync.WaitGroup
				for range 2 {
					o := w.origin(l, a)
					wg.Go(func() { wantExtend(w, o, specOf(b), cell.ExtendTimeout, extendTimeout) })
				}
				time.Sleep(time.Second)
				wantExtend(w, w.origin(l, a), specOf(d), cell.ExtendConnect, 0)
				wantExtend(w, w.path(a), specOf(d), c.others, 0)
				wg.Wait()
				wantExtend(w, w.origin(l, a), specOf(d), nil, 0)
			})
		})
	}
}

// TestExtendGivenUp: when a circuit ends, so does what was under way for it.
func TestExtendGivenUp(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		w.sim.Partition(a.host, b.host, true)
		o := w.path(a)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := o.Extend(w.within(time.Minute), specOf(b)); !errors.Is(err, circuit.ErrClosed) {
				t.Errorf("Extend: %v", err)
			}
		}()
		time.Sleep(time.Second)
		if n := a.extending.now(); n != 1 {
			t.Errorf("%d EXTENDs are under way, want 1", n)
		}
		o.Close()
		<-done
		time.Sleep(100 * time.Millisecond)
		if n, c := a.extending.now(), a.circuits.now(); n != 0 || c != 0 {
			t.Errorf("after the circuit's end %d EXTENDs and %d circuits are left", n, c)
		}
	})
}

// TestCircuitsEndWithLinks: a link that is lost takes its circuits with it, on both
// sides.
func TestCircuitsEndWithLinks(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b, c := w.relay("a", nil), w.relay("b", nil), w.relay("c", nil)
		w.agree()
		counts := func() [3]int64 {
			time.Sleep(time.Second)
			return [3]int64{a.circuits.now(), b.circuits.now(), c.circuits.now()}
		}
		l := w.link(a, nil)
		for range 3 {
			w.origin(l, a, b, c)
		}
		other := w.path(a, b, c)
		if got := counts(); got != [3]int64{4, 4, 4} {
			t.Fatalf("circuits: %v", got)
		}
		l.Close()
		if got := counts(); got != [3]int64{1, 1, 1} {
			t.Errorf("circuits after the client of three left: %v", got)
		}
		c.stop()
		select {
		case <-other.Done():
		case <-time.After(time.Second):
			t.Error("the client does not hear that the third hop is gone")
		}
		if got := counts(); got != [3]int64{} {
			t.Errorf("circuits after the third hop left: %v", got)
		}
	})
}

// TestAttempt: the first answer settles an attempt, once, and a lost link only where
// nothing came before it.
func TestAttempt(t *testing.T) {
	settled := func(a *attempt) bool {
		select {
		case <-a.answered:
			return true
		default:
			return false
		}
	}
	for _, c := range []struct {
		name     string
		do       func(a *attempt)
		lost     bool
		closings int
	}{
		{"CREATED", func(a *attempt) { a.Receive(cell.Created, nil); a.Receive(cell.Relay, nil) }, false, 0},
		{"refused", func(a *attempt) { a.Closed(cell.ReasonRefused) }, false, 1},
		{"link lost", func(a *attempt) { a.Closed(cell.ReasonLinkLost) }, true, 0},
		{"link lost later", func(a *attempt) { a.Receive(cell.Created, nil); a.Closed(cell.ReasonLinkLost) }, false, 1},
	} {
		rec := &witness{ended: make(chan cell.Reason, 2)}
		a := &attempt{Receiver: rec, answered: make(chan struct{})}
		if settled(a) {
			t.Fatal("settled before anything came")
		}
		c.do(a)
		if !settled(a) || a.lost != c.lost || len(rec.ended) != c.closings {
			t.Errorf("%s: settled %v, lost %v, told %d times", c.name, settled(a), a.lost, len(rec.ended))
		}
	}
	a := &attempt{Receiver: &witness{}, answered: make(chan struct{})}
	if n := testing.AllocsPerRun(100, func() { a.Receive(cell.Relay, nil) }); n != 0 {
		t.Errorf("a cell on its way back costs %v allocations", n)
	}
}

var (
	_ link.Receiver = (*attempt)(nil)
	_ net.Conn      = (*limitedConn)(nil)
)
