package circuit

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// inBubble runs f with a chain of hops relays, of which none is part of the
// circuit yet, and closes everything after it.
func inBubble(t *testing.T, hops int, f func(c *chain)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newChain(t, hops)
		defer c.close()
		for _, n := range c.nodes {
			n.resolve = func(l *stream.Lookup, _ cell.ResolveBody) { l.Answer(cell.ResolvedBody{Status: cell.EndNotFound}) }
			n.begin = func(s *stream.Stream, _ cell.BeginBody) {
				c.wg.Go(func() {
					s.Accept(cell.ConnectedBody{})
					io.Copy(s, s)
					s.Close()
				})
			}
		}
		f(c)
	})
}

// echo sends data to the last hop and back.
func (c *chain) echo() {
	c.t.Helper()
	s, err := c.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
	if err != nil {
		c.t.Error(err)
		return
	}
	mustWrite(c.t, s, "there and back")
	s.CloseWrite()
	if got, err := io.ReadAll(s); string(got) != "there and back" || err != nil {
		c.t.Errorf("%q came back, error %v", got, err)
	}
	s.Close()
	synctest.Wait()
}

// attach extends the origin over the first n nodes.
func (c *chain) attach(n int) {
	c.t.Helper()
	c.origin.Attach(c.connect(c.origin, c.nodes[0]))
	for i := range n {
		if err := c.origin.Extend(context.Background(), c.spec(i)); err != nil {
			c.t.Fatalf("hop %d: %v", i+1, err)
		}
	}
}

// ended checks that the circuit has ended for that reason, everywhere.
func (c *chain) ended(want error) {
	c.t.Helper()
	synctest.Wait()
	if err := c.origin.Err(); !errors.Is(err, want) {
		c.t.Errorf("the circuit ended with %v, want %v", err, want)
	}
	select {
	case <-c.origin.Done():
	default:
		c.t.Error("Done is not closed")
	}
	for i, n := range c.nodes {
		if n.transit == nil {
			continue
		}
		n.transit.mu.Lock()
		if n.transit.err == nil {
			c.t.Errorf("hop %d lives on", i+1)
		}
		n.transit.mu.Unlock()
	}
}

// TestBuild: the figures of a circuit while it grows.
func TestBuild(t *testing.T) {
	inBubble(t, 3, func(c *chain) {
		if c.origin.Len() != 0 || c.origin.Mux() != nil || c.origin.Err() != nil {
			t.Error("a new Origin has hops")
		}
		c.attach(3)
		if c.origin.Len() != 3 {
			t.Errorf("%d hops, want 3", c.origin.Len())
		}
		seen := map[[32]byte]bool{}
		for i, n := range c.nodes {
			if n.index != uint8(i+1) || n.transit.Index() != uint8(i+1) {
				t.Errorf("relay %d was created at index %d", i+1, n.index)
			}
			if c.origin.Exporter(i+1) != n.keys.Exporter || seen[n.keys.Exporter] {
				t.Errorf("hop %d: the two ends have different exporters, or two hops the same", i+1)
			}
			seen[n.keys.Exporter] = true
		}
		c.echo()
	})
}

// TestNinthHop: a circuit has eight hops. The origin does not ask for more, and
// a relay at index 8 refuses, should EXTEND reach it.
func TestNinthHop(t *testing.T) {
	inBubble(t, 9, func(c *chain) {
		c.attach(8)
		if err := c.origin.Extend(context.Background(), c.spec(8)); err == nil {
			t.Error("a ninth hop")
		}
		if c.origin.Err() != nil || c.origin.Len() != 8 {
			t.Errorf("after a ninth hop was refused: %d hops, %v", c.origin.Len(), c.origin.Err())
		}
		c.echo()
	})
	l := newLab(t, 8, layer.AES256GCM)
	if err := l.exit().extend(extendBody()); err != nil {
		t.Error(err)
	}
	if len(l.exit().extends) != 0 {
		t.Error("a relay at index 8 extends")
	}
	p := &question{want: cell.Extended, fail: make(chan error, 1)}
	l.origin.pending = p
	l.settle()
	select {
	case err := <-p.fail:
		if err != cell.ExtendNotAllowed {
			t.Errorf("a relay at index 8 says %v", err)
		}
	default:
		t.Error("a relay at index 8 does not answer")
	}
	l.close()
	for _, index := range []uint8{0, 9, 255} {
		if _, err := NewTransit(TransitConfig{Pool: l.pool, Index: index, Suite: layer.AES256GCM, Keys: l.keys[0]}); err == nil {
			t.Errorf("a Transit at index %d", index)
		}
	}
	if _, err := NewTransit(TransitConfig{Pool: l.pool, Index: 1, Suite: 3, Keys: l.keys[0]}); err == nil {
		t.Error("a Transit with an unknown suite")
	}
}

