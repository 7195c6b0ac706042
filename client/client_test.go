package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cepa/directory"
	"cepa/simnet"
	"cepa/state"
)

// TestNewRefuses: mistakes in the configuration are errors that say what is wrong.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	w := world{T: t}
	network := &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
		{Nickname: "auth", Identity: w.key("authority").ID(), Address: "10.0.0.1:7000"},
	}}
	bad := *network
	bad.Name = "NO"
	for want, cfg := range map[string]Config{
		"a network is needed":       {},
		"1 to 32 are possible":      {Network: network, Ready: -1},
		"33 ready circuits":         {Network: network, Ready: 33},
		`network name "NO": only a`: {Network: &bad},
	} {
		c, err := New(cfg)
		if c != nil || err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "client: ") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestReadyErrors: how far the client came, what stands in the way, and of whom, in one
// line.
func TestReadyErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		world func(w *world)
		want  []string
	}{
		"no authority": {
			func(w *world) { w.stopAuthority() },
			[]string{"connecting to a directory server", "connection refused"},
		},
		"no consensus": {
			func(*world) {},
			[]string{"connecting to a directory server", "404"},
		},
		"an old consensus": {
			func(w *world) {
				w.small(exit("9.9.9.9"))
				w.shift.Add(int64(25 * time.Hour))
			},
			[]string{"connecting to a directory server", "expired"},
		},
		"a clock that is behind": {
			func(w *world) {
				w.small(exit("9.9.9.9"))
				w.shift.Add(-int64(time.Hour))
			},
			[]string{"connecting to a directory server", "is the clock behind?"},
		},
		"guards that are down": {
			func(w *world) {
				guards, _ := w.small(exit("9.9.9.9"))
				for _, g := range guards {
					g.halt()
				}
			},
			[]string{"choosing guard", "guard guard", "connection refused"},
		},
		"no exit": {
			func(w *world) { w.small() },
			[]string{"no path: no exit among 3 relays"},
		},
		"an exit that is down": {
			func(w *world) {
				_, outs := w.small(exit("9.9.9.9"))
				outs[0].halt()
			},
			[]string{"building circuit", "hop 3 (exit1)", "could not connect to the next relay"},
		},
		"the authority says nothing": {
			func(w *world) { w.sim.Isolate(w.auth, true) },
			[]string{"connecting to a directory server"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				c.world(w)
				client := w.client(nil)
				err := client.Ready(w.within(30 * time.Second))
				if !errors.Is(err, ErrNotReady) || !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("Ready: %v", err)
				}
				for _, want := range c.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("Ready: %q does not say %q", err, want)
					}
				}
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("Ready: %q has more than a line", err)
				}
				s := client.Status()
				if s.Bootstrap.Percent == 100 || !strings.Contains(err.Error(), s.Bootstrap.Summary) || len(c.want) > 1 && s.Bootstrap.Problem == "" {
					t.Errorf("status: %+v", s.Bootstrap)
				}
				_, err = client.Dial(w.within(time.Minute), "tcp", "example.org:80")
				if err == nil || err.Error() == context.DeadlineExceeded.Error() {
					t.Errorf("Dial: %v", err)
				}
				t.Log(err)
				w.sim.Isolate(w.auth, false)
			})
		})
	}
}

// TestReadyPhases: what the client says on its way.
func TestReadyPhases(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"))
		c := w.client(nil)
		last := -1
		for ready := false; !ready; {
			p := c.Status().Bootstrap.Percent
			if p < last {
				t.Errorf("from %d %% back to %d %%", last, p)
			}
			last = p
			select {
			case <-c.ready:
				ready = true
			case <-time.After(time.Millisecond):
			}
		}
		w.must(c.Ready(w.within(0))) // whatever ctx says
		if s := c.Status(); s.Bootstrap.Percent != 100 || s.Bootstrap.Summary != "ready" || s.Bootstrap.Problem != "" {
			t.Errorf("status: %+v", s.Bootstrap)
		}
		c.Close()
		if err := c.Ready(context.Background()); !errors.Is(err, ErrClosed) {
			t.Errorf("Ready of a client that was closed: %v", err)
		}
	})
}

