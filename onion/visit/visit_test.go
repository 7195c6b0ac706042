package visit

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/onion"
	"cepa/stream"
)

// TestDial: what can be done at the same time is; a known service takes less, and one that is joined already a round trip alone.
func TestDial(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		began := time.Now()
		took := func() time.Duration {
			d := time.Since(began)
			began = time.Now()
			return d
		}
		w.dial("")
		// The descriptor, then the circuit to the point, the introduction, the service's way and BEGIN. The rendezvous costs no time.
		if d, want := took(), extendTime+tripTime+extendTime+tripTime+comeTime+tripTime; d != want {
			t.Errorf("a service that nothing is known of took %v, want %v", d, want)
		}
		if c, d, i := w.counts(); c != 3 || d != 1 || i != 1 {
			t.Errorf("%d circuits, %d HSDirs, %d introductions", c, d, i)
		}
		w.dial("")
		if d := took(); d != tripTime {
			t.Errorf("a second stream took %v, want %v", d, tripTime)
		}
		st := w.v.Status()
		if c, _, _ := w.counts(); c != 0 || st != (Status{Joined: 1, Streams: 2}) {
			t.Errorf("%d circuits for a second stream, %+v", c, st)
		}
		w.v.sites[siteKey{"", w.address}].session.circ.Close()
		w.dial("")
		// The rendezvous and the circuit to the point at the same time.
		if d, want := took(), extendTime+tripTime+tripTime+comeTime+tripTime; d != want {
			t.Errorf("a service whose descriptor is known took %v, want %v", d, want)
		}
		if c, d, i := w.counts(); c != 2 || d != 0 || i != 1 {
			t.Errorf("%d circuits, %d HSDirs, %d introductions", c, d, i)
		}
	})
}

// TestIsolation: under another key nothing is known, and no circuit is shared.
func TestIsolation(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		for i := range 4 {
			w.dial(fmt.Sprint(i % 2))
			if c, d, n := w.counts(); i < 2 && (c != 3 || d != 1 || n != 1) || i >= 2 && c != 0 {
				t.Errorf("stream %d: %d circuits, %d HSDirs, %d introductions", i, c, d, n)
			}
		}
		if st := w.v.Status(); st != (Status{Joined: 2, Streams: 4}) {
			t.Errorf("%+v", st)
		}
	})
}

// TestTogether: streams that are opened at once share one meeting, also when the first does not wait for it.
func TestTogether(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		impatient, cancel := context.WithTimeout(context.Background(), tripTime)
		defer cancel()
		results := make(chan error, 5)
		for i := range 5 {
			go func() {
				ctx := context.Background()
				if i == 0 {
					ctx = impatient
				}
				_, err := w.v.Dial(ctx, w.address, "", 80)
				results <- err
			}()
			synctest.Wait()
		}
		late := 0
		for range 5 {
			if err := <-results; errors.Is(err, context.DeadlineExceeded) {
				late++
			} else if err != nil {
				t.Error(err)
			}
		}
		if c, d, i := w.counts(); late != 1 || c != 3 || d != 1 || i != 1 {
			t.Errorf("%d did not wait; %d circuits, %d HSDirs, %d introductions", late, c, d, i)
		}
	})
}

// TestIdle: a joined circuit ends when it has had no streams for ten minutes, and not while it has one.
func TestIdle(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		s := w.dial("")
		tidy := func(d time.Duration) {
			for range d / (30 * time.Second) {
				time.Sleep(30 * time.Second)
				w.v.Tidy()
			}
		}
		tidy(30 * time.Minute)
		if st := w.v.Status(); st.Joined != 1 {
			t.Errorf("with a stream: %+v", st)
		}
		end(w, "", s)
		tidy(idleTime - time.Minute)
		if st := w.v.Status(); st != (Status{Joined: 1}) {
			t.Errorf("idle for less than ten minutes: %+v", st)
		}
		tidy(2 * time.Minute)
		if st := w.v.Status(); st != (Status{}) || w.open != 0 {
			t.Errorf("idle for longer: %+v, %d circuits", st, w.open)
		}
		tidy(maxKnown)
		if n := len(w.v.sites); n != 0 {
			t.Errorf("%d services are remembered", n)
		}
	})
}

