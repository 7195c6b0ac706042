package client

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// soak runs the long tests in full.
var soak = flag.Bool("soak", false, "run the long tests in full")

// TestNoCircuitIsShared: many streams of many identities, among circuits that grow old,
// break and are given up for others: no circuit ever carries two identities, nor streams
// of before and after a new identity.
func TestNoCircuitIsShared(t *testing.T) {
	t.Parallel()
	streams, identities := 600, 40
	if *soak {
		streams, identities = 10_000, 100
	}
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		rng := rand.New(rand.NewPCG(7, 7))
		whose := map[uint64]string{} // circuit -> identity and epoch
		look := func() {
			for _, d := range c.Destinations() {
				owner, _, _ := strings.Cut(d.Destination, "-")
				if other, ok := whose[d.Circuit]; ok && other != owner {
					t.Fatalf("circuit %d carries streams of %s and %s", d.Circuit, other, owner)
				}
				whose[d.Circuit] = owner
			}
		}
		epoch, done, failed := 0, 0, 0
		for done < streams {
			const together = 50
			var mu sync.Mutex
			var wg sync.WaitGroup
			var conns []net.Conn
			for i := range together {
				id := rng.IntN(identities)
				pause := time.Duration(rng.IntN(300)) * time.Millisecond
				wg.Go(func() {
					time.Sleep(pause)
					host := fmt.Sprintf("i%de%d-s%d.example", id, epoch, done+i)
					conn, err := c.DialTarget(w.within(time.Minute), Target{Host: host, Port: 80, Isolation: fmt.Sprint("identity ", id)})
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						failed++ // its circuit was closed on purpose, each time that it tried
						return
					}
					conns = append(conns, conn)
				})
			}
			time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
			for _, x := range table(c) { // one in ten breaks under way
				if rng.IntN(10) == 0 {
					x.origin.Close()
				}
			}
			wg.Wait()
			look()
			for _, conn := range conns {
				if rng.IntN(8) > 0 {
					conn.Close()
				}
			}
			done += together
			switch done / together % 6 {
			case 0: // dirty circuits are left
				time.Sleep(maxDirty)
			case 1:
				time.Sleep(newIdentityEvery)
				_, err := c.NewIdentity()
				w.must(err)
				epoch++
			}
			look()
		}
		if failed > streams/50 {
			t.Errorf("%d of %d streams failed", failed, streams)
		}
		t.Logf("%d streams of %d identities on %d circuits, %d new identities, %d streams failed; 0 circuits shared", done, identities, len(whose), epoch, failed)
		if len(whose) < identities || epoch == 0 {
			t.Error("the test looked at too little")
		}
	})
}

// TestNewIdentity: streams of after it never use a circuit of before, not even one that
// was being built; those that there are go on.
func TestNewIdentity(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		open := func(name, key string) (net.Conn, uint64) {
			t.Helper()
			conn, err := c.DialTarget(w.within(time.Minute), Target{Host: name, Port: 80, Isolation: key})
			w.must(err)
			w.Cleanup(func() { conn.Close() })
			for _, d := range c.Destinations() {
				if d.Destination == name+":80" {
					return conn, d.Circuit
				}
			}
			t.Fatalf("%s is on no circuit", name)
			return nil, 0
		}
		old, first := open("before.example", "a")
		newest := built(c)
		building := make(chan net.Conn)
		for range 3 { // more than are ready, so that one is under construction
			go func() {
				conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "meanwhile.example", Port: 80, Isolation: fmt.Sprint(rand.Uint64())})
				if err != nil {
					t.Error(err)
				}
				building <- conn
			}()
		}
		time.Sleep(15 * time.Millisecond)
		newest = max(newest, built(c))
		if n, err := c.NewIdentity(); err != nil || n < 2 {
			t.Errorf("%d circuits, %v", n, err)
		}
		for _, key := range []string{"a", "b", "c", "d", "e"} {
			if _, id := open("after-"+key+".example", key); id <= newest || id == first {
				t.Errorf("a stream of after it is on circuit %d, and %d was there before it", id, newest)
			}
		}
		for range 3 {
			(<-building).Close()
		}
		w.must(roundTrip(old, "still there"))
		if _, err := c.NewIdentity(); !errors.Is(err, ErrTooSoon) || !strings.Contains(err.Error(), "try again in ") {
			t.Errorf("at once again: %v", err)
		}
		time.Sleep(newIdentityEvery)
		if _, err := c.NewIdentity(); err != nil {
			t.Errorf("after %v: %v", newIdentityEvery, err)
		}
		old.Close()
		time.Sleep(tidyEvery + time.Second)
		for _, x := range table(c) {
			if x.id == first {
				t.Error("a circuit of before is kept without need")
			}
		}
	})
}