// TestCloseDuringEverything: Close ends what is under way, at once and wherever it is,
// and who waits for it hears that.
func TestCloseDuringEverything(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		hang := &resolver{hang: true}
		_, outs := w.small(exitWith(&resolver{addr: "9.9.9.9"}, ports(t, "80,443")), exitWith(hang, ports(t, "25")))
		c := w.readyClient(nil)
		lonely := w.client(func(cfg *Config) { // has no consensus and nobody to ask
			cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		var wg sync.WaitGroup
		wantClosed := func(what string, err error) {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v, want ErrClosed", what, err)
			}
		}
		conn := w.dial(c, "example.org:80")
		wg.Go(func() {
			if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("a stream that is read: %v", err)
			}
		})
		for i := range 5 {
			wg.Go(func() { // waits for the exit
				_, err := c.DialTarget(context.Background(), Target{Host: "example.org", Port: 25, Isolation: fmt.Sprint(i)})
				wantClosed("Dial that waits for the exit", err)
			})
			wg.Go(func() { // waits for the consensus
				_, err := lonely.Dial(context.Background(), "tcp", "example.org:80")
				wantClosed("Dial that waits for the consensus", err)
			})
		}
		wg.Go(func() { wantClosed("Ready", lonely.Ready(context.Background())) })
		time.Sleep(time.Second)
		w.sim.Isolate(outs[0].host, true)
		for i := range 5 {
			wg.Go(func() { // waits for a circuit
				_, err := c.DialTarget(context.Background(), Target{Host: "example.org", Port: 80, Isolation: fmt.Sprint("new", i)})
				wantClosed("Dial that waits for a circuit", err)
			})
			wg.Go(func() {
				_, err := c.Resolve(context.Background(), "example.org", fmt.Sprint("new", i))
				wantClosed("Resolve that waits for a circuit", err)
			})
		}
		time.Sleep(time.Second)
		began := time.Now()
		var closes sync.WaitGroup
		firsts := make(chan error, 4)
		for range 4 { // all at once: one is the first, and all wait
			closes.Go(func() { firsts <- c.Close() })
		}
		closes.Wait()
		w.must(lonely.Close())
		wg.Wait()
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("took %v", took)
		}
		close(firsts)
		nils := 0
		for err := range firsts {
			if err == nil {
				nils++
			} else if !errors.Is(err, ErrClosed) {
				t.Errorf("Close: %v", err)
			}
		}
		if nils != 1 {
			t.Errorf("%d calls of Close were the first", nils)
		}
		if len(table(c)) != 0 || len(c.builds) != 0 || len(c.links.Links()) != 0 {
			t.Errorf("left: %d circuits, %d builds, %d links", len(table(c)), len(c.builds), len(c.links.Links()))
		}
		_, err := c.Dial(context.Background(), "tcp", "example.org:80")
		wantClosed("Dial after Close", err)
		_, err = c.Resolve(context.Background(), "example.org", "")
		wantClosed("Resolve after Close", err)
		_, _, err = c.dialDir(context.Background(), 1)
		wantClosed("dialDir after Close", err)
		w.sim.Isolate(outs[0].host, false)
		time.Sleep(time.Second)
		for _, n := range w.nodes {
			if s := n.Status(); s.Streams != 0 || n == w.nodes[0] && s.Circuits != 0 {
				t.Errorf("%s still has %+v", n.name, s)
			}
		}
	})
}

// TestRestart: a client in one process, started, stopped and started again, keeps its
// guard and its consensus.
func TestRestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		h := w.clientHost()
		time.Sleep(10 * time.Second) // relays ask no more
		before := w.asks()
		var list []string
		for i := range 4 {
			if i == 1 {
				w.stopAuthority() // nobody needs it any more
			}
			dir, err := state.Open(path)
			w.must(err)
			c, _ := w.clientAt(h, func(cfg *Config) { cfg.Files = dir })
			w.must(c.Ready(w.within(10 * time.Second)))
			w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
			var now []string
			for _, id := range guardList(c) {
				now = append(now, id.String())
			}
			if i == 0 {
				list = now
			}
			if len(now) != 1 || !slices.Equal(now, list) {
				t.Errorf("start %d: guards %v, and at first %v", i+1, now, list)
			}
			w.must(c.Close())
			w.must(dir.Close())
		}
		if n := w.asks() - before; n != 1 {
			t.Errorf("the authority was asked %d times for a consensus", n)
		}
	})
}

