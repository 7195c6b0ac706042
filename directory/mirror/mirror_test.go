package mirror

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
)

const interval = time.Minute

func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, interval)
		defer func() {
			if err := w.sim.Close(); err != nil {
				t.Errorf("closing simnet: %v", err)
			}
		}()
		test(t, w)
	})
}

// bytesHandler serves bytes as a consensus, whatever they are.
func bytesHandler(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
}

// TestFollow: a mirror gets the first consensus soon after there is one, each later one within the window after the last one stops being fresh, and
// tells those who wait.
func TestFollow(t *testing.T) {
	for _, early := range []bool{true, false} {
		inBubble(t, func(t *testing.T, w *world) {
			var current atomic.Pointer[Document]
			handler := Handler(current.Load)
			for i := range 4 {
				defer w.serve(i, handler.ServeHTTP)()
			}
			m := w.mirror(func(cfg *Config) { cfg.Early = early })
			if m.Current() != nil {
				t.Error("a consensus before Run")
			}
			defer w.run(m)()
			time.Sleep(3 * time.Second)
			period := w.network.Period(time.Now())
			begin := time.Now()
			current.Store(NewDocument(w.parsed(period, 0, 1)))
			c, err := m.Wait(context.Background())
			if err != nil || c.Period != period || len(c.Relays) != 2 {
				t.Fatalf("%+v, %v", c, err)
			}
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("the first consensus came after %v", d)
			}
			for period := period + 1; period < c.Period+6; period++ {
				start := w.network.PeriodStart(period)
				time.Sleep(time.Until(start))
				current.Store(NewDocument(w.parsed(period, 1, 2)))
				<-m.Changed()
				d := time.Since(start)
				if lo, hi := interval/8, interval/2; early && d > interval/8+time.Second || !early && (d < lo || d > hi+time.Second) {
					t.Errorf("early %v: consensus came %v after it could", early, d)
				}
				if m.Current().Period != period {
					t.Errorf("period %d, want %d", m.Current().Period, period)
				}
			}
			if m.Problem() != nil {
				t.Errorf("problem: %v", m.Problem())
			}
		})
	}
}

// TestRefuses: of all documents that are not right, none is accepted, the last good one stays, and another source brings the right one.
func TestRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		period := w.network.Period(time.Now())
		good := w.consensus(period, []int{0, 1}, 0, 1, 2)
		bad := map[string][]byte{
			"older":                   w.consensus(period-1, []int{0, 1, 2}, 0, 1, 2, 3),
			"expired":                 w.consensus(period-directory.ValidPeriods, []int{0, 1, 2}, 0, 1, 2, 3),
			"future":                  w.consensus(period+10, []int{0, 1, 2}, 0, 1, 2, 3),
			"under-signed":            w.consensus(period+1, []int{0, 1, 2}, 0, 1),
			"cut":                     good[:len(good)-1],
			"garbage":                 []byte("<html>"),
			"nothing":                 nil,
			"large":                   make([]byte, directory.MaxConsensusSize+1),
			"other one of the period": w.consensus(period, []int{0, 2}, 0, 1, 2),
		}
		for i := 0; i < len(good); i += 11 {
			b := []byte(string(good))
			b[i] ^= 0x10
			bad["mutated "+string(rune('0'+i%10))] = b
		}
		m := w.mirror(nil)
		for name, doc := range bad {
			if name != "older" && name != "other one of the period" {
				if err := m.Add(doc); err == nil {
					t.Errorf("first document: %s is accepted", name)
				}
			}
		}
		if err := m.Add(good); err != nil {
			t.Fatal(err)
		}
		before := m.Current()
		for name, doc := range bad {
			if err := m.Add(doc); err == nil {
				t.Errorf("%s is accepted", name)
			}
		}
		if err := m.Add(bad["older"]); !errors.Is(err, ErrOlder) {
			t.Errorf("older: %v", err)
		}
		if err := m.Add(good); err != nil || m.Current() != before {
			t.Errorf("the same again: %v", err)
		}

		// Three sources that are bad in their ways and one that is good.
		bomb := directory.Compress(make([]byte, 2*directory.MaxConsensusSize))
		defer w.serve(0, bytesHandler(bad["under-signed"]))()
		defer w.serve(1, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Encoding", "zstd")
			_, _ = rw.Write(bomb)
		})()
		defer w.serve(2, func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, "/elsewhere", http.StatusFound) })()
		defer w.serve(3, bytesHandler(good))()
		for range 4 { // the order is random
			m := w.mirror(nil)
			stop := w.run(m)
			start := time.Now()
			if c, err := m.Wait(context.Background()); err != nil || c.Period != period {
				t.Errorf("%v", err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("it took %v", d)
			}
			stop()
		}
	})
}

