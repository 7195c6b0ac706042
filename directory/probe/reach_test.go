package probe_test

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/directory"
	"cepa/directory/probe"
)

// TestReached: a relay is running as soon as it was reached with its identity and its onion key at its address, and otherwise never.
func TestReached(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.serve("good", "10.1.0.1:9001")
		l.serve("other", "10.2.0.1:9001")
		l.serve("another key", "10.3.0.1:9001")
		l.serve("two", "10.4.0.1:9001", "10.5.0.1:9001")
		l.serve("half", "10.6.0.1:9001")
		// It takes connections and says nothing.
		tarpit, err := l.machine(netip.MustParseAddr("10.7.0.1")).Listen("tcp", "10.7.0.1:9001")
		if err != nil {
			t.Fatal(err)
		}
		defer tarpit.Close()
		l.machine(netip.MustParseAddr("10.8.0.1"))

		for _, d := range []*directory.Descriptor{
			l.descriptor("good", nil, "10.1.0.1:9001"),
			l.descriptor("other's address", nil, "10.2.0.1:9001"),
			l.descriptor("another key", func(d *directory.Descriptor) { d.OnionKey = l.onionKey("wrong").Public() }, "10.3.0.1:9001"),
			l.descriptor("two", nil, "10.4.0.1:9001", "10.5.0.1:9001"),
			l.descriptor("half", nil, "10.6.0.1:9001", "10.9.0.1:9001"),
			l.descriptor("tarpit", nil, "10.7.0.1:9001"),
			l.descriptor("refused", nil, "10.8.0.1:9001"),
			l.descriptor("nowhere", nil, "10.10.0.1:9001"),
		} {
			l.Watch(d)
		}
		all := []string{"good", "other's address", "another key", "two", "half", "tarpit", "refused", "nowhere"}
		time.Sleep(200 * time.Millisecond)
		l.want("at once", all, "good", "two")
		for range 6 * 4 {
			time.Sleep(15 * time.Minute)
			l.want("in six hours", all, "good", "two")
		}
		if got := l.Observed(l.key("refused").ID()); got != (directory.Observed{}) {
			t.Errorf("of one that was never reached: %+v", got)
		}
		for addr, most := range map[string]int64{"10.1.0.1:9001": 4*6 + 1, "10.8.0.1:9001": 12, "10.7.0.1:9001": 12} {
			if n := l.dialled(addr); n < 6 || n > most {
				t.Errorf("%s was dialled %d times in six hours, want 6 to %d", addr, n, most)
			}
		}
		if s := l.Status(); s.Known != 8 || s.Running != 2 || s.CutOff {
			t.Errorf("status %+v", s)
		}
	})
}

// TestPrivateAddresses: an authority of the internet connects to nothing else.
func TestPrivateAddresses(t *testing.T) {
	inLab(t, func(cfg *probe.Config) { cfg.AllowPrivateAddresses = false }, func(l *lab) {
		l.serve("private", "10.1.0.1:9001")
		l.serve("public", "8.8.8.8:9001")
		l.Watch(l.descriptor("private", nil, "10.1.0.1:9001"))
		l.Watch(l.descriptor("public", nil, "8.8.8.8:9001"))
		l.Watch(l.descriptor("loopback", nil, "127.0.0.1:9001"))
		time.Sleep(4 * time.Hour)
		l.want("in four hours", []string{"private", "public", "loopback"}, "public")
		if n := l.dialled("10.1.0.1:9001") + l.dialled("127.0.0.1:9001"); n != 0 {
			t.Errorf("%d connections to private addresses", n)
		}
	})
}

