package path

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"cepa/directory"
)

// load tells what share of its bandwidth the busiest relay uses when one unit of traffic goes through each position, and
// the least.
func load(c *Chooser) (least, most float64) {
	least = math.Inf(1)
	for i := range c.relays {
		r := &c.relays[i]
		if !r.usable || r.Weight == 0 {
			continue
		}
		var traffic float64
		for _, t := range []*table{&c.guard, &c.middle, &c.exit} {
			if t.total() > 0 {
				traffic += float64(t.weight(i)) / float64(t.total())
			}
		}
		least, most = min(least, traffic/float64(r.Weight)), max(most, traffic/float64(r.Weight))
	}
	return least, most
}

// bandwidths sums up weights by class, from the flags.
func bandwidths(c *Chooser) (g, e, d, m float64) {
	for i := range c.relays {
		r := &c.relays[i]
		guard := r.Flags.Has(up|directory.FlagGuard) && !r.Flags.Has(directory.FlagMiddleOnly)
		exit := r.Flags.Has(up|directory.FlagExit) && !r.Flags.Has(directory.FlagMiddleOnly) &&
			!r.Flags.Has(directory.FlagBadExit) && !r.Exit.IsZero()
		switch w := float64(r.Weight); {
		case !r.Flags.Has(up):
		case guard && exit:
			d += w
		case guard:
			g += w
		case exit:
			e += w
		default:
			m += w
		}
	}
	return g, e, d, m
}

// checkBalance: no relay gets more than its bandwidth while the network carries as much as any choice of weights could.
// The bounds are plain: what the exits can carry, what the guards can, what both can for two positions, and what all
// can for three.
func checkBalance(t rapid.TB, c *Chooser) {
	t.Helper()
	g, e, d, m := bandwidths(c)
	bound := min(e+d, g+d, (g+d+e)/2, (g+d+e+m)/3)
	if bound < 1 {
		return // no path is possible by weight
	}
	least, most := load(c)
	if carried := 1 / most; carried < bound*(1-1e-6) {
		t.Errorf("G %v E %v D %v M %v: the busiest relay stops the network at %v, possible are %v", g, e, d, m, carried, bound)
	}
	if bound == (g+d+e+m)/3 && least < most*(1-1e-6) {
		t.Errorf("G %v E %v D %v M %v: nothing is scarce, but loads differ from %v to %v", g, e, d, m, least, most)
	}
}

func TestBalanceRealNetwork(t *testing.T) {
	c := chooser(t, realRelays(t)...)
	checkBalance(t, c)
	for i := range c.relays {
		if c.relays[i].exit && c.middle.weight(i)+c.guard.weight(i) > 0 {
			t.Fatalf("exits are scarce here, but %s has weight elsewhere", c.relays[i].Nickname)
		}
	}
}

// TestBalanceKnown are networks whose weights can be worked out by hand.
func TestBalanceKnown(t *testing.T) {
	for name, c := range map[string]struct {
		total               [classes]uint64 // neither, guard, exit, both
		guard, middle, exit [classes]uint64
	}{
		"all can do all":   {[classes]uint64{0, 0, 0, 90}, [classes]uint64{0, 0, 0, 30}, [classes]uint64{0, 0, 0, 30}, [classes]uint64{0, 0, 0, 30}},
		"one each":         {[classes]uint64{30, 30, 30, 0}, [classes]uint64{0, 30, 0, 0}, [classes]uint64{30, 0, 0, 0}, [classes]uint64{0, 0, 30, 0}},
		"scarce exits":     {[classes]uint64{10, 70, 5, 5}, [classes]uint64{0, 10, 0, 0}, [classes]uint64{10, 60, 0, 0}, [classes]uint64{0, 0, 5, 5}},
		"scarce guards":    {[classes]uint64{10, 5, 70, 5}, [classes]uint64{0, 5, 0, 5}, [classes]uint64{10, 0, 60, 0}, [classes]uint64{0, 0, 10, 0}},
		"both scarce":      {[classes]uint64{80, 5, 5, 10}, [classes]uint64{0, 5, 0, 5}, [classes]uint64{80, 0, 0, 0}, [classes]uint64{0, 0, 5, 5}},
		"no exit":          {[classes]uint64{50, 50, 0, 0}, [classes]uint64{}, [classes]uint64{50, 50, 0, 0}, [classes]uint64{}},
		"exits in plenty":  {[classes]uint64{0, 30, 60, 0}, [classes]uint64{0, 30, 0, 0}, [classes]uint64{0, 0, 30, 0}, [classes]uint64{0, 0, 30, 0}},
		"guards in plenty": {[classes]uint64{0, 60, 0, 30}, [classes]uint64{0, 30, 0, 0}, [classes]uint64{0, 30, 0, 0}, [classes]uint64{0, 0, 0, 30}},
	} {
		got := balance(c.total)
		if got.guard != c.guard || got.middle != c.middle || got.exit != c.exit {
			t.Errorf("%s: got %v, want %v", name, got, c)
		}
	}
}