// TestDeadNetwork: whoever finds nobody tries on, but not often, and says what is wrong; after the repair it recovers.
func TestDeadNetwork(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var dials atomic.Int64
		m := w.mirror(func(cfg *Config) {
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				return w.client.Dial(ctx, network, addr)
			}
		})
		defer w.run(m)()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := m.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v", err)
		}
		if n := dials.Load(); n < 5 || n > 30 {
			t.Errorf("%d connections in 30 s", n)
		}
		if err := m.Problem(); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("problem: %v", err)
		}
		defer w.serve(2, bytesHandler(w.consensus(w.network.Period(time.Now()), []int{0}, 0, 1, 2)))()
		start := time.Now()
		if _, err := m.Wait(context.Background()); err != nil {
			t.Error(err)
		}
		// Each order of four has the one that is up again, so at worst the seventh attempt meets it; pauses end at a quarter of the interval.
		if d := time.Since(start); d > 7*interval/4*5/4+time.Second {
			t.Errorf("recovered after %v", d)
		}
	})
}

// TestSilentServer: a source that accepts and says nothing holds a mirror up for a bounded time only.
func TestSilentServer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		defer w.serve(0, func(http.ResponseWriter, *http.Request) { <-release })()
		defer close(release)
		defer w.serve(1, bytesHandler(w.consensus(w.network.Period(time.Now()), []int{0}, 0, 1, 2)))()
		asked := 0
		m := w.mirror(func(cfg *Config) {
			cfg.Sources = func(current *directory.Consensus) []Source {
				if current != nil {
					t.Error("a current consensus before the first")
				}
				asked++
				one := Source{Name: "silent", Address: w.network.Authorities[0].Address, Dial: w.client.Dial}
				if asked > 1 {
					one.Address = w.network.Authorities[1].Address
				}
				return []Source{one}
			}
		})
		defer w.run(m)()
		start := time.Now()
		if _, err := m.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		// Others begin beside it, until one meets the right one.
		if d := time.Since(start); d < youngFor || d > 4*youngFor {
			t.Errorf("it took %v, want one to four times %v", d, youngFor)
		}
	})
}

// TestExpiry: what has expired is not handed out by Wait, and a stored one not used.
func TestExpiry(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		store := new(memStore)
		m := w.mirror(func(cfg *Config) { cfg.Store = store })
		if err := m.Add(w.consensus(w.network.Period(time.Now()), []int{0}, 0, 1, 2)); err != nil {
			t.Fatal(err)
		}
		if m = w.mirror(func(cfg *Config) { cfg.Store = store }); m.Current() == nil {
			t.Error("the stored consensus is not used")
		}
		time.Sleep(directory.ValidPeriods * interval)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if c, err := m.Wait(ctx); err == nil {
			t.Errorf("Wait hands out an expired consensus, valid until %v", c.ValidUntil)
		}
		if m = w.mirror(func(cfg *Config) { cfg.Store = store }); m.Current() != nil {
			t.Error("an expired stored consensus is used")
		}
		for _, junk := range []string{"", "junk"} {
			if err := store.Write(storeName, []byte(junk)); err != nil {
				t.Fatal(err)
			}
			if m = w.mirror(func(cfg *Config) { cfg.Store = store }); m.Current() != nil {
				t.Error("junk is used")
			}
			if b, err := store.Read(storeName, 100); err != nil || string(b) != junk {
				t.Error("the stored file was touched")
			}
		}
	})
}

