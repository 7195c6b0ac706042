package link

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
)

// echo is a relay that accepts every circuit and sends back what it gets.
type echo struct {
	t    testing.TB
	pool *cell.Pool
}

type echoCircuit struct {
	e   *echo
	c   *Circuit
	out cell.List
}

func (e *echo) onCreate(c *Circuit, _ []byte) {
	acceptCircuit(e.t, c, &echoCircuit{e: e, c: c}, e.pool)
}

func (c *echoCircuit) Receive(_ cell.Command, body []byte) {
	x := c.e.pool.Get()
	x.SetCommand(cell.Relay)
	copy(x.Body(), body)
	c.out.Push(x)
}

func (c *echoCircuit) Flush() {
	if err := c.c.Send(&c.out); err != nil && !errors.Is(err, ErrClosed) {
		c.e.t.Errorf("echo: %v", err)
	}
}

func (c *echoCircuit) Closed(cell.Reason) {}

func TestCircuitBothWays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		one, two := relayConfig(t, 1), relayConfig(t, 2)
		one.OnCreate = (&echo{t, one.Pool}).onCreate
		two.OnCreate = (&echo{t, two.Pool}).onCreate
		i, r := newPair(t, one, two)
		for _, side := range []struct {
			l    *Link
			pool *cell.Pool
			id   uint32
		}{{i, one.Pool, theirs + 1}, {r, two.Pool, ours + 1}} {
			rec := new(recorder)
			c := openCircuit(t, side.l, rec, side.pool)
			rec.want(t, "CREATED 0", "flush")
			if c.ID() != side.id || c.Link() != side.l {
				t.Errorf("ID %#x, want %#x", c.ID(), side.id)
			}
			if err := c.Send(cells(side.pool, cell.Relay, 10, 3)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			rec.want(t, "RELAY 10", "RELAY 11", "RELAY 12", "flush")
		}
		s := i.Stats()
		if s.OwnCircuits != 1 || s.PeerCircuits != 1 || s.QueuedCells != 0 || s.CellsWritten != s.CellsRead || s.CellsRead != 8 {
			t.Errorf("%+v", s)
		}
		i.Close()
		<-r.Done()
		if s := i.Stats(); s.OwnCircuits != 0 || s.PeerCircuits != 0 {
			t.Errorf("after the end: %+v", s)
		}
		checkReturned(t, one, two)
	})
}

// TestFlushes: a batch ends after 46 cells, and each circuit is flushed once a batch.
func TestFlushes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		recs := []*recorder{new(recorder), new(recorder)}
		n := 0
		cfg.OnCreate = func(c *Circuit, _ []byte) { acceptCircuit(t, c, recs[n], cfg.Pool); n++ }
		p, l := newRaw(t, true, clientConfig(), cfg)
		p.send(rawCreate(theirs+1), rawCreate(theirs+2))
		synctest.Wait()
		relay := func(c uint32, n byte) []byte { return rawCell(theirs+c, cell.Relay, 0, 0, 0, n) }

		p.send(relay(1, 1), relay(2, 2), relay(1, 3))
		synctest.Wait()
		recs[0].want(t, "RELAY 1", "RELAY 3", "flush")
		recs[1].want(t, "RELAY 2", "flush")

		// 40 and 30 cells in two records that arrive at once: a batch ends after 46.
		relays := func(n int) [][]byte { return slices.Repeat([][]byte{relay(1, 9)}, n) }
		got := func() (batches []int) {
			n := 0
			for _, e := range recs[0].take() {
				if e == "flush" {
					batches = append(batches, n)
					n = -1
				}
				n++
			}
			return batches
		}
		p.send(slices.Repeat([][]byte{rawCell(0, cell.Padding)}, 46)...) // now its buffer is large
		synctest.Wait()
		p.conn.Write(slices.Concat(p.seal(relays(40)...), p.seal(relays(30)...)))
		synctest.Wait()
		if b := got(); !slices.Equal(b, []int{46, 24}) {
			t.Errorf("batches of %d cells, want 46 and 24", b)
		}
		l.Close()
	})
}

