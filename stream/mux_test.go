package stream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"

	"cepa/cell"
)

// TestMaxStreams: a stream or look-up too many is refused, the circuit and the
// others live, and there is room again when one ends.
func TestMaxStreams(t *testing.T) {
	p := newPair(t)
	p.relay.cfg.MaxStreams = 3
	a, farA := p.open()
	b, farB := p.open()
	synctestResolve := func(want error) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			done := make(chan error)
			go func() {
				_, err := p.origin.Resolve(context.Background(), cell.ResolveBody{Name: "x"})
				done <- err
			}()
			synctest.Wait()
			p.settle()
			for _, l := range p.lookups {
				l.Answer(cell.ResolvedBody{Status: cell.EndNotFound})
			}
			p.lookups = nil
			p.settle()
			if err := <-done; err != want {
				t.Errorf("Resolve says %v, want %v", err, want)
			}
		})
	}
	synctestResolve(cell.EndNotFound) // the third
	c, farC := p.open()
	synctestResolve(cell.EndResource) // the fourth
	refused, _ := p.origin.OpenDir()
	asked := len(p.begun)
	p.settle()
	if err := refused.Connected(context.Background()); err != cell.EndResource {
		t.Errorf("the fourth stream: %v, want %v", err, cell.EndResource)
	}
	if len(p.begun) != asked {
		t.Error("the Handler was asked for a stream too many")
	}
	mustWrite(t, a, "still open")
	p.settle()
	wantRead(t, farA, "still open", nil)
	b.Close()
	p.settle()
	d, farD := p.open()
	p.done(a, b, c, d, farA, farB, farC, farD, refused)
}