// TestDies: a relay that dies is not running 45 to 55 minutes after the last test that it passed, and again with the first one that it passes, an hour
// after it is back at the latest. Its figures tell of it.
func TestDies(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		for i := range 4 {
			name, at := fmt.Sprint("relay", i), fmt.Sprintf("10.%d.0.1:9001", i+1)
			stop := l.serve(name, at)
			if i == 0 {
				defer stop()
			}
			l.Watch(l.descriptor(name, nil, at))
		}
		stop := l.serve("mortal", "10.9.0.1:9001")
		l.Watch(l.descriptor("mortal", nil, "10.9.0.1:9001"))
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if o := l.Observed(l.key("mortal").ID()); !o.Running || o.Run < 9*time.Hour || o.Run > 10*time.Hour || o.Between != o.Run || o.Uptime != 1 {
			t.Errorf("after ten hours: %+v", o)
		}
		stop()
		died := time.Now()
		for l.running("mortal") {
			time.Sleep(time.Second)
		}
		// The last test was up to 20 minutes before it died, and 20 more where votes came in between.
		if took := time.Since(died); took < 5*time.Minute || took > 55*time.Minute {
			t.Errorf("it was running for %v after it had died, want 5 to 55 minutes", took)
		}
		time.Sleep(5 * time.Hour)
		if o := l.Observed(l.key("mortal").ID()); o.Running || o.Run != 0 || o.Between < 4*time.Hour || o.Between > 6*time.Hour || o.Uptime > 0.7 || o.Uptime < 0.6 {
			t.Errorf("five hours after its end, with one run of ten hours: %+v", o)
		}
		back := time.Now()
		l.serve("mortal", "10.9.0.1:9001")
		for !l.running("mortal") {
			time.Sleep(time.Second)
		}
		if took := time.Since(back); took > time.Hour {
			t.Errorf("it was running again after %v, want an hour at most", took)
		}
		// One that publishes need not wait.
		stop2 := l.serve("hasty", "10.10.0.1:9001")
		l.Watch(l.descriptor("hasty", nil, "10.10.0.1:9001"))
		time.Sleep(time.Minute)
		stop2()
		time.Sleep(10 * time.Hour)
		l.serve("hasty", "10.10.0.1:9001")
		l.Watch(l.descriptor("hasty", nil, "10.10.0.1:9001"))
		time.Sleep(probe.DefaultGap + time.Second)
		l.want("at once after it has published", []string{"hasty"}, "hasty")
	})
}

// TestCutOff: when an authority's own connection fails, it blames nobody. Relays that died meanwhile are found out afterwards.
func TestCutOff(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		var all []string
		stops := map[string]func(){}
		for i := range 8 {
			name, at := fmt.Sprint("relay", i), fmt.Sprintf("10.%d.0.1:9001", i+1)
			all = append(all, name)
			stops[name] = l.serve(name, at)
			l.Watch(l.descriptor(name, nil, at))
		}
		time.Sleep(time.Hour)
		l.want("at first", all, all...)
		uptime := l.Observed(l.key("relay1").ID()).Uptime
		l.sim.Isolate(l.host, true)
		stops["relay0"]()
		for range 5 * 60 {
			time.Sleep(time.Minute)
			l.want("cut off", all, all...)
		}
		if !l.Status().CutOff {
			t.Error("the authority does not notice that it is cut off")
		}
		l.sim.Isolate(l.host, false)
		healed := time.Now()
		for l.running("relay0") {
			time.Sleep(time.Second)
		}
		if took := time.Since(healed); took < 45*time.Minute || took > 70*time.Minute {
			t.Errorf("the dead one was running for %v after the connection was back", took)
		}
		l.want("after it", all, all[1:]...)
		if l.Status().CutOff {
			t.Error("the authority does not notice that it is connected again")
		}
		if o := l.Observed(l.key("relay1").ID()); o.Uptime != uptime || o.Between < time.Hour {
			t.Errorf("an outage of our own counts against a relay: %+v", o)
		}
	})
}

