package client

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/path"
)

// TestGuardGivenUp: a guard behind which no circuit comes about is given up at the 150th, one warning says so, and it stays so
// after a restart; the next one is not given up too, although all circuits fail through it as well.
func TestGuardGivenUp(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		_, outs := w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		files := newMemory()
		c := w.readyClient(func(cfg *Config) { cfg.Files = files })
		guard := table(c)[0].path[0]
		first := guard.Identity
		for range 98 {
			c.countCircuit(guard, path.CircuitFailed)
		}
		for _, n := range outs {
			n.halt()
		}
		for range 70 {
			c.newCircuit(w.within(time.Minute), want{}, false, nil) // the exits are down
		}
		if g := c.Status().Guards[0]; g.Circuits != 100 {
			t.Errorf("that middles could not extend counts for the guard: %+v", g)
		}
		for range 50 {
			c.countCircuit(guard, path.CircuitFailed)
		}
		c.newCircuit(w.within(time.Minute), want{}, false, nil)
		all := c.Status().Guards
		second, _ := c.mirror.Current().Lookup(guardList(c)[1])
		for range 300 {
			c.countCircuit(second, path.CircuitFailed)
		}
		if all[0].Relay != first || !strings.HasPrefix(all[0].State, "given up") || all[0].Circuits != 150 {
			t.Errorf("the guard is %+v", all[0])
		}
		if n := countLines(w.logged.String(), "a guard is given up"); n != 1 {
			t.Errorf("%d warnings, want one", n)
		}
		w.must(c.Close())
		for _, n := range outs {
			w.start(n)
		}
		c = w.readyClient(func(cfg *Config) { cfg.Files = files })
		for _, x := range table(c) {
			if x.path[0].Identity == first {
				t.Error("a guard that was given up is used")
			}
		}
		if n := len(guardList(c)); n != 2 {
			t.Errorf("%d guards were tried, want 2", n)
		}
	})
}

// TestYoungDeathsCount: circuits that die within moments count as failed; those that the client closes do not.
func TestYoungDeathsCount(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		_, outs := w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		before := c.Status().Guards[0]
		if before.Circuits != defaultReady || before.Good != defaultReady {
			t.Fatalf("%d of %d circuits came about", before.Good, before.Circuits)
		}
		for _, x := range table(c) {
			c.mu.Lock()
			delete(c.circuits, x.id)
			c.mu.Unlock()
			x.origin.Close()
		}
		c.wantMore()
		time.Sleep(5 * time.Second)
		if now := c.Status().Guards[0]; now.Good != 2*defaultReady || now.Circuits != 2*defaultReady {
			t.Errorf("after the client has closed two: %d of %d", now.Good, now.Circuits)
		}
		for _, n := range outs {
			n.halt()
		}
		time.Sleep(time.Second)
		if now := c.Status().Guards[0]; now.Good != defaultReady {
			t.Errorf("after two died young: %d of %d", now.Good, now.Circuits)
		}
	})
}

// vanguardPath chooses the hops of a circuit over vanguards.
func vanguardPath(c *Client, last *identity.ID, foreign bool) ([]*directory.Relay, error) {
	ch, cons, err := c.paths(c.ctx)
	if err != nil {
		return nil, err
	}
	r := path.VanguardRequest{Foreign: foreign}
	if last != nil {
		r.Last, _ = cons.Lookup(*last)
	}
	if r.Guard, _, err = c.guardLink(c.ctx, ch); err != nil {
		return nil, err
	}
	return c.vanguards.path(ch, c.cfg.Now(), r)
}

