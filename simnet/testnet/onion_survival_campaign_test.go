package testnet_test

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// TestOnionRelaysKilled: a third of all relays crash at once, all introduction points
// of a service and half of the relays with its descriptor among them. It is reachable
// again soon: to who had it open, to who knew it, and to who hears of it now.
func TestOnionRelaysKilled(t *testing.T) {
	t.Parallel()
	// A third of few relays is most of those that a service depends on: there it takes longer.
	relays, rounds, goal := 12, 1, 2*time.Minute
	if *soak {
		relays, rounds, goal = 33, 40, 30*time.Second
	}
	const limit = 3 * time.Minute
	link := simnet.LinkParams{Latency: 20 * time.Millisecond}
	onSimnet(t, simnet.Config{Default: link}, testnet.Config{Relays: relays, Exits: 2, Interval: 5 * time.Minute}, func(t *testing.T, n *testnet.Net) {
		rng := rand.New(rand.NewPCG(7, 7))
		var all []time.Duration
		unreached := 0
		for round := range rounds {
			// New ones each time: in all its life a client tries only a few guards, and those here would soon have seen
			// more disasters than one does.
			s := hostOnion(t, n, client.OnionConfig{}, echo)
			old, other := newClient(t, n, client.Config{}), newClient(t, n, client.Config{})
			for _, c := range []*client.Client{old, other} {
				if _, err := reach(c, s.Address, "known", limit); err != nil {
					t.Fatalf("round %d, before anything fails: %v", round, err)
				}
			}
			victims := onionVictims(n, s, rng, old, other)
			n.Trace().Note("%d relays crash", len(victims))
			for _, v := range victims {
				v.Crash()
			}
			type result struct {
				who  string
				took time.Duration
				err  error
			}
			results := make(chan result)
			for who, c := range map[string]struct {
				c         *client.Client
				isolation string
			}{"who had it open": {old, "known"}, "who knew it": {other, "known"}, "who hears of it": {other, ""}} {
				go func() {
					took, err := reach(c.c, s.Address, c.isolation, limit)
					results <- result{who, took, err}
				}()
			}
			for range 3 {
				r := <-results
				if r.err != nil {
					// Vanguards are not replaced because they are dead, only when they are not listed any more: one client in a
					// hundred has none alive then. p95 is what counts.
					unreached++
					t.Logf("round %d: not reachable to %s after %v: %v", round, r.who, r.took, r.err)
				}
				all = append(all, r.took)
				if r.took > goal {
					t.Logf("round %d: %s waited %v", round, r.who, r.took.Round(time.Millisecond))
				}
			}
			s.stop(false)
			old.Close()
			other.Close()
			for _, v := range victims {
				if err := v.Start(); err != nil {
					t.Fatal(err)
				}
			}
			if round < rounds-1 {
				time.Sleep(15 * time.Minute) // virtual: they are listed again
			}
		}
		p95 := percentile(all, 0.95)
		t.Logf("%d relays, a third killed %d times: reachable again after %v (median), %v (p95), %v (longest of %d); %d not within %v", relays, rounds,
			percentile(all, 0.5).Round(time.Millisecond), p95.Round(time.Millisecond), percentile(all, 1).Round(time.Millisecond), len(all), unreached, limit)
		if p95 > goal {
			t.Errorf("reachable again only after %v (p95)", p95)
		}
	})
}