// TestLookup: relays are found as long as a consensus that lists them may be in use somewhere.
func TestLookup(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		m := w.mirror(nil)
		id := func(i int) bool {
			r, ok := m.Lookup(testKey(t, "relay "+string(rune('0'+i))).ID())
			if ok && r.Addresses[0] != relayAddr(i) {
				t.Errorf("relay %d has address %v", i, r.Addresses[0])
			}
			if ok != m.IsRelayAddr(relayAddr(i).Addr()) && time.Now().Before(w.network.PeriodStart(20)) {
				t.Errorf("relay %d: found %v, address known %v", i, ok, !ok)
			}
			return ok
		}
		if id(0) {
			t.Error("found before the first consensus")
		}
		first := w.network.Period(time.Now())
		for k, relays := range [][]int{{0, 1, 2}, {1, 2}, {2, 3}, {0, 2, 3}} {
			if err := m.Add(w.consensus(first+uint64(k), relays, 0, 1, 2)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(interval)
		}
		for i, want := range []bool{true, true, true, true, false} {
			if id(i) != want {
				t.Errorf("relay %d is found: %v", i, !want)
			}
		}
		if !m.IsRelayAddr(netip.MustParseAddr("::ffff:127.11.0.1")) || m.IsRelayAddr(netip.MustParseAddr("127.99.0.1")) {
			t.Error("IsRelayAddr is wrong")
		}
		// Relay 1 was last listed in the second consensus.
		time.Sleep(time.Until(w.network.PeriodStart(first + 1 + directory.ValidPeriods).Add(-time.Second)))
		if !id(1) {
			t.Error("relay 1 is forgotten too early")
		}
		time.Sleep(time.Second)
		if id(1) {
			t.Error("relay 1 is not forgotten")
		}
		if err := m.Add(w.consensus(w.network.Period(time.Now()), []int{0, 2, 3}, 0, 1, 2)); err != nil {
			t.Fatal(err)
		}
		if m.IsRelayAddr(relayAddr(1).Addr()) || len(m.departed) != 0 {
			t.Errorf("addresses of forgotten relays stay; %d departed", len(m.departed))
		}
	})
}

func TestPublish(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		doc := w.descriptor(0)
		var got atomic.Int64
		accept := func(rw http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil || string(b) != string(doc) || r.URL.Path != PathDescriptor || r.Method != "POST" {
				t.Errorf("%s %s with %d bytes, %v", r.Method, r.URL.Path, len(b), err)
			}
			got.Add(1)
		}
		refuse := func(rw http.ResponseWriter, _ *http.Request) {
			http.Error(rw, "older\x1b[2J than\nthe last", http.StatusConflict)
		}
		for i, handler := range []http.HandlerFunc{accept, accept, refuse} {
			defer w.serve(i, handler)()
		}
		err := Publish(context.Background(), w.network, w.client.Dial, doc)
		if !errors.Is(err, ErrNotPublished) {
			t.Fatalf("two of three needed: %v", err)
		}
		var refused *StatusError
		if !errors.As(err, &refused) || refused.Code != http.StatusConflict || refused.Text != "older [2J than the last" {
			t.Errorf("the refusal is lost or not cleaned: %#v", refused)
		}
		for _, part := range []string{"2 of the 3 needed", "auth2", "auth3", "refused"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error lacks %q: %v", part, err)
			}
		}
		defer w.serve(3, accept)()
		if err := Publish(context.Background(), w.network, w.client.Dial, doc); err != nil {
			t.Errorf("three of four: %v", err)
		}
		if got.Load() != 5 {
			t.Errorf("%d posts arrived", got.Load())
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := Publish(ctx, w.network, w.client.Dial, doc); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
	})
}

func TestAcceptsZstd(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": false, "zstd": true, "gzip, zstd": true, "zstd;q=0": false, "zstd; q=0.000": false, "zstd;q=0.5": true, "xzstd": false, "gzip;q=1.0,zstd;q=1.0": true,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept-Encoding", header)
		if got := AcceptsZstd(r); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no network is accepted")
	}
	if _, err := New(Config{Network: &directory.Network{}}); err == nil {
		t.Error("an empty network is accepted")
	}
}