// TestDestroy goes through the ways in which a circuit ends.
func TestDestroy(t *testing.T) {
	t.Run("by us", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg, rec := relayConfig(t, 2), new(recorder)
			p, l := newRaw(t, true, clientConfig(), cfg)
			c := openCircuit(t, l, rec, cfg.Pool)
			p.expect(fmt.Sprintf("CREATE 0x1 %d", 1<<24)) // the hop index is the body's first byte
			p.send(rawCell(1, cell.Created))
			synctest.Wait()
			c.Destroy(cell.ReasonFinished)
			c.Destroy(cell.ReasonProtocol)
			p.expect("DESTROY 0x1 50331648") // reason 3
			for range 5 {
				p.send(rawCell(1, cell.Relay), rawCell(1, cell.Relay))
			}
			synctest.Wait()
			rec.want(t, "CREATED 0", "flush")
			if s := l.Stats(); s.LateCells != 10 || s.OwnCircuits != 0 {
				t.Errorf("%+v, want 10 late cells", s)
			}
			if err := c.Send(cells(cfg.Pool, cell.Relay, 0, 3)); !errors.Is(err, ErrClosed) {
				t.Errorf("Send gave %v, want ErrClosed", err)
			}
			p.send(rawCell(1, cell.Destroy))
			synctest.Wait()
			if l.Err() != nil || len(l.destroying) != 0 {
				t.Errorf("error %v, %d answers owed", l.Err(), len(l.destroying))
			}
			l.Close()
			rec.want(t)
			checkReturned(t, cfg)
		})
	})
	t.Run("by the peer", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg, rec := relayConfig(t, 2), new(recorder)
			var c *Circuit
			cfg.OnCreate = func(n *Circuit, _ []byte) { c = n; acceptCircuit(t, n, rec, cfg.Pool) }
			p, l := newRaw(t, true, clientConfig(), cfg)
			p.send(rawCreate(theirs + 1))
			p.expect("CREATED 0x80000001 0")
			p.send(rawCell(theirs+1, cell.Relay, 0, 0, 0, 7), rawCell(theirs+1, cell.Destroy, byte(cell.ReasonResource)))
			p.expect("DESTROY 0x80000001 0")
			rec.want(t, "RELAY 7", "flush", "closed out of resources")
			c.Destroy(cell.ReasonProtocol)
			if err := c.Send(cells(cfg.Pool, cell.Relay, 0, 1)); !errors.Is(err, ErrClosed) {
				t.Errorf("Send gave %v", err)
			}
			synctest.Wait()
			if s := l.Stats(); s.CellsWritten != 2 { // CREATED, DESTROY
				t.Errorf("%d cells were written", s.CellsWritten)
			}
			l.Close()
			rec.want(t)
			checkReturned(t, cfg)
		})
	})
	t.Run("before CREATED", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			var c *Circuit
			cfg.OnCreate = func(n *Circuit, _ []byte) { c = n }
			p, l := newRaw(t, true, clientConfig(), cfg)
			p.send(rawCreate(theirs+1), rawCell(theirs+1, cell.Destroy))
			p.expect("DESTROY 0x80000001 0")
			if err := c.SetReceiver(new(recorder)); !errors.Is(err, ErrClosed) {
				t.Errorf("SetReceiver gave %v, want ErrClosed", err)
			}
			if err := c.Send(cells(cfg.Pool, cell.Created, 0, 1)); !errors.Is(err, ErrClosed) {
				t.Errorf("Send gave %v, want ErrClosed", err)
			}
			l.Close()
			checkReturned(t, cfg)
		})
	})
	t.Run("crossing", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg, rec := relayConfig(t, 2), new(recorder)
			p, l := newRaw(t, true, clientConfig(), cfg)
			c := openCircuit(t, l, rec, cfg.Pool)
			p.read()
			c.Destroy(cell.ReasonFinished)
			// All of this was sent before ours arrived.
			p.send(rawCell(1, cell.Created), rawCell(1, cell.Relay), rawCell(1, cell.Destroy, byte(cell.ReasonRefused)))
			p.expect("DESTROY 0x1 50331648")
			synctest.Wait()
			if s := l.Stats(); l.Err() != nil || s.CellsWritten != 2 || s.LateCells != 2 || len(l.destroying) != 0 {
				t.Errorf("%+v, error %v", s, l.Err())
			}
			l.Close()
			rec.want(t)
		})
	})
	t.Run("unsent", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg, rec := relayConfig(t, 2), new(recorder)
			p, l := newRaw(t, true, clientConfig(), cfg)
			c, err := l.Open(rec)
			if err != nil {
				t.Fatal(err)
			}
			c.Destroy(cell.ReasonFinished) // the peer never hears of it
			d, err := l.Open(rec)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Send(createCell(cfg.Pool)); err != nil {
				t.Fatal(err)
			}
			p.expect(fmt.Sprintf("CREATE 0x1 %d", 1<<24)) // the ID was not used up
			if c.ID() != 0 || d.ID() != 1 {
				t.Errorf("IDs %d and %d", c.ID(), d.ID())
			}
			waiting := new(recorder) // opened only
			if _, err := l.Open(waiting); err != nil {
				t.Fatal(err)
			}
			l.Close()
			rec.want(t, "closed link lost")
			waiting.want(t, "closed link lost")
			checkReturned(t, cfg)
		})
	})
	t.Run("from Receive", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg, rec := relayConfig(t, 2), new(recorder)
			var c *Circuit
			cfg.OnCreate = func(n *Circuit, _ []byte) { c = n; acceptCircuit(t, n, rec, cfg.Pool) }
			rec.onCell = func(cell.Command, []byte) { c.Destroy(cell.ReasonProtocol) }
			p, l := newRaw(t, true, clientConfig(), cfg)
			p.send(rawCreate(theirs + 1))
			p.expect("CREATED 0x80000001 0")
			p.send(slices.Repeat([][]byte{rawCell(theirs+1, cell.Relay)}, 10)...)
			p.expect("DESTROY 0x80000001 16777216")
			synctest.Wait()
			rec.want(t, "RELAY 0", "flush")
			if s := l.Stats(); s.LateCells != 9 {
				t.Errorf("%d late cells, want 9", s.LateCells)
			}
			l.Close()
			rec.want(t)
		})
	})
	t.Run("ahead of data", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			cfg.QueueCells = 1 << 16
			p, l := newRaw(t, true, clientConfig(), cfg)
			a := openCircuit(t, l, new(recorder), cfg.Pool)
			b := openCircuit(t, l, new(recorder), cfg.Pool)
			p.send(rawCell(1, cell.Created), rawCell(2, cell.Created))
			synctest.Wait()
			p.read()
			p.read()
			p.conn.in.mu.Lock()
			p.conn.in.limit = 1 // each Write waits for the one before
			p.conn.in.mu.Unlock()
			a.Send(cells(cfg.Pool, cell.Relay, 0, 1000))
			b.Send(cells(cfg.Pool, cell.Relay, 0, 1000))
			synctest.Wait() // the first is in the buffer, the second waits in Write
			queued := a.Queued()
			a.Destroy(cell.ReasonNone)
			if a.Queued() != 0 || l.Stats().DroppedCells != uint64(queued) || queued < 500 {
				t.Errorf("%d cells still queued, %d of %d dropped", a.Queued(), l.Stats().DroppedCells, queued)
			}
			records := 0
			for ; ; records++ {
				if got := p.read(); name(got[0]) == "DESTROY 0x1 0" {
					break
				}
			}
			if records > 2*recordsPerWrite {
				t.Errorf("DESTROY came after %d records, want at most the %d that were sealed", records, 2*recordsPerWrite)
			}
			l.Close()
			checkReturned(t, cfg)
		})
	})
}

