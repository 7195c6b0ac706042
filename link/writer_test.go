package link

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
)

// openRaw opens n circuits of l towards a raw peer, which accepts them.
func openRaw(t *testing.T, p *rawPeer, l *Link, n int, r Receiver) []*Circuit {
	t.Helper()
	var all []*Circuit
	for k := range n {
		c, err := l.Open(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.sendNow(createCell(l.cfg.Pool)); err != nil {
			t.Fatal(err)
		}
		p.read()
		p.send(rawCell(uint32(k+1), cell.Created))
		all = append(all, c)
	}
	synctest.Wait()
	return all
}

// narrow lets one Write into the buffer towards p at a time.
func (p *rawPeer) narrow() {
	p.conn.in.mu.Lock()
	p.conn.in.limit = 1
	p.conn.in.mu.Unlock()
}

func TestQueueFull(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		cfg.QueueCells = 100
		p, l := newRaw(t, true, clientConfig(), cfg)
		c := openRaw(t, p, l, 2, new(recorder))
		p.narrow()
		c[0].sendNow(cells(cfg.Pool, cell.Relay, 0, 1)) // into the buffer
		synctest.Wait()
		c[0].sendNow(cells(cfg.Pool, cell.Relay, 1, 1)) // waits in Write
		synctest.Wait()
		if err := c[0].sendNow(cells(cfg.Pool, cell.Relay, 2, 60)); err != nil {
			t.Fatal(err)
		}
		if err := c[0].sendNow(cells(cfg.Pool, cell.Relay, 0, 41)); !errors.Is(err, ErrQueueFull) || c[0].Queued() != 60 {
			t.Errorf("the 101st cell gave %v, %d queued", err, c[0].Queued())
		}
		if err := c[0].sendNow(cells(cfg.Pool, cell.Relay, 62, 40)); err != nil || c[0].Queued() != 100 {
			t.Errorf("the 100th cell gave %v, %d queued", err, c[0].Queued())
		}
		if err := c[1].sendNow(cells(cfg.Pool, cell.Relay, 0, 101)); !errors.Is(err, ErrQueueFull) {
			t.Errorf("101 cells at once gave %v", err)
		}
		if n := cfg.Pool.Outstanding(); n != 100 {
			t.Errorf("%d cells are out, want the 100 queued", n)
		}
		want := uint32(0)
		for want < 102 { // the order is kept
			for _, got := range p.read() {
				if name(got) != name(rawCell(1, cell.Relay, 0, 0, 0, byte(want))) {
					t.Fatalf("got %q, want number %d", name(got), want)
				}
				want++
			}
		}
		l.Close()
		checkReturned(t, cfg)
	})
}

// TestFairness: one circuit has 10,000 cells queued; another's cell goes into
// the next record, and from then on both get half.
func TestFairness(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		cfg.QueueCells = 10000
		p, l := newRaw(t, true, clientConfig(), cfg)
		c := openRaw(t, p, l, 2, new(recorder))
		p.narrow()
		c[0].sendNow(cells(cfg.Pool, cell.Relay, 0, 10000))
		synctest.Wait()
		c[1].sendNow(cells(cfg.Pool, cell.Relay, 0, 1000))
		count := func(rec [][]byte) (a, b int) {
			for _, x := range rec {
				if x[3] == 1 {
					a++
				} else {
					b++
				}
			}
			return a, b
		}
		for range 2 * recordsPerWrite { // sealed before the other came
			if a, b := count(p.read()); a != 46 || b != 0 {
				t.Fatalf("%d and %d cells", a, b)
			}
		}
		if a, b := count(p.read()); b < 23 { // who was quiet goes first
			t.Fatalf("%d and %d cells when the other came", a, b)
		}
		for range 20 {
			if a, b := count(p.read()); a != 23 || b != 23 {
				t.Fatalf("%d and %d cells, want 23 each", a, b)
			}
		}
		l.Close()
		checkReturned(t, cfg)
	})
}

// TestSchedulerShares: whatever the size of a record, circuits that always have
// cells get the same number, plus or minus one turn, and none waits for longer
// than it takes to serve all.
func TestSchedulerShares(t *testing.T) {
	for _, circuits := range []int{1, 2, 3, 7, 45, 46, 47, 100} {
		for _, record := range []int{1, 2, 5, 45, 46} {
			var s scheduler
			pool := new(cell.Pool)
			all := make([]*Circuit, circuits)
			for k := range all {
				all[k] = new(Circuit)
				s.add(all[k], cells(pool, cell.Relay, 0, 200))
			}
			ids := uint32(0)
			start := func(c *Circuit) { ids++; c.id.Store(ids) }
			got := make([]int, circuits+1)
			for range 100 * circuits / record {
				var out cell.List
				s.take(record, &out, start)
				if out.Len() != record {
					t.Fatalf("%d circuits: record of %d, want %d", circuits, out.Len(), record)
				}
				for c := out.Pop(); c != nil; c = out.Pop() {
					got[c.CircuitID()]++
					pool.Put(c)
				}
				if served := got[1:]; slices.Max(served)-slices.Min(served) > max(1, record/circuits) {
					t.Fatalf("%d circuits, records of %d: shares %v", circuits, record, served)
				}
			}
			var rest cell.List
			for _, c := range all {
				s.remove(c, &rest)
				s.remove(c, &rest)
			}
			pool.PutList(&rest)
			if s.active() != 0 || s.queued != 0 || pool.Outstanding() != 0 {
				t.Errorf("%d circuits: not empty at the end: %+v, %d cells out", circuits, s, pool.Outstanding())
			}
		}
	}
}

