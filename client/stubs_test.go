package client

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion/service"
	"cepa/path"
)

// vanguardWorld is a network of 11 relays with a client that is ready.
func vanguardWorld(t *testing.T, f func(w *world, c *Client, outs []*node)) {
	t.Helper()
	t.Parallel()
	run(t, func(w *world) {
		anywhere := exit("9.9.9.9")
		_, outs := w.small(anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere, anywhere)
		f(w, w.readyClient(nil), outs)
	})
}

// stubOf returns the entry of an origin in the client's table.
func stubOf(c *Client, o *circuit.Origin) *stub {
	c.mu.Lock()
	defer c.mu.Unlock()
	for x := range c.stubs.all {
		if x.origin == o {
			return x
		}
	}
	return nil
}

// vanguardsIn returns the counts in the client's status.
func vanguardsIn(c *Client) VanguardStatus { return c.Status().Vanguards }

// TestStubsKept: there are none before the first use; then there are some, which make the next circuit quick to have; an hour
// after the last use they are gone.
func TestStubsKept(t *testing.T) {
	vanguardWorld(t, func(w *world, c *Client, outs []*node) {
		if v := vanguardsIn(c); v != (VanguardStatus{}) {
			t.Fatalf("before the first use: %+v", v)
		}
		last := outs[0].Identity()
		took := func(foreign bool) time.Duration {
			t.Helper()
			before := time.Now()
			o, err := c.VanguardCircuit(w.within(time.Minute), last, foreign, nil)
			w.must(err)
			if want := map[bool]int{false: 4, true: 5}[foreign]; o.Len() != want {
				t.Errorf("%d hops, want %d", o.Len(), want)
			}
			d := time.Since(before)
			o.Close()
			return d
		}
		fresh := took(false)
		time.Sleep(5 * time.Second)
		if v := vanguardsIn(c); v != (VanguardStatus{Ready: minStubs}) {
			t.Fatalf("after the first use: %+v", v)
		}
		// Where there are links already, exchanges over four and five links of 5 ms for the hops that are added.
		own, foreign := time.Hour, time.Hour
		for range 20 {
			own, foreign = min(own, took(false)), min(foreign, took(true))
			time.Sleep(2 * time.Second)
		}
		if own != 40*time.Millisecond || foreign != 90*time.Millisecond || fresh <= 200*time.Millisecond {
			t.Errorf("a circuit took %v at first; %v and, to a last hop that somebody else chose, %v with stubs", fresh, own, foreign)
		}
		time.Sleep(58 * time.Minute)
		if v := vanguardsIn(c); v.Ready != minStubs {
			t.Errorf("within the hour: %+v", v)
		}
		time.Sleep(3 * time.Minute)
		if v := vanguardsIn(c); v != (VanguardStatus{}) {
			t.Errorf("an hour after the last use: %+v", v)
		}
	})
}

// TestStubsMany: who uses many at once has more kept ready, up to a bound.
func TestStubsMany(t *testing.T) {
	vanguardWorld(t, func(w *world, c *Client, outs []*node) {
		for i := range 30 {
			o, err := c.VanguardCircuit(w.within(time.Minute), outs[i%len(outs)].Identity(), true, nil)
			w.must(err)
			defer o.Close()
		}
		most := 0
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			most = max(most, vanguardsIn(c).Ready)
		}
		if v := vanguardsIn(c); most <= minStubs || most > maxStubs || v.Used != 30 {
			t.Errorf("at most %d stubs were ready; %+v", most, v)
		}
		c.mu.Lock()
		c.stubs.building += maxVanguardCircuits
		ready := slices.Clone(c.stubs.ready)
		c.mu.Unlock()
		for _, x := range ready {
			x.origin.Close()
		}
		if _, err := c.VanguardCircuit(w.within(time.Minute), outs[0].Identity(), false, nil); !errors.Is(err, errManyVanguards) {
			t.Errorf("with as many as there may be: %v", err)
		}
		c.mu.Lock()
		c.stubs.building -= maxVanguardCircuits
		c.mu.Unlock()
	})
}

// TestStubsForVisitors: visitors of services, however many, leave circuits for introduction points and descriptors.
func TestStubsForVisitors(t *testing.T) {
	vanguardWorld(t, func(w *world, c *Client, outs []*node) {
		services := onionNetwork{c}
		to := service.Hop{Relay: outs[0].Identity(), Foreign: true}
		first, err := services.Circuit(w.within(time.Minute), to)
		w.must(err)
		defer first.Close()
		time.Sleep(time.Minute)
		c.mu.Lock()
		others := maxVanguardCircuits - keptVanguardCircuits - len(c.stubs.all)
		c.stubs.building += others
		c.mu.Unlock()
		var err2 error
		for range 2 * maxStubs { // those that were built ahead are taken first
			var o service.Circuit
			if o, err2 = services.Circuit(w.within(time.Minute), to); err2 != nil {
				break
			}
			defer o.Close()
			time.Sleep(time.Second)
		}
		if !errors.Is(err2, errManyVanguards) {
			t.Errorf("with as many as visitors may have: %v", err2)
		}
		to.Foreign = false
		o, err := services.Circuit(w.within(time.Minute), to)
		if err != nil {
			t.Errorf("to an introduction point: %v", err)
		} else {
			o.Close()
		}
		c.mu.Lock()
		c.stubs.building -= others
		c.mu.Unlock()
	})
}