// TestDestroyUnanswered: a peer that does not answer is not kept.
func TestDestroyUnanswered(t *testing.T) {
	t.Run("too long", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			p, l := newRaw(t, true, clientConfig(), cfg)
			go func() {
				for p.read() != nil {
				}
			}()
			go func() { // the peer lives, but it does not answer
				tick := time.NewTicker(time.Minute)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						p.send(rawCell(0, cell.Padding))
					case <-l.Done():
						return
					}
				}
			}()
			openCircuit(t, l, new(recorder), cfg.Pool).Destroy(cell.ReasonNone)
			began := time.Now()
			<-l.Done()
			if took := time.Since(began); !errors.Is(l.Err(), ErrDestroyUnanswered) ||
				took < destroyTimeout || took > destroyTimeout+2*destroyCheck {
				t.Errorf("ended with %v after %v", l.Err(), took)
			}
		})
	})
	t.Run("too many", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			cfg.MaxCircuits = 10
			cfg.OnCreate = func(c *Circuit, _ []byte) { c.Destroy(cell.ReasonRefused) }
			p, l := newRaw(t, true, clientConfig(), cfg)
			n := uint32(0)
			for ; l.Err() == nil && n < 5000; n++ {
				p.send(rawCreate(theirs + 1 + n))
				synctest.Wait()
				if n%8 == 0 && l.Err() == nil { // what is sent is read
					p.conn.in.mu.Lock()
					p.conn.in.buf = nil
					p.conn.in.mu.Unlock()
				}
			}
			if !errors.Is(l.Err(), ErrDestroyUnanswered) || n != 10+destroyedSlack+1 {
				t.Errorf("after %d circuits: %v", n, l.Err())
			}
			l.Close()
		})
	})
	t.Run("refused and not answered", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			cfg.MaxCircuits = 2
			p, l := newRaw(t, true, clientConfig(), cfg)
			p.conn.in.limit = 1 << 30
			for n := uint32(0); n < 2+2+destroyedSlack; n++ {
				p.send(rawCreate(theirs + 1 + n))
			}
			synctest.Wait()
			if s := l.Stats(); l.Err() != nil || s.PeerCircuits != 2 || s.RefusedCircuits != 2+destroyedSlack {
				t.Errorf("%+v, error %v", s, l.Err())
			}
			p.send(rawCreate(1<<32 - 1))
			synctest.Wait()
			if !errors.Is(l.Err(), ErrDestroyUnanswered) {
				t.Errorf("ended with %v", l.Err())
			}
			l.Close()
		})
	})
	t.Run("does not read", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			cfg.MaxCircuits = 10
			p, l := newRaw(t, true, clientConfig(), cfg)
			p.conn.in.limit = 1
			n := uint32(0)
			for ; l.Err() == nil && n < 5000; n++ {
				p.send(rawCreate(theirs+1+n), rawCell(theirs+1+n, cell.Destroy))
				synctest.Wait()
			}
			if !errors.Is(l.Err(), ErrPeerNotReading) {
				t.Errorf("after %d circuits: %v", n, l.Err())
			}
			l.Close()
		})
	})
}

