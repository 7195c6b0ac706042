package testnet_test

import (
	"cmp"
	"math"
	"slices"
	"testing"
	"time"
)

// Plain classifiers of what was seen of circuits. Odd samples train, even ones
// test, and then the other way round.

// classifiers are those that TestPurposes asks.
var classifiers = []struct {
	name  string
	train func(a, b [][]sighting) func([]sighting) bool
}{
	{"naive Bayes", naiveBayes},
	{"nearest neighbours", nearest},
}

// balancedAccuracy returns how many of a and b are told apart, where 0.5 is chance.
func balancedAccuracy(train func(a, b [][]sighting) func([]sighting) bool, a, b [][]sighting) float64 {
	half := func(list [][]sighting, odd int) (out [][]sighting) {
		for i, x := range list {
			if i%2 == odd {
				out = append(out, x)
			}
		}
		return out
	}
	share := func(list [][]sighting, is func([]sighting) bool, want bool) float64 {
		n := 0
		for _, x := range list {
			if is(x) == want {
				n++
			}
		}
		return float64(n) / float64(len(list))
	}
	sum := 0.0
	for odd := range 2 {
		isA := train(half(a, odd), half(b, odd))
		sum += share(half(a, 1-odd), isA, true) + share(half(b, 1-odd), isA, false)
	}
	return sum / 4
}

// features are what is known of a circuit, as names with a bucket: of each cell its
// direction, its size and the time since the one before, how many there are each
// way, how long it took in all, and how the times of answers go together.
func features(seen []sighting) map[[2]int]int {
	f := map[[2]int]int{}
	counts := map[bool]int{}
	var asked time.Time
	var waits []time.Duration // from the last cell out to the first back
	for i, s := range seen {
		dir := 0
		if s.out {
			dir = 1
		}
		counts[s.out]++
		f[[2]int{0, i}] = dir
		f[[2]int{1, i}] = s.size
		if i > 0 {
			gap := s.at.Sub(seen[i-1].at)
			f[[2]int{2, i}] = bucket(gap)
			if s.out {
				asked = s.at
			} else if seen[i-1].out {
				waits = append(waits, s.at.Sub(asked))
			} else {
				f[[2]int{3, len(waits)}] = bucket(gap)
			}
		}
	}
	for i := 1; i < len(waits); i++ {
		f[[2]int{4, i}] = bucket(waits[i] - waits[i-1])
	}
	f[[2]int{5, 0}], f[[2]int{5, 1}] = counts[false], counts[true]
	if len(seen) > 0 {
		f[[2]int{5, 2}] = bucket(seen[len(seen)-1].at.Sub(seen[0].at))
	}
	return f
}

// bucket is a time to a factor of the square root of 2, in milliseconds and up.
func bucket(d time.Duration) int {
	sign := 1
	if d < 0 {
		sign, d = -1, -d
	}
	return sign * int(2*math.Log2(1+float64(d)/float64(time.Millisecond)))
}

// naiveBayes takes features for independent.
func naiveBayes(a, b [][]sighting) func([]sighting) bool {
	type value struct {
		name  [2]int
		value int
	}
	count := func(list [][]sighting) map[value]float64 {
		n := map[value]float64{}
		for _, s := range list {
			for name, v := range features(s) {
				n[value{name, v}]++
			}
		}
		return n
	}
	inA, inB := count(a), count(b)
	names := map[[2]int]bool{}
	for v := range inA {
		names[v.name] = true
	}
	for v := range inB {
		names[v.name] = true
	}
	return func(s []sighting) bool {
		f := features(s)
		score := 0.0
		for name := range names {
			v, ok := f[name]
			if !ok {
				v = math.MaxInt // it is not there, which says something too
			}
			chance := func(n map[value]float64, of int) float64 {
				if ok {
					return (n[value{name, v}] + 0.5) / (float64(of) + 1)
				}
				there := 0.0
				for x, k := range n {
					if x.name == name {
						there += k
					}
				}
				return (float64(of) - there + 0.5) / (float64(of) + 1)
			}
			score += math.Log(chance(inA, len(a))) - math.Log(chance(inB, len(b)))
		}
		return score > 0
	}
}

// nearest asks the 15 circuits that are most alike.
func nearest(a, b [][]sighting) func([]sighting) bool {
	const k = 15
	type example struct {
		at []float64
		a  bool
	}
	var all []example
	for _, s := range a {
		all = append(all, example{vector(s), true})
	}
	for _, s := range b {
		all = append(all, example{vector(s), false})
	}
	return func(s []sighting) bool {
		type near struct {
			far float64
			a   bool
		}
		v := vector(s)
		list := make([]near, len(all))
		for i, x := range all {
			sum := 0.0
			for j := range v {
				sum += (v[j] - x.at[j]) * (v[j] - x.at[j])
			}
			list[i] = near{sum, x.a}
		}
		slices.SortFunc(list, func(x, y near) int { return cmp.Compare(x.far, y.far) })
		votes := 0
		for _, x := range list[:min(k, len(list))] {
			if x.a {
				votes++
			} else {
				votes--
			}
		}
		return votes > 0
	}
}

// vector has the direction, the size and the time of each cell.
func vector(seen []sighting) []float64 {
	v := make([]float64, 3*2*firstCells)
	for i, s := range seen {
		v[3*i] = -3
		if s.out {
			v[3*i] = 3
		}
		v[3*i+1] = float64(s.size) / 500
		if i > 0 {
			v[3*i+2] = math.Log2(1 + float64(s.at.Sub(seen[i-1].at))/float64(time.Millisecond))
		}
	}
	return v
}

// TestClassifiers: each tells apart what differs, and finds nothing where nothing is.
func TestClassifiers(t *testing.T) {
	make := func(n int, gap func(i int) time.Duration) (list [][]sighting) {
		start := time.Unix(0, 0)
		for i := range n {
			list = append(list, []sighting{{start, true, 1408}, {start.Add(gap(i)), false, 1408}})
		}
		return list
	}
	slow := make(400, func(i int) time.Duration { return 100*time.Millisecond + time.Duration(i*7919%97)*time.Millisecond })
	slow2 := make(400, func(i int) time.Duration { return 100*time.Millisecond + time.Duration(i*6007%97)*time.Millisecond })
	fast := make(400, func(i int) time.Duration { return 10*time.Millisecond + time.Duration(i*7919%97)*time.Millisecond/3 })
	for _, c := range classifiers {
		if got := balancedAccuracy(c.train, slow, fast); got < 0.99 {
			t.Errorf("%s: what differs is told apart with %.3f", c.name, got)
		}
		if got := balancedAccuracy(c.train, slow, slow2); got < 0.42 || got > 0.58 {
			t.Errorf("%s: what does not differ is told apart with %.3f", c.name, got)
		}
	}
}
