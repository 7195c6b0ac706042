package client

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/directory"
)

// TestReadyCircuits: they are built ahead, given to the first who comes, replaced, and
// not built without end.
func TestReadyCircuits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(func(cfg *Config) { cfg.Ready = 3 })
		if all := table(c); len(all) != 3 || built(c) != 3 {
			t.Fatalf("%d circuits, %d were built, want 3", len(all), built(c))
		}
		began := time.Now()
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
		// BEGIN and the site's answer: three hops and the site, there and back, and
		// the exit's way to the site once more; then the data.
		if took := time.Since(began); took > 90*time.Millisecond {
			t.Errorf("a stream on a ready circuit took %v", took)
		}
		time.Sleep(5 * time.Second)
		all := table(c)
		if len(all) != 4 || built(c) != 4 || !all[0].assigned || all[1].assigned {
			t.Errorf("after one was used: %d circuits, %d were built; the oldest is to be taken", len(all), built(c))
		}
		for range 5 { // the same key stays on its circuit
			w.dial(c, "example.org:80")
		}
		time.Sleep(10 * time.Minute)
		if n := built(c); n != 4 {
			t.Errorf("%d circuits were built", n)
		}
		for _, x := range all {
			if len(x.path) != hops || !x.exit().Flags.Has(directory.FlagExit) || x.path[0] != all[0].path[0] {
				t.Errorf("a circuit is %v", x.path)
			}
		}
	})
}

// TestIsolation: streams of different keys never share a circuit, whatever comes at
// once.
func TestIsolation(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		const keys, each = 7, 9
		var wg sync.WaitGroup
		conns := make(chan net.Conn, keys*each)
		for i := range keys * each {
			wg.Go(func() {
				time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
				conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 80, Isolation: fmt.Sprint(i % keys)})
				if err != nil {
					t.Error(err)
					return
				}
				conns <- conn
			})
		}
		wg.Wait()
		// Each stream counts on a circuit of its key: were one on another's, its key's
		// count would be short.
		streams := map[string]int{}
		for _, x := range table(c) {
			if x.assigned {
				streams[x.key] += x.origin.Mux().Len()
			} else if x.origin.Mux().Len() > 0 {
				t.Error("streams on a circuit that belongs to nobody")
			}
		}
		for i := range keys {
			if n := streams[fmt.Sprint(i)]; n != each {
				t.Errorf("key %d has %d streams on its circuits, want %d", i, n, each)
			}
		}
		close(conns)
		for conn := range conns {
			conn.Close()
		}
	})
}

// TestEntersAssigned: a circuit that was built for a key is nobody else's, not even for
// the moment in which it is entered.
func TestEntersAssigned(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		model := table(c)[0]
		for i := range 3000 {
			x := &circ{id: 1_000_000 + uint64(i), origin: model.origin, path: model.path, born: time.Now()}
			started, stop, done := make(chan struct{}), make(chan struct{}), make(chan *circ, 1)
			go func() { // takes what it can get, as soon as it is there
				var got *circ
				close(started)
				for running := true; running; {
					select {
					case <-stop:
						running = false
					default:
					}
					c.mu.Lock()
					if y := c.circuits[x.id]; y != nil && !y.assigned {
						got = y
					}
					c.mu.Unlock()
				}
				done <- got
			}()
			<-started
			runtime.Gosched()
			w.must(c.enter(x, "mine", true))
			close(stop)
			if <-done != nil {
				t.Fatalf("circuit %d was there for anybody", i)
			}
			c.mu.Lock()
			if !x.assigned || x.key != "mine" || x.firstUsed.IsZero() {
				t.Fatal("it has no owner")
			}
			for _, key := range []string{"yours", ""} {
				if y := c.takeLocked(want{key: key, port: 80}, &trail{}, time.Now()); y == x {
					t.Fatalf("key %q gets it", key)
				}
			}
			delete(c.circuits, x.id)
			c.mu.Unlock()
		}
	})
}

