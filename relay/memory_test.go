package relay

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/link"
	"cepa/stream"
)

var soak = flag.Bool("soak", false, "run the long campaigns")

// bounded gives a relay a budget, and a pool and buffers of its own.
func bounded(bytes int64, also func(*Config)) func(*Config) {
	return func(cfg *Config) {
		if also != nil {
			also(cfg)
		}
		cfg.MaxMemory, cfg.Pool, cfg.Buffers = bytes, new(cell.Pool), new(link.Buffers)
	}
}

// stalling is a connection whose reader can stall.
type stalling struct {
	net.Conn
	mu      sync.Mutex
	resumed sync.Cond
	stalled bool
}

func (s *stalling) set(stalled bool) {
	s.mu.Lock()
	s.stalled = stalled
	s.mu.Unlock()
	s.resumed.Broadcast()
}

func (s *stalling) Read(p []byte) (int, error) {
	s.mu.Lock()
	for s.stalled {
		s.resumed.Wait()
	}
	s.mu.Unlock()
	return s.Conn.Read(p)
}

func (s *stalling) Close() error {
	s.set(false)
	return s.Conn.Close()
}

// stallingLink is link from a host of its own, over a connection that can stall.
func (w *world) stallingLink(n *node) (*link.Link, *stalling) {
	w.Helper()
	w.hosts++
	h := w.sim.Host(fmt.Sprintf("stalls%d", w.hosts), netip.AddrFrom4([4]byte{31, byte(w.hosts >> 8), byte(w.hosts), 1}))
	conn, err := h.Dial(w.within(time.Hour), "tcp", n.at.String())
	w.must(err)
	s := &stalling{Conn: conn}
	s.resumed.L = &s.mu
	l, err := link.Client(w.within(time.Hour), s, n.Identity(), &link.Config{Pool: &w.pool, QueueCells: circuit.QueueCells, Now: w.now})
	w.must(err)
	w.Cleanup(func() { l.Close() })
	return l, s
}

// honest are circuits that carry an echo each, now and then.
type honest struct {
	w       *world
	streams []*stream.Stream
}

// honestly makes that many circuits through the given relays to the echo at 9.9.9.9,
// over links of 20.
func (w *world) honestly(count int, nodes ...*node) *honest {
	w.Helper()
	h := &honest{w: w}
	var l *link.Link
	for i := range count {
		if i%20 == 0 {
			l = w.link(nodes[0], nil)
		}
		s, err := w.open(w.origin(l, nodes...), "9.9.9.9", 80)
		w.must(err)
		h.streams = append(h.streams, s)
	}
	return h
}

// live returns how many still carry data.
func (h *honest) live() (n int) {
	for _, s := range h.streams {
		s.SetDeadline(time.Now().Add(10 * time.Second))
		if roundTrip(s, "still there?") == nil {
			n++
		}
	}
	return n
}

// attack does steps, each of which brings the relay some data that nobody reads, and
// lets virtual time pass between them. It says what must hold, and ends when the relay has
// gone over its budget for the given time.
func attack(n *node, h *honest, overs int, step func()) {
	w, budget, pool := n.world, n.cfg.MaxMemory, n.cfg.Pool
	w.Helper()
	circuits := n.circuits.now()
	for i := 0; overs > 0; i++ {
		step()
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		used, left := pool.Used(), n.circuits.now()
		if i == 3000 {
			w.Errorf("the relay does not go over its budget any more: %d of %d bytes are in use", used, budget)
			break
		}
		if left == circuits {
			continue
		}
		// It has gone over, and what came of this step may have come later.
		if used > budget/100*92 {
			w.Errorf("%d bytes are in use after the relay went over its budget, want 90 %% of %d", used, budget)
		}
		circuits = left
		overs--
		if live := h.live(); live < len(h.streams) {
			w.Errorf("%d of %d honest circuits live", live, len(h.streams))
		}
	}
	time.Sleep(time.Second)
	if used := pool.Used(); used > budget {
		w.Errorf("a second after the attack %d bytes are in use, of %d", used, budget)
	}
	peak := pool.Peak()
	if peak > budget/100*105 || peak <= budget {
		w.Errorf("%d bytes were in use at most, want just over the budget of %d", peak, budget)
	}
	live := h.live()
	if live < (99*len(h.streams)+99)/100 {
		w.Errorf("%d of %d honest circuits live", live, len(h.streams))
	}
	w.Logf("peak %.1f %% of the budget, then %.1f %%; %d of %d honest circuits live",
		100*float64(peak)/float64(budget), 100*float64(pool.Used())/float64(budget), live, len(h.streams))
}

