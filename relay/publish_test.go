package relay

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/directory/mirror"
)

// inbox is an authority that takes descriptors.
type inbox struct {
	now    func() time.Time // time.Now when nil
	mu     sync.Mutex
	refuse int // so many more
	at     []time.Time
	got    []*directory.Descriptor
}

func (b *inbox) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.Method == http.MethodGet {
		http.Error(rw, "none yet", http.StatusNotFound)
		return
	}
	b.at = append(b.at, time.Now())
	if b.refuse > 0 {
		b.refuse--
		http.Error(rw, "no", http.StatusServiceUnavailable)
		return
	}
	now := time.Now
	if b.now != nil {
		now = b.now
	}
	doc, err := mirror.ReadRequest(r, directory.MaxDescriptorSize)
	if err == nil {
		var d *directory.Descriptor
		if d, err = directory.ParseDescriptor(doc, now()); err == nil {
			b.got = append(b.got, d)
			return
		}
	}
	http.Error(rw, err.Error(), http.StatusBadRequest)
}

// descriptors returns what was accepted.
func (b *inbox) descriptors() []*directory.Descriptor {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got
}

// posts returns when something was posted.
func (b *inbox) posts() []time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at
}

// TestPublish: what a relay says about itself, when, and how patiently.
func TestPublish(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		const refused = 12
		box := &inbox{refuse: refused}
		defer w.serveAuthority(box.ServeHTTP)()
		n := w.relay("a", func(cfg *Config) {
			cfg.Suite, cfg.Rate, cfg.Contact, cfg.Version = layer.ChaCha20Poly1305, Rate{BytesPerSecond: 123_456}, "op@example.org", "1.2.3"
			cfg.Addresses = append(cfg.Addresses, netip.MustParseAddrPort("[2606::1]:9001"))
			cfg.Exit = &Exit{Policy: directory.PortPolicy{IPv4: []directory.PortRange{{Lo: 80, Hi: 443}}}}
		})
		time.Sleep(time.Hour)
		posts := box.posts()
		if len(posts) != refused+1 {
			t.Fatalf("%d attempts in the first hour, want %d", len(posts), refused+1)
		}
		// Pauses double up to 5 minutes, each up to a quarter shorter.
		pause := publishRetryMin
		for i, at := range posts[1:] {
			got := at.Sub(posts[i])
			if got < pause*3/4 || got > pause+time.Second/10 {
				t.Errorf("pause %d is %v, want %v to %v", i+1, got, pause*3/4, pause)
			}
			pause = min(2*pause, publishRetryMax)
		}
		d := box.descriptors()[0]
		if d.Identity != n.Identity() || d.OnionKey != n.cfg.OnionKey.Public() || d.Suite != uint8(layer.ChaCha20Poly1305) || d.Nickname != "a" ||
			len(d.Addresses) != 2 || d.Addresses[0] != n.at || d.BandwidthRate != 123 || d.Contact != "op@example.org" ||
			d.Version != "1.2.3" || d.ExitPolicy.String() != "80-443/none" || d.Network != "test" || d.Uptime < time.Minute {
			t.Errorf("the descriptor says %+v", d)
		}
		// The next ones come in time, with higher numbers, though one more is refused.
		box.mu.Lock()
		box.refuse = 1
		box.mu.Unlock()
		time.Sleep(40 * time.Hour)
		all := box.descriptors()
		if len(all) != 3 || all[1].Sequence <= d.Sequence || all[2].Sequence <= all[1].Sequence {
			t.Fatalf("%d descriptors in 41 h", len(all))
		}
		if got := all[1].Published.Sub(d.Published); got < directory.DescriptorRefresh || got > directory.DescriptorRefresh+time.Minute {
			t.Errorf("the second came %v after the first", got)
		}
		if log := w.logged.String(); strings.Contains(log, "10.0.0.1:7000\" node=a count") || strings.Count(log, "did not reach enough") > 20 {
			t.Errorf("the log:\n%s", log)
		}
	})
}

// TestPublishAgain: a relay that authorities have lost publishes again, as soon as it
// can know, and one that is listed does not.
func TestPublishAgain(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := new(inbox)
		defer w.serveAuthority(box.ServeHTTP)()
		a, b := w.relay("a", nil), w.relay("b", nil)
		period := func(listed ...*node) int {
			w.agree(listed...)
			time.Sleep(30 * time.Minute)
			n := len(box.posts())
			time.Sleep(30 * time.Minute)
			return n
		}
		for i, want := range []int{2, 2, 2} {
			if got := period(a, b); got != want {
				t.Errorf("period %d: %d posts, want %d", i, got, want)
			}
		}
		if got := period(b); got != 3 {
			t.Errorf("a is lost: %d posts, want 3", got)
		}
		// It published a moment after the third period began: the two whole ones after
		// that are the authorities'.
		for i, want := range []int{3, 3, 4} {
			if got := period(b); got != want {
				t.Errorf("period %d without a: %d posts, want %d", i, got, want)
			}
		}
		if got := period(a, b); got != 4 {
			t.Errorf("a is back: %d posts, want 4", got)
		}
		if !a.Status().Listed || !strings.Contains(a.Status().Flags, "Guard") {
			t.Errorf("status: %+v", a.Status())
		}
	})
}

