package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/simnet"
)

// TestServeOnce: a Relay serves once; its listener is closed in every case.
func TestServeOnce(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil)
		listen := func() net.Listener {
			ln, err := n.host.Listen("tcp", ":0")
			w.must(err)
			return ln
		}
		closed := func(ln net.Listener) {
			t.Helper()
			if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the listener is not closed: %v", err)
			}
		}
		ln := listen()
		if err := n.Serve(context.Background(), ln); !errors.Is(err, ErrServed) {
			t.Errorf("a second Serve: %v", err)
		}
		closed(ln)
		n.stop()
		ln = listen()
		if err := n.Serve(context.Background(), ln); !errors.Is(err, ErrServed) {
			t.Errorf("a Serve after the end: %v", err)
		}
		closed(ln)
		if n.spawn(func() { t.Error("something was started after the end") }) {
			t.Error("spawn after the end says that it did")
		}
		if _, err := n.limitedDial(context.Background(), "tcp", n.at.String()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dialling after the end: %v", err)
		}
	})
}

// failing is randomness that ends after so many bytes.
type failing struct {
	mu   sync.Mutex
	left int
}

func (f *failing) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left < len(p) {
		return 0, errors.New("no randomness")
	}
	f.left -= len(p)
	return len(p), nil
}

// TestServeFails: what keeps a relay from serving is its error, and nothing is left.
func TestServeFails(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		cfg, host, at := w.config("a")
		cfg.Rand = &failing{left: identity.SeedSize} // for the descriptor that New tries
		r, err := New(cfg)
		w.must(err)
		ln, err := host.Listen("tcp", at.String())
		w.must(err)
		if err := r.Serve(context.Background(), ln); err == nil || !strings.Contains(err.Error(), "link key") {
			t.Errorf("Serve without randomness: %v", err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is not closed: %v", err)
		}

		// A listener that somebody else closes.
		cfg.Rand = nil
		r, err = New(cfg)
		w.must(err)
		ln, err = host.Listen("tcp", at.String())
		w.must(err)
		done := make(chan error, 1)
		go func() { done <- r.Serve(context.Background(), ln) }()
		time.Sleep(time.Second)
		ln.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve with a listener that was closed: %v", err)
		}
	})
}

// sick is a listener that cannot accept until it is closed.
type sick struct {
	mu   sync.Mutex
	at   []time.Time
	done chan struct{}
	once sync.Once
}

func (s *sick) Accept() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return nil, net.ErrClosed
	default:
	}
	s.at = append(s.at, time.Now())
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
}
func (s *sick) Close() error   { s.once.Do(func() { close(s.done) }); return nil }
func (s *sick) Addr() net.Addr { return &net.TCPAddr{} }

// TestAcceptErrors: a relay that has no file descriptors left tries again, neither in
// a busy loop nor too late, and does not fill its log.
func TestAcceptErrors(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		cfg, host, at := w.config("a")
		r, err := New(cfg)
		w.must(err)
		ln := &sick{done: make(chan struct{})}
		n := w.start(&node{Relay: r, world: w, name: "a", host: host, at: at}, ln)
		time.Sleep(3 * time.Minute)
		n.stop()
		pause := 5 * time.Millisecond
		for i := range len(ln.at) - 2 { // the last was cut short
			if got := ln.at[i+1].Sub(ln.at[i]); got != pause {
				t.Fatalf("pause %d is %v, want %v", i+1, got, pause)
			}
			pause = min(2*pause, time.Second)
		}
		if len(ln.at) < 180 || len(ln.at) > 200 {
			t.Errorf("%d attempts in 3 minutes", len(ln.at))
		}
		if got := strings.Count(w.logged.String(), "could not accept"); got != 3 {
			t.Errorf("%d warnings in 3 minutes, want one a minute", got)
		}
	})
}