// TestPredictedPorts: what was asked for lately is built ahead, and no more after an hour.
func TestPredictedPorts(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 8080, echo)
		_, outs := w.small(exitWith(&resolver{addr: "9.9.9.9"}, ports(t, "443")), exitWith(&resolver{addr: "9.9.9.9"}, ports(t, "8080")))
		c := w.readyClient(nil)
		unused := func() (n int) {
			for _, x := range table(c) {
				if !x.assigned && x.exit().Identity == outs[1].Identity() {
					n++
				}
			}
			return n
		}
		if unused() != 0 {
			t.Fatal("circuits for a port that nobody has asked for")
		}
		w.dial(c, "example.org:8080").Close()
		time.Sleep(tidyEvery + time.Second)
		if n := unused(); n != readyEach {
			t.Errorf("%d circuits are ready for the port, want %d", n, readyEach)
		}
		began := time.Now()
		conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 8080, Isolation: "other"})
		w.must(err)
		conn.Close()
		if took := time.Since(began); took > 90*time.Millisecond {
			t.Errorf("another identity's stream to the port took %v", took)
		}
		time.Sleep(predictFor + maxUnused + time.Minute)
		if n := unused(); n != 0 {
			t.Errorf("an hour after the last stream to the port, %d circuits are ready for it", n)
		}
		// No exit serves it: that is found out once and no more.
		_, err = c.Dial(w.within(time.Minute), "tcp", "example.org:25")
		wantError(t, err, PartyExit, nil)
		before := built(c)
		time.Sleep(20 * time.Minute)
		if n := built(c) - before; n > 4 {
			t.Errorf("%d circuits were built for a port that no exit serves", n)
		}
	})
}

// TestPredictedBurst: whoever needs many isolated circuits at once finds them next time.
func TestPredictedBurst(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		page := func(keys int) time.Duration {
			began := time.Now()
			var wg sync.WaitGroup
			for range keys {
				wg.Go(func() {
					conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 80, Isolation: fmt.Sprint(rand.Uint64())})
					if err != nil {
						t.Error(err)
						return
					}
					conn.Close()
				})
			}
			wg.Wait()
			return time.Since(began)
		}
		page(6)
		time.Sleep(tidyEvery + 5*time.Second)
		if took := page(6); took > 90*time.Millisecond {
			t.Errorf("the second page took %v", took)
		}
		page(50)
		time.Sleep(tidyEvery + 5*time.Second)
		c.mu.Lock()
		n := 0
		for _, x := range c.circuits {
			if !x.assigned {
				n++
			}
		}
		c.mu.Unlock()
		if n > maxBurst {
			t.Errorf("%d circuits are ready", n)
		}
	})
}

// TestBuildTimeout: it follows what circuits take, within bounds, and grows when too
// many run into it.
func TestBuildTimeout(t *testing.T) {
	t.Parallel()
	var b buildTimes
	fill := func(n int, d time.Duration) {
		for range n {
			b.add(d)
		}
	}
	check := func(when string, want time.Duration) {
		t.Helper()
		if got := b.timeout(); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	check("without a history", buildTimeout)
	fill(fewBuilds, 800*time.Millisecond)
	check("with a short one", 3200*time.Millisecond)
	fill(manyBuilds, 1500*time.Millisecond)
	check("with a longer one", 3*time.Second)
	fill(buildHistory, 50*time.Millisecond)
	check("on a fast path", minBuildTimeout)
	fill(buildHistory/20, time.Minute)
	check("one in twenty hangs", minBuildTimeout)
	for range 100 { // the network has become slow: all take 8 s
		if t := b.timeout(); t > 8*time.Second {
			b.add(8 * time.Second)
		} else {
			b.add(2 * t)
		}
	}
	if got := b.timeout(); got <= 8*time.Second {
		t.Errorf("all circuits take 8 s, and the timeout is %v", got)
	}
	fill(buildHistory, time.Hour)
	check("nothing works", buildTimeout)
	b.reset()
	check("elsewhere", buildTimeout)
}