// TestManyClients: clients in one process do not disturb each other.
func TestManyClients(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		var wg sync.WaitGroup
		for range 5 {
			c := w.client(nil)
			wg.Go(func() {
				defer c.Close()
				conn, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80")
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if err := roundTrip(conn, "hello"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// TestExpiredConsensus: nothing is built, and nothing that was built is used, once the
// consensus has expired; the error says so soon, and all is well when there is a new
// one.
func TestExpiredConsensus(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		w.stopAuthority()
		w.shift.Add(int64(23*time.Hour + 50*time.Minute))
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello")) // 24 h less some minutes
		w.shift.Add(int64(time.Hour))
		before := built(c)
		refused := func(most time.Duration) {
			t.Helper()
			for _, key := range []string{"", "new"} {
				began := time.Now()
				_, err := c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 80, Isolation: key})
				wantError(t, err, PartyNetwork, ErrNotReady)
				if !errors.Is(err, directory.ErrExpired) {
					t.Errorf("the error is %v", err)
				}
				if took := time.Since(began); took > most {
					t.Errorf("took %v, want %v at most", took, most)
				}
			}
		}
		refused(consensusTimeout) // as long as nobody has tried to get a newer one
		time.Sleep(2 * time.Hour)
		refused(consensusRetry)
		time.Sleep(time.Hour)
		if n := built(c) - before; n != 0 {
			t.Errorf("%d circuits were built from an expired consensus", n)
		}
		if p := c.Status().Bootstrap.Problem; !strings.Contains(p, "expired") {
			t.Errorf("the status names as the problem %q", p)
		}
		w.startAuthority()
		w.agree()
		_, err := c.mirror.Wait(w.within(30 * time.Minute))
		w.must(err)
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
	})
}

// TestConsensusThroughGuard: once there is a consensus, new ones come over the link to
// the guard, and nobody else sees the client.
func TestConsensusThroughGuard(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		guards, _ := w.small(exit("9.9.9.9"))
		h := w.clientHost()
		var mu sync.Mutex
		opens := map[string]int{}
		w.sim.Tap(func(e simnet.TapEvent) {
			if e.Kind == simnet.TapOpen && e.From.Addr() == h.Addr() {
				mu.Lock()
				opens[e.To.Addr().String()]++
				mu.Unlock()
			}
		})
		c, _ := w.clientAt(h, nil)
		w.must(c.Ready(w.within(time.Minute)))
		time.Sleep(10 * time.Second)
		guard := table(c)[0].path[0]
		for i := range 3 {
			until := c.Status().ConsensusUntil
			time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour + time.Minute)))
			w.agree()
			time.Sleep(31 * time.Minute) // clients fetch in the first half of a period
			if _, err := c.DialTarget(w.within(time.Minute), Target{Host: "10.0.0.1", Port: 80, Isolation: fmt.Sprint(i)}); err == nil {
				t.Error("connected")
			}
			if got := c.Status().ConsensusUntil; !got.Equal(until.Add(time.Hour)) {
				t.Errorf("the consensus is valid until %v, want %v", got, until.Add(time.Hour))
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(opens) != 2 || opens[w.auth.Addr().String()] != 1 || opens[guard.Addresses[0].Addr().String()] != 1 {
			t.Errorf("the client opened connections to %v, want one to the authority and one to its guard", opens)
		}
		// The circuits for that are gone.
		time.Sleep(time.Minute)
		for _, g := range guards {
			if g.Identity() == guard.Identity {
				if n, want := g.Status().Circuits, int64(len(table(c))); n != want {
					t.Errorf("the guard has %d circuits, and the client %d", n, want)
				}
			}
		}
	})
}

// TestGuardWithoutConsensus: a guard that has none, or an old one, costs the client
// nothing but time.
func TestGuardWithoutConsensus(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		time.Sleep(6 * time.Hour) // nobody makes a new one
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		if err := c.mirror.Problem(); err != nil {
			t.Errorf("a consensus that did not change is a problem: %v", err)
		}
	})
}

// TestTidyEnds: streams that end in order leave nothing at the relays, and a half-close
// goes both ways.
func TestTidyEnds(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, func(c net.Conn) {
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes", len(b))
		})
		_, outs := w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		for _, n := range []int{0, 1, 100_000} {
			conn := w.dial(c, "example.org:80")
			_, err := conn.Write(make([]byte, n))
			w.must(err)
			w.must(conn.(interface{ CloseWrite() error }).CloseWrite())
			got, err := io.ReadAll(conn)
			if want := fmt.Sprintf("%d bytes", n); err != nil || string(got) != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
			w.must(conn.Close())
		}
		time.Sleep(time.Second)
		if s := outs[0].Status().Streams; s != 0 {
			t.Errorf("%d streams are left at the exit", s)
		}
		if n := table(c)[0].origin.Mux().Len(); n != 0 {
			t.Errorf("%d streams are left at the client", n)
		}
	})
}
