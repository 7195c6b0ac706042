package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"

	"golang.org/x/net/nettest"
)

var noDeadline time.Time

// TestConn is the conformance test for a net.Conn, with each side of a stream
// in each role.
func TestConn(t *testing.T) {
	for _, swap := range []bool{false, true} {
		name := "origin first"
		if swap {
			name = "relay first"
		}
		var pairs []*pair
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				p := newPair(t)
				pairs = append(pairs, p)
				near, far := p.open()
				p.run()
				stop = func() {
					near.Close()
					far.Close()
					p.lose(errLost)
				}
				if swap {
					return far, near, stop, nil
				}
				return near, far, stop, nil
			})
		})
		for _, p := range pairs {
			if n := p.pool.Outstanding(); n != 0 {
				t.Errorf("%s: %d cells were not returned", name, n)
			}
		}
	}
}

// TestDeadlines in virtual time: reads and writes end exactly when they should,
// also when the deadline moves while they wait, and work again afterwards.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		near, far := p.open()
		start := time.Now()
		after := func(what string, want time.Duration, err error) {
			t.Helper()
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != want {
				t.Errorf("%s: error %v after %v, want a timeout after %v", what, err, time.Since(start), want)
			}
		}
		buf := make([]byte, 10)
		near.SetReadDeadline(start.Add(time.Second))
		_, err := near.Read(buf)
		after("Read", time.Second, err)
		_, err = near.Read(buf)
		after("Read after its deadline", time.Second, err)
		mustWrite(t, far, "x")
		p.settle()
		_, err = near.Read(buf)
		after("Read of data after its deadline", time.Second, err)
		near.SetReadDeadline(noDeadline)
		if n, err := near.Read(buf); n != 1 || err != nil {
			t.Errorf("Read without deadline: %d bytes, error %v", n, err)
		}

		// The deadline comes closer, then moves away, while Read waits.
		near.SetReadDeadline(start.Add(time.Hour))
		time.AfterFunc(time.Second, func() { near.SetReadDeadline(start.Add(3 * time.Second)) })
		time.AfterFunc(1500*time.Millisecond, func() { near.SetReadDeadline(start.Add(10 * time.Second)) })
		_, err = near.Read(buf)
		after("Read whose deadline moved", 10*time.Second, err)
		near.SetReadDeadline(noDeadline)
		time.AfterFunc(time.Second, func() { near.SetReadDeadline(time.Unix(1, 0)) })
		_, err = near.Read(buf)
		after("Read whose deadline was set to the past", 11*time.Second, err)

		// A second Read waits for the first, and no longer than its deadline.
		near.SetReadDeadline(start.Add(12 * time.Second))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_, err := near.Read(make([]byte, 1))
				after("one Read of several", 12*time.Second, err)
			})
		}
		wg.Wait()
		near.SetReadDeadline(noDeadline)

		// Write: first the credit runs out, and what was sent counts.
		near.SetDeadline(start.Add(20 * time.Second))
		p.run()
		n, err := near.Write(make([]byte, InitialCredit+1))
		after("Write", 20*time.Second, err)
		if n != InitialCredit {
			t.Errorf("wrote %d bytes, want %d", n, InitialCredit)
		}
		n, err = near.Write([]byte("x"))
		after("Write after its deadline", 20*time.Second, err)
		if n != 0 {
			t.Errorf("wrote %d bytes after the deadline", n)
		}
		near.SetWriteDeadline(noDeadline)
		go io.Copy(io.Discard, far)
		if n, err := near.Write(make([]byte, 3*InitialCredit)); n != 3*InitialCredit || err != nil {
			t.Errorf("wrote %d bytes without deadline, error %v", n, err)
		}
		synctest.Wait()
		near.SetDeadline(time.Now().Add(time.Hour)) // its timer must not outlive Close
		near.Close()
		if near.readDL.timer != nil || near.writeDL.timer != nil {
			t.Error("timers run on after Close")
		}
		far.Close()
		synctest.Wait()
		p.empty()
		p.lose(errLost)
	})
}

// TestWakes: whatever ends a stream wakes who waits on it.
func TestWakes(t *testing.T) {
	for what, f := range map[string]func(p *pair, near, far *Stream){
		"Close":              func(_ *pair, near, _ *Stream) { near.Close() },
		"Reset by the peer":  func(_ *pair, _, far *Stream) { far.Reset() },
		"Close by the peer":  func(_ *pair, _, far *Stream) { far.Close() },
		"loss":               func(p *pair, _, _ *Stream) { p.lose(errLost) },
		"CloseWrite and EOF": func(_ *pair, near, far *Stream) { near.CloseWrite(); far.CloseWrite() },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			near, far := p.open()
			p.run()
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if n, err := near.Read(make([]byte, 1)); n != 0 || err == nil {
						t.Errorf("%s: Read returned %d, %v", what, n, err)
					}
				})
				wg.Go(func() {
					if n, err := near.Write(make([]byte, 2*InitialCredit)); n == 2*InitialCredit || err == nil {
						t.Errorf("%s: Write returned %d, %v", what, n, err)
					}
				})
			}
			synctest.Wait()
			f(p, near, far)
			wg.Wait()
			near.Close()
			far.Close()
			synctest.Wait()
			p.lose(errLost)
			p.empty()
		})
	}
}

