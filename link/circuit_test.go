package link

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

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

func (c *echoCircuit) Kick()              {}
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
			if err := c.sendNow(cells(side.pool, cell.Relay, 10, 3)); err != nil {
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
		send := func(c *Circuit, cmd cell.Command, n int) error { return c.sendNow(cells(cfg.Pool, cmd, 0, n)) }
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
		if err := own.sendNow(new(cell.List)); err != nil {
			t.Errorf("nothing to send: %v", err)
		}
		if err := own.sendNow(createCell(cfg.Pool)); err != nil {
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
				if err := c.sendNow(createCell(cfg.Pool)); err != nil {
					t.Error(err)
				}
				<-opened
				for m := range each {
					if err := c.sendNow(cells(cfg.Pool, cell.Relay, k*each+m, 1)); err != nil {
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
