package relay

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memoryStore keeps files, and forgets them when a test says so.
type memoryStore struct {
	mu    sync.Mutex
	files map[string][]byte
	fails error
}

func newMemoryStore() *memoryStore { return &memoryStore{files: map[string][]byte{}} }

func (s *memoryStore) Read(name string, _ int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.files[name]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (s *memoryStore) Write(name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		return s.fails
	}
	s.files[name] = append([]byte(nil), data...)
	return nil
}

// copyOf is what the disk would hold after a kill.
func (s *memoryStore) copyOf() *memoryStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := newMemoryStore()
	for name, data := range s.files {
		c.files[name] = data
	}
	return c
}

// wired counts what a relay's sockets carry from outside.
type wired struct {
	net.Conn
	m *wireCount
}

type wireCount struct {
	mu    sync.Mutex
	total uint64
}

func (w *wireCount) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.total += uint64(n)
}

func (w *wireCount) now() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

func (c *wired) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.m.add(n)
	return n, err
}

func (c *wired) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.m.add(n)
	return n, err
}

// wiredListener wraps what it accepts.
type wiredListener struct {
	net.Listener
	m *wireCount
}

func (l *wiredListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wired{c, l.m}, nil
}

// wiredRelay starts a relay all of whose bytes are counted.
func (w *world) wiredRelay(name string, change func(*Config), tune ...func(*Relay)) (*node, *wireCount) {
	w.Helper()
	count := new(wireCount)
	cfg, host, at := w.config(name)
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &wired{c, count}, nil
	}
	change(&cfg)
	r, err := New(cfg)
	w.must(err)
	for _, f := range tune {
		f(r)
	}
	ln, err := host.Listen("tcp", at.String())
	w.must(err)
	return w.start(&node{Relay: r, world: w, name: name, host: host, at: at}, &wiredListener{ln, count}), count
}

// TestHibernation: a relay uses its quota, says so, sleeps without a byte too many,
// tells authorities that it lives, and is there again when the month begins.
func TestHibernation(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := new(inbox)
		defer w.serveAuthority(box.ServeHTTP)()
		store := newMemoryStore()
		quota := Quota{Bytes: MinQuota}
		const before = 88_000_000 // used this month already, so that the test is short
		n, count := w.wiredRelay("a", func(cfg *Config) {
			asExit(new(names))(cfg)
			cfg.Quota, cfg.Store = quota, store
			cfg.Now = func() time.Time { return w.now().UTC() }
		}, func(r *Relay) { r.books.month.Used = before })
		count.add(before)
		w.site("9.8.8.8", 80, func(c net.Conn) {
			big := make([]byte, 100_000)
			for {
				if _, err := c.Write(big); err != nil {
					return
				}
			}
		})
		g := w.relay("guard", nil)
		w.agree()
		// A circuit that takes what it gets.
		l := w.link(g, nil)
		o := w.origin(l, g, n)
		s, err := w.open(o, "9.8.8.8", 80)
		w.must(err)
		began := time.Now()
		buf := make([]byte, 64<<10)
		closing := false
		for {
			if _, err := s.Read(buf); err != nil {
				break
			}
			if u := n.Status().Usage; !closing && u.State == "closing" {
				closing = true
				if _, err := w.tryOrigin(l, g, n); err == nil {
					t.Error("a closing relay takes a circuit")
				}
			}
		}
		s.Close()
		l.Close() // or it would be padded for a month
		synctest.Wait()
		if !closing {
			t.Error("it never said that it was closing")
		}
		u := n.Status()
		if u.Usage.State != "hibernating" || u.Links != 0 || u.Circuits != 0 || u.Usage.Month != count.now() || u.Usage.QuotaLeft != quota.Bytes-int64(count.now()) {
			t.Errorf("after %v: %+v; %d bytes counted outside", time.Since(began), u, count.now())
		}
		if used := count.now(); used > uint64(quota.Bytes) || used < uint64(quota.Bytes)*95/100 {
			t.Errorf("%d bytes of %d were used", used, quota.Bytes)
		}
		time.Sleep(time.Minute)
		last := func() (hibernating bool) {
			for _, d := range box.descriptors() {
				if d.Identity == n.Identity() {
					hibernating = d.Extra.Hibernating
				}
			}
			return hibernating
		}
		if !last() {
			t.Error("the descriptor does not say that it hibernates")
		}
		// Nobody gets in, and it stays in the minds of the authorities.
		if c, err := g.host.Dial(w.within(time.Minute), "tcp", n.at.String()); err == nil {
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if k, err := c.Read(buf); err == nil {
				t.Errorf("it says %d bytes", k)
			}
			c.Close()
		}
		posts := len(box.descriptors())
		end := u.Usage.MonthEnd
		for w.now().Before(end.Add(-time.Hour)) {
			time.Sleep(time.Hour)
			if count.now() > uint64(quota.Bytes) {
				t.Fatalf("%d bytes of %d are used", count.now(), quota.Bytes)
			}
		}
		if got := len(box.descriptors()) - posts; got < 20 || !last() {
			t.Errorf("%d descriptors in a month of sleep", got)
		}
		// It starts again meanwhile, and still sleeps.
		n.stop()
		n2, count2 := w.again(n, func(cfg *Config) { cfg.Quota, cfg.Store = quota, store })
		if u := n2.Status().Usage; u.State != "hibernating" || u.Month < count.now() {
			t.Errorf("after a restart: %+v", u)
		}
		time.Sleep(end.Sub(w.now()) + time.Minute)
		if u := n2.Status().Usage; u.State != "awake" || u.Month > 200_000 || !u.MonthStart.Equal(end) || last() {
			t.Errorf("in the new month: %+v, %d bytes", u, count2.now())
		}
		w.agree(g, n2)
		if _, err := w.tryOrigin(w.link(n2, nil), n2); err != nil {
			t.Errorf("in the new month: %v", err)
		}
		if log := w.logged.String(); strings.Count(log, "hibernating") != 2 || strings.Count(log, "awake again") != 1 {
			t.Errorf("the log:\n%s", log)
		}
	})
}

