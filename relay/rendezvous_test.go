package relay

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/layer"
	"cepa/link"
	"cepa/stream"
)

// echoes is a service that sends back what it gets, on every stream.
type echoes struct{}

func (echoes) Begin(s *stream.Stream, _ cell.BeginBody) {
	if s.Accept(cell.ConnectedBody{}) != nil {
		return
	}
	go func() {
		defer s.Close()
		_, _ = io.Copy(s, s)
	}()
}
func (echoes) BeginDir(s *stream.Stream) { s.Abort(cell.EndNoDirectory) }
func (echoes) Resolve(l *stream.Lookup, _ cell.ResolveBody) {
	l.Answer(cell.ResolvedBody{Status: cell.EndPolicy})
}

func joinConfig() circuit.JoinConfig {
	return circuit.JoinConfig{Suite: layer.AES256GCM, Forward: [32]byte{1}, Backward: [32]byte{2}}
}

// meet sends RENDEZVOUS over a service's circuit.
func (w *world) meet(o *circuit.Origin, cookie [cell.CookieSize]byte) error {
	b := cell.RendezvousBody{Cookie: cookie, Reply: [cell.ReplySize]byte{7}}
	cfg := joinConfig()
	cfg.Handler = echoes{}
	_, err := o.Rendezvous(b.AppendTo(nil), cfg, func([]byte) (forward, backward [32]byte, err error) {
		return cfg.Forward, cfg.Backward, nil
	})
	return err
}

// joined waits until the service has come, and returns the streams to it.
func (w *world) joined(o *circuit.Origin, reply <-chan []byte) *stream.Mux {
	w.Helper()
	select {
	case b := <-reply:
		if want := append([]byte{7}, make([]byte, cell.ReplySize-1)...); !bytes.Equal(b, want) {
			w.Fatal("the reply is another")
		}
	case <-o.Done():
		w.Fatal(o.Err())
	case <-time.After(time.Minute):
		w.Fatal("nobody came")
	}
	m, err := o.Join(joinConfig(), make([]byte, cell.JoinedSize))
	w.must(err)
	return m
}

// pair returns the circuits of a client and a service that have met at the last of the
// relays, and a stream.
func (w *world) pair(client, service []*node, cookie [cell.CookieSize]byte) (c, s *circuit.Origin, conn *stream.Stream) {
	w.Helper()
	c, s = w.path(client...), w.path(service...)
	reply, err := c.EstablishRendezvous(w.within(time.Minute), cookie[:])
	w.must(err)
	w.must(w.meet(s, cookie))
	m := w.joined(c, reply)
	conn, err = m.Open(cell.BeginBody{Host: "service", Port: 80})
	w.must(err)
	w.must(conn.Connected(w.within(time.Minute)))
	return c, s, conn
}

// meetings returns what the relay counts, pairs and waiting ones, after a second.
func (n *node) counted() (waiting, joined int64) {
	time.Sleep(time.Second)
	return n.meetings.counts()
}

func (w *world) wantCounted(n *node, waiting, joined int64) {
	w.Helper()
	if a, b := n.counted(); a != waiting || b != joined {
		w.Errorf("%d wait and %d pairs are joined, want %d and %d", a, b, waiting, joined)
	}
}

// TestRendezvous: a pair carries data, and the end of one is the end of the other.
func TestRendezvous(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b, c := w.relay("a", nil), w.relay("b", nil), w.relay("c", nil)
		w.agree()
		for i, end := range []func(c, s *circuit.Origin){
			func(c, _ *circuit.Origin) { c.Close() },
			func(_, s *circuit.Origin) { s.Close() },
		} {
			client, service, conn := w.pair([]*node{a, c}, []*node{b, a, c}, [cell.CookieSize]byte{byte(i)})
			w.wantCounted(c, 0, 1)
			w.must(roundTrip(conn, string(bytes.Repeat([]byte("0123456789abcdef"), 10_000))))
			if s := c.Status().Onion; s.Joined != 10 {
				t.Errorf("the status says %+v", s)
			}
			end(client, service)
			time.Sleep(time.Second)
			if client.Err() == nil || service.Err() == nil {
				t.Errorf("after the end of one: client %v, service %v", client.Err(), service.Err())
			}
			w.wantCounted(c, 0, 0)
		}
		time.Sleep(time.Second)
		if n := a.circuits.now() + b.circuits.now() + c.circuits.now(); n != 0 {
			t.Errorf("%d circuits are left", n)
		}
	})
}