// onionVictims returns a third of the relays: all introduction points, half of the
// relays with the descriptor, and others. A client tries three guards, and then no other
// for an hour: one of the first three of each, any, stays.
func onionVictims(n *testnet.Net, s *onionSite, rng *rand.Rand, clients ...*client.Client) (victims []*testnet.Relay) {
	stays := map[identity.ID]bool{}
	for _, c := range append(clients, s.c) {
		stays[c.Status().Guards[rng.IntN(3)].Relay] = true
	}
	take := func(ids []identity.ID, most int) {
		for _, id := range ids {
			r := n.Relay(id)
			if most > 0 && len(victims) < len(n.Relays)/3 && !stays[id] && !slices.Contains(victims, r) {
				victims = append(victims, r)
				most--
			}
		}
	}
	var all []identity.ID
	for _, r := range n.Relays {
		all = append(all, r.Identity())
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	dirs := s.dirsOf()
	rng.Shuffle(len(dirs), func(i, j int) { dirs[i], dirs[j] = dirs[j], dirs[i] })
	take(s.pointsOf(), len(all))
	take(dirs, len(dirs)/2)
	take(all, len(all))
	return victims
}

// TestOnionServiceKilled: a service whose machine crashed is reachable soon after it was
// started again, to who had it open as to who hears of it.
func TestOnionServiceKilled(t *testing.T) {
	t.Parallel()
	rounds := 1
	if *soak {
		rounds = 40
	}
	const limit = 3 * time.Minute
	goal := 10 * time.Second
	if !*soak {
		goal = 30 * time.Second // of one time, which may be an unlucky one
	}
	link := simnet.LinkParams{Latency: 20 * time.Millisecond}
	onSimnet(t, simnet.Config{Default: link}, testnet.Config{Relays: 12, Exits: 2, Interval: 5 * time.Minute}, func(t *testing.T, n *testnet.Net) {
		s := newOnionSite(t, n, filepath.Join(t.TempDir(), "service"), client.OnionConfig{}, echo)
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		known, other := newClient(t, n, client.Config{}), newClient(t, n, client.Config{})
		var all []time.Duration
		for round := range rounds {
			if _, err := reach(known, s.Address, "known", limit); err != nil {
				t.Fatalf("round %d, before it fails: %v", round, err)
			}
			time.Sleep(time.Duration(1+round%7) * time.Minute)
			n.Trace().Note("the service crashes")
			s.stop(true)
			time.Sleep(5 * time.Second)
			if err := s.start(); err != nil {
				t.Fatal(err)
			}
			took := make(chan time.Duration)
			for isolation, c := range map[string]*client.Client{"known": known, "": other} {
				go func() {
					d, err := reach(c, s.Address, isolation, limit)
					if err != nil {
						t.Errorf("round %d: not reachable %v after its start: %v", round, d, err)
					}
					took <- d
				}()
			}
			all = append(all, <-took, <-took)
		}
		longest := percentile(all, 1)
		t.Logf("restarted %d times: reachable after %v (median), %v (p95), %v (longest)", rounds,
			percentile(all, 0.5).Round(time.Millisecond), percentile(all, 0.95).Round(time.Millisecond), longest.Round(time.Millisecond))
		if longest > goal {
			t.Errorf("once reachable only %v after its start", longest)
		}
		s.stop(false)
	})
}

// TestOnionAuthoritiesGone: services and their visitors live on the consensus that they
// have as long as it is valid, over the end of a period too, and new circuits come about.
func TestOnionAuthoritiesGone(t *testing.T) {
	t.Parallel()
	const interval = 10 * time.Second
	test := func(t *testing.T, n *testnet.Net) {
		s := hostOnion(t, n, client.OnionConfig{}, echo)
		c := newClient(t, n, client.Config{})
		for _, a := range n.Authorities {
			a.Stop()
		}
		until := c.Status().ConsensusUntil
		if left := time.Until(until); left < (directory.ValidPeriods-3)*interval {
			t.Fatalf("the consensus is valid for %v only", left)
		}
		visits := 0
		for time.Until(until) > 2*interval {
			if err := knock(c, s.Address, "", 10*time.Second); err != nil {
				t.Errorf("%v before the consensus expires: %v", time.Until(until).Round(time.Second), err)
			}
			visits++
			time.Sleep(4 * interval)
		}
		if now := c.Status().ConsensusUntil; !now.Equal(until) {
			t.Errorf("there was a new consensus, valid until %v", now)
		}
		time.Sleep(time.Until(until) + time.Second)
		if err := knock(c, s.Address, "", 10*time.Second); err == nil {
			t.Error("a visit with an expired consensus")
		}
		t.Logf("%d visits without authorities, each with circuits of its own", visits)
		s.stop(false)
	}
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 6, Exits: 1, Interval: interval}, test)
}

// TestOnionPeriods: over the end of many periods a service stays reachable, to who knew
// it and to who hears of it, and to those whose clock is a little wrong.
func TestOnionPeriods(t *testing.T) {
	t.Parallel()
	const interval = 10 * time.Second
	visits, every := 5, 60*time.Second
	if *soak {
		visits, every = 2000, 7*time.Second
	}
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 6, Exits: 1, Interval: interval}, func(t *testing.T, n *testnet.Net) {
		s := hostOnion(t, n, client.OnionConfig{}, echo)
		c := newClient(t, n, client.Config{})
		failed, began := 0, time.Now()
		for i := range visits {
			isolation := "known"
			if i%2 == 1 {
				isolation = ""
			}
			if err := knock(c, s.Address, isolation, 20*time.Second); err != nil {
				failed++
				t.Errorf("after %v: %v", time.Since(began).Round(time.Second), err)
			}
			time.Sleep(every)
		}
		t.Logf("%d of %d visits failed in %.1f periods", failed, visits, time.Since(began).Seconds()/(directory.RandomPeriods*interval).Seconds())
		s.stop(false)
	})
}