// again starts a relay that has ended once more.
func (w *world) again(n *node, change func(*Config)) (*node, *wireCount) {
	w.Helper()
	count := new(wireCount)
	cfg := n.cfg
	cfg.Now = func() time.Time { return w.now().UTC() }
	change(&cfg)
	r, err := New(cfg)
	w.must(err)
	ln, err := n.host.Listen("tcp", n.at.String())
	w.must(err)
	return w.start(&node{Relay: r, world: w, name: n.name, host: n.host, at: n.at}, &wiredListener{ln, count}), count
}

// TestKilled: whenever a relay is killed, what it has used is in the next one's books, or
// more is; and what was not kept is a minute at its full rate at most.
func TestKilled(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		store := newMemoryStore()
		rate := Rate{BytesPerSecond: 200_000}
		n, count := w.wiredRelay("a", func(cfg *Config) {
			cfg.Quota, cfg.Store, cfg.Rate = Quota{Bytes: 1 << 40}, store, rate
		})
		g := w.relay("guard", func(cfg *Config) { asExit(new(names))(cfg) })
		w.site("9.8.8.8", 80, func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		})
		w.agree()
		o := w.path(n, g)
		s, err := w.open(o, "9.8.8.8", 80)
		w.must(err)
		defer s.Close()
		go func() {
			buf := make([]byte, 64<<10)
			for {
				if _, err := s.Read(buf); err != nil {
					return
				}
			}
		}()
		for range 40 {
			time.Sleep(7 * time.Second)
			synctest.Wait()
			var b books
			data, err := store.copyOf().Read(usageFile, maxUsageFile)
			w.must(err)
			if _, err := b.load(data); err != nil {
				t.Fatal(err)
			}
			if used := count.now(); b.month.Used < used || b.month.Used > used+2*61*uint64(rate.BytesPerSecond) {
				t.Fatalf("killed with %d used, the next one would know of %d", used, b.month.Used)
			}
		}
		if count.now() < 40_000_000 {
			t.Errorf("only %d bytes went through", count.now())
		}
		n.stop()
		var b books
		data, _ := store.Read(usageFile, maxUsageFile)
		if killed, err := b.load(data); err != nil || killed || b.month.Used != count.now() {
			t.Errorf("ended in order: %v, %v, %d known of %d", killed, err, b.month.Used, count.now())
		}
	})
}

// TestBooksRefused: a damaged file, or none that can be written, is told at the start.
func TestBooksRefused(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		store := newMemoryStore()
		store.files[usageFile] = []byte("{")
		cfg, _, _ := w.config("x")
		cfg.Store, cfg.Quota = store, Quota{Bytes: MinQuota}
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), `stored file "usage"`) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("a damaged file: %v", err)
		}
		delete(store.files, usageFile)
		store.fails = errors.New("disk full")
		cfg, host, at := w.config("y")
		cfg.Store, cfg.Quota = store, Quota{Bytes: MinQuota}
		r, err := New(cfg)
		w.must(err)
		ln, err := host.Listen("tcp", at.String())
		w.must(err)
		if err := r.Serve(w.within(time.Minute), ln); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("a full disk: %v", err)
		}
	})
}

// TestSetLimits: rate and quota of a running relay change at once, and what is refused
// changes nothing.
func TestSetLimits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := new(inbox)
		defer w.serveAuthority(box.ServeHTTP)()
		n := w.relay("a", nil)
		time.Sleep(time.Minute)
		if err := n.SetRate(Rate{BytesPerSecond: 5}); err == nil || n.Rate() != (Rate{}) {
			t.Errorf("a rate that is too low: %v, now %+v", err, n.Rate())
		}
		if err := n.SetQuota(Quota{Bytes: 5}); err == nil || n.Quota() != (Quota{}) {
			t.Errorf("a quota that is too low: %v, now %+v", err, n.Quota())
		}
		w.must(n.SetRate(Rate{BytesPerSecond: 50_000}))
		w.must(n.SetQuota(Quota{Bytes: MinQuota, Day: 3}))
		time.Sleep(time.Minute)
		s := n.Status()
		if s.Rate != 50_000 || s.Usage.Quota != MinQuota || s.Usage.MonthEnd.Day() != 3 {
			t.Errorf("status: %+v", s)
		}
		if all := box.descriptors(); len(all) != 2 || all[1].BandwidthRate != 50 {
			t.Errorf("%d descriptors", len(all))
		}
	})
}

// TestOverloadTold: CREATEs that find no place are counted, and told in the descriptor
// for a day.
func TestOverloadTold(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil, func(r *Relay) { r.limits.circuits = 1 })
		l := w.link(n, nil)
		w.origin(l, n)
		if _, err := w.tryOrigin(l, n); err == nil {
			t.Fatal("there was a place")
		}
		if u := n.Status().Usage; u.RefusedNew != 1 || !u.Overloaded || !n.extra().Overloaded {
			t.Errorf("usage: %+v", u)
		}
		l.Close()
		time.Sleep(24 * time.Hour)
		if u := n.Status().Usage; u.Overloaded || n.extra().Overloaded || u.RefusedNew != 1 {
			t.Errorf("a day later: %+v", u)
		}
		if len(n.extra().History) == 0 {
			t.Error("no history after a day")
		}
	})
}
