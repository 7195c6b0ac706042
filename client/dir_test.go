package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
		for range 5 {
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

// TestNoNetwork: a client whose network is dead, drops everything or refuses everything makes few connections, with what was kept or without, and says what
// it is.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(context.Context) error{
		"not connected": func(context.Context) error { return syscall.ENETUNREACH },
		"answer":        func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"refused":       func(context.Context) error { return syscall.ECONNREFUSED },
	} {
		for _, age := range []time.Duration{-1, 0, 10 * time.Hour, 48 * time.Hour} {
			t.Run(fmt.Sprintf("%s, %v", name, age), func(t *testing.T) {
				run(t, func(w *world) {
					w.small(exit("9.9.9.9"))
					files := newMemory()
					if age >= 0 {
						c := w.readyClient(func(cfg *Config) { cfg.Files = files })
						w.must(c.Close())
						w.shift.Add(int64(age))
					}
					var conns atomic.Int64
					c := w.client(func(cfg *Config) {
						cfg.Files = files
						cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
							conns.Add(1)
							return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fail(ctx)}
						}
					})
					err := c.Ready(w.within(30 * time.Second))
					if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), name) {
						t.Errorf("Ready: %v, want %q", err, name)
					}
					if strings.Contains(err.Error(), "machine's clock") {
						t.Errorf("Ready blames the clock: %v", err)
					}
					if n := conns.Load(); n > 30 {
						t.Errorf("%d connections in 30 s", n)
					} else {
						t.Logf("%d connections; %v", n, err)
					}
				})
			})
		}
	}
}

// TestWrongClock: a client whose clock is wrong says so, whatever it has kept, unless what it has is good by that clock; it makes few connections.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, shift := range []time.Duration{-4 * time.Hour, -day, -30 * day, day, 30 * day, 365 * day} {
		for _, age := range []time.Duration{-1, 0, 10 * time.Hour} {
			t.Run(fmt.Sprintf("%v, %v", shift, age), func(t *testing.T) {
				run(t, func(w *world) {
					w.small(exit("9.9.9.9"))
					files := newMemory()
					if age >= 0 {
						c := w.readyClient(func(cfg *Config) { cfg.Files = files })
						w.must(c.Close())
						time.Sleep(age)
						w.agree()
					}
					var conns, bytes atomic.Int64
					c := w.client(func(cfg *Config) {
						cfg.Files = files
						dial := cfg.Dial
						cfg.Now = func() time.Time { return w.now().Add(shift) }
						cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
							conns.Add(1)
							conn, err := dial(ctx, network, addr)
							if err != nil {
								return nil, err
							}
							return &counted{conn, &bytes}, nil
						}
					})
					err := c.Ready(w.within(30 * time.Second))
					if shift == -4*time.Hour && age == 10*time.Hour {
						// What it has kept is good by its clock, and the network's. It uses that, and says that something is wrong.
						w.must(err)
						time.Sleep(20 * time.Second)
						if p := c.Status().Bootstrap.Problem; !strings.Contains(p, "this machine's clock seems to be") {
							t.Errorf("the problem is %q", p)
						}
					} else if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "this machine's clock seems to be") {
						t.Errorf("Ready: %v", err)
					}
					if n, b := conns.Load(), bytes.Load(); n > 30 || b > 200_000 {
						t.Errorf("%d connections and %d bytes in 30 s", n, b)
					} else {
						t.Logf("%d connections, %d bytes; %v", n, b, err)
					}
				})
			})
		}
	}
}

// counted counts the bytes of a connection, both ways.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}