// TestRecordCells: a record never holds more than Config says, also when the key
// is replaced.
func TestRecordCells(t *testing.T) {
	for _, limit := range []int{1, 2, 3, 45, 46} {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			cfg.RecordCells = limit
			p, l := newRaw(t, true, clientConfig(), cfg)
			c := openRaw(t, p, l, 1, new(recorder))[0]
			writes := 0
			p.conn.in.mu.Lock()
			p.conn.in.wrote = func(b []byte) {
				writes++
				if limit < MaxRecordCells && len(b) > recordSize(limit) {
					t.Errorf("a write of %d bytes for records of %d cells", len(b), limit)
				}
			}
			p.conn.in.mu.Unlock()
			c.sendNow(cells(cfg.Pool, cell.Relay, 0, 200))
			for n := 0; n < 200; {
				rec := p.read()
				if len(rec) == 0 || len(rec) > limit {
					t.Fatalf("a record of %d cells, want at most %d", len(rec), limit)
				}
				n += len(rec)
			}
			if limit == MaxRecordCells && writes != 3 { // 92, 92, 16
				t.Errorf("%d writes for 200 cells, want 3", writes)
			}
			l.Close()
			checkReturned(t, cfg)
		})
	}
}

// TestRekeyByCount: the record that would be the last of its key holds REKEY,
// last, and nothing is lost.
func TestRekeyByCount(t *testing.T) {
	for _, limit := range []int{1, 2} {
		bubble(t, func(t *testing.T) {
			cfg := relayConfig(t, 2)
			cfg.RecordCells = limit
			p, l := newRaw(t, true, clientConfig(), cfg)
			c := openRaw(t, p, l, 1, new(recorder))[0]
			sealed := int(p.h.receive.Count()) // the raw peer has opened as many
			next, rekeys := byte(0), 0
			for sealed < layer.MaxRecords+1000 {
				c.sendNow(cells(cfg.Pool, cell.Relay, int(next), 1))
				rec := p.read()
				sealed++
				for len(rec) > 0 && rec[0][4] == byte(cell.Relay) {
					if rec[0][8] != next {
						t.Fatalf("cell %d, want %d", rec[0][8], next)
					}
					next++
					rec = rec[1:]
				}
				if len(rec) > 0 {
					if name(rec[0]) != "REKEY 0x0 0" || len(rec) != 1 || sealed != layer.MaxRecords {
						t.Fatalf("record %d ends with %q", sealed, names(rec))
					}
					p.h.receive.Rekey()
					rekeys++
				}
				if limit == 1 && rekeys == 1 && sealed == layer.MaxRecords {
					for _, x := range p.read() { // the cell that had no room beside REKEY
						next = x[8] + 1
					}
				}
			}
			if rekeys != 1 || l.Err() != nil {
				t.Errorf("%d keys were replaced, error %v", rekeys, l.Err())
			}
			l.Close()
			checkReturned(t, cfg)
		})
	}
}