// TestRefused: a circuit too many is refused, and the link lives.
func TestRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		cfg.MaxCircuits = 2
		p, l := newRaw(t, true, clientConfig(), cfg)
		p.send(rawCreate(theirs+1), rawCreate(theirs+2), rawCreate(theirs+3))
		p.expect("DESTROY 0x80000003 33554432") // reason 2
		p.send(rawCell(theirs+3, cell.Destroy), rawCell(theirs+1, cell.Destroy), rawCreate(theirs+4))
		p.expect("DESTROY 0x80000001 0")
		synctest.Wait()
		if s := l.Stats(); l.Err() != nil || s.PeerCircuits != 2 || s.RefusedCircuits != 1 {
			t.Errorf("%+v, error %v", s, l.Err())
		}
		for n := range 3 {
			if _, err := l.Open(new(recorder)); (err != nil) != (n == 2) || n == 2 && !errors.Is(err, ErrTooManyCircuits) {
				t.Errorf("circuit %d of ours: %v", n, err)
			}
		}
		l.Close()
		if _, err := l.Open(new(recorder)); !errors.Is(err, ErrClosed) {
			t.Errorf("Open on a closed link gave %v", err)
		}
	})
}

// TestStates: calls that do not fit the state are refused and lose no cell.
func TestStates(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		var offered *Circuit
		cfg.OnCreate = func(c *Circuit, _ []byte) { offered = c }
		p, l := newRaw(t, true, clientConfig(), cfg)
		p.send(rawCreate(theirs + 1))
		synctest.Wait()
		send := func(c *Circuit, cmd cell.Command, n int) error { return c.Send(cells(cfg.Pool, cmd, 0, n)) }
		own, err := l.Open(new(recorder))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Open(nil); !errors.Is(err, ErrState) {
			t.Errorf("Open without receiver: %v", err)
		}
		for name, err := range map[string]error{
			"RELAY before CREATE":      send(own, cell.Relay, 1),
			"two CREATEs":              send(own, cell.Create, 2),
			"CREATED without receiver": send(offered, cell.Created, 1),
			"RELAY before CREATED":     send(offered, cell.Relay, 1),
			"SetReceiver on our own":   own.SetReceiver(new(recorder)),
			"SetReceiver with nil":     offered.SetReceiver(nil),
		} {
			if !errors.Is(err, ErrState) {
				t.Errorf("%s: %v, want ErrState", name, err)
			}
		}
		if err := own.Send(new(cell.List)); err != nil {
			t.Errorf("nothing to send: %v", err)
		}
		if err := own.Send(createCell(cfg.Pool)); err != nil {
			t.Fatal(err)
		}
		if err := send(own, cell.Relay, 1); !errors.Is(err, ErrState) {
			t.Errorf("RELAY at once after CREATE: %v", err)
		}
		synctest.Wait()
		if err := send(own, cell.Relay, 1); !errors.Is(err, ErrState) {
			t.Errorf("RELAY before the peer's CREATED: %v", err)
		}
		acceptCircuit(t, offered, new(recorder), cfg.Pool)
		if err := offered.SetReceiver(new(recorder)); !errors.Is(err, ErrState) {
			t.Errorf("SetReceiver twice: %v", err)
		}
		if err := send(offered, cell.Created, 1); !errors.Is(err, ErrState) {
			t.Errorf("CREATED twice: %v", err)
		}
		if l.Err() != nil {
			t.Error(l.Err())
		}
		l.Close()
		checkReturned(t, cfg)
	})
}