func TestTable(t *testing.T) {
	var table table
	for i, w := range []uint64{0, 1, 2, 0, 3} {
		table.add(i, w)
	}
	for x, want := range []int{1, 2, 2, 4, 4, 4} {
		if got := table.at(uint64(x)); got != want {
			t.Errorf("draw %d gives relay %d, want %d", x, got, want)
		}
	}
	for i, want := range []uint64{0, 1, 2, 0, 3, 0} {
		if got := table.weight(i); got != want {
			t.Errorf("relay %d has weight %d, want %d", i, got, want)
		}
	}
}

func TestBalanceProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, err := New(&directory.Consensus{Relays: drawRelays(t, 12)})
		if err != nil {
			t.Fatal(err)
		}
		checkBalance(t, c)
	})
}

// optimum is the largest x for which there is a way to give x of the bandwidth to each position, by trying all ways in units.
func optimum(total [classes]uint64) uint64 {
	g, e, d, m := total[onlyGuard], total[onlyExit], total[both], total[neither]
	for x := (g + e + d + m) / 3; x > 0; x-- {
		for exitD := uint64(0); exitD <= d; exitD++ { // what the exit position gets of D; the rest of x is of E
			for guardD := uint64(0); guardD+exitD <= d; guardD++ {
				if exitD > x || guardD > x || x-exitD > e || x-guardD > g {
					continue
				}
				if g+e+d+m-2*x >= x {
					return x
				}
			}
		}
	}
	return 0
}

// TestBalanceIsOptimal: the bandwidth that positions get is what they use, no class gives more than it has, each position gets as
// much as any way to share out could give to all, and it is used by relays in proportion. The optimum is found by trying all.
func TestBalanceIsOptimal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var total [classes]uint64
		for k := range total {
			total[k] = rapid.Uint64Range(0, 24).Draw(t, "bandwidth")
		}
		s := balance(total)
		var guard, middle, exit uint64
		for k := range total {
			if s.guard[k]+s.middle[k]+s.exit[k] != total[k] {
				t.Fatalf("%v: class %d gives %d, %d and %d", total, k, s.guard[k], s.middle[k], s.exit[k])
			}
			guard, middle, exit = guard+s.guard[k], middle+s.middle[k], exit+s.exit[k]
		}
		if s.guard[onlyExit]+s.guard[neither]+s.exit[onlyGuard]+s.exit[neither] != 0 {
			t.Fatalf("%v: a position gets bandwidth that it cannot use: %+v", total, s)
		}
		if want := optimum(total); guard != want || exit != want || middle < want {
			t.Fatalf("%v: the positions get %d, %d and %d, at best all get %d", total, guard, middle, exit, want)
		}
	})
}

// TestLoadIsBelowShare: when the network carries as much as it can, no position of any relay gets more than the share of its
// bandwidth that is meant for it, and all positions of a relay together not more than it has.
func TestLoadIsBelowShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, err := New(&directory.Consensus{Relays: drawRelays(t, 12)})
		if err != nil {
			t.Fatal(err)
		}
		carried := float64(min(c.guard.total(), c.middle.total(), c.exit.total()))
		if carried == 0 {
			return
		}
		for i := range c.relays {
			r := &c.relays[i]
			if !r.usable || r.Weight == 0 {
				continue
			}
			scale := float64(c.total[r.class()]) / float64(classBandwidth(c, r.class()))
			has, uses := float64(r.Weight)*scale, 0.0
			for _, x := range []struct {
				t     *table
				share uint64
			}{{&c.guard, c.shares.guard[r.class()]}, {&c.middle, c.shares.middle[r.class()]}, {&c.exit, c.shares.exit[r.class()]}} {
				if x.t.total() == 0 {
					continue
				}
				load := carried * float64(x.t.weight(i)) / float64(x.t.total())
				if limit := has * float64(x.share) / float64(c.total[r.class()]); load > limit*(1+1e-9)+2 {
					t.Fatalf("relay %d: a position loads it with %v of its share of %v", i, load, limit)
				}
				uses += load
			}
			if uses > has*(1+1e-9)+6 {
				t.Fatalf("relay %d is loaded with %v of %v", i, uses, has)
			}
		}
	})
}

// classBandwidth sums up the weights of a class.
func classBandwidth(c *Chooser, k class) (sum uint64) {
	for i := range c.relays {
		if r := &c.relays[i]; r.usable && r.class() == k {
			sum += r.Weight
		}
	}
	return sum
}
