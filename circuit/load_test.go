package circuit

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// content is the bytes that stream number n carries in one direction.
func content(n, direction, size int) []byte {
	b := make([]byte, size)
	random := mathrand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(direction)})
	random.Read(b)
	return b
}

// The ways in which the streams of TestStreams go.
const (
	modeTurns     = iota // the client sends all, then the exit
	modeBoth             // both send at once
	modeClose            // the client sends all and closes without reading
	modeReset            // the client resets in the middle
	modeExitReset        // the exit resets in the middle
	modeRefused          // the exit refuses
	modeCount
)

// plan is what both ends of a stream know of it, from the host name.
type plan struct{ n, mode, up, down int }

func (p plan) host() string { return fmt.Sprintf("%d.%d.%d.%d", p.n, p.mode, p.up, p.down) }

// TestStreams carries streams of random sizes through three hops, many at once,
// with half-closes and resets: what arrives is exact to the byte, an end of the
// data is seen where all has arrived and nowhere else, and nothing is left.
func TestStreams(t *testing.T) {
	total := 120
	if *soak {
		total = 10_000
	}
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		inBubble(t, 3, func(c *chain) {
			c.suite = suite
			var left atomic.Int64 // streams that the exit works on
			c.last().begin = func(s *stream.Stream, b cell.BeginBody) {
				left.Add(1)
				c.wg.Go(func() {
					defer left.Add(-1)
					var p plan
					if _, err := fmt.Sscanf(b.Host, "%d.%d.%d.%d", &p.n, &p.mode, &p.up, &p.down); err != nil {
						t.Error(err)
					}
					p.exit(t, s)
				})
			}
			c.attach(3)
			random := mathrand.New(mathrand.NewPCG(uint64(suite), 7))
			turns := make(chan struct{}, 40)
			var wg sync.WaitGroup
			for n := range total {
				p := plan{n: n, mode: random.IntN(modeCount), up: random.IntN(60_000), down: random.IntN(60_000)}
				switch random.IntN(20) {
				case 0:
					p.up, p.down = random.IntN(700_000), random.IntN(2_000)
				case 1:
					p.up, p.down = random.IntN(2_000), random.IntN(700_000)
				case 2:
					p.up, p.down = random.IntN(2), random.IntN(2)
				}
				turns <- struct{}{}
				wg.Go(func() {
					defer func() { <-turns }()
					s, err := c.origin.Mux().Open(cell.BeginBody{Host: p.host(), Port: 1})
					if err != nil {
						t.Error(err)
						return
					}
					p.client(t, s)
				})
			}
			wg.Wait()
			synctest.Wait()
			if a, b, d := c.origin.Mux().Len(), c.last().transit.Streams(), left.Load(); a+b != 0 || d != 0 {
				t.Errorf("%d streams are left at the origin, %d at the exit, which works on %d", a, b, d)
			}
			if n := c.pool.Outstanding(); n != 0 {
				t.Errorf("%d cells are out with nothing under way", n)
			}
			if err := c.origin.Err(); err != nil {
				t.Errorf("the circuit ended: %v", err)
			}
		})
	}
}

// client is the plan as the client does it.
func (p plan) client(t *testing.T, s *stream.Stream) {
	defer s.Close()
	up, down := content(p.n, 0, p.up), content(p.n, 1, p.down)
	if p.mode == modeBoth {
		var sending sync.WaitGroup
		defer sending.Wait()
		sending.Go(func() { p.send(t, s, up) })
	} else if p.mode != modeRefused {
		p.send(t, s, up)
	}
	switch p.mode {
	case modeClose:
		return
	case modeReset:
		got := make([]byte, p.down/2)
		if n, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, down[:n]) {
			t.Errorf("%+v: read %d bytes before the reset, error %v", p, n, err)
		}
		s.Reset()
		return
	}
	got, err := io.ReadAll(s)
	switch {
	case p.mode == modeRefused:
		if err != cell.EndRefused || len(got) != 0 {
			t.Errorf("%+v: read %d bytes, error %v", p, len(got), err)
		}
	case p.mode == modeExitReset:
		if err != cell.EndReset || !bytes.Equal(got, down[:p.down/2]) {
			t.Errorf("%+v: read %d bytes, error %v", p, len(got), err)
		}
	case err != nil || !bytes.Equal(got, down):
		t.Errorf("%+v: read %d bytes, error %v", p, len(got), err)
	}
}