// TestIPv6: an address that does not work counts against a relay if the authority has IPv6, which is what most of the relays that have it tell.
func TestIPv6(t *testing.T) {
	for _, c := range []struct {
		name   string
		mode   probe.IPv6
		works6 int // of the three relays with two addresses whose IPv4 works
		dead   bool
		only   bool // the one without IPv4
	}{
		{"auto, the authority has IPv6", probe.IPv6Auto, 3, false, true},
		{"auto, half", probe.IPv6Auto, 2, false, true},
		{"auto, the authority has none", probe.IPv6Auto, 0, true, true},
		{"yes", probe.IPv6Yes, 1, false, true},
		{"no", probe.IPv6No, 3, true, false},
	} {
		inLab(t, func(cfg *probe.Config) { cfg.IPv6 = c.mode }, func(l *lab) {
			var all, running []string
			for i := range 3 {
				name, at4, at6 := fmt.Sprint("relay", i), fmt.Sprintf("10.%d.0.1:9001", i+1), fmt.Sprintf("[2001:db8:0:%d::1]:9001", i+1)
				all = append(all, name)
				if i < c.works6 {
					l.serve(name, at4, at6)
				} else {
					l.serve(name, at4)
				}
				if i < c.works6 || c.dead {
					running = append(running, name)
				}
				l.Watch(l.descriptor(name, nil, at4, at6))
			}
			l.serve("dead6", "10.8.0.1:9001")
			l.serve("only6", "[2001:db8:0:9::1]:9001")
			l.Watch(l.descriptor("dead6", nil, "10.8.0.1:9001", "[2001:db8:0:8::1]:9001"))
			l.Watch(l.descriptor("only6", nil, "[2001:db8:0:9::1]:9001"))
			if c.dead {
				running = append(running, "dead6")
			}
			if c.only {
				running = append(running, "only6")
			}
			time.Sleep(3 * time.Hour)
			l.want(c.name, append(all, "dead6", "only6"), running...)
		})
	}
}

// TestMoves: a relay with another address or onion key is not running before it was reached so, even if it was.
func TestMoves(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.serve("relay", "10.1.0.1:9001")
		l.Watch(l.descriptor("relay", nil, "10.1.0.1:9001"))
		time.Sleep(2 * time.Hour)
		l.want("at first", []string{"relay"}, "relay")
		l.Watch(l.descriptor("relay", nil, "10.1.0.1:9001"))
		l.want("with the same address", []string{"relay"}, "relay")
		l.Watch(l.descriptor("relay", nil, "10.2.0.1:9001"))
		l.want("with an address where nobody is", []string{"relay"})
		time.Sleep(10 * time.Minute)
		l.want("and later", []string{"relay"})
		l.Watch(l.descriptor("relay", nil, "10.1.0.1:9001"))
		time.Sleep(time.Second)
		l.want("at the old address", []string{"relay"}, "relay")
		if o := l.Observed(l.key("relay").ID()); o.Run < 90*time.Minute {
			t.Errorf("the detour has ended its run: %+v", o)
		}
		l.Watch(l.descriptor("relay", func(d *directory.Descriptor) { d.OnionKey = l.onionKey("next").Public() }, "10.1.0.1:9001"))
		time.Sleep(10 * time.Minute)
		l.want("with an onion key that it does not have", []string{"relay"})
	})
}

// TestHibernates: a relay that says that it takes no links is not asked, and what it has earned stays.
func TestHibernates(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		stop := l.serve("relay", "10.1.0.1:9001")
		l.Watch(l.descriptor("relay", nil, "10.1.0.1:9001"))
		time.Sleep(10 * time.Hour)
		before, dials := l.Observed(l.key("relay").ID()), l.dialled("10.1.0.1:9001")
		l.Watch(l.descriptor("relay", func(d *directory.Descriptor) { d.Extra.Hibernating = true }, "10.1.0.1:9001"))
		stop()
		time.Sleep(40 * time.Hour)
		if n := l.dialled("10.1.0.1:9001"); n != dials {
			t.Errorf("it was dialled %d times while it hibernated", n-dials)
		}
		l.serve("relay", "10.1.0.1:9001")
		l.Watch(l.descriptor("relay", nil, "10.1.0.1:9001"))
		time.Sleep(time.Second)
		if after := l.Observed(l.key("relay").ID()); !after.Running || after.Run < before.Run || after.Run > before.Run+time.Minute || after.Uptime != 1 {
			t.Errorf("before %+v, after it %+v", before, after)
		}
	})
}