// TestAcceptLimits: half-open connections and links in all are bounded, and places come
// free again.
func TestAcceptLimits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil, func(r *Relay) { r.limits.handshaking, r.limits.links = 3, 5 })
		dial := func() net.Conn {
			c, err := w.auth.Dial(w.within(time.Minute), "tcp", n.at.String())
			w.must(err)
			w.Cleanup(func() { c.Close() })
			return c
		}
		// gone reports whether the relay has closed c, waiting d for it.
		gone := func(c net.Conn, d time.Duration) bool {
			c.SetReadDeadline(time.Now().Add(d))
			_, err := c.Read(make([]byte, 1))
			var timeout net.Error
			return !(errors.As(err, &timeout) && timeout.Timeout())
		}
		var idle []net.Conn
		for range 3 {
			idle = append(idle, dial())
		}
		time.Sleep(time.Second)
		fourth := dial()
		if !gone(idle[0], time.Second) {
			t.Error("a fourth half-open connection, and the oldest does not make way")
		}
		for _, c := range append(idle[1:], fourth) {
			if gone(c, time.Millisecond) {
				t.Error("a half-open connection within the limit was closed")
			}
			if !gone(c, link.HandshakeTimeout+time.Second) {
				t.Error("a half-open connection stays for ever")
			}
		}
		var links []*link.Link
		for range 5 {
			links = append(links, w.link(n, nil))
		}
		time.Sleep(time.Second)
		if !gone(dial(), time.Second) {
			t.Error("a sixth link is accepted")
		}
		if got := n.Status().Links; got != 5 {
			t.Errorf("%d links, want 5", got)
		}
		read := n.Status().Read
		links[0].Close()
		time.Sleep(time.Second)
		w.link(n, nil)
		time.Sleep(time.Second)
		if s := n.Status(); s.Links != 5 || s.Read < read {
			t.Errorf("after one was replaced: %d links, %d bytes read, and %d before", s.Links, s.Read, read)
		}
	})
}

// TestTrackEnded: a link that ends before it was noted is not noted for ever.
func TestTrackEnded(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil)
		l := w.link(n, nil)
		l.Abort(nil) // Done is not closed yet, or just
		if n.track(l) {
			t.Error("a link that has ended is noted")
		}
		l.Close()
		if n.track(l) || n.Status().Links != 0 {
			t.Errorf("%d links", n.Status().Links)
		}
	})
}

// load brings everything under way that a relay can have under way, and returns when
// it is; e is the exit, g the guard, dead a relay that nobody reaches.
func (w *world) load(g, e, dead *node) {
	w.Helper()
	l := w.link(g, nil)
	started := make(chan struct{})
	for i := range 10 {
		o := w.origin(l, g, e)
		s, err := w.open(o, "9.9.9.9", 80) // endless, both ways, once it begins
		w.must(err)
		go func() { _, _ = io.Copy(io.Discard, s) }()
		go func() {
			<-started
			for {
				if _, err := s.Write(make([]byte, 4000)); err != nil {
					return
				}
			}
		}()
		if _, err := o.Mux().Open(cell.BeginBody{Port: 80, Host: "hangs.example"}); err != nil {
			w.Fatal(err)
		}
		if _, err := o.Mux().Open(cell.BeginBody{Port: 80, Host: "9.8.8.8"}); err != nil { // nobody answers
			w.Fatal(err)
		}
		if _, err := w.openDir(o); err != nil {
			w.Fatal(err)
		}
		pending := w.origin(l, g)
		if i%2 == 0 {
			pending = w.origin(l, g, e)
		}
		go func() { _ = pending.Extend(context.Background(), specOf(dead)) }()
	}
	for range 10 {
		w.link(g, nil)
		w.link(e, nil)
	}
	close(started)
	time.Sleep(time.Second)
	if g.circuits.now() < 20 || e.circuits.now() < 15 || e.streams.now() < 30 || g.extending.now() < 5 || e.dir.open.now() < 10 {
		w.Fatalf("not enough is under way: %d, %d circuits, %d streams, %d EXTENDs, %d directory streams",
			g.circuits.now(), e.circuits.now(), e.streams.now(), g.extending.now(), e.dir.open.now())
	}
}

