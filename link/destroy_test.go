package link

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
)

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
			if err := c.sendNow(cells(cfg.Pool, cell.Relay, 0, 3)); !errors.Is(err, ErrClosed) {
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
			synctest.Wait()
			rec.want(t, "RELAY 7", "flush", "closed out of resources")
			c.Destroy(cell.ReasonProtocol)
			if err := c.sendNow(cells(cfg.Pool, cell.Relay, 0, 1)); !errors.Is(err, ErrClosed) {
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
			if err := c.sendNow(cells(cfg.Pool, cell.Created, 0, 1)); !errors.Is(err, ErrClosed) {
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
			if err := d.sendNow(createCell(cfg.Pool)); err != nil {
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
			a.sendNow(cells(cfg.Pool, cell.Relay, 0, 1000))
			b.sendNow(cells(cfg.Pool, cell.Relay, 0, 1000))
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
