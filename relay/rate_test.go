package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/circuit"
	"cepa/link"
	"cepa/pace"
	"cepa/simnet"
)

func TestRateCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rate Rate
		want string // part of the error; none when empty
	}{
		{Rate{}, ""},
		{Rate{BytesPerSecond: 20_000}, ""},
		{Rate{BytesPerSecond: 20_000, Burst: minBurst}, ""},
		{Rate{BytesPerSecond: 1 << 50, Burst: 1 << 50}, ""},
		{Rate{BytesPerSecond: 19_999}, "20 KB/s (20000 bytes/s)"},
		{Rate{BytesPerSecond: 1}, "20 KB/s"},
		{Rate{BytesPerSecond: -1}, "20 KB/s"},
		{Rate{BytesPerSecond: 20_000, Burst: minBurst - 1}, "1426"},
		{Rate{BytesPerSecond: 20_000, Burst: -1}, "1426"},
		{Rate{Burst: 100_000}, "without a bandwidth rate"},
	} {
		err := c.rate.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.rate, err, c.want)
		}
		if c.want == "" {
			newLimiter(c.rate) // does not panic
		}
	}
}

// TestNoRate: no rate is no limit, and none is kept waiting by one that is lifted.
func TestNoRate(t *testing.T) {
	t.Parallel()
	l := newLimiter(Rate{})
	if l.read.Slice() != 0 || l.write.Slice() != 0 || !l.allowPadding(1<<20) {
		t.Error("no rate is not no limit")
	}
	l.set(Rate{BytesPerSecond: MinRate})
	if l.read.Slice() != minBurst || l.write.Slice() != minBurst || l.allowPadding(1<<20) {
		t.Error("a rate that is set later is no limit")
	}
	if got := l.get(); got.BytesPerSecond != MinRate {
		t.Errorf("it says %+v", got)
	}
}

// pair is the two ends of one connection.
func pair(t *testing.T, sim *simnet.Network, a, b *simnet.Host, port string) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := b.Listen("tcp", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	x, err := a.Dial(context.Background(), "tcp", net.JoinHostPort(b.Addr().String(), port))
	if err != nil {
		t.Fatal(err)
	}
	y, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return x, y
}

// TestLimiter: any number of connections together move what the rate says, in each
// direction apart from the other, and one burst at the start.
func TestLimiter(t *testing.T) {
	t.Parallel()
	const seconds = 30
	for _, c := range []struct {
		rate  Rate
		conns int
	}{
		{Rate{BytesPerSecond: 20_000}, 1},
		{Rate{BytesPerSecond: 20_000, Burst: minBurst}, 7},
		{Rate{BytesPerSecond: 200_000, Burst: 1_000_000}, 5},
		{Rate{BytesPerSecond: 5_000_000}, 3},
	} {
		run(t, func(w *world) {
			l := newLimiter(c.rate)
			burstRead, burstWrite := c.rate.bursts()
			var read, written atomic.Int64
			var all []net.Conn
			var wg sync.WaitGroup
			h := w.sim.Host("far", w.auth.Addr().Next())
			for i := range c.conns {
				near, far := pair(t, w.sim, w.auth, h, string(rune('1'+i))+"000")
				near = l.conn(near, nil, 1)
				all = append(all, near, far)
				big := make([]byte, 100_000)
				wg.Go(func() { // as much as it takes
					for {
						n, err := near.Write(big)
						written.Add(int64(n))
						if err != nil {
							return
						}
					}
				})
				wg.Go(func() {
					buf := make([]byte, 100_000)
					for {
						n, err := near.Read(buf)
						read.Add(int64(n))
						if err != nil {
							return
						}
					}
				})
				wg.Go(func() { _, _ = io.Copy(io.Discard, far) })
				wg.Go(func() {
					for {
						if _, err := far.Write(big); err != nil {
							return
						}
					}
				})
			}
			// A write that is under way counts when it ends: look at what was paid
			// for.
			time.Sleep(seconds * time.Second)
			synctest.Wait()
			full := float64(c.rate.BytesPerSecond) * seconds
			for _, c := range all {
				c.Close()
			}
			wg.Wait()
			for what, x := range map[string][2]int64{"read": {read.Load(), int64(burstRead)}, "written": {written.Load(), int64(burstWrite)}} {
				if g, burst := float64(x[0]), float64(x[1]); g < 0.98*(full+burst) || g > 1.02*full+burst {
					t.Errorf("%+v: %d bytes %s in %d s by %d connections, want %.0f", c.rate, x[0], what, seconds, 2*c.conns, full+burst)
				}
			}
		})
	}
}

