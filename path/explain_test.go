package path

import (
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"

	"cepa/directory"
)

// TestExplain: what is said of a path is what its choice goes by: all relays are accounted for, and the chances are how often
// relays are chosen.
func TestExplain(t *testing.T) {
	guard, exit := relayAt(1, 30, directory.FlagGuard), relayAt(2, 10, directory.FlagExit)
	other, web := relayAt(3, 30, directory.FlagExit), relayAt(4, 5, directory.FlagExit)
	web.Exit = directory.PortPolicy{IPv4: []directory.PortRange{{Lo: 80, Hi: 80}}}
	beside := relayAt(5, 50, 0)
	beside.Addresses = guard.Addresses
	bad := relayAt(6, 5, directory.FlagExit|directory.FlagBadExit)
	middle, more := relayAt(7, 60, 0), relayAt(8, 20, directory.FlagMiddleOnly)
	down := relayAt(9, 5, directory.FlagExit)
	down.Flags &^= directory.FlagRunning
	relays := []directory.Relay{guard, exit, other, web, beside, bad, middle, more, down}
	c := chooser(t, relays...)
	r := Request{Exit: true, Port: 443, Guard: &relays[0]}
	all, err := c.Explain(r, []*directory.Relay{&relays[0], &relays[6], &relays[1]})
	if err != nil {
		t.Fatal(err)
	}
	want := []Choice{
		{Hop: 1, Position: PositionGuard, Relay: &relays[0], Fixed: true, Relays: 9},
		{
			Hop: 3, Position: PositionExit, Relay: &relays[1], Relays: 9, Candidates: 2, Down: 1, Unfit: 5, Refusing: 1,
			Probability: 0.25, Highest: 0.75, Entropy: 0.8113,
		},
		{Hop: 2, Position: PositionMiddle, Relay: &relays[6], Relays: 9, Candidates: 5, Down: 1, Conflicts: 3},
	}
	for i, w := range want {
		g := all[i]
		if i == 2 { // what exits get as middles depends on the balance
			w.Probability, w.Highest, w.Entropy = g.Probability, g.Highest, g.Entropy
		}
		if math.Abs(g.Entropy-w.Entropy) < 1e-3 && math.Abs(g.Probability-w.Probability) < 1e-9 && math.Abs(g.Highest-w.Highest) < 1e-9 {
			g.Entropy, g.Probability, g.Highest = w.Entropy, w.Probability, w.Highest
		}
		if g != w {
			t.Errorf("hop %d: got %+v\nwant %+v", w.Hop, g, w)
		}
	}
	seen, random := 0, seeded(1)
	const count = 20_000
	for range count {
		hops, err := c.Pick(random, r)
		if err != nil {
			t.Fatal(err)
		}
		if hops[2] == &relays[1] {
			seen++
		}
	}
	if p := float64(seen) / count; math.Abs(p-0.25) > 0.02 {
		t.Errorf("an exit with a chance of 0.25 was chosen in %v of all paths", p)
	}
	for name, hops := range map[string][]*directory.Relay{
		"too short": {&relays[0], &relays[1]}, "the wrong exit": {&relays[0], &relays[6], &relays[3]}, "neighbours": {&relays[0], &relays[4], &relays[1]},
	} {
		if _, err := c.Explain(r, hops); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Explain(Request{Length: 9}, nil); !errors.Is(err, ErrRequest) {
		t.Error(err)
	}
}

// TestExplainProperties: every path that is chosen can be explained, and the counts add up.
func TestExplainProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		relays := drawRelays(t, 12)
		c, err := New(&directory.Consensus{Relays: relays})
		if err != nil {
			t.Fatal(err)
		}
		r := drawRequest(t, relays)
		hops, err := c.Pick(seeded(rapid.Uint64().Draw(t, "seed")), r)
		if err != nil {
			return
		}
		all, err := c.Explain(r, hops)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != len(hops) {
			t.Fatalf("%d of %d hops are explained", len(all), len(hops))
		}
		for _, x := range all {
			switch sum := x.Candidates + x.Down + x.Unfit + x.Refusing + x.Excluded + x.Conflicts; {
			case x.Fixed && (x.Hop != 1 || x.Candidates != 0), !x.Fixed && sum != len(relays):
				t.Fatalf("%+v counts %d of %d relays", x, sum, len(relays))
			case !x.Fixed && (x.Probability < 0 || x.Probability > x.Highest || x.Highest > 1 || x.Entropy < -1e-9 || x.Entropy > math.Log2(float64(x.Candidates))+1e-9):
				t.Fatalf("%+v cannot be", x)
			}
		}
		relaysIn, guard, middle, exit := 0, 0.0, 0.0, 0.0
		for _, s := range c.Shares() {
			relaysIn += s.Relays
			if sum := s.Guard + s.Middle + s.Exit; s.Bandwidth > 0 && math.Abs(sum-1) > 1e-9 {
				t.Fatalf("shares of %s sum up to %v", s.Class, sum)
			}
			guard, middle, exit = guard+s.Guard*float64(s.Bandwidth), middle+s.Middle*float64(s.Bandwidth), exit+s.Exit*float64(s.Bandwidth)
		}
		if relaysIn > len(relays) || middle < guard-1 || middle < exit-1 {
			t.Fatalf("the positions get %v, %v and %v", guard, middle, exit)
		}
	})
}