// TestServeEndsUnderLoad: with everything under way, an end is clean and at once.
func TestServeEndsUnderLoad(t *testing.T) {
	t.Parallel()
	for _, rate := range []Rate{{}, {BytesPerSecond: 50_000}} {
		run(t, func(w *world) {
			w.site("9.9.9.9", 80, func(c net.Conn) {
				if _, err := c.Read(make([]byte, 1)); err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, c) }()
				for {
					if _, err := c.Write(make([]byte, 4000)); err != nil {
						return
					}
				}
			})
			hole := w.sim.Host("hole", netip.MustParseAddr("9.8.8.8"))
			g := w.relay("guard", nil)
			e := w.relay("exit", func(cfg *Config) {
				asExit(new(names))(cfg)
				cfg.Rate = rate
			})
			dead := w.relay("dead", nil)
			w.agree()
			w.sim.SetLink(g.host, e.host, simnet.LinkParams{Latency: 5 * time.Millisecond, Bandwidth: 200_000}) // what runs at once is real work
			w.sim.Isolate(hole, true)
			w.sim.Isolate(dead.host, true)
			w.load(g, e, dead)
			for _, n := range []*node{e, g, dead} {
				began := time.Now()
				n.stop()
				if took := time.Since(began); took > 100*time.Millisecond {
					t.Errorf("rate %v: %s ended after %v", rate, n.name, took)
				}
				if s := n.Status(); s.Links != 0 || s.Circuits != 0 || s.Streams != 0 {
					t.Errorf("rate %v: %s has ended with %+v", rate, n.name, s)
				}
			}
		})
	}
}

// TestLoopback is the same on real sockets and with a real clock.
func TestLoopback(t *testing.T) {
	site, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var sites sync.WaitGroup
	sites.Go(func() {
		for {
			c, err := site.Accept()
			if err != nil {
				return
			}
			sites.Go(func() {
				defer c.Close()
				if _, err := c.Read(make([]byte, 1)); err != nil {
					return
				}
				for {
					if _, err := c.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			})
		}
	})
	w := &world{T: t}
	w.network = &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
		{Nickname: "auth", Identity: w.key("authority").ID(), Address: "127.0.0.1:1"},
	}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	start := func(name string, exit *Exit) *node {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		w.must(err)
		onion, err := handshake.GenerateOnionKey(nil)
		w.must(err)
		at := netip.MustParseAddrPort(ln.Addr().String())
		r, err := New(Config{
			Network: w.network, Identity: w.key(name), OnionKey: onion, Nickname: name, Addresses: []netip.AddrPort{at}, Exit: exit, Pool: &w.pool,
		})
		w.must(err)
		n := &node{Relay: r, world: w, name: name, at: at, done: make(chan struct{})}
		ctx, cancel := context.WithCancel(w.ctx)
		n.cancel = cancel
		go func() {
			defer close(n.done)
			n.err = n.Serve(ctx, ln)
		}()
		w.nodes = append(w.nodes, n)
		return n
	}
	// The site has another address than the relays, as far as the exit can see.
	target := netip.MustParseAddrPort(site.Addr().String())
	exit := &Exit{Policy: directory.AllPorts(), Resolver: answer("9.9.9.9"), Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, target.String())
	}}
	g, m, e := start("guard", nil), start("middle", nil), start("exit", exit)
	w.agree()

	conn, err := net.Dial("tcp", g.at.String())
	w.must(err)
	l, err := link.Client(context.Background(), conn, g.Identity(), &link.Config{Pool: &w.pool, QueueCells: circuit.QueueCells})
	w.must(err)
	var readers sync.WaitGroup
	started, moving := make(chan struct{}), make(chan struct{}, 8)
	for range 8 {
		o := w.origin(l, g, m, e)
		s, err := w.open(o, "site.example", 80)
		w.must(err)
		readers.Go(func() {
			<-started
			b := make([]byte, 100_000)
			if _, err := s.Write(b[:1]); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(s, b); err != nil {
				t.Error(err)
			}
			moving <- struct{}{}
			if _, err := io.Copy(io.Discard, s); err == nil {
				t.Error("a download that was cut looks complete")
			}
		})
	}
	close(started)
	for range 8 {
		<-moving
	}
	began := time.Now()
	w.close()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("three relays under load ended after %v", took)
	}
	readers.Wait()
	l.Close()
	site.Close()
	sites.Wait()
	if n := w.pool.Outstanding(); n != 0 {
		t.Errorf("%d cells were not given back", n)
	}
}

// TestSparse: one warning a minute, with a count of what it stands for.
func TestSparse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s sparse
		total := 0
		for range 180 {
			if n := s.due(time.Now()); n > 0 {
				total += n
			}
			time.Sleep(time.Second)
		}
		if total != 121 { // the first, and two minutes' worth
			t.Errorf("the warnings stand for %d", total)
		}
	})
}