// TestReadsFillMessages: what is read for a stream fills the messages that it goes on
// in: at the lowest rate one, and never one and a bit.
func TestReadsFillMessages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rate int64
		room int
		buf  int
		want int
	}{
		{MinRate, 1347, 4096, 1347},
		{MinRate, 1, 4096, minBurst}, // not for a stream
		{MinRate, 1347, 100, 100},
		{1_000_000, 1347, 65536, 7 * 1347},
		{100_000_000, 1347, 1 << 21, (1_000_000 / 1347) * 1347},
	} {
		run(t, func(w *world) {
			near, far := pair(t, w.sim, w.auth, w.sim.Host("far", w.auth.Addr().Next()), "1000")
			defer far.Close()
			go func() { _, _ = far.Write(make([]byte, 2<<20)) }()
			time.Sleep(time.Second)
			l := newLimiter(Rate{BytesPerSecond: c.rate})
			conn := l.conn(near, nil, c.room)
			defer conn.Close()
			want := min(c.want, simnet.DefaultBuffer)
			if n, err := conn.Read(make([]byte, c.buf)); n != want || err != nil {
				t.Errorf("%d bytes/s, room for %d: Read of %d gives %d, %v, want %d", c.rate, c.room, c.buf, n, err, want)
			}
		})
	}
}

// counted counts what passes a relay's sockets, below its limiter.
type counted struct {
	net.Conn
	read, written *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

func (c *counted) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// meter counts all sockets of one relay.
type meter struct{ read, written atomic.Int64 }

func (m *meter) dial(d func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &counted{c, &m.read, &m.written}, nil
	}
}

type countedListener struct {
	net.Listener
	m *meter
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &counted{c, &l.m.read, &l.m.written}, nil
}

// measured starts a relay all of whose sockets are counted.
func (w *world) measured(name string, rate Rate, change func(*Config)) (*node, *meter) {
	w.Helper()
	m := new(meter)
	cfg, host, at := w.config(name)
	cfg.Rate = rate
	cfg.Dial = m.dial(cfg.Dial)
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	w.must(err)
	ln, err := host.Listen("tcp", at.String())
	w.must(err)
	return w.start(&node{Relay: r, world: w, name: name, host: host, at: at}, countedListener{ln, m}), m
}

// TestRelayKeepsRate: a whole relay that is an exit, with uploads and downloads on
// several circuits and from several links, keeps its rate over all its sockets, and
// uses it up.
func TestRelayKeepsRate(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		const seconds = 30
		rate := Rate{BytesPerSecond: 100_000}
		w.site("9.9.9.9", 80, func(c net.Conn) { // as fast as it goes, both ways
			go func() { _, _ = io.Copy(io.Discard, c) }()
			big := make([]byte, 64<<10)
			for {
				if _, err := c.Write(big); err != nil {
					return
				}
			}
		})
		g1, g2 := w.relay("g1", nil), w.relay("g2", nil)
		e, m := w.measured("exit", rate, asExit(answer("9.9.9.9")))
		w.agree()
		var origins []*circuit.Origin
		for range 2 {
			origins = append(origins, w.path(g1, e), w.path(g2, e))
		}
		var wg sync.WaitGroup
		for _, o := range origins {
			s, err := w.open(o, "example.org", 80)
			w.must(err)
			wg.Go(func() { _, _ = io.Copy(io.Discard, s) })
			wg.Go(func() {
				big := make([]byte, 64<<10)
				for {
					if _, err := s.Write(big); err != nil {
						return
					}
				}
			})
		}
		// Let what may go at once go first.
		time.Sleep(5 * time.Second)
		read, written := m.read.Load(), m.written.Load()
		time.Sleep(seconds * time.Second)
		read, written = m.read.Load()-read, m.written.Load()-written
		for _, o := range origins {
			o.Close()
		}
		wg.Wait()
		full := float64(rate.BytesPerSecond * seconds)
		if most := float64(max(read, written)); most < 0.98*full || most > 1.02*full {
			t.Errorf("%d bytes read and %d written in %d s, want %.0f and no more", read, written, seconds, full)
		}
	})
}

// TestDirectoryIsCharged: what a relay fetches from an authority is under its rate.
func TestDirectoryIsCharged(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		big := make([]byte, 2_000_000)
		stop := w.serveAuthority(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				_, _ = rw.Write(big)
			}
		})
		defer stop()
		_, m := w.measured("a", Rate{BytesPerSecond: MinRate}, nil)
		time.Sleep(5 * time.Second)
		const most = DefaultBurst + 5*MinRate
		if got := m.read.Load(); got < most*9/10 || got > most+minBurst {
			t.Errorf("%d bytes were read in 5 s, want %d", got, most)
		}
	})
}