// send sends all, in pieces, and EOF where there is an answer.
func (p plan) send(t *testing.T, s *stream.Stream, data []byte) {
	for len(data) > 0 {
		n, err := s.Write(data[:min(len(data), 1+len(data)/3)])
		if err != nil {
			t.Errorf("%+v: Write: %v", p, err)
			return
		}
		data = data[n:]
	}
	if p.mode != modeClose {
		if err := s.CloseWrite(); err != nil {
			t.Errorf("%+v: CloseWrite: %v", p, err)
		}
	}
}

// exit is the plan as the last relay does it.
func (p plan) exit(t *testing.T, s *stream.Stream) {
	defer s.Close()
	if p.mode == modeRefused {
		s.Abort(cell.EndRefused)
		return
	}
	if err := s.Accept(cell.ConnectedBody{}); err != nil {
		if p.mode != modeClose && (p.mode != modeReset || p.down > 1) { // who did not wait for us
			t.Errorf("%+v: Accept: %v", p, err)
		}
		if p.mode != modeClose {
			return
		}
	}
	down := content(p.n, 1, p.down)
	if p.mode == modeBoth {
		var sending sync.WaitGroup
		defer sending.Wait()
		sending.Go(func() { p.send(t, s, down) })
	}
	got, err := io.ReadAll(s)
	if up := content(p.n, 0, p.up); err != nil || !bytes.Equal(got, up) {
		t.Errorf("%+v: the exit read %d bytes, error %v", p, len(got), err)
	}
	switch p.mode {
	case modeTurns:
		p.send(t, s, down)
	case modeReset:
		s.Write(down) // the reset comes in the middle
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%+v: EOF came, then %v", p, err)
		}
	case modeExitReset:
		s.Write(down[:p.down/2])
		s.Reset()
	}
}