// TestReflector: however many relays claim an address, it is dialled once a minute at most, an IPv6 address with its neighbours; and never are more than
// so many tested at once.
func TestReflector(t *testing.T) {
	inLab(t, func(cfg *probe.Config) { cfg.Parallel = 6 }, func(l *lab) {
		victim := l.machine(netip.MustParseAddr("10.1.0.1"))
		var mu sync.Mutex            // guards what follows
		accepted := map[string]int{} // by minute
		var open, most int
		count := func(ln net.Listener) {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				accepted[time.Now().Truncate(time.Minute).String()]++
				open++
				most = max(most, open)
				mu.Unlock()
				go func() {
					defer func() {
						mu.Lock()
						open--
						mu.Unlock()
					}()
					b := make([]byte, 1<<12)
					for {
						if _, err := c.Read(b); err != nil {
							c.Close()
							return
						}
					}
				}()
			}
		}
		for port := range 20 {
			ln, err := victim.Listen("tcp", fmt.Sprintf("10.1.0.1:%d", 9001+port))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go count(ln)
		}
		for i := range 60 {
			l.Watch(l.descriptor(fmt.Sprint("claim", i), nil, fmt.Sprintf("10.1.0.1:%d", 9001+i%20)))
		}
		time.Sleep(6 * time.Hour)
		total := 0
		mu.Lock()
		for minute, n := range accepted {
			if total += n; n > 2 { // a minute of the clock may have the end of one of ours and the begin of the next
				t.Errorf("%d connections in the minute %s", n, minute)
			}
		}
		most = 0
		mu.Unlock()
		if total < 60 || total > 361 {
			t.Errorf("%d connections to one address in six hours", total)
		}
		// Many different ones.
		for i := range 100 {
			ln, err := l.machine(netip.AddrFrom4([4]byte{10, 2, 0, byte(i)})).Listen("tcp", fmt.Sprintf("10.2.0.%d:9001", i))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go count(ln)
		}
		for i := range 100 {
			l.Watch(l.descriptor(fmt.Sprint("many", i), nil, fmt.Sprintf("10.2.0.%d:9001", i)))
		}
		time.Sleep(6 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if most != 3 {
			t.Errorf("%d strangers were tested at once, want 3", most)
		}
	})
}

// TestVotesComeFirst: while votes are exchanged, the last ten minutes of an hour, only those are tested who are not known to run.
func TestVotesComeFirst(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		for i := range 10 {
			name, at := fmt.Sprint("relay", i), fmt.Sprintf("10.1.%d.1:9001", i)
			l.serve(name, at)
			l.Watch(l.descriptor(name, nil, at))
		}
		all := func() (n int64) {
			for i := range 10 {
				n += l.dialled(fmt.Sprintf("10.1.%d.1:9001", i))
			}
			return n
		}
		for range 3 {
			time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(50*time.Minute + time.Second)))
			before := all()
			time.Sleep(9 * time.Minute)
			if n := all() - before; n != 0 {
				t.Errorf("%d tests of running relays while votes were exchanged", n)
			}
			time.Sleep(30 * time.Minute)
			if n := all() - before; n < 10 {
				t.Errorf("%d tests of ten relays in half an hour after that", n)
			}
		}
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(52 * time.Minute)))
		l.serve("new", "10.2.0.1:9001")
		l.Watch(l.descriptor("new", nil, "10.2.0.1:9001"))
		time.Sleep(time.Second)
		l.want("new, while votes are exchanged", []string{"new"}, "new")
	})
}

// TestTestsAreSpread: relays that came together are not tested together for ever.
func TestTestsAreSpread(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		var at []time.Time
		for i := range 20 {
			name, addr := fmt.Sprint("relay", i), fmt.Sprintf("10.1.%d.1:9001", i)
			l.serve(name, addr)
			l.Watch(l.descriptor(name, nil, addr))
		}
		time.Sleep(3 * time.Hour)
		last := map[string]int64{}
		for range 20 * 12 {
			time.Sleep(5 * time.Second)
			for i := range 20 {
				addr := fmt.Sprintf("10.1.%d.1:9001", i)
				if n := l.dialled(addr); n != last[addr] {
					if last[addr] != 0 {
						at = append(at, time.Now())
					}
					last[addr] = n
				}
			}
		}
		most := 0
		for i := range at {
			n := 0
			for _, x := range at {
				if d := x.Sub(at[i]); d >= 0 && d < time.Minute {
					n++
				}
			}
			most = max(most, n)
		}
		if len(at) < 20 || most > 10 {
			t.Errorf("of %d tests of 20 relays in 20 minutes, %d were in one minute", len(at), most)
		}
	})
}