// TestPublishSequence: the numbers come from where they are kept, and nothing is
// published without one.
func TestPublishSequence(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		box := new(inbox)
		defer w.serveAuthority(box.ServeHTTP)()
		var mu sync.Mutex
		calls := 0
		w.relay("a", func(cfg *Config) {
			cfg.NextSequence = func() (uint64, error) {
				mu.Lock()
				defer mu.Unlock()
				if calls++; calls < 3 {
					return 0, errors.New("disk full")
				}
				return uint64(40 + calls), nil
			}
		})
		time.Sleep(time.Minute)
		if got := box.descriptors(); len(got) != 1 || got[0].Sequence != 43 {
			t.Errorf("published: %v", got)
		}
	})
}

// TestNewRefuses: what nobody would accept is found before anything starts, and the
// error says what it is.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		for want, change := range map[string]func(*Config){
			"network":  func(c *Config) { c.Network = nil },
			"identity": func(c *Config) { c.Identity = nil },
			"is that of relay": func(c *Config) {
				m, err := directory.Membership(w.key("family"), w.key("b").ID(), w.now(), w.now().Add(time.Hour))
				w.must(err)
				c.Memberships = []*identity.Certificate{m}
			},
			"has expired": func(c *Config) {
				m, err := directory.Membership(w.key("family"), w.key("a").ID(), w.now().Add(-2*time.Hour), w.now().Add(-time.Hour))
				w.must(err)
				c.Memberships = []*identity.Certificate{m}
			},
			"5 families": func(c *Config) {
				for i := range directory.MaxFamilies + 1 {
					c.FamilyKeys = append(c.FamilyKeys, w.key(fmt.Sprint("family ", i)))
				}
			},
			"address":        func(c *Config) { c.Addresses = nil },
			"nickname":       func(c *Config) { c.Nickname = "has space" },
			"19 are allowed": func(c *Config) { c.Nickname = strings.Repeat("x", 20) },
			"accepts":        func(c *Config) { c.Addresses = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:9001")} },
			"at most 200":    func(c *Config) { c.Contact = strings.Repeat("x", 201) },
			"layer cipher":   func(c *Config) { c.Suite = 9 },
			"20 KB/s":        func(c *Config) { c.Rate.BytesPerSecond = 1000 },
			"workers":        func(c *Config) { c.CreateWorkers = -1 },
			"version":        func(c *Config) { c.Version = "a b" },
			"port range 9-1": func(c *Config) {
				c.Exit = &Exit{Policy: directory.PortPolicy{IPv4: []directory.PortRange{{Lo: 9, Hi: 1}}}}
			},
			"network name \"NO\"": func(c *Config) { n := *c.Network; n.Name = "NO"; c.Network = &n },
		} {
			cfg, _, _ := w.config("x")
			change(&cfg)
			r, err := New(cfg)
			if r != nil || err == nil {
				t.Errorf("%s: accepted", want)
				continue
			}
			text := err.Error()
			if !strings.HasPrefix(text, "relay: ") || strings.Contains(text, "\n") || !strings.Contains(text, want) {
				t.Errorf("%q: the error is %q", want, text)
			}
		}
	})
}

// TestLinkKey: the key that proves the identity on links is replaced in time, after a
// sleep too, and after the clock was put right.
func TestLinkKey(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		n := w.relay("a", nil)
		first := n.auth.Load()
		w.shift.Add(int64(linkCertLifetime/2 - 2*renewCheck))
		time.Sleep(renewCheck + time.Minute)
		if n.auth.Load() != first {
			t.Error("the key was replaced before half its time")
		}
		time.Sleep(renewCheck)
		second := n.auth.Load()
		if second == first || second.Key.ID() == first.Key.ID() {
			t.Error("the key was not replaced after half its time")
		}
		w.link(n, nil).Close()
		// The machine sleeps for 30 days: timers stand still, the date does not.
		w.shift.Add(int64(30 * 24 * time.Hour))
		time.Sleep(renewCheck + time.Minute)
		w.link(n, nil).Close()
		third := n.auth.Load()
		if third == second {
			t.Error("the key was not replaced after it expired in a sleep")
		}
		// And it turns out that the clock was ahead.
		w.shift.Add(-int64(40 * 24 * time.Hour))
		time.Sleep(renewCheck + time.Minute)
		w.link(n, nil).Close()
		if n.auth.Load() == third {
			t.Error("the key was not replaced after the clock was put back")
		}
	})
}
