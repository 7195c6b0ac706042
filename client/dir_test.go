package client

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStaleGuard: a guard whose directory stays behind, or serves nothing, does not keep its client behind; nobody is asked without a circuit, and after
// three times the guard is not asked any more.
func TestStaleGuard(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		var direct atomic.Int64
		c := w.readyClient(func(cfg *Config) {
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == w.network.Authorities[0].Address {
					direct.Add(1)
				}
				return dial(ctx, network, addr)
			}
		})
		mine := guardList(c)[0]
		before := direct.Load()
		for range 8 {
			time.Sleep(time.Hour)
			// Everybody but the guard has the new consensus.
			w.agreeBut(func(n *node) bool { return n.Identity() == mine })
			period := w.network.Period(w.now())
			deadline := time.Now().Add(45 * time.Minute)
			for c.mirror.Current().Period < period && time.Now().Before(deadline) {
				time.Sleep(time.Minute)
			}
			if got := c.mirror.Current().Period; got != period {
				t.Fatalf("the client has period %d of %d", got, period)
			}
		}
		if n := direct.Load(); n != before || before != 1 {
			t.Errorf("the client asked the authority %d times itself, %d of them at first", n, before)
		}
		c.mu.Lock()
		strikes := c.dirStrikes[mine]
		c.mu.Unlock()
		if strikes < maxDirStrikes {
			t.Errorf("%d strikes against the guard", strikes)
		}
		if guardList(c)[0] != mine {
			t.Error("the guard has changed")
		}
	})
}

// agreeBut is agree for all relays but some; and nobody gets the consensus elsewhere.
func (w *world) agreeBut(left func(*node) bool) {
	w.Helper()
	b := w.sign(w.nodes)
	for _, n := range w.nodes {
		if !left(n) {
			w.must(n.Directory().Add(b))
		}
	}
}

// TestBootstrapProgress: what OnProgress hears, from nothing to ready, and that it hears of problems.
func TestBootstrapProgress(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		var mu sync.Mutex
		var heard []Bootstrap
		listen := func(cfg *Config) {
			cfg.OnProgress = func(b Bootstrap) {
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, b)
			}
		}
		c := w.client(listen)
		time.Sleep(10 * time.Second) // no consensus yet
		w.small(exit("9.9.9.9"))
		w.must(c.Ready(w.within(time.Minute)))
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		var summaries []string
		problem := false
		for i, b := range heard {
			if i > 0 && b.Percent < heard[i-1].Percent {
				t.Errorf("from %d %% to %d %%", heard[i-1].Percent, b.Percent)
			}
			if !slices.Contains(summaries, b.Summary) {
				summaries = append(summaries, b.Summary)
			}
			problem = problem || b.Problem != ""
		}
		first, last := heard[0], heard[len(heard)-1]
		if first.Percent > 5 || last.Percent != 100 || last.Summary != "ready" || last.Problem != "" || !problem {
			t.Errorf("heard %+v", heard)
		}
		for _, want := range []string{"connecting to a directory server", "choosing guard", "building circuit", "ready"} {
			if !slices.Contains(summaries, want) {
				t.Errorf("heard %q, but not %q", summaries, want)
			}
		}
	})
}