// TestStubsPath: stubs have vanguards as their hops, and a circuit never has one relay twice within three hops.
func TestStubsPath(t *testing.T) {
	vanguardWorld(t, func(w *world, c *Client, outs []*node) {
		seconds := map[identity.ID]bool{}
		for i := range 40 {
			last := outs[i%len(outs)].Identity()
			o, err := c.VanguardCircuit(w.within(time.Minute), last, i%2 == 0, nil)
			w.must(err)
			x := stubOf(c, o)
			seconds[x.path[1].Identity] = true
			if last == x.path[2].Identity || i%2 == 1 && last == x.path[1].Identity {
				t.Error("the last hop is one of the two before it")
			}
			o.Close()
			time.Sleep(time.Duration(i%3) * time.Second)
		}
		if len(seconds) > 4 {
			t.Errorf("%d second hops", len(seconds))
		}
		unknown := outs[0].Identity()
		unknown[0] ^= 1
		if _, err := c.VanguardCircuit(w.within(time.Minute), unknown, true, nil); err == nil || !strings.Contains(err.Error(), "not in the consensus") {
			t.Errorf("an unknown last hop: %v", err)
		}
	})
}

// TestStubsNewIdentity: after it, no stub of before is used; circuits in use stay.
func TestStubsNewIdentity(t *testing.T) {
	vanguardWorld(t, func(w *world, c *Client, outs []*node) {
		used, err := c.VanguardCircuit(w.within(time.Minute), outs[0].Identity(), false, nil)
		w.must(err)
		time.Sleep(5 * time.Second)
		c.mu.Lock()
		before := slices.Clone(c.stubs.ready)
		c.mu.Unlock()
		_, err = c.NewIdentity()
		w.must(err)
		for _, x := range before {
			if x.origin.Err() == nil {
				t.Error("a stub of before is still there")
			}
		}
		time.Sleep(5 * time.Second)
		if v := vanguardsIn(c); len(before) != minStubs || v != (VanguardStatus{Ready: minStubs, Used: 1}) || used.Err() != nil {
			t.Errorf("of %d stubs there are %+v, and what is used: %v", len(before), v, used.Err())
		}
	})
}

// TestVanguardCircuitEnds: who uses one hears once of its end; Close waits for all of them.
func TestVanguardCircuitEnds(t *testing.T) {
	vanguardWorld(t, func(w *world, c *Client, outs []*node) {
		var heard atomic.Int64
		note := func(err error) {
			if err == nil {
				t.Error("an end without a reason")
			}
			heard.Add(1)
		}
		a, err := c.VanguardCircuit(w.within(time.Minute), outs[0].Identity(), false, note)
		w.must(err)
		b, err := c.VanguardCircuit(w.within(time.Minute), outs[1].Identity(), true, note)
		w.must(err)
		a.Close()
		outs[1].halt()
		synctest.Wait()
		time.Sleep(time.Second)
		if n := heard.Load(); n != 2 || b.Err() == nil {
			t.Errorf("%d ends were heard of, of two; %v", n, b.Err())
		}
		_, err = c.VanguardCircuit(w.within(time.Minute), outs[2].Identity(), true, note)
		w.must(err)
		late := make(chan error, 1)
		go func() {
			_, err := c.VanguardCircuit(w.within(time.Minute), outs[3].Identity(), true, note)
			late <- err
		}()
		synctest.Wait()
		w.must(c.Close())
		if err := <-late; !errors.Is(err, ErrClosed) || heard.Load() != 3 {
			t.Errorf("at Close: %v, %d ends were heard of, of three", err, heard.Load())
		}
		if _, err := c.VanguardCircuit(w.within(time.Minute), outs[3].Identity(), true, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestForeignFailures: somebody who has the client go to relays that are down makes it neither give up its guard nor leave relays
// out of other circuits.
func TestForeignFailures(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		anywhere := exit("9.9.9.9")
		idle := w.relay("idle", nil)
		idle.flags, idle.weight = idle.flags&^directory.FlagGuard, 0 // nobody chooses it
		w.small(anywhere, anywhere, anywhere, anywhere, anywhere)
		c := w.readyClient(nil)
		idle.halt()
		for range 5 {
			_, err := c.VanguardCircuit(w.within(time.Minute), idle.Identity(), true, nil)
			if why := cell.ExtendError(0); !errors.As(err, &why) {
				t.Errorf("to a relay that is down: %v", err)
			}
			time.Sleep(20 * time.Second)
		}
		c.mu.Lock()
		left := len(c.unreached)
		c.mu.Unlock()
		if g := c.Status().Guards[0]; left != 0 || g.Good != g.Circuits {
			t.Errorf("%d relays are left out; %d of %d circuits count as good", left, g.Good, g.Circuits)
		}
	})
}

// TestVanguardsSmall: a network without enough relays says so, and is no problem of the client's.
func TestVanguardsSmall(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.relay("guard1", nil)
		w.relay("guard2", nil)
		w.relay("exit", exit("9.9.9.9"))
		w.agree()
		c := w.readyClient(nil)
		guard := table(c)[0].path[0].Identity
		for _, n := range w.nodes {
			if _, err := c.VanguardCircuit(w.within(time.Minute), n.Identity(), false, nil); n.Identity() != guard && !errors.Is(err, path.ErrNoPath) {
				t.Errorf("%v", err)
			}
		}
		time.Sleep(time.Minute)
		if p := c.Status().Bootstrap.Problem; p != "" {
			t.Errorf("the client has a problem: %s", p)
		}
	})
}
