package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/path"
	"cepa/relay"
	"cepa/simnet"
)

// TestOfflineKeepsGuards: a machine without network blames no guard, chooses no other,
// says so, and is back at once when the network is.
func TestOfflineKeepsGuards(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"))
		var mu sync.Mutex
		down := false
		h := w.clientHost()
		c, _ := w.clientAt(h, func(cfg *Config) {
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				if down {
					return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
				}
				return h.Dial(ctx, network, addr)
			}
		})
		w.must(c.Ready(w.within(time.Minute)))
		first := guardList(c)
		mu.Lock()
		down = true
		mu.Unlock()
		for _, l := range c.links.Links() {
			l.Close()
		}
		time.Sleep(3 * time.Hour)
		_, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80")
		wantError(t, err, PartyNetwork, syscall.ENETUNREACH)
		if err == nil || !strings.Contains(err.Error(), "not connected to the internet") {
			t.Errorf("the error is %v", err)
		}
		if got := guardList(c); !slices.Equal(got, first) {
			t.Errorf("the guards are %v after three hours without network, and were %v", got, first)
		}
		mu.Lock()
		down = false
		mu.Unlock()
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		if c.links.Links()[0].Err() != nil || len(guardList(c)) != 1 {
			t.Error("another guard is used")
		}
	})
}

// TestGuardDown: the next guard is used within seconds, without the user's help, and
// the first again when it is back.
func TestGuardDown(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		guards, _ := w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		first := table(c)[0].path[0].Identity
		i := slices.IndexFunc(guards, func(n *node) bool { return n.Identity() == first })
		guards[i].halt()
		time.Sleep(time.Second)
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		if got := table(c)[0].path[0].Identity; got == first {
			t.Error("the guard that is down is used")
		}
		w.start(guards[i])
		w.shift.Add(int64(time.Hour))
		w.agree()
		time.Sleep(maxUnused + 2*time.Minute)
		all := table(c)
		for _, x := range all[len(all)-2:] {
			if x.path[0].Identity != first {
				t.Error("the first guard is back, and circuits are built through another")
			}
		}
		if n := len(guardList(c)); n != 2 {
			t.Errorf("%d guards were tried", n)
		}
	})
}

// TestGuardSilent: a guard that swallows what it gets costs one circuit its time, and not
// the next one too.
func TestGuardSilent(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		guards, _ := w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		first := table(c)[0].path[0].Identity
		i := slices.IndexFunc(guards, func(n *node) bool { return n.Identity() == first })
		w.sim.Isolate(guards[i].host, true)
		for _, l := range c.links.Links() {
			l.Close()
		}
		open := func(key string) time.Duration {
			began := time.Now()
			conn, err := c.DialTarget(w.within(2*time.Minute), Target{Host: "example.org", Port: 80, Isolation: key})
			w.must(err)
			w.Cleanup(func() { conn.Close() })
			return time.Since(began)
		}
		if took := open("one"); took < linkTimeout {
			t.Errorf("the first took %v: the guard was not asked", took)
		}
		for i := range 5 {
			// The middle may be the one that says nothing: that takes its time too.
			if took := open(fmt.Sprint("next ", i)); took > time.Second {
				for _, x := range table(c) {
					if x.path[0].Identity == first {
						t.Errorf("a later one took %v, and a circuit begins at the guard that says nothing", took)
					}
				}
			}
		}
		if all := c.Status().Guards; all[0].Relay != first || all[0].Failed == 0 {
			t.Errorf("the guard that says nothing is not passed over: %+v", all[0])
		}
		w.sim.Isolate(guards[i].host, false)
	})
}

// TestGuardRefuses: a guard that answers and takes no circuits is as good as down.
func TestGuardRefuses(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		guards, _ := w.small(exit("9.9.9.9"))
		// All but one have replaced their onion keys since they published.
		for _, g := range guards[1:] {
			g.halt()
			onion, err := handshake.OnionKeyFromSecret([32]byte{1, 2, 3, byte(g.at.Addr().As4()[1])})
			w.must(err)
			g.cfg.OnionKey = onion
			ln, err := g.host.Listen("tcp", g.at.String())
			w.must(err)
			r, err := relay.New(g.cfg)
			w.must(err)
			ctx, cancel := context.WithCancel(w.ctx)
			g.Relay, g.cancel, g.done = r, cancel, make(chan struct{})
			go func() {
				defer close(g.done)
				_ = r.Serve(ctx, ln)
			}()
		}
		// The first guard of this client is one of those.
		files := newMemory()
		w.must(files.WriteJSON(guardsFile, 1, guardsV1{[]identity.ID{guards[1].Identity()}}))
		c := w.client(func(cfg *Config) { cfg.Files = files })
		// The paths need a middle that works: with one good guard there is none
		// but the exits.
		err := c.Ready(w.within(5 * time.Minute))
		list := guardList(c)
		if !slices.Contains(list, guards[0].Identity()) {
			t.Errorf("the one that takes circuits is not among the guards that were tried: %v (%v)", list, err)
		}
		if len(list) > path.FewGuards {
			t.Errorf("%d guards were tried", len(list))
		}
	})
}

// TestGuardsOnTheWire: what an observer at the client sees when every guard is blocked
// for hours, and the client is started three times.
func TestGuardsOnTheWire(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		var guards []*node
		for i := range 8 {
			guards = append(guards, w.relay(fmt.Sprint("guard", i), nil))
		}
		w.relay("exit", exit("9.9.9.9"))
		w.agree()
		h := w.clientHost()
		var mu sync.Mutex
		to := map[netip.Addr]int{}
		w.sim.Tap(func(e simnet.TapEvent) {
			if e.Kind == simnet.TapOpen && e.From.Addr() == h.Addr() {
				mu.Lock()
				to[e.To.Addr()]++
				mu.Unlock()
			}
		})
		for _, g := range guards {
			g.halt()
		}
		files := newMemory()
		for range 3 {
			c, _ := w.clientAt(h, func(cfg *Config) { cfg.Files = files })
			time.Sleep(2 * time.Hour)
			c.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		delete(to, w.auth.Addr())
		if len(to) == 0 || len(to) > path.FewGuards {
			t.Errorf("%d relays were connected to, want at most %d", len(to), path.FewGuards)
		}
		for a, n := range to {
			if n > 3*2*60*3 {
				t.Errorf("%v was tried %d times in six hours", a, n)
			}
		}
	})
}