// TestForgedIndex: a relay that creates the next hop at another index than the
// client's handshake was made for gets no session; the circuit lives, and can be
// extended honestly. Nor can the first hop be another than 1.
func TestForgedIndex(t *testing.T) {
	for _, forged := range []byte{1, 3, 8} {
		inBubble(t, 2, func(c *chain) {
			c.tamperOut[1] = func(x *cell.Cell) bool {
				if x.Command() == cell.Create {
					x.Body()[0] = forged
				}
				return true
			}
			c.attach(1)
			if err := c.origin.Extend(context.Background(), c.spec(1)); err != cell.ExtendRefused {
				t.Errorf("index %d instead of 2: %v", forged, err)
			}
			if c.nodes[1].transit != nil {
				t.Errorf("index %d instead of 2: the relay has a session", forged)
			}
			if err := c.origin.Extend(context.Background(), c.spec(1)); err != nil {
				t.Fatalf("an honest try after it: %v", err)
			}
			c.echo()
		})
	}
	inBubble(t, 1, func(c *chain) {
		c.tamperOut[0] = func(x *cell.Cell) bool { x.Body()[0] = 2; return true }
		c.origin.Attach(c.connect(c.origin, c.nodes[0]))
		if err := c.origin.Extend(context.Background(), c.spec(0)); !errors.Is(err, ErrDestroyed) {
			t.Errorf("index 2 instead of 1 at the first hop: %v", err)
		}
		c.ended(ErrDestroyed)
	})
}

// TestHandshakeTampered: with a byte of CREATE or CREATED, or of EXTEND's and
// EXTENDED's contents on the far link, changed, there is no session.
func TestHandshakeTampered(t *testing.T) {
	flip := func(pos int) func(*cell.Cell) bool {
		return func(x *cell.Cell) bool {
			if x.Command() == cell.Create || x.Command() == cell.Created {
				x.Body()[pos] ^= 0x10
			}
			return true
		}
	}
	for link := range 2 {
		for pos := 0; pos < cell.BodySize; pos += 61 {
			inBubble(t, 2, func(c *chain) {
				c.tamperOut[link] = flip(pos)
				c.origin.Attach(c.connect(c.origin, c.nodes[0]))
				var err error
				for i := 0; i < 2 && err == nil; i++ {
					err = c.origin.Extend(context.Background(), c.spec(i))
				}
				if err == nil || c.origin.Len() > link {
					t.Errorf("CREATE on link %d, byte %d: %d hops, error %v", link+1, pos, c.origin.Len(), err)
				}
			})
			inBubble(t, 2, func(c *chain) {
				c.tamperBack[link] = flip(pos)
				c.origin.Attach(c.connect(c.origin, c.nodes[0]))
				var err error
				for i := 0; i < 2 && err == nil; i++ {
					err = c.origin.Extend(context.Background(), c.spec(i))
				}
				if err == nil || c.origin.Len() > link {
					t.Errorf("CREATED on link %d, byte %d: %d hops, error %v", link+1, pos, c.origin.Len(), err)
				}
				c.ended(err)
			})
		}
	}
}

// TestExtendFailed: for each reason the circuit lives, and the next try works.
func TestExtendFailed(t *testing.T) {
	for why := cell.ExtendUnknownRelay; why <= cell.ExtendNotAllowed; why++ {
		inBubble(t, 3, func(c *chain) {
			c.attach(2)
			c.nodes[1].refuse = why
			for range 3 {
				if err := c.origin.Extend(context.Background(), c.spec(2)); err != why {
					t.Errorf("Extend says %v, want %v", err, why)
				}
			}
			c.echo() // at hop 2
			c.nodes[1].refuse = 0
			if err := c.origin.Extend(context.Background(), c.spec(2)); err != nil {
				t.Fatalf("after EXTEND_FAILED (%v): %v", why, err)
			}
			c.echo() // at hop 3
		})
	}
	inBubble(t, 2, func(c *chain) {
		c.attach(1)
		unknown := c.spec(1)
		unknown.Identity = [32]byte{99}
		if err := c.origin.Extend(context.Background(), unknown); err != cell.ExtendUnknownRelay {
			t.Errorf("an unknown relay: %v", err)
		}
		wrong := c.spec(1)
		wrong.OnionKey = c.nodes[0].key.Public()
		if err := c.origin.Extend(context.Background(), wrong); err != cell.ExtendRefused {
			t.Errorf("another onion key: %v", err)
		}
		if err := c.origin.Extend(context.Background(), c.spec(1)); err != nil {
			t.Error(err)
		}
		c.echo()
	})
}

