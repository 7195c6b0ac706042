package path

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"cepa/directory"
)

// neighbours returns for each relay those that it must not be in one path with, itself included, by their indexes. It knows
// nothing of Conflict: it sorts relays into boxes by network and family.
func neighbours(relays []directory.Relay) [][]int32 {
	boxes := map[string][]int32{}
	keys := make([][]string, len(relays))
	for i := range relays {
		r := &relays[i]
		for _, a := range r.Addresses {
			length := 16
			if a.Addr().Is6() {
				length = 32
			}
			keys[i] = append(keys[i], netip.PrefixFrom(a.Addr(), length).Masked().String())
		}
		for _, f := range r.Family {
			keys[i] = append(keys[i], string(f[:]))
		}
		for _, k := range keys[i] {
			boxes[k] = append(boxes[k], int32(i))
		}
	}
	near := make([][]int32, len(relays))
	for i := range relays {
		for _, k := range keys[i] {
			near[i] = append(near[i], boxes[k]...)
		}
		slices.Sort(near[i])
		near[i] = slices.Compact(near[i])
	}
	return near
}

// tally compares how often each relay was chosen for a position with the sum of the exact probabilities that it had in each path,
// given the hops that were chosen before.
type tally struct {
	weight []float64
	total  float64
	near   [][]int32
	seen   []int
	minus  []float64 // what relays lack because they could not be chosen in some paths
	sum    float64   // over all paths, of 1 / (weight that was left)
	union  []int32
}

func newTally(weight []float64, near [][]int32) *tally {
	t := &tally{weight: weight, near: near, seen: make([]int, len(weight)), minus: make([]float64, len(weight))}
	for _, w := range weight {
		t.total += w
	}
	return t
}

// add counts one choice, after others.
func (t *tally) add(chosen int, before ...int) {
	t.seen[chosen]++
	t.union = t.union[:0]
	for _, b := range before {
		t.union = append(t.union, t.near[b]...)
	}
	slices.Sort(t.union)
	t.union = slices.Compact(t.union)
	left := t.total
	for _, i := range t.union {
		left -= t.weight[i]
	}
	t.sum += 1 / left
	for _, i := range t.union {
		t.minus[i] += 1 / left
	}
}

// want returns the expectations.
func (t *tally) want() []float64 {
	w := make([]float64, len(t.weight))
	for i := range w {
		w[i] = t.weight[i] * (t.sum - t.minus[i])
	}
	return w
}