// TestCookies: a cookie is good for one client and one service, and only while the
// client waits.
func TestCookies(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		cookie := [cell.CookieSize]byte{1}
		l := w.link(a, nil)
		establish := func(o *circuit.Origin, cookie [cell.CookieSize]byte) (<-chan []byte, error) {
			return o.EstablishRendezvous(w.within(time.Minute), cookie[:])
		}
		client := w.origin(l, a, b)
		reply, err := establish(client, cookie)
		w.must(err)
		if _, err := establish(w.origin(l, a, b), cookie); !errors.Is(err, circuit.ErrDestroyed) {
			t.Errorf("the same cookie by another client: %v", err)
		}
		stranger := w.origin(l, a, b)
		w.must(w.meet(stranger, [cell.CookieSize]byte{2}))
		w.wantDestroyed(stranger, "a service with a cookie that nobody has")
		w.wantCounted(b, 1, 0)

		service := w.origin(l, a, b)
		w.must(w.meet(service, cookie))
		m := w.joined(client, reply)
		again := w.origin(l, a, b)
		w.must(w.meet(again, cookie))
		w.wantDestroyed(again, "a second service")
		s, err := m.Open(cell.BeginBody{Host: "service", Port: 80})
		w.must(err)
		w.must(roundTrip(s, "still there?"))

		gone := w.origin(l, a, b)
		_, err = establish(gone, [cell.CookieSize]byte{3})
		w.must(err)
		gone.Close()
		time.Sleep(time.Second)
		late := w.origin(l, a, b)
		w.must(w.meet(late, [cell.CookieSize]byte{3}))
		w.wantDestroyed(late, "a service whose client has gone")
		w.wantCounted(b, 0, 1)
	})
}

// TestRendezvousWait: a client's circuit is destroyed when nobody has come for ten
// minutes, and not before; one that is joined stays.
func TestRendezvousWait(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, b := w.relay("a", nil), w.relay("b", nil)
		w.agree()
		l := w.link(a, nil)
		start := time.Now()
		var waiting []*circuit.Origin
		for i := range 3 {
			o := w.origin(l, a, b)
			_, err := o.EstablishRendezvous(w.within(time.Minute), append(make([]byte, cell.CookieSize-1), byte(i)))
			w.must(err)
			waiting = append(waiting, o)
			time.Sleep(time.Minute)
		}
		_, _, conn := w.pair([]*node{a, b}, []*node{a, b}, [cell.CookieSize]byte{9})
		for i, o := range waiting {
			<-o.Done()
			if took := time.Since(start) - time.Duration(i)*time.Minute; took < 10*time.Minute || took > 10*time.Minute+time.Second {
				t.Errorf("circuit %d waited for %v", i, took)
			}
			if !errors.Is(o.Err(), circuit.ErrDestroyed) {
				t.Errorf("circuit %d: %v", i, o.Err())
			}
		}
		time.Sleep(time.Hour)
		w.must(roundTrip(conn, "still there?"))
		w.wantCounted(b, 0, 1)
	})
}

// TestRendezvousLimits: of the relay and of one neighbour.
func TestRendezvousLimits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		a, c := w.relay("a", nil), w.relay("c", nil)
		b := w.relay("b", nil, func(r *Relay) { r.limits.rendezvous, r.limits.nearRendezvous = 3, 2 })
		w.agree()
		la, lc := w.link(a, nil), w.link(c, nil)
		var open []*circuit.Origin
		establish := func(l *link.Link, want error, nodes ...*node) {
			t.Helper()
			o := w.origin(l, nodes...)
			if _, err := o.EstablishRendezvous(w.within(time.Minute), append(make([]byte, cell.CookieSize-1), byte(len(open)))); !errors.Is(err, want) {
				t.Errorf("client %d: %v, want %v", len(open), err, want)
			}
			open = append(open, o)
		}
		establish(la, nil, a, b)
		establish(la, nil, a, b)
		establish(la, circuit.ErrDestroyed, a, b)
		establish(lc, nil, c, b)
		establish(lc, circuit.ErrDestroyed, c, b)
		open[0].Close()
		w.wantCounted(b, 2, 0)
		establish(lc, nil, c, b)
	})
}