// TestVanguardPath: the second hops of circuits that others can make a client build are a few relays, which are on disk before
// they are used, and stay after a restart.
func TestVanguardPath(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		_, exits := w.small(exit("9.9.9.9"), exit("9.9.9.9"), exit("9.9.9.9"), exit("9.9.9.9"), exit("9.9.9.9"), exit("9.9.9.9"), exit("9.9.9.9"))
		files := newMemory()
		last := exits[3].Identity()
		var before []string
		for range 3 {
			c := w.readyClient(func(cfg *Config) { cfg.Files = files })
			guard := table(c)[0].path[0]
			var seconds []string
			for range 60 {
				hops, err := vanguardPath(c, &last, true)
				w.must(err)
				if len(hops) != 5 || hops[0].Identity != guard.Identity || hops[4].Identity != last {
					t.Fatalf("%d hops", len(hops))
				}
				seconds = append(seconds, hops[1].Nickname)
			}
			slices.Sort(seconds)
			seconds = slices.Compact(seconds)
			if len(seconds) < 2 || len(seconds) > 4 || before != nil && !slices.Equal(seconds, before) {
				t.Errorf("second hops were %v, and before %v", seconds, before)
			}
			before = seconds
			if hops, err := vanguardPath(c, nil, false); err != nil || len(hops) != 3 {
				t.Errorf("without a last hop: %d hops, %v", len(hops), err)
			}
			w.must(c.Close())
		}
		// Damage is noticed, and what cannot be stored is not used.
		good := slices.Clone(files.files[vanguardsFile])
		files.files[vanguardsFile] = []byte(strings.Replace(string(good), `"until":9`, `"until":8`, 1))
		if _, err := loadVanguards(Config{Files: files}); err == nil || !strings.Contains(err.Error(), vanguardsFile) {
			t.Errorf("a damaged file: %v", err)
		}
		delete(files.files, vanguardsFile)
		c := w.readyClient(func(cfg *Config) { cfg.Files = files })
		files.mu.Lock()
		files.refuse = errBusy
		files.mu.Unlock()
		if _, err := vanguardPath(c, nil, false); err == nil || !strings.Contains(err.Error(), "stored") {
			t.Errorf("with a disk that refuses: %v", err)
		}
	})
}

// TestLinkEndCountsOnce: when the link to the guard ends, and many young circuits with it, that counts as one death; so nobody on
// the way takes a guard from a client.
func TestLinkEndCountsOnce(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(func(cfg *Config) { cfg.Ready = 5 })
		for i := range 40 {
			time.Sleep(2 * time.Second)
			if i == 0 {
				if g := c.Status().Guards[0]; g.Good != 5 {
					t.Fatalf("%d circuits are good", g.Good)
				}
			}
			for _, l := range c.links.Links() {
				l.Abort(errBusy)
			}
		}
		time.Sleep(2 * time.Second)
		g := c.Status().Guards[0]
		if g.Circuits-g.Good > 45 || g.Circuits < 150 {
			t.Errorf("after 40 links that ended young: %d of %d circuits are good", g.Good, g.Circuits)
		}
	})
}

// TestDeadVanguards: when half of the second hops and a third hop are dead, circuits over vanguards still come about at once, the
// guard hardly hears of it, and what is on disk is the same.
func TestDeadVanguards(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		anywhere := exit("9.9.9.9")
		_, outs := w.small(anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere)
		files := newMemory()
		c := w.readyClient(func(cfg *Config) { cfg.Files = files })
		guard := table(c)[0].path[0].Identity
		last := outs[len(outs)-1].Identity()
		o, err := c.VanguardCircuit(w.within(time.Minute), last, true, nil)
		w.must(err)
		o.Close()
		time.Sleep(time.Minute)
		before := c.vanguards.all.State()
		halt := func(list []path.Vanguard, most int) {
			for _, v := range list {
				for _, n := range outs {
					if n.Identity() == v.Relay && v.Relay != guard && v.Relay != last && most > 0 {
						n.halt()
						most--
					}
				}
			}
		}
		halt(before.Layer2, 2)
		halt(before.Layer3, 1)
		counts := c.Status().Guards[0]
		for range 60 {
			began := time.Now()
			o, err := c.VanguardCircuit(w.within(time.Minute), last, true, nil)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("one took %v", took)
			}
			o.Close()
			time.Sleep(time.Second)
		}
		now := c.Status().Guards[0]
		if failed := now.Circuits - counts.Circuits - (now.Good - counts.Good); failed > 20 {
			t.Errorf("%d circuits count as failed in a minute with dead vanguards", failed)
		}
		if after := c.vanguards.all.State(); !reflect.DeepEqual(before, after) {
			t.Errorf("the vanguards were %+v and are %+v", before, after)
		}
	})
}