// end ends a stream at both ends.
func end(w *world, isolation string, s *stream.Stream) {
	w.Helper()
	s.Close()
	mux := w.v.sites[siteKey{isolation, w.address}].session.mux
	if _, err := mux.Handle(cell.Message{Command: cell.End, Stream: s.ID(), Payload: []byte{byte(cell.EndClosed)}}, nil); err != nil {
		w.Fatal(err)
	}
}

// TestNewIdentity: what was known before serves no stream of after it, and streams of before stay where they are, those too that
// are being opened.
func TestNewIdentity(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		old := w.dial("")
		early := make(chan error, 1)
		go func() {
			_, err := w.v.Dial(context.Background(), w.address, "other", 80)
			early <- err
		}()
		synctest.Wait()
		w.v.NewIdentity()
		if err := <-early; err != nil {
			t.Errorf("a stream of before: %v", err)
		}
		w.counts()
		w.dial("")
		if c, d, i := w.counts(); c != 3 || d != 1 || i != 1 {
			t.Errorf("a stream of after: %d circuits, %d HSDirs, %d introductions", c, d, i)
		}
		w.v.Tidy()
		if st := w.v.Status(); st != (Status{Joined: 3, Streams: 3}) {
			t.Errorf("%+v", st)
		}
		for s := range w.v.retired {
			if s.mux.Len() == 1 && s.mux.Destinations()[old.ID()] != "" {
				s.circ.Close()
			}
		}
		w.v.Tidy()
		if st := w.v.Status(); st.Joined > 2 {
			t.Errorf("after its end: %+v", st)
		}
	})
}

// TestClose: all ends with it, what is under way too.
func TestClose(t *testing.T) {
	for _, after := range []time.Duration{0, extendTime / 2, extendTime + tripTime/2, extendTime + tripTime + extendTime/2, 2 * (extendTime + tripTime), time.Second} {
		run(t, 30, func(w *world) {
			w.publish(w.period(), 1)
			result := make(chan error, 1)
			go func() {
				_, err := w.v.Dial(context.Background(), w.address, "", 80)
				result <- err
			}()
			time.Sleep(after)
			synctest.Wait()
			w.v.Close()
			if err := <-result; after < time.Second && err == nil {
				t.Errorf("closed after %v: no error", after)
			}
			if _, err := w.v.Dial(context.Background(), w.address, "", 80); !errors.Is(err, ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// TestServiceSays: what the service says to a stream is told as it is, and costs no circuit.
func TestServiceSays(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.rejects = true
		w.fails(cell.EndRefused)
		w.fails(cell.EndRefused)
		if c, _, _ := w.counts(); c != 3 {
			t.Errorf("%d circuits", c)
		}
		if _, err := w.v.Dial(context.Background(), w.address, "", 0); err == nil {
			t.Error("port 0 is one")
		}
	})
}

// TestBounds: of many services only so many are remembered and joined; those in use stay.
func TestBounds(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.v.making = maxSessions - 3
		w.dial("1")
		w.dial("2")
		third := w.dial("3")
		if _, err := w.v.Dial(context.Background(), w.address, "one more", 80); !errors.Is(err, ErrBusy) {
			t.Errorf("with %d joined circuits in use: %v", maxSessions, err)
		}
		end(w, "3", third)
		w.dial("one more")
		if w.v.sites[siteKey{"3", w.address}].session != nil {
			t.Error("the one without streams has not made room")
		}
		w.v.making = 0
		w.v.mu.Lock()
		for i := range maxSites {
			k := siteKey{fmt.Sprint("empty ", i), onion.Address{}}
			if len(w.v.sites) < maxSites {
				w.v.sites[k] = &site{siteKey: k}
			}
		}
		w.v.mu.Unlock()
		if st, err := w.v.enter(siteKey{"new", w.address}); err != nil || len(w.v.sites) != maxSites {
			t.Errorf("%v, %d sites", err, len(w.v.sites))
		} else {
			w.v.leave(st)
		}
	})
}