// TestExtendCancelled: who stops waiting for a hop gives up the circuit, since
// the hop may come about later. What comes late is dropped.
func TestExtendCancelled(t *testing.T) {
	for hop := 1; hop <= 3; hop++ {
		inBubble(t, 3, func(c *chain) {
			release := make(chan struct{})
			stall := func(x *cell.Cell) bool {
				if x.Command() == cell.Created {
					<-release
				}
				return true
			}
			c.tamperBack[hop-1] = stall
			c.attach(hop - 1)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			start := time.Now()
			err := c.origin.Extend(ctx, c.spec(hop-1))
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("hop %d: %v after %v", hop, err, time.Since(start))
			}
			close(release)
			c.ended(context.DeadlineExceeded)
			if err := c.origin.Extend(context.Background(), c.spec(hop-1)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("hop %d: Extend on a circuit that ended: %v", hop, err)
			}
		})
	}
}

// TestExtendWrong: calls that make no sense change nothing.
func TestExtendWrong(t *testing.T) {
	inBubble(t, 3, func(c *chain) {
		if err := c.origin.Extend(context.Background(), c.spec(0)); err == nil {
			t.Error("Extend before Attach succeeds")
		}
		c.attach(1)
		// While one is under way.
		release := make(chan struct{})
		c.nodes[0].extend = func(t *Transit, e cell.ExtendBody) {
			<-release
			c.nodes[0].extend = nil
			t.ExtendFailed(cell.ExtendTimeout)
		}
		first := make(chan error, 1)
		go func() { first <- c.origin.Extend(context.Background(), c.spec(1)) }()
		synctest.Wait()
		if err := c.origin.Extend(context.Background(), c.spec(1)); err == nil || c.origin.Err() != nil {
			t.Errorf("a second Extend at once: %v, the circuit: %v", err, c.origin.Err())
		}
		close(release)
		if err := <-first; err != cell.ExtendTimeout {
			t.Errorf("the first Extend: %v", err)
		}
		// With streams.
		s, err := c.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.origin.Extend(context.Background(), c.spec(1)); err == nil || c.origin.Err() != nil {
			t.Errorf("Extend with a stream open: %v, the circuit: %v", err, c.origin.Err())
		}
		s.Close()
		synctest.Wait()
		// With keys that are none, and a suite that the relay may have but we do not.
		bad := c.spec(1)
		bad.OnionKey = [32]byte{}
		if err := c.origin.Extend(context.Background(), bad); err == nil || c.origin.Err() != nil {
			t.Errorf("an onion key of zeros: %v, the circuit: %v", err, c.origin.Err())
		}
		if err := c.origin.Extend(context.Background(), c.spec(1)); err != nil {
			t.Fatal(err)
		}
		c.echo()
	})
}

// TestExtendNoRoom: when CREATE or EXTEND cannot be sent, Extend says so and the
// circuit has ended when it returns.
func TestExtendNoRoom(t *testing.T) {
	for hop := 1; hop <= 2; hop++ {
		inBubble(t, 2, func(c *chain) {
			c.attach(hop - 1)
			c.out[0].mu.Lock()
			c.out[0].limit = 0
			c.out[0].mu.Unlock()
			err := c.origin.Extend(context.Background(), c.spec(hop-1))
			if !errors.Is(err, ErrDestroyed) || !errors.Is(c.origin.Err(), ErrDestroyed) {
				t.Errorf("hop %d: %v, the circuit: %v", hop, err, c.origin.Err())
			}
			if hop == 1 {
				return // the relay never heard of it
			}
			c.ended(ErrDestroyed)
		})
	}
}

// TestAttachLate: a circuit that has ended before it got its way out.
func TestAttachLate(t *testing.T) {
	l := newLab(t, 1, layer.AES256GCM)
	ended := 0
	o := NewOrigin(OriginConfig{Pool: l.pool, OnClose: func(error) { ended++ }})
	o.Closed(cell.ReasonLinkLost)
	o.Closed(cell.ReasonNone)
	o.Close()
	out := &tube{pool: l.pool}
	o.Attach(out)
	if !out.gone || !errors.Is(o.Err(), ErrDestroyed) || ended != 1 {
		t.Errorf("destroyed: %v, %v, OnClose was called %d times", out.gone, o.Err(), ended)
	}
	l.close()
}
