package path

import (
	"fmt"
	"math/bits"
	"sort"
)

// How weights are derived.
//
// Every path loads one relay in each position, guard, middle and exit, with the same traffic. By what they may be,
// relays fall into four classes with total bandwidths G (guard, not exit), E (exit, not guard), D (both) and M
// (neither); all may be middles. Let x be the traffic that the network carries. The exit position can use E and D, the
// guard position G and D, the middle all; and nothing can be used twice. So
//
//	x <= E+D,  x <= G+D,  2x <= G+D+E,  3x <= G+D+E+M
//
// and by Hall's theorem any x that satisfies these can be carried. We take the largest. The exit position gets min(E, x)
// of class E and what is lacking of class D, the guard position min(G, x) of class G and what is lacking of class D, and
// the middle what is left, in proportion. So exits that are scarce are used for nothing else, nor guards, and if
// nothing is scarce every relay is loaded in proportion to its bandwidth.
//
// Within a class all relays are treated alike: a relay's weight in a position is its bandwidth times the share of its
// class that the position gets. This is the purpose of Tor's Wgg ... Wed (dir-spec, "Computing bandwidth weights"),
// without their cases. What is not taken into account: that exits differ in the ports they allow, and that the rules
// against neighbours and families refuse some paths; both move little in a network of some size.

// class is the set of positions, besides the middle, that a relay may have.
type class uint8

const (
	neither class = iota
	onlyGuard
	onlyExit
	both
	classes
)

func (c *candidate) class() class {
	switch {
	case c.guard && c.exit:
		return both
	case c.guard:
		return onlyGuard
	case c.exit:
		return onlyExit
	}
	return neither
}

// shares are how much of each class's bandwidth each position gets.
type shares struct{ guard, middle, exit [classes]uint64 }

// balance shares out the bandwidth of the classes, which sum up to less than 2^63.
func balance(total [classes]uint64) (s shares) {
	g, e, d := total[onlyGuard], total[onlyExit], total[both]
	x := min(e+d, g+d, (g+d+e)/2, (g+d+e+total[neither])/3)
	s.exit[onlyExit] = min(e, x)
	s.exit[both] = x - s.exit[onlyExit]
	s.guard[onlyGuard] = min(g, x)
	s.guard[both] = x - s.guard[onlyGuard]
	for k := range classes {
		s.middle[k] = total[k] - s.guard[k] - s.exit[k]
	}
	return s
}

// weightBits is the number of bits to which all weights of a consensus sum up: so many that nothing is lost by rounding
// shares of small bandwidths, and sums still fit.
const weightBits = 62

// weigh makes the tables of all positions.
func (c *Chooser) weigh() error {
	var sum uint64
	for i := range c.relays {
		if r := &c.relays[i]; r.usable {
			if r.Weight >= 1<<weightBits-sum {
				return fmt.Errorf("path: the weights of all relays sum up to 2^%d KB/s or more (at %s)", weightBits, r.Nickname)
			}
			sum += r.Weight
		}
	}
	scale := uint64(1<<weightBits) / max(sum, 1)
	var total [classes]uint64
	for i := range c.relays {
		if r := &c.relays[i]; r.usable {
			total[r.class()] += r.Weight * scale
		}
	}
	s := balance(total)
	c.total, c.shares = total, s
	for i := range c.relays {
		r := &c.relays[i]
		if !r.usable {
			continue
		}
		k, w := r.class(), r.Weight*scale
		c.guard.add(i, portion(w, s.guard[k], total[k]))
		c.middle.add(i, portion(w, s.middle[k], total[k]))
		c.exit.add(i, portion(w, s.exit[k], total[k]))
	}
	return nil
}

// portion is w·share/total, for w and share that are at most total.
func portion(w, share, total uint64) uint64 {
	if total == 0 {
		return 0
	}
	if w == total {
		return share
	}
	hi, lo := bits.Mul64(w, share)
	q, _ := bits.Div64(hi, lo, total)
	return q
}

// table is the relays with weight in a position: their indexes, rising, and the sums of the weights up to and including
// each.
type table struct {
	index []int
	sum   []uint64
}

func (t *table) total() uint64 {
	if len(t.sum) == 0 {
		return 0
	}
	return t.sum[len(t.sum)-1]
}

func (t *table) add(i int, weight uint64) {
	if weight > 0 {
		t.sum = append(t.sum, t.total()+weight)
		t.index = append(t.index, i)
	}
}

// at returns the relay whose range of weights x falls into, for x below total.
func (t *table) at(x uint64) int {
	return t.index[sort.Search(len(t.sum), func(j int) bool { return x < t.sum[j] })]
}

// weight returns the weight of relay i.
func (t *table) weight(i int) uint64 {
	j := sort.SearchInts(t.index, i)
	if j == len(t.index) || t.index[j] != i {
		return 0
	}
	if j == 0 {
		return t.sum[0]
	}
	return t.sum[j] - t.sum[j-1]
}