// checkGivenBack ends n, which must not hold anything then.
func checkGivenBack(n *node) {
	n.world.Helper()
	n.stop()
	if p := n.cfg.Pool; p.Outstanding() != 0 || p.Used() != 0 || len(n.memory.circuits) != 0 {
		n.world.Errorf("%s: %d cells, %d bytes and %d circuits are left", n.name, p.Outstanding(), p.Used(), len(n.memory.circuits))
	}
}

// TestStalledReader: a client has a hundred circuits to an exit that sends without
// regard to its windows, and reads nothing of them. The relay between them destroys the
// client's circuits, and nobody else's.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	budget, hostile, others := int64(8<<20), 20, 20
	if *soak {
		budget, hostile, others = 64<<20, 100, 200
	}
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		n := w.relay("n", bounded(budget, nil))
		b := w.relay("b", bounded(1<<40, asExit(answer("9.9.9.9"))))
		w.agree()
		l, conn := w.stallingLink(n)
		for range hostile {
			w.origin(l, n, b)
		}
		var senders []*circuit.Transit
		for h := range b.memory.circuits {
			senders = append(senders, h.transit)
		}
		h := w.honestly(others, n, b)
		conn.set(true)
		const batch = 4
		data := make([]byte, cell.Room(2))
		attack(n, h, 4, func() {
			for _, s := range senders {
				for range batch {
					if s.Send(cell.Data, 1, data) != nil {
						break // destroyed
					}
				}
				s.Kick()
			}
		})
		conn.set(false)
		checkGivenBack(n)
		checkGivenBack(b)
	})
}

// TestStalledDestination: the same at an exit, where a destination does not read what
// a client's circuits send to it.
func TestStalledDestination(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.site("9.9.9.8", 80, func(net.Conn) { <-w.ctx.Done() })
		a := w.relay("a", nil)
		n := w.relay("n", bounded(8<<20, asExit(&names{addrs: func(name string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(name[:len(name)-1])}, nil
		}})))
		w.agree()
		h := w.honestly(10, a, n)
		l := w.link(a, nil)
		var streams []*stream.Stream
		for range 20 {
			s, err := w.open(w.origin(l, a, n), "9.9.9.8", 80)
			w.must(err)
			streams = append(streams, s)
		}
		buf := make([]byte, 4<<10)
		attack(n, h, 1, func() {
			for _, s := range streams {
				s.SetWriteDeadline(time.Now().Add(time.Millisecond))
				_, _ = s.Write(buf) // until it has used its credit, or its circuit is gone
			}
		})
		checkGivenBack(n)
	})
}

// TestOldestFirst: of circuits that all hold data, the one whose data have waited longest
// goes first, and no more than is needed.
func TestOldestFirst(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("n", bounded(4<<20, nil))
		w.agree()
		var conns []*stalling
		var senders []*circuit.Transit
		known := map[*circuitHandler]bool{}
		for range 3 {
			l, conn := w.stallingLink(n)
			w.origin(l, n)
			for h := range n.memory.circuits {
				if !known[h] {
					known[h] = true
					senders = append(senders, h.transit)
				}
			}
			conn.set(true)
			conns = append(conns, conn)
		}
		for _, i := range []int{1, 0, 2} {
			for range 800 { // more than the network's buffer and the link's own
				w.must(senders[i].Send(cell.Data, 1, make([]byte, 1000)))
				senders[i].Kick()
			}
			synctest.Wait()
		}
		for _, want := range [][3]bool{{false, true, false}, {true, true, false}} {
			charge := n.cfg.MaxMemory - n.cfg.Pool.Used() + 1
			n.cfg.Pool.Charge(charge)
			synctest.Wait()
			for i, s := range senders {
				if _, held := s.Held(); (held == 0) != want[i] {
					t.Errorf("circuit %d holds %d cells, want it destroyed: %v", i, held, want[i])
				}
			}
			n.cfg.Pool.Charge(-charge)
		}
		for _, c := range conns {
			c.set(false)
		}
		checkGivenBack(n)
	})
}