// TestSlowReader: nine streams go on at full speed beside one that nobody
// reads, in both directions.
func TestSlowReader(t *testing.T) {
	const size = 4 * InitialCredit
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		type ends struct{ w, r *Stream }
		var all []ends
		for i := range 10 {
			near, far := p.open()
			if i%2 == 0 {
				near, far = far, near
			}
			all = append(all, ends{near, far})
		}
		p.run()
		var wg sync.WaitGroup
		for i, e := range all {
			data := bytes.Repeat([]byte{byte(i)}, size)
			go func() {
				e.w.Write(data)
				e.w.CloseWrite()
			}()
			if i == 0 {
				continue
			}
			wg.Go(func() {
				got, err := io.ReadAll(e.r)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("stream %d: %d bytes, error %v", i, len(got), err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := int64(cell.Size) * p.pool.Outstanding(); n < InitialCredit || n > 2*InitialCredit {
			t.Errorf("the stream that is not read holds %d bytes of cells, want about %d", n, InitialCredit)
		}
		got, err := io.ReadAll(all[0].r)
		if err != nil || len(got) != size {
			t.Errorf("read late: %d bytes, error %v", len(got), err)
		}
		for _, e := range all {
			e.r.Close()
			e.w.Close()
		}
		synctest.Wait()
		p.empty()
		p.lose(errLost)
	})
}

// TestFair: streams that wait for the same window get about the same of it.
func TestFair(t *testing.T) {
	const writers, enough = 10, 8_000_000
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.out.window = 64
		total := make(chan int, 1000)
		share := make([]int, writers)
		var all []*Stream
		var mu sync.Mutex
		for range writers {
			near, far := p.open()
			all = append(all, near, far)
		}
		for i := range writers {
			go all[2*i].Write(make([]byte, enough))
			go func() {
				buf := make([]byte, 1<<16)
				for {
					n, err := all[2*i+1].Read(buf)
					if err != nil {
						return
					}
					mu.Lock()
					share[i] += n
					mu.Unlock()
					total <- n
				}
			}()
		}
		p.run()
		for sum := 0; sum < enough; {
			sum += <-total
		}
		mu.Lock()
		least, most := share[0], share[0]
		for _, n := range share {
			least, most = min(least, n), max(most, n)
		}
		if most-least > enough/writers/2 {
			t.Errorf("of one window the writers got %v bytes", share)
		}
		mu.Unlock()
		go func() {
			for range total {
			}
		}()
		for _, s := range all {
			s.Close()
		}
		synctest.Wait()
		p.lose(errLost)
		p.empty()
		close(total)
	})
}

// TestSmallMessagesMemory: credit counts bytes, memory counts cells. However
// the peer cuts the bytes that it may send, they hold at most about twice their
// size.
func TestSmallMessagesMemory(t *testing.T) {
	room := cell.Room(3)
	for what, sizes := range map[string][]int{
		"single bytes":             {1},
		"one byte and a full cell": {1, room},
		"just too much to join":    {room, 1398 - room + 1},
		"half a cell and a bit":    {700},
		"full cells":               {room},
	} {
		p := newPair(t)
		near, far := p.open()
		data := bytes.Repeat([]byte("0123456789abcde"), InitialCredit/15+1)[:InitialCredit]
		for sent, i := 0, 0; sent < len(data); i++ {
			n := min(sizes[i%len(sizes)], len(data)-sent)
			x := p.pool.Get()
			b := x.Body()[:cell.MessageHeaderSize+n] // what follows does not matter here
			cell.PutMessage(b, cell.Data, far.id, data[sent:sent+n])
			m, _ := cell.ParseMessage(b)
			kept, err := p.relay.Handle(m, x)
			if err != nil {
				t.Fatal(err)
			}
			if !kept {
				p.pool.Put(x)
			}
			sent += n
		}
		held := p.pool.Outstanding() * cell.Size
		if held > 2*InitialCredit+InitialCredit/20 {
			t.Errorf("%s: %d bytes are held in %d bytes of cells", what, InitialCredit, held)
		}
		if got, err := readNow(t, far); !bytes.Equal(got, data) || err != nil {
			t.Errorf("%s: %d bytes were read, error %v; or they are not those that were sent", what, len(got), err)
		}
		p.done(near, far)
	}
}

// TestCreditByteByByte: a peer that opens its credit byte by byte while the
// window is closed wakes the writer each time. That must cost no memory.
func TestCreditByteByByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.out.window = 0
		near, far := p.open()
		go near.Write(make([]byte, 100))
		for range 1000 {
			synctest.Wait()
			if err := p.handle(p.origin, cell.Credit, near.id, []byte{0, 0, 0, 1}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		// The same by our own user, who writes with short deadlines.
		for range 100 {
			far.SetWriteDeadline(time.Now().Add(time.Millisecond))
			p.back.window = 0
			far.Write([]byte("x"))
		}
		if n, m := len(p.origin.blocked), len(p.relay.blocked); n != 1 || m != 0 {
			t.Errorf("a stream that waits is noted %d times, one that has given up %d times", n, m)
		}
		near.Close()
		far.Close()
		p.lose(errLost)
		p.empty()
	})
}