// TestPadding: padding never takes more than its share of a rate, links of clients are
// never silent for 10 s all the same, and what is padded is charged once.
func TestPadding(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		const clients, seconds = 40, 120
		n, m := w.measured("a", Rate{BytesPerSecond: MinRate}, nil)
		w.agree()
		var links []*link.Link
		for range clients {
			links = append(links, w.link(n, nil))
		}
		time.Sleep(20 * time.Second) // for the handshakes to be paid for
		before := m.written.Load()
		heard := make([]uint64, clients)
		for range seconds / 10 {
			time.Sleep(10 * time.Second)
			for i, l := range links {
				if got := l.Stats().RecordsRead; got == heard[i] {
					t.Fatal("a link was silent for 10 s")
				} else {
					heard[i] = got
				}
			}
		}
		var cells, records uint64
		for l := range n.links {
			cells += l.Stats().PaddingWritten
			records += l.Stats().RecordsWritten
		}
		const share = MinRate * 5 / 100
		if most := uint64(share*(seconds+30)+minBurst) / minBurst; cells == 0 || cells > most {
			t.Errorf("%d padding cells were written, want at most %d", cells, most)
		}
		empty := int64(records-cells) * 18
		if got := m.written.Load() - before; got > share*seconds+minBurst+empty {
			t.Errorf("%d bytes were written to idle links", got)
		}
	})
}

// TestPaddingIsChargedOnce: asking costs nothing of the rate, writing does.
func TestPaddingIsChargedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(Rate{BytesPerSecond: MinRate})
		_, burst := l.get().bursts()
		allowed := 0
		for l.allowPadding(minBurst) {
			allowed += minBurst
		}
		if allowed == 0 || allowed > burst/20 {
			t.Errorf("%d bytes of padding are allowed at once, of a burst of %d", allowed, burst)
		}
		left := 0
		for c := l.write.Claimant(pace.NewMeter(nil).Head); c.Try(minBurst, minBurst) > 0; {
			left += minBurst
		}
		if left < burst-minBurst {
			t.Errorf("%v bytes are left of the rate's burst, want %d", left, burst)
		}
		time.Sleep(2 * time.Second) // 5 % of 20 KB/s are 1,000 bytes a second
		if !l.allowPadding(minBurst) {
			t.Error("the next padding cell is not allowed after 1.43 s")
		}
	})
}

// bare is a connection that can do no more than it must.
type bare struct{ net.Conn }

func (bare) Read([]byte) (int, error)    { return 0, io.EOF }
func (bare) Write(p []byte) (int, error) { return len(p), nil }
func (bare) Close() error                { return nil }

// TestLimitedConn: it can what the connection below can, and no more; Close ends a
// wait for the rate.
func TestLimitedConn(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		l := newLimiter(Rate{BytesPerSecond: MinRate})
		c := l.conn(bare{}, nil, 1)
		if err := c.(*limitedConn).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("CloseWrite of a connection that has none: %v", err)
		}
		if _, ok := c.(lingerer); ok {
			t.Error("a connection that cannot linger says that it can")
		}
		if n, err := c.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("Read at the end: %d, %v", n, err)
		}
		if n, err := c.Write(nil); n != 0 || err != nil {
			t.Errorf("Write of nothing: %d, %v", n, err)
		}
		c.Close()
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write after Close: %v", err)
		}

		near, far := pair(t, w.sim, w.auth, w.sim.Host("far", w.auth.Addr().Next()), "1000")
		c = l.conn(near, nil, 1)
		_, burst := l.get().bursts()
		c.Write(make([]byte, burst))
		done := make(chan error, 2)
		began := time.Now()
		go func() {
			_, err := c.Write(make([]byte, 10*MinRate))
			done <- err
		}()
		go func() {
			far.Write(make([]byte, 1<<20))
			_, err := io.Copy(io.Discard, c)
			done <- err
		}()
		time.Sleep(time.Second)
		if _, ok := c.(lingerer); !ok {
			t.Error("a TCP connection cannot linger any more")
		}
		c.(lingerer).SetLinger(0)
		c.Close()
		for range 2 {
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Close took until %v", took)
		}
		if _, err := io.Copy(io.Discard, far); err == nil {
			t.Error("the peer of a connection that was cut reads a clean end")
		}
	})
}