// TestUnanswered: a peer that never answers our ENDs may not make us remember
// more and more of them.
func TestUnanswered(t *testing.T) {
	p := newPair(t)
	p.handler.beginDir = func(s *Stream) { s.Abort(cell.EndNoDirectory) }
	for id := uint16(1); ; id++ {
		err := p.handle(p.relay, cell.BeginDir, id, nil)
		if err != nil {
			if id < maxClosing || id > maxClosing+2 {
				t.Errorf("stopped at stream %d, want about %d", id, maxClosing)
			}
			break
		}
		if p.relay.Len() > maxClosing+1 {
			t.Fatalf("%d streams are remembered", p.relay.Len())
		}
	}
	// An answer makes room again, without a trace.
	for id := uint16(1); id <= 10; id++ {
		if err := p.handle(p.relay, cell.End, id, []byte{byte(cell.EndDone)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.handle(p.relay, cell.BeginDir, 2000, nil); err != nil {
		t.Errorf("after ten answers: %v", err)
	}
	p.lose(errLost)
	if n := p.pool.Outstanding(); n != 0 {
		t.Errorf("%d cells were not returned", n)
	}
}

// TestExhausted: stream IDs are used once.
func TestExhausted(t *testing.T) {
	p := newPair(t)
	p.origin.cfg.MaxStreams = 1 << 20 // not what this is about
	for i := range maxID {
		if p.origin.Exhausted() {
			t.Fatalf("exhausted after %d streams", i)
		}
		s, err := p.origin.OpenDir()
		if err != nil || int(s.id) != i+1 {
			t.Fatalf("stream %d has ID %d, error %v", i+1, s.id, err)
		}
		p.pool.PutList(&p.out.queue)
	}
	if !p.origin.Exhausted() {
		t.Error("not exhausted after all IDs")
	}
	if _, err := p.origin.OpenDir(); !errors.Is(err, ErrExhausted) {
		t.Errorf("one more: %v", err)
	}
	if _, err := p.origin.Resolve(context.Background(), cell.ResolveBody{Name: "x"}); !errors.Is(err, ErrExhausted) {
		t.Errorf("one more look-up: %v", err)
	}
}

// TestFull: an origin does not ask for more streams than a relay takes, those
// that the relay has not ended included, and may ask again when one has ended.
func TestFull(t *testing.T) {
	p := newPair(t)
	var all []*Stream
	for range DefaultMaxStreams {
		near, far := p.open()
		all = append(all, near, far)
	}
	all[0].Close() // the relay has not heard of it
	sent := p.out.queue.Len() + p.out.held.Len()
	if _, err := p.origin.OpenDir(); !errors.Is(err, ErrFull) || !p.origin.Exhausted() {
		t.Errorf("a stream too many: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.origin.Resolve(ended, cell.ResolveBody{Name: "x"}); !errors.Is(err, ErrFull) {
		t.Errorf("a look-up too many: %v", err)
	}
	if p.out.queue.Len()+p.out.held.Len() != sent {
		t.Error("the relay was asked")
	}
	p.settle()
	if p.origin.Exhausted() {
		t.Error("still full after a stream has ended")
	}
	near, far := p.open()
	p.done(append(all, near, far)...)
}

// TestOpenInvalid: what cannot be said is refused at home, and uses no ID.
func TestOpenInvalid(t *testing.T) {
	p := newPair(t)
	for _, b := range []cell.BeginBody{{Host: "", Port: 1}, {Host: "x", Port: 0}, {Host: "a b", Port: 1}} {
		if _, err := p.origin.Open(b); err == nil {
			t.Errorf("Open of %q port %d succeeds", b.Host, b.Port)
		}
	}
	if _, err := p.origin.Resolve(context.Background(), cell.ResolveBody{Name: "a b"}); err == nil {
		t.Error("Resolve of a name with a space succeeds")
	}
	if p.origin.lastID != 0 || p.out.queue.Len() != 0 {
		t.Error("something was sent")
	}
	// A circuit that is gone but has not said so yet.
	p.out.fail(errLost)
	if _, err := p.origin.OpenDir(); !errors.Is(err, errLost) {
		t.Errorf("Open on a dead circuit: %v", err)
	}
	if _, err := p.origin.Resolve(context.Background(), cell.ResolveBody{Name: "x"}); !errors.Is(err, errLost) {
		t.Errorf("Resolve on a dead circuit: %v", err)
	}
	p.empty()
}

// TestResolve: answers, refusals, a caller who has gone, and the circuit's end.
func TestResolve(t *testing.T) {
	type result struct {
		body cell.ResolvedBody
		err  error
	}
	found := cell.ResolvedBody{TTL: 60, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	for _, f := range []struct {
		name   string
		answer func(p *pair, cancel func())
		want   result
		left   int
	}{
		{"found", func(p *pair, _ func()) { p.lookups[0].Answer(found) }, result{found, nil}, 0},
		{"not found", func(p *pair, _ func()) { p.lookups[0].Answer(cell.ResolvedBody{Status: cell.EndNotFound}) }, result{cell.ResolvedBody{Status: cell.EndNotFound}, cell.EndNotFound}, 0},
		{"answered twice", func(p *pair, _ func()) {
			p.lookups[0].Answer(found)
			if err := p.lookups[0].Answer(found); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a second Answer: %v", err)
			}
		}, result{found, nil}, 0},
		{"given up", func(_ *pair, cancel func()) { cancel() }, result{err: context.Canceled}, 1},
		{"given up, answered late", func(p *pair, cancel func()) {
			cancel()
			synctest.Wait()
			p.lookups[0].Answer(found)
		}, result{err: context.Canceled}, 0},
		{"lost", func(p *pair, _ func()) {
			p.lose(errLost)
			if err := p.lookups[0].Answer(found); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Answer on a lost circuit: %v", err)
			}
		}, result{err: errLost}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			var asked cell.ResolveBody
			p.handler.resolve = func(l *Lookup, b cell.ResolveBody) { p.lookups, asked = append(p.lookups, l), b }
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			done := make(chan result, 1)
			go func() {
				b, err := p.origin.Resolve(ctx, cell.ResolveBody{Flags: cell.BeginPreferIPv6, Name: "example.test"})
				done <- result{b, err}
			}()
			synctest.Wait()
			p.settle()
			if asked.Name != "example.test" || asked.Flags != cell.BeginPreferIPv6 {
				t.Errorf("%s: the relay was asked for %+v", f.name, asked)
			}
			if p.origin.Len() != 1 || p.relay.Len() != 1 {
				t.Errorf("%s: %d and %d look-ups are open", f.name, p.origin.Len(), p.relay.Len())
			}
			f.answer(p, cancel)
			p.settle()
			if got := <-done; !reflect.DeepEqual(got, f.want) {
				t.Errorf("%s: %+v, want %+v", f.name, got, f.want)
			}
			if n := p.origin.Len(); n != f.left {
				t.Errorf("%s: %d look-ups are left, want %d", f.name, n, f.left)
			}
			if n := p.pool.Outstanding(); n != 0 {
				t.Errorf("%s: %d cells were not returned", f.name, n)
			}
		})
	}
}

// TestResolvedUnlawful: an answer that was not asked for, was given before or
// does not parse; the one who waits is told.
func TestResolvedUnlawful(t *testing.T) {
	good := (&cell.ResolvedBody{Status: cell.EndNotFound}).AppendTo(nil)
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		if p.handle(p.origin, cell.Resolved, 1, good) == nil {
			t.Error("RESOLVED without RESOLVE is lawful")
		}
		done := make(chan error, 1)
		resolve := func() {
			go func() {
				_, err := p.origin.Resolve(context.Background(), cell.ResolveBody{Name: "x"})
				done <- err
			}()
			synctest.Wait()
			p.settle()
		}
		resolve()
		if p.handle(p.relay, cell.Resolved, 1, good) == nil {
			t.Error("RESOLVED towards a relay is lawful")
		}
		if p.handle(p.origin, cell.End, 1, []byte{byte(cell.EndDone)}) == nil {
			t.Error("END of a look-up is lawful")
		}
		if err := p.handle(p.origin, cell.Resolved, 1, good); err != nil {
			t.Error(err)
		}
		if err := <-done; err != cell.EndNotFound {
			t.Error(err)
		}
		if p.handle(p.origin, cell.Resolved, 1, good) == nil {
			t.Error("a second RESOLVED is lawful")
		}
		resolve()
		if p.handle(p.origin, cell.Resolved, 2, []byte{1, 2, 3}) == nil {
			t.Error("a malformed RESOLVED is lawful")
		}
		var format *cell.FormatError
		if err := <-done; !errors.As(err, &format) {
			t.Errorf("Resolve says %v", err)
		}
	})
}