// TestBuildsOnce: many who want the same wait for one circuit; it is built to its end
// when they are gone, and who comes then has it.
func TestBuildsOnce(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 8080, echo)
		// Ready circuits are for port 443, which only the first exit serves.
		w.small(exitWith(&resolver{addr: "9.9.9.9"}, ports(t, "443")), exitWith(&resolver{addr: "9.9.9.9"}, ports(t, "8080")))
		c := w.readyClient(nil)
		before := built(c)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				conn, err := c.Dial(w.within(time.Minute), "tcp", "example.org:8080")
				if err != nil {
					t.Error(err)
					return
				}
				conn.Close()
			})
		}
		wg.Wait()
		if n := built(c) - before; n != 1 {
			t.Errorf("%d circuits were built for 50 streams of one key", n)
		}

		// One who gives up before it stands.
		before = built(c)
		_, err := c.DialTarget(w.within(20*time.Millisecond), Target{Host: "example.org", Port: 8080, Isolation: "other"})
		if !errors.Is(err, w.within(0).Err()) {
			t.Errorf("a Dial that had no time: %v", err)
		}
		time.Sleep(time.Second)
		conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 8080, Isolation: "other"})
		w.must(err)
		conn.Close()
		if n := built(c) - before; n != 1 {
			t.Errorf("%d circuits were built for one who gave up and one who did not", n)
		}
	})
}

// TestPorts: a circuit is used for what its exit serves, by port and kind of address.
func TestPorts(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		seen := make([]*resolver, 3)
		for i := range seen {
			seen[i] = &resolver{err: &net.DNSError{IsNotFound: true}}
		}
		_, outs := w.small(exitWith(seen[0], ports(t, "443/none")), exitWith(seen[1], ports(t, "25,443/none")), exitWith(seen[2], ports(t, "none/80,443")))
		c := w.readyClient(nil)
		for range 3 {
			_, err := c.Dial(w.within(time.Minute), "tcp", "example.org:25")
			wantError(t, err, PartyDestination, cell.EndNotFound)
		}
		if seen[1].calls.Load() != 3 || seen[0].calls.Load()+seen[2].calls.Load() != 0 {
			t.Errorf("port 25 was asked of exits %d, %d, %d times", seen[0].calls.Load(), seen[1].calls.Load(), seen[2].calls.Load())
		}
		// An IPv6 address is for the one exit that serves those; there is no such
		// host, which the exit says.
		_, err := c.Dial(w.within(time.Minute), "tcp", "[2606::1]:80")
		wantError(t, err, PartyDestination, cell.EndHost)
		found := false
		for _, x := range table(c) {
			found = found || x.exit().Identity == outs[2].Identity()
		}
		if !found {
			t.Error("no circuit to the exit for IPv6")
		}
		for _, addr := range []string{"[2606::1]:25", "example.org:80", "9.9.9.9:80", "[::ffff:9.9.9.9]:80"} {
			_, err = c.Dial(w.within(time.Minute), "tcp", addr)
			wantError(t, err, PartyExit, cell.EndPolicy) // what their policies say, all of them
		}
	})
}

// TestDirtyCircuits: a circuit takes new streams for ten minutes, and ends when the last
// that it has ends.
func TestDirtyCircuits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		conn := w.dial(c, "example.org:80")
		first := table(c)[0]
		time.Sleep(maxDirty - time.Second)
		w.dial(c, "example.org:80").Close()
		if n := first.origin.Mux().Len(); n != 2 {
			t.Errorf("just before its time is over, the circuit has %d streams, want 2", n)
		}
		time.Sleep(2 * time.Second)
		w.dial(c, "example.org:80").Close()
		if n := first.origin.Mux().Len(); n != 1 {
			t.Errorf("after its time, the circuit has %d streams, want 1", n)
		}
		time.Sleep(time.Hour)
		w.must(roundTrip(conn, "still there"))
		conn.Close()
		time.Sleep(tidyEvery + time.Second)
		if first.origin.Err() == nil {
			t.Error("a circuit without use is not closed")
		}
		for _, x := range table(c) {
			if x == first {
				t.Error("a circuit that ended is in the table")
			}
		}
	})
}

// TestUnusedCircuits: a circuit that nobody needed is replaced after half an hour.
func TestUnusedCircuits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		time.Sleep(maxUnused - time.Minute)
		if n := built(c); n != 2 {
			t.Errorf("%d circuits were built in half an hour of rest, want 2", n)
		}
		time.Sleep(2 * time.Minute)
		if all := table(c); len(all) != 2 || all[0].id < 3 || built(c) != 4 {
			t.Errorf("after it: %d circuits from number %d on, %d were built", len(all), all[0].id, built(c))
		}
	})
}

