package circuit

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/stream"
)

// joinedChain is two chains whose last relays are one rendezvous point.
type joinedChain struct {
	client, service *chain
	mu              sync.Mutex
	waits           map[[cell.CookieSize]byte]*Transit
}

func newJoinedChain(t testing.TB, clientHops, serviceHops int) *joinedChain {
	j := &joinedChain{client: newChain(t, clientHops), service: newChain(t, serviceHops), waits: map[[cell.CookieSize]byte]*Transit{}}
	j.service.pool = j.client.pool
	j.service.origin = NewOrigin(OriginConfig{Pool: j.client.pool})
	j.client.last().establishRendezvous = func(t *Transit, cookie [cell.CookieSize]byte) {
		j.mu.Lock()
		j.waits[cookie] = t
		j.mu.Unlock()
		t.Answer(cell.RendezvousEstablished, nil)
	}
	j.service.last().rendezvous = func(t *Transit, b cell.RendezvousBody) {
		j.mu.Lock()
		client := j.waits[b.Cookie]
		delete(j.waits, b.Cookie)
		j.mu.Unlock()
		if client == nil {
			t.Close(cell.ReasonNone)
			return
		}
		Join(client, t, b.Reply[:])
	}
	return j
}

func (j *joinedChain) build(t testing.TB) {
	t.Helper()
	for _, c := range []*chain{j.client, j.service} {
		if err := c.build(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (j *joinedChain) close() {
	j.service.origin.Close()
	j.client.origin.Close()
	j.service.wg.Wait()
	j.client.close()
}

// join brings the two together with the calls that a client and a service make.
func (j *joinedChain) join(t testing.TB, h stream.Handler) (near, far *stream.Mux) {
	t.Helper()
	var cookie [cell.CookieSize]byte
	rand.Read(cookie[:])
	first := make([]byte, cell.JoinedSize)
	rand.Read(first)
	joined, err := j.client.origin.EstablishRendezvous(t.Context(), cookie[:])
	if err != nil {
		t.Fatal(err)
	}
	b := cell.RendezvousBody{Cookie: cookie, Reply: [cell.ReplySize]byte(joinedReply())}
	cfg := JoinConfig{Suite: j.client.suite, Forward: joinedForward, Backward: joinedBackward, Handler: h}
	far, err = j.service.origin.Rendezvous(b.AppendTo(nil), cfg, func(got []byte) (f, b [32]byte, err error) {
		if !bytes.Equal(got, first) {
			err = errors.New("another first body")
		}
		return joinedForward, joinedBackward, err
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case reply := <-joined:
		if !bytes.Equal(reply, joinedReply()) {
			t.Error("another reply")
		}
	case <-j.client.origin.Done():
		t.Fatal(j.client.origin.Err())
	}
	near, err = j.client.origin.Join(cfg, first)
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// echo is a service that sends back what it gets.
type echo struct{ wg *sync.WaitGroup }

func (e echo) Begin(s *stream.Stream, _ cell.BeginBody) {
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		s.Accept(cell.ConnectedBody{})
		io.Copy(s, s)
		s.CloseWrite()
		s.Close()
	}()
}
func (e echo) BeginDir(s *stream.Stream) { s.Abort(cell.EndNoDirectory) }
func (e echo) Resolve(l *stream.Lookup, _ cell.ResolveBody) {
	l.Answer(cell.ResolvedBody{Status: cell.EndPolicy})
}

// TestJoinedEcho carries the data of many streams at once both ways, byte for byte,
// over windows, credits and ratchets.
func TestJoinedEcho(t *testing.T) {
	for _, hops := range [][2]int{{2, 2}, {4, 5}, {8, 3}} {
		synctest.Test(t, func(t *testing.T) {
			j := newJoinedChain(t, hops[0], hops[1])
			defer j.close()
			j.build(t)
			near, far := j.join(t, echo{&j.service.wg})
			const streams, size = 20, 60_000
			var wg sync.WaitGroup
			for i := range streams {
				wg.Add(1)
				go func() {
					defer wg.Done()
					s, err := near.Open(cell.BeginBody{Host: "service", Port: uint16(i + 1)})
					if err != nil {
						t.Error(err)
						return
					}
					sent := make([]byte, size)
					if i == 0 {
						sent = make([]byte, 1_400_000) // more than a credit, and a ratchet of the layer
					}
					rand.Read(sent)
					wg.Add(1)
					go func() {
						defer wg.Done()
						s.Write(sent)
						s.CloseWrite()
					}()
					got, err := io.ReadAll(s)
					if err != nil || !bytes.Equal(got, sent) {
						t.Errorf("stream %d: %d of %d bytes came back, error %v", i, len(got), len(sent), err)
					}
					s.Close()
				}()
			}
			wg.Wait()
			synctest.Wait()
			if near.Len() != 0 || far.Len() != 0 {
				t.Errorf("%d and %d streams are left", near.Len(), far.Len())
			}
			if _, err := near.OpenDir(); err != nil {
				t.Error(err)
			}
			if _, err := near.Resolve(t.Context(), cell.ResolveBody{Name: "x"}); !errors.Is(err, cell.EndPolicy) {
				t.Errorf("RESOLVE: %v", err)
			}
			if j.client.origin.Err() != nil || j.service.origin.Err() != nil {
				t.Error(j.client.origin.Err(), j.service.origin.Err())
			}
		})
	}
}

// TestIntroduction: a service establishes an introduction point, and a client is
// introduced there.
func TestIntroduction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJoinedChain(t, 3, 4)
		defer j.close()
		point := make(chan *Transit, 1)
		j.service.last().establishIntro = func(t *Transit, b cell.EstablishIntroBody) {
			if b.Rate == 3 {
				point <- t
				t.Answer(cell.IntroEstablished, nil)
			}
		}
		j.client.last().introduce = func(c *Transit, b cell.IntroduceBody) {
			t := <-point
			ack := cell.IntroduceAckBody{}
			if err := t.Answer(cell.Introduced, b.AppendTo(nil)); err != nil {
				ack.Status = cell.IntroduceFull
			}
			c.Answer(cell.IntroduceAck, ack.AppendTo(nil))
		}
		j.build(t)
		b := cell.EstablishIntroBody{Rate: 3}
		got := make(chan []byte, 1)
		if err := j.service.origin.EstablishIntro(t.Context(), b.AppendTo(nil), func(p []byte) { got <- bytes.Clone(p) }); err != nil {
			t.Fatal(err)
		}
		payload := make([]byte, cell.IntroduceSize)
		rand.Read(payload)
		ack, err := j.client.origin.Introduce(t.Context(), payload)
		if err != nil || !bytes.Equal(ack, make([]byte, cell.IntroduceAckSize)) {
			t.Errorf("answered with % x, error %v", ack, err)
		}
		if p := <-got; !bytes.Equal(p, payload) {
			t.Error("another introduction arrived")
		}
		// One circuit is good for one.
		if _, err := j.client.origin.Introduce(t.Context(), payload); err == nil || j.client.origin.Err() != nil {
			t.Errorf("a second one: error %v, circuit %v", err, j.client.origin.Err())
		}
	})
}

// TestRolesTimeOut: who waits no longer ends the circuit, at the time of its ctx.
func TestRolesTimeOut(t *testing.T) {
	for name, call := range map[string]func(o *Origin, ctx context.Context) error{
		"EstablishIntro": func(o *Origin, ctx context.Context) error {
			return o.EstablishIntro(ctx, payloadOf(cell.EstablishIntro), func([]byte) {})
		},
		"Introduce": func(o *Origin, ctx context.Context) error {
			_, err := o.Introduce(ctx, payloadOf(cell.Introduce))
			return err
		},
		"EstablishRendezvous": func(o *Origin, ctx context.Context) error {
			_, err := o.EstablishRendezvous(ctx, payloadOf(cell.EstablishRendezvous))
			return err
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newChain(t, 3) // whose relays do not answer
			defer c.close()
			if err := c.build(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
			defer cancel()
			began := time.Now()
			err := call(c.origin, ctx)
			if took := time.Since(began); took != 7*time.Second || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(c.origin.Err(), context.DeadlineExceeded) {
				t.Errorf("%s: after %v: %v; the circuit: %v", name, took, err, c.origin.Err())
			}
		})
		// And who hears that the circuit has ended does not wait on.
		synctest.Test(t, func(t *testing.T) {
			c := newChain(t, 2)
			defer c.close()
			if err := c.build(t.Context()); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- call(c.origin, context.Background()) }()
			synctest.Wait()
			if err := c.origin.Extend(t.Context(), c.spec(0)); err == nil || c.origin.Err() != nil {
				t.Errorf("%s: Extend while it waits: %v", name, err)
			}
			if _, err := c.origin.Introduce(t.Context(), payloadOf(cell.Introduce)); err == nil || c.origin.Err() != nil {
				t.Errorf("%s: Introduce while it waits: %v", name, err)
			}
			c.last().theTransit().Close(cell.ReasonRefused)
			if err := <-done; !errors.Is(err, ErrDestroyed) {
				t.Errorf("%s: refused: %v", name, err)
			}
		})
	}
}

// TestJoinedRace ends both circuits from all sides while data flows, for the race
// detector.
func TestJoinedRace(t *testing.T) {
	for i := range 8 {
		j := newJoinedChain(t, 2, 2)
		j.build(t)
		near, _ := j.join(t, echo{&j.service.wg})
		var wg sync.WaitGroup
		for range 4 {
			s, err := near.Open(cell.BeginBody{Host: "service", Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			wg.Add(2)
			go func() { defer wg.Done(); io.Copy(s, rand.Reader) }()
			go func() {
				defer wg.Done()
				if n, err := io.Copy(io.Discard, io.LimitReader(s, 300_000)); n == 300_000 && err == nil {
					switch i % 4 {
					case 0:
						j.client.origin.Close()
					case 1:
						j.service.origin.Close()
					case 2:
						j.client.last().theTransit().Close(cell.ReasonNone)
					default:
						j.service.last().theTransit().GiveUp(cell.ReasonResource)
					}
				}
				s.Close()
			}()
		}
		wg.Wait()
		<-j.client.origin.Done()
		<-j.service.origin.Done()
		j.close()
	}
}