// TestStuckLinks: when what is held stands in write buffers and in no circuit's queue,
// the clients' links that take nothing are ended, those that take something are not.
func TestStuckLinks(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("n", bounded(2<<20, nil))
		w.agree()
		good := w.link(n, nil)
		m := n.memory
		var all []*link.Link
		var conns []*stalling
		for range 3 {
			l, conn := w.stallingLink(n)
			w.origin(l, n)
			all, conns = append(all, l), append(conns, conn)
			conn.set(true)
		}
		synctest.Wait()
		var data [1000]byte
		m.mu.Lock()
		var senders []*circuit.Transit
		for h := range m.circuits {
			senders = append(senders, h.transit)
		}
		m.mu.Unlock()
		for range 300 { // enough for the network's buffer and the link's own
			for _, s := range senders {
				_ = s.Send(cell.Data, 1, data[:])
				s.Kick()
			}
		}
		time.Sleep(time.Second)
		n.cfg.Pool.Charge(2 << 20) // something else takes the rest
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			n.cfg.Pool.Put(n.cfg.Pool.Get()) // the relay goes on
		}
		synctest.Wait()
		n.cfg.Pool.Charge(-2 << 20)
		if n.linkCount.now() == int64(1+len(all)) || good.Err() != nil {
			t.Errorf("%d of %d links are left, want fewer; of the one that takes what it gets: %v", n.linkCount.now(), 1+len(all), good.Err())
		}
		for _, c := range conns {
			c.set(false)
		}
		checkGivenBack(n)
	})
}

// TestIdleMemory: 10,000 circuits at rest take at most 100 MB.
func TestIdleMemory(t *testing.T) {
	count, most := 2_000, uint64(20_000_000)
	if *soak {
		count, most = 10_000, 100_000_000
	}
	for _, c := range []struct {
		name  string
		relay bool // the circuits go on to another
		bound int  // bytes for one that count on both relays, and their client
	}{
		{"at their end", false, circuitMemory},
		{"passing through", true, 2 * circuitMemory},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				nodes := []*node{w.relay("n", bounded(1<<40, nil))}
				if c.relay {
					nodes = append(nodes, w.relay("b", nil))
				}
				w.agree()
				var before, after runtime.MemStats
				heap := func(s *runtime.MemStats) {
					synctest.Wait()
					runtime.GC()
					runtime.GC() // what pools of the runtime keep
					runtime.ReadMemStats(s)
				}
				var l *link.Link
				links := make([]*link.Link, (count+1999)/2000)
				for i := range links {
					links[i] = w.link(nodes[0], nil)
				}
				heap(&before)
				for i := range count {
					l = links[i/2000]
					w.idle(l, nodes)
				}
				heap(&after)
				used := after.HeapAlloc - before.HeapAlloc
				each := int(used) / count
				t.Logf("%d circuits take %d bytes: %d each, client included", count, used, each)
				if used > most*uint64(len(nodes)) || each > c.bound {
					t.Errorf("%d bytes for each of %d circuits, want at most %d", each, count, c.bound)
				}
				runtime.KeepAlive(l)
			})
		})
	}
}

// idle makes a circuit with little of its own at the client's end.
func (w *world) idle(l *link.Link, nodes []*node) {
	w.Helper()
	o := circuit.NewOrigin(circuit.OriginConfig{Pool: &w.pool})
	out, err := l.Open(o)
	w.must(err)
	o.Attach(out)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range nodes {
		w.must(o.Extend(ctx, specOf(n)))
	}
}