// TestRestart: what was found survives a restart and a crash; a relay is running at once, and keeps its figures.
func TestRestart(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.serve("relay", "10.1.0.1:9001")
		d := l.descriptor("relay", nil, "10.1.0.1:9001")
		l.Watch(d)
		time.Sleep(30 * time.Hour)
		before := l.Observed(d.Identity)
		crashed, err := l.store.Read("observed", 1<<20) // as it is without a last word
		if err != nil {
			t.Fatal(err)
		}
		l.end()
		for _, file := range [][]byte{nil, crashed} {
			if file != nil {
				if err := l.store.Write("observed", file); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Hour)
			l.begin(nil)
			if o := l.Observed(d.Identity); !o.Running || o.Run < before.Run-30*time.Minute || o.Run > before.Run+time.Minute || o.Uptime < 0.99 {
				t.Errorf("after a restart %+v, before %+v", o, before)
			}
			l.Watch(d)
			time.Sleep(time.Minute)
			l.end()
		}
		// After long, nobody is taken to be there unseen.
		time.Sleep(48 * time.Hour)
		l.begin(nil)
		if l.running("relay") {
			t.Error("running after two days in which nobody looked")
		}
		l.Watch(d)
		time.Sleep(time.Minute)
		if o := l.Observed(d.Identity); !o.Running || o.Run < before.Run-time.Hour {
			t.Errorf("seen again: %+v", o)
		}
		// Damage is an error that says what to do.
		l.end()
		if err := l.store.Write("observed", append(crashed, 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := probe.New(probe.Config{Network: l.network, Store: l.store}); err == nil {
			t.Error("a damaged file is taken")
		}
		if err := l.store.Write("observed", crashed); err != nil {
			t.Fatal(err)
		}
		l.begin(nil)
	})
}

// TestForget: a relay whose descriptor has expired is not tested, and comes back with its past.
func TestForget(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		l.serve("relay", "10.1.0.1:9001")
		d := l.descriptor("relay", nil, "10.1.0.1:9001")
		l.Watch(d)
		l.Watch(l.descriptor("stranger", nil, "10.2.0.1:9001"))
		time.Sleep(10 * time.Hour)
		l.Forget(d.Identity)
		l.Forget(l.key("stranger").ID())
		l.Forget(l.key("nobody").ID())
		dials := l.dialled("10.1.0.1:9001") + l.dialled("10.2.0.1:9001")
		time.Sleep(10 * time.Hour)
		if n := l.dialled("10.1.0.1:9001") + l.dialled("10.2.0.1:9001"); n != dials {
			t.Errorf("%d tests of relays without a descriptor", n-dials)
		}
		if s := l.Status(); s.Known != 0 || s.Running != 0 {
			t.Errorf("status %+v", s)
		}
		l.Watch(d)
		time.Sleep(time.Second)
		if o := l.Observed(d.Identity); !o.Running || o.Run < 9*time.Hour {
			t.Errorf("back again: %+v", o)
		}
	})
}

// TestClose: the prober ends at once, whatever it is doing.
func TestClose(t *testing.T) {
	inLab(t, nil, func(l *lab) {
		ln, err := l.machine(netip.MustParseAddr("10.1.0.1")).Listen("tcp", "10.1.0.1:9001")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		l.Watch(l.descriptor("tarpit", nil, "10.1.0.1:9001"))
		l.Watch(l.descriptor("lost", nil, "10.2.0.1:9001"))
		l.sim.Isolate(l.machine(netip.MustParseAddr("10.2.0.1")), true)
		time.Sleep(time.Second)
		began := time.Now()
		l.end()
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		l.begin(nil)
	})
}