// TestRekeyByAge: the first record after an hour holds REKEY, in each direction
// by itself, and both ends follow.
func TestRekeyByAge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		raw, cfg := relayConfig(t, 1), relayConfig(t, 2)
		p, l := newRaw(t, true, raw, cfg) // between relays: no keepalive
		c := openRaw(t, p, l, 1, new(recorder))[0]
		began := l.began
		at := func(d time.Duration, want ...string) {
			t.Helper()
			<-time.After(time.Until(began.Add(d)))
			c.sendNow(cells(cfg.Pool, cell.Relay, 0, 1))
			p.expect(want...)
			if len(want) == 2 {
				p.h.receive.Rekey()
			}
		}
		at(time.Hour-time.Nanosecond, "RELAY 0x1 0")
		at(time.Hour, "RELAY 0x1 0", "REKEY 0x0 0")
		at(time.Hour+time.Minute, "RELAY 0x1 0")
		at(2*time.Hour-time.Nanosecond, "RELAY 0x1 0")
		at(5*time.Hour, "RELAY 0x1 0", "REKEY 0x0 0")
		at(6*time.Hour-time.Nanosecond, "RELAY 0x1 0")
		at(6*time.Hour, "RELAY 0x1 0", "REKEY 0x0 0")

		<-time.After(2 * time.Hour) // REKEY takes the place of a cell
		c.sendNow(cells(cfg.Pool, cell.Relay, 0, 92))
		rec := p.read()
		if len(rec) != MaxRecordCells || name(rec[45]) != "REKEY 0x0 0" || name(rec[44]) != "RELAY 0x1 44" {
			t.Errorf("a record of %d cells that ends with %q", len(rec), names(rec[len(rec)-2:]))
		}
		p.h.receive.Rekey()
		if n := len(p.read()) + len(p.read()); n != 47 {
			t.Errorf("%d cells after it, want 47", n)
		}
		l.Close()
		checkReturned(t, cfg)
	})
	bubble(t, func(t *testing.T) {
		one, two := relayConfig(t, 1), relayConfig(t, 2)
		two.OnCreate = (&echo{t, two.Pool}).onCreate
		i, r := newPair(t, one, two)
		rec := new(recorder)
		c := openCircuit(t, i, rec, one.Pool)
		rec.take()
		for n := range 10 {
			<-time.After(37 * time.Minute)
			c.sendNow(cells(one.Pool, cell.Relay, n, 1))
			synctest.Wait()
			if got := rec.take(); len(got) != 2 {
				t.Fatalf("after %d times 37 minutes: %q, errors %v and %v", n+1, got, i.Err(), r.Err())
			}
		}
		if s := i.Stats(); s.CellsWritten != 11+5 || s.CellsRead != 11+5 { // every 74 minutes
			t.Errorf("%+v, want 5 REKEYs each way", s)
		}
		i.Close()
		r.Close()
	})
}

// TestConcurrentEnds closes links while everything is going on; nothing may be
// lost, and Closed comes once a circuit unless we destroyed it.
func TestConcurrentEnds(t *testing.T) {
	for round := range 20 {
		bubble(t, func(t *testing.T) {
			one, two := relayConfig(t, 1), relayConfig(t, 2)
			two.OnCreate = (&echo{t, two.Pool}).onCreate
			ended := make(chan error, 2)
			one.OnClose = func(_ *Link, err error) { ended <- err }
			two.OnClose = one.OnClose
			i, r := newPair(t, one, two)
			var wg sync.WaitGroup
			recs := make([]*recorder, 20)
			for k := range recs {
				recs[k] = new(recorder)
				wg.Go(func() {
					c, err := i.Open(recs[k])
					if err != nil {
						return
					}
					c.sendNow(createCell(one.Pool))
					for n := range 50 {
						if err := c.sendNow(cells(one.Pool, cell.Relay, n, 10)); errors.Is(err, ErrClosed) {
							return
						}
						if n == 40 && k%3 == 0 {
							c.Destroy(cell.ReasonFinished)
						}
					}
				})
			}
			if round%2 == 0 {
				wg.Go(func() { i.Close() })
			} else {
				wg.Go(func() { r.Abort(nil) })
			}
			wg.Wait()
			i.Close()
			r.Close()
			for range 2 {
				if err := <-ended; err == nil {
					t.Error("OnClose without a reason")
				}
			}
			for k, rec := range recs {
				closed := 0
				for n, e := range rec.events {
					if e == "closed link lost" {
						closed++
						if n != len(rec.events)-1 {
							t.Errorf("circuit %d: something came after Closed: %q", k, rec.events)
						}
					}
				}
				if closed > 1 {
					t.Errorf("circuit %d was closed %d times", k, closed)
				}
			}
			checkReturned(t, one, two)
		})
	}
}

// TestBuffers: an idle link borrows nothing, a busy one a large buffer, and who
// sends little makes nobody hold much.
func TestBuffers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := relayConfig(t, 2)
		p, l := newRaw(t, true, clientConfig(), cfg)
		step := func(want int64, b []byte) {
			t.Helper()
			p.conn.Write(b)
			synctest.Wait()
			if n := cfg.Buffers.Outstanding(); n != want || l.Err() != nil {
				t.Fatalf("%d buffers are lent, want %d; error %v", n, want, l.Err())
			}
		}
		pad := func(n int) []byte { return p.seal(slices.Repeat([][]byte{rawCell(0, cell.Padding)}, n)...) }
		step(0, nil)
		step(0, pad(1))
		big := pad(46)
		step(0, big[:smallBuffer-1])
		step(1, big[smallBuffer-1:smallBuffer])
		step(1, big[smallBuffer:])
		step(1, pad(1)) // one class down
		step(0, pad(1))
		step(0, pad(1))
		step(1, slices.Concat(pad(46), pad(46), pad(46)))
		step(1, pad(0))
		step(0, pad(0))
		l.Close()
		checkReturned(t, cfg)
	})
}