// TestAnonymityPaths: paths on the relays of a real network share no relay, family or network; each position is chosen with
// exactly the probabilities that it should have; and an observer lacks the bits that the weights promise.
func TestAnonymityPaths(t *testing.T) {
	count := 20_000
	if *soak {
		count = 1_000_000
	}
	relays := realRelays(t)
	near := neighbours(relays)
	c := chooser(t, relays...)
	index := func(r *directory.Relay) int { // identities are the numbers
		return int(r.Identity[0])<<24 | int(r.Identity[1])<<16 | int(r.Identity[2])<<8 | int(r.Identity[3])
	}
	weights := func(tab *table, may func(*directory.Relay) bool) []float64 {
		w := make([]float64, len(relays))
		for i := range relays {
			if may == nil || may(&relays[i]) {
				w[i] = float64(tab.weight(i))
			}
		}
		return w
	}
	// Exits are scarce in this network, and therefore chosen by bandwidth, and for nothing else.
	exits := make([]float64, len(relays))
	for i := range relays {
		r := &relays[i]
		if r.Flags.Has(up|directory.FlagExit) && !r.Flags.Has(directory.FlagBadExit) && !r.Flags.Has(directory.FlagMiddleOnly) && r.Exit.AllowsPort(443, false) {
			exits[i] = float64(r.Weight)
		}
	}
	exit := newTally(exits, near)
	guard := newTally(weights(&c.guard, nil), near)
	middle := newTally(weights(&c.middle, nil), near)
	random := seeded(2026)
	shared := 0
	for range count {
		hops, err := c.Pick(random, Request{Exit: true, Port: 443})
		if err != nil {
			t.Fatal(err)
		}
		g, m, e := index(hops[0]), index(hops[1]), index(hops[2])
		for _, pair := range [][2]int{{g, m}, {g, e}, {m, e}} {
			if _, found := slices.BinarySearch(near[pair[0]], int32(pair[1])); found {
				shared++
			}
		}
		exit.add(e)
		guard.add(g, e)
		middle.add(m, e, g)
	}
	if shared != 0 {
		t.Errorf("%d pairs of %d paths share a relay, family or network", shared, count)
	}
	rows := [][]string{{
		"position", "relays", "paths", "entropy measured (bits)", "entropy of the exact probabilities", "entropy of the weights",
		"entropy if all alike", "degree of anonymity", "as many as so many alike", "chi square", "degrees of freedom", "p",
	}}
	for _, x := range []struct {
		name  string
		tally *tally
	}{{"exit", exit}, {"guard", guard}, {"middle", middle}} {
		n := 0
		seen := make([]float64, len(relays))
		for i, w := range x.tally.weight {
			seen[i] = float64(x.tally.seen[i])
			if w > 0 {
				n++
			} else if x.tally.seen[i] > 0 {
				t.Errorf("%s: relay %d was chosen %d times and has no weight", x.name, i, x.tally.seen[i])
			}
		}
		want := x.tally.want()
		chi, free, p := goodness(x.tally.seen, want)
		h, exact, own := entropy(seen), entropy(want), entropy(x.tally.weight)
		t.Logf("%s: of %d relays, entropy %.3f bits (exact %.3f, weights %.3f, at most %.3f), degree %.3f, chi square %.0f with %d degrees of freedom, p %.3f",
			x.name, n, h, exact, own, math.Log2(float64(n)), h/math.Log2(float64(n)), chi, free, p)
		if p < 0.01 {
			t.Errorf("%s: p is %v", x.name, p)
		}
		// What was measured lacks about (relays - 1) / (2 ln 2 · paths) bits.
		if bias := float64(n-1) / (2 * math.Ln2 * float64(count)); math.Abs(h+bias-exact) > 0.02+bias/2 {
			t.Errorf("%s: entropy %.3f + %.3f, exact %.3f", x.name, h, bias, exact)
		}
		rows = append(rows, []string{
			x.name, strconv.Itoa(n), strconv.Itoa(count), fmt.Sprintf("%.4f", h), fmt.Sprintf("%.4f", exact), fmt.Sprintf("%.4f", own),
			fmt.Sprintf("%.4f", math.Log2(float64(n))), fmt.Sprintf("%.4f", h/math.Log2(float64(n))), fmt.Sprintf("%.0f", math.Exp2(h)),
			fmt.Sprintf("%.1f", chi), strconv.Itoa(free), fmt.Sprintf("%.4f", p),
		})
	}
	writeTable(t, "paths.csv", rows)
	p := plot{title: "Relays by how often they are chosen", x: "relays, most frequent first", y: "share of paths"}
	for _, x := range []struct {
		name, colour string
		tally        *tally
	}{{"guard", "#1b7837", guard}, {"middle", "#762a83", middle}, {"exit", "#b35806", exit}} {
		for _, exact := range []bool{false, true} {
			shares := x.tally.want()
			if !exact {
				for i, n := range x.tally.seen {
					shares[i] = float64(n)
				}
			}
			slices.SortFunc(shares, func(a, b float64) int { return int(math.Copysign(1, b-a)) })
			cv := curve{name: x.name + " measured", colour: x.colour}
			if exact {
				cv.name, cv.dashed = x.name+" exact", true
			}
			sum := 0.0
			for i, s := range shares {
				sum += s
				if i%40 == 0 {
					cv.x, cv.y = append(cv.x, float64(i+1)), append(cv.y, sum/float64(count))
				}
			}
			p.curves = append(p.curves, cv)
		}
	}
	writePlot(t, "paths.svg", p)
}