// TestThousandCircuits opens them from both sides at once and echoes over each.
func TestThousandCircuits(t *testing.T) {
	const n, each = 1000, 20
	bubble(t, func(t *testing.T) {
		one, two := relayConfig(t, 1), relayConfig(t, 2)
		one.OnCreate = (&echo{t, one.Pool}).onCreate
		two.OnCreate = (&echo{t, two.Pool}).onCreate
		i, r := newPair(t, one, two)
		var wg sync.WaitGroup
		for k := range n {
			l, cfg := i, one
			if k%2 == 0 {
				l, cfg = r, two
			}
			wg.Go(func() {
				rec, opened := new(recorder), make(chan struct{})
				got := make(chan struct{}, each)
				rec.onCell = func(cmd cell.Command, _ []byte) {
					if cmd == cell.Created {
						close(opened)
						return
					}
					got <- struct{}{}
				}
				c, err := l.Open(rec)
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.Send(createCell(cfg.Pool)); err != nil {
					t.Error(err)
				}
				<-opened
				for m := range each {
					if err := c.Send(cells(cfg.Pool, cell.Relay, k*each+m, 1)); err != nil {
						t.Error(err)
					}
				}
				for range each {
					<-got
				}
				next := k * each
				for _, e := range rec.take() {
					if e != "flush" && e != "CREATED 0" {
						if e != fmt.Sprintf("RELAY %d", next) {
							t.Errorf("circuit %d got %q, want RELAY %d", k, e, next)
						}
						next++
					}
				}
				c.Destroy(cell.ReasonFinished)
			})
		}
		wg.Wait()
		synctest.Wait()
		for _, l := range []*Link{i, r} {
			if s := l.Stats(); l.Err() != nil || s.OwnCircuits+s.PeerCircuits != 0 || len(l.table)+len(l.destroying) != 0 {
				t.Errorf("%+v, error %v", s, l.Err())
			}
		}
		i.Close()
		r.Close()
		checkReturned(t, one, two)
	})
}