// TestEndings ends a circuit that is busy in all directions, from each party
// and on each link, at random moments from the first cell of its construction
// on. Everybody hears of it once, nobody waits for ever, and nothing is left.
func TestEndings(t *testing.T) {
	runs := 100
	if *soak {
		runs = 5000
	}
	for seed := range uint64(runs) {
		random := mathrand.New(mathrand.NewPCG(seed, 3))
		inBubble(t, 3, func(c *chain) {
			endings := []func(){c.origin.Close}
			closed := make([]atomic.Int64, 3)
			for i, n := range c.nodes {
				n.closed = func() { closed[i].Add(1) }
				endings = append(endings, func() {
					c.mu.Lock()
					made := len(c.out) > i
					if made {
						cut(c.out[i], c.back[i])
					}
					c.mu.Unlock()
					if !made {
						c.origin.Close()
					}
				})
				endings = append(endings, func() {
					if tr := n.theTransit(); tr != nil {
						tr.Close(cell.ReasonResource)
						return
					}
					c.origin.Close()
				})
			}
			end := endings[random.IntN(len(endings))]
			at := int64(1 + random.IntN(12))
			if random.IntN(3) > 0 {
				at = int64(1 + random.IntN(1500))
			}
			var cells atomic.Int64
			count := func(*cell.Cell) bool {
				if cells.Add(1) == at {
					c.wg.Go(end)
				}
				return true
			}
			for k := range 3 {
				c.tamperOut[k], c.tamperBack[k] = count, count
			}
			c.origin.Attach(c.connect(c.origin, c.nodes[0]))
			for i := range c.nodes {
				if err := c.origin.Extend(context.Background(), c.spec(i)); err != nil {
					var failed cell.ExtendError
					if c.origin.Err() == nil && !errors.As(err, &failed) {
						t.Errorf("seed %d: Extend says %v, but the circuit lives", seed, err)
					}
					c.origin.Close()
					return
				}
			}
			var users sync.WaitGroup
			for i := range 6 {
				users.Go(func() {
					s, err := c.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
					if err != nil {
						return
					}
					defer s.Close()
					data := content(i, 0, 150_000)
					users.Go(func() {
						s.Write(data)
						if i%2 == 0 {
							s.CloseWrite()
						}
					})
					got, err := io.ReadAll(s)
					if !bytes.HasPrefix(data, got) {
						t.Errorf("seed %d: %d bytes came back wrong", seed, len(got))
					}
					if err == nil && len(got) != len(data) {
						t.Errorf("seed %d: the data end after %d bytes as if that were all", seed, len(got))
					}
				})
			}
			users.Go(func() {
				for c.origin.Err() == nil {
					ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
					_, _ = c.origin.Mux().Resolve(ctx, cell.ResolveBody{Name: "x"})
					cancel()
				}
			})
			synctest.Wait()
			if c.origin.Err() == nil {
				c.origin.Close() // the moment never came, or an EXTEND took it
			}
			users.Wait()
			synctest.Wait()
			for i := range c.nodes {
				if n := closed[i].Load(); n != 1 {
					t.Errorf("seed %d: relay %d heard of %d ends", seed, i+1, n)
				}
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestNoHoles: while a circuit is being taken down, some of what its parties do
// fails already and some does not. A message that is lost for that reason must
// be the last one: a stream may be cut, but what is read of it has no holes.
func TestNoHoles(t *testing.T) {
	for _, towardsExit := range []bool{true, false} {
		l := newLab(t, 2, layer.AES256GCM)
		near, far := l.open()
		writer, reader, tube := near, far, l.out[1]
		if !towardsExit {
			writer, reader, tube = far, near, l.in[0]
		}
		tube.frozen = true
		var sent []byte
		for i := range 3 * 5 {
			mustWrite(t, writer, string(rune('0'+i)))
			sent = append(sent, string(rune('0'+i))...)
		}
		l.settle()
		tube.frozen = false
		// The first step of an end that was begun elsewhere: nothing more is
		// sent, ACKs included, but the streams have not heard of it.
		if towardsExit {
			l.exit().err = ErrClosed
			l.settle()
			l.exit().mux.Close(ErrClosed)
		} else {
			l.origin.err = ErrClosed
			l.settle()
			l.origin.Mux().Close(ErrClosed)
		}
		got, _ := readAll(t, reader)
		if !bytes.HasPrefix(sent, []byte(got)) {
			t.Errorf("towards the exit %v: read %q of %q", towardsExit, got, sent)
		}
		for _, s := range []*stream.Stream{near, far} {
			s.Close()
		}
	}
}

// TestExtendBesideAnswer: an EXTEND that arrives while look-ups are answered.
// The one takes the circuit's lock, the other first that of the Mux; in the wrong
// order both would wait for ever, and with them a link's reader.
func TestExtendBesideAnswer(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 30 {
			l := newLab(t, 1, layer.AES256GCM)
			for id := range uint16(200) {
				l.toHop(1, cell.Resolve, id+1, []byte{0, 'x'})
				l.settle()
			}
			var wg sync.WaitGroup
			started := make(chan struct{})
			wg.Go(func() {
				for i, x := range l.exit().lookups {
					if i == 20 {
						close(started)
					}
					_ = x.Answer(cell.ResolvedBody{Status: cell.EndNotFound})
				}
			})
			<-started
			_ = l.exit().extend(extendBody())
			wg.Wait()
			_ = l.origin // its RESOLVEs were made up: what comes back is unlawful there
			l.close()
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("EXTEND and RESOLVED wait for each other")
	}
}

// TestRandFails: a source of randomness that fails fails the Extend alone.
func TestRandFails(t *testing.T) {
	l := newLab(t, 1, layer.AES256GCM)
	l.origin.cfg.Rand = bytes.NewReader(nil)
	if err := l.origin.Extend(context.Background(), HopSpec{OnionKey: [32]byte{9}, Suite: layer.AES256GCM}); err == nil || l.origin.Err() != nil {
		t.Errorf("Extend without randomness: %v, the circuit: %v", err, l.origin.Err())
	}
	l.origin.cfg.Rand = rand.Reader
	l.close()
}