// TestLostCircuits: circuits that are lost are replaced, and when they are lost as soon
// as they stand, ever more slowly.
func TestLostCircuits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		before := built(c)
		for _, x := range table(c) {
			x.origin.Close()
		}
		time.Sleep(5 * time.Second)
		if len(table(c)) != 2 || built(c)-before > 4 {
			t.Errorf("%d circuits are ready, %d were built to replace two", len(table(c)), built(c)-before)
		}
		before = built(c)
		const minutes = 10
		for range minutes * 60 * 10 { // whatever stands is lost within 100 ms
			for _, x := range table(c) {
				x.origin.Close()
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := built(c) - before; n < minutes || n > minutes*4+20 {
			t.Errorf("%d circuits were built in %d minutes in which all were lost at once", n, minutes)
		}
		time.Sleep(time.Minute)
		if n := len(table(c)); n != 2 {
			t.Errorf("%d circuits are ready afterwards", n)
		}
	})
}

// TestNoBusyLoop: when no circuit can be built, that is tried ever more slowly, and the
// log is spared.
func TestNoBusyLoop(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(w *world){
		"no exits": func(w *world) { w.small() },
		"guards down": func(w *world) {
			guards, _ := w.small(exit("9.9.9.9"))
			for _, g := range guards {
				g.halt()
			}
		},
		"exit down": func(w *world) {
			_, outs := w.small(exit("9.9.9.9"))
			outs[0].halt()
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				change(w)
				c := w.client(nil)
				const minutes = 10
				err := c.Ready(w.within(minutes * time.Minute))
				if !errors.Is(err, ErrNotReady) {
					t.Errorf("Ready: %v", err)
				}
				t.Log(err)
				attempts := countLines(w.logged.String(), "could not build a circuit")
				if attempts < minutes || attempts > minutes*2+12 {
					t.Errorf("%d attempts in %d minutes", attempts, minutes)
				}
				warnings := countLines(w.logged.String(), "no circuit can be built") + countLines(w.logged.String(), "no guard answers: ")
				if warnings < 1 || warnings > minutes {
					t.Errorf("%d warnings in %d minutes, want one a minute at most", warnings, minutes)
				}
			})
		})
	}
}

// TestTooManyCircuits: with ever new keys, the circuits that rest make room, and when
// none does, the user is told.
func TestTooManyCircuits(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		guards, _ := w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(func(cfg *Config) { cfg.Ready = 1 })
		c.mu.Lock()
		c.limit = 6
		c.mu.Unlock()
		open := func(key string) (net.Conn, error) {
			return c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 80, Isolation: key})
		}
		for i := range 30 {
			conn, err := open(fmt.Sprint("resting ", i))
			w.must(err)
			conn.Close()
			time.Sleep(time.Second)
		}
		if n := len(table(c)); n > 7 { // and the one that is built ahead
			t.Errorf("%d circuits", n)
		}
		var held []net.Conn
		for i := range 20 {
			conn, err := open(fmt.Sprint("busy ", i))
			if err != nil {
				wantError(t, err, PartyNetwork, errBusy)
				break
			}
			held = append(held, conn)
			time.Sleep(time.Second)
		}
		if len(held) < 5 || len(held) > 7 {
			t.Errorf("%d circuits could be used at once, want about 6", len(held))
		}
		w.must(roundTrip(held[0], "the first still works"))
		for _, conn := range held {
			conn.Close()
		}
		time.Sleep(time.Second)
		conn, err := open("after that")
		w.must(err)
		conn.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		total := int64(0)
		for _, g := range guards {
			total += g.Status().Circuits
		}
		if total > 2*8 { // as guard and, perhaps, as middle
			t.Errorf("%d circuits are left at the relays", total)
		}
	})
}

// TestBuildsAtOnce: isolated streams that come together build at once, and not one
// after the other.
func TestBuildsAtOnce(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"), exit("9.9.9.9"))
		c := w.readyClient(nil)
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				conn, err := c.DialTarget(w.within(time.Minute), Target{Host: "example.org", Port: 80, Isolation: fmt.Sprint(i)})
				if err != nil {
					t.Error(err)
					return
				}
				conn.Close()
			})
		}
		wg.Wait()
		// 10 + 20 + 30 ms for the hops, links between relays, some 3 * 40 ms for the
		// padding, and the stream.
		if took := time.Since(began); took > 450*time.Millisecond {
			t.Errorf("20 isolated streams took %v", took)
		}
	})
}
