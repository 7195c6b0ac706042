package link

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"cepa/cell"
)

// quickConn is a memConn with a TryWrite.
type quickConn struct {
	*memConn
	tries, full atomic.Int64
}

func (c *quickConn) TryWrite(p []byte) (int, error) {
	c.tries.Add(1)
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, net.ErrClosed
	}
	n := max(0, min(len(p), h.limit-len(h.buf)))
	if n < len(p) {
		c.full.Add(1)
	}
	h.buf = append(h.buf, p[:n]...)
	if h.wrote != nil {
		h.wrote(p[:n])
	}
	h.cond.Broadcast()
	return n, nil
}

// counting is a Receiver that holds the cells it gets to their order.
type counting struct {
	t      *testing.T
	got    atomic.Int64
	opened chan struct{}
}

func (c *counting) Receive(cmd cell.Command, body []byte) {
	if cmd == cell.Created {
		close(c.opened)
		return
	}
	if n := c.got.Add(1) - 1; int64(binary.BigEndian.Uint32(body)) != n {
		c.t.Errorf("cell %d came as number %d", binary.BigEndian.Uint32(body), n)
	}
}
func (c *counting) Flush()             {}
func (c *counting) Kick()              {}
func (c *counting) Closed(cell.Reason) {}

// quickPair is two links over connections with TryWrite, with n circuits of the
// initiator, and their receivers at the responder.
func quickPair(t *testing.T, n int) (i, r *Link, mine *quickConn, own []*Circuit, far []*counting) {
	t.Helper()
	one, two := relayConfig(t, 1), relayConfig(t, 2)
	two.OnCreate = func(c *Circuit, _ []byte) {
		far = append(far, &counting{t: t})
		acceptCircuit(t, c, far[len(far)-1], two.Pool)
	}
	a, b := newConns()
	mine = &quickConn{memConn: a}
	i, r = pairOver(t, mine, &quickConn{memConn: b}, one, two)
	for range n {
		near := &counting{t: t, opened: make(chan struct{})}
		c, err := i.Open(near)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.sendNow(createCell(one.Pool)); err != nil {
			t.Fatal(err)
		}
		<-near.opened
		own = append(own, c)
	}
	t.Cleanup(func() {
		i.Close()
		r.Close()
		checkReturned(t, one, two)
	})
	return i, r, mine, own, far
}

// TestKickWrites: what fits the connection has been written when Kick returns,
// and circuits that were sent on before share a record.
func TestKickWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i, _, mine, own, far := quickPair(t, 2)
		synctest.Wait()
		before, tries := i.Stats(), mine.tries.Load()
		for _, c := range own {
			if err := c.Send(cells(i.cfg.Pool, cell.Relay, 0, 3)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := i.Stats().CellsWritten - before.CellsWritten; n != 0 {
			t.Errorf("%d cells were written before Kick", n)
		}
		own[1].Kick()
		s := i.Stats()
		if cells, records := s.CellsWritten-before.CellsWritten, s.RecordsWritten-before.RecordsWritten; cells != 6 || records != 1 || mine.tries.Load() != tries+1 {
			t.Errorf("after Kick: %d cells in %d records, %d attempts; want 6, 1, 1", cells, records, mine.tries.Load()-tries)
		}
		own[0].Kick() // finds nothing to do
		synctest.Wait()
		if mine.tries.Load() != tries+1 || far[0].got.Load() != 3 || far[1].got.Load() != 3 {
			t.Errorf("%d attempts, %d and %d cells arrived", mine.tries.Load()-tries, far[0].got.Load(), far[1].got.Load())
		}
	})
}

// TestKickFull: what the connection does not take at once goes out later, in
// order, without anybody asking again.
func TestKickFull(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i, _, mine, own, far := quickPair(t, 1)
		mine.out.mu.Lock()
		mine.out.limit = 5000 // not a whole number of cells
		mine.out.mu.Unlock()
		const all = 1000
		for n := 0; n < all; n += 50 {
			if err := own[0].sendNow(cells(i.cfg.Pool, cell.Relay, n, 50)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if mine.full.Load() == 0 {
			t.Error("the connection was never full")
		}
		if n := far[0].got.Load(); n != all {
			t.Errorf("%d cells arrived, want %d", n, all)
		}
	})
}

// TestKickRace: senders on many goroutines, some of whom write for others, while
// the connection is often full, and then the end of the link.
func TestKickRace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i, r, mine, own, far := quickPair(t, 8)
		mine.out.mu.Lock()
		mine.out.limit = 20000
		mine.out.mu.Unlock()
		const all = 2000
		var senders sync.WaitGroup
		for _, c := range own {
			senders.Go(func() {
				for n := 0; n < all; n += 5 {
					if err := c.sendNow(cells(i.cfg.Pool, cell.Relay, n, 5)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		senders.Wait()
		synctest.Wait()
		for k, f := range far {
			if n := f.got.Load(); n != all {
				t.Errorf("circuit %d: %d cells arrived, want %d", k, n, all)
			}
		}
		for _, c := range own {
			senders.Go(func() {
				for n := all; ; n += 5 {
					if err := c.sendNow(cells(i.cfg.Pool, cell.Relay, n, 5)); err != nil {
						if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrQueueFull) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		r.Close()
		senders.Wait()
		i.Close()
	})
}

// TestKickEnd: a link that ends while another goroutine holds its writer, with or
// without work, ends.
func TestKickEnd(t *testing.T) {
	for range 50 {
		bubble(t, func(t *testing.T) {
			i, _, _, own, _ := quickPair(t, 1)
			synctest.Wait()
			if !i.claim() {
				t.Fatal("the writer is not free")
			}
			ended := make(chan struct{})
			go func() {
				i.Close()
				close(ended)
			}()
			synctest.Wait() // its goroutine waits for the writer
			if i.writer.runInline() {
				t.Error("it says that nothing is left to do")
			}
			i.wake <- struct{}{}
			<-ended
			own[0].Kick()
		})
	}
}
