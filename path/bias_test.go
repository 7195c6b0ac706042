package path

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// TestBiasIsNoticed: a guard through which 70 of 100 circuits do not come about, or die young, is given up at the 150th, for good;
// a better one is not.
func TestBiasIsNoticed(t *testing.T) {
	ch := chooser(t, someGuards(100)...)
	for _, bad := range []Outcome{CircuitFailed, CircuitDied} {
		for _, c := range []struct {
			good int // of 10
			want bool
		}{{0, true}, {2, true}, {3, true}, {4, false}, {9, false}} {
			k := newKeeper(t, ch, 1)
			first := k.use(always)
			gaveUp := 0
			for i := 1; i <= 1000 && gaveUp == 0; i++ {
				o := CircuitBuilt
				if i%10 >= c.good {
					o = bad
				}
				if o == CircuitDied && k.guards.Count(first.Identity, CircuitBuilt) {
					gaveUp = i
				}
				if k.guards.Count(first.Identity, o) {
					gaveUp = i
				}
			}
			if (gaveUp != 0) != c.want || gaveUp != 0 && gaveUp != biasLeast {
				t.Errorf("%d of 10 good, others %v: given up at circuit %d", c.good, bad, gaveUp)
			}
			k.restart(k.guards.State())
			for range 2 * 365 {
				if r := k.use(always); c.want && r == first {
					t.Fatal("a guard that was given up is used again")
				}
				k.now = k.now.Add(24 * time.Hour)
			}
		}
	}
}

// TestBiasOfAll: when circuits fail whatever the guard, the client does not go through all guards; and it keeps its last one.
func TestBiasOfAll(t *testing.T) {
	k := newKeeper(t, chooser(t, someGuards(100)...), 2)
	for range 90 {
		r := k.use(always)
		for range 500 {
			k.guards.Count(r.Identity, CircuitFailed)
		}
		k.now = k.now.Add(24 * time.Hour)
	}
	if len(k.ever) > 4 {
		t.Errorf("%d guards were used in 90 days in which all circuits fail, want one a month", len(k.ever))
	}
	k = newKeeper(t, chooser(t, relayAt(1, 1, directory.FlagGuard), relayAt(2, 1, directory.FlagExit), relayAt(3, 1, 0)), 3)
	r := k.use(always)
	for range 500 {
		if k.guards.Count(r.Identity, CircuitFailed) {
			t.Fatal("the only guard was given up")
		}
	}
}

// binomialTail is the probability of at most k of n with p each.
func binomialTail(n, k int, p float64) (sum float64) {
	for i := 0; i <= k; i++ {
		a, _ := math.Lgamma(float64(n + 1))
		b, _ := math.Lgamma(float64(i + 1))
		c, _ := math.Lgamma(float64(n - i + 1))
		sum += math.Exp(a - b - c + float64(i)*math.Log(p) + float64(n-i)*math.Log(1-p))
	}
	return sum
}

// TestHonestGuardsStay: with 5 of 100 circuits failing, no guard is given up: exactly for the first 150, and by simulation over
// many circuits, with the counts that fade. With so many failing that it could happen, the simulation gives the exact probability.
func TestHonestGuardsStay(t *testing.T) {
	if p := binomialTail(biasLeast, biasLeast*biasPercent/100, 0.95); p > 1e-80 {
		t.Errorf("an honest guard is given up at circuit 150 with a probability of %g", p)
	}
	count, long := 200, 5_000
	if *soak {
		count, long = 2_000, 100_000
	}
	random := rand.New(seeded(4))
	g := &Guards{day: 1, chooser: chooser(t, someGuards(100)...)}
	m := &member{relay: new(directory.Relay)}
	g.list = []*member{m, {relay: new(directory.Relay), GuardRecord: GuardRecord{Relay: [32]byte{1}, Tried: 1}}}
	run := func(fails float64, circuits int) bool {
		m.GuardRecord, g.abandoned = GuardRecord{Tried: 1}, 0
		for range circuits {
			o := CircuitBuilt
			if random.Float64() < fails {
				o = CircuitFailed
			}
			if g.Count(m.Relay, o) {
				return true
			}
		}
		return false
	}
	for range count {
		if run(0.05, long) {
			t.Fatal("an honest guard was given up")
		}
	}
	const tries = 2000
	hits := 0
	for range tries {
		if run(0.68, biasLeast) {
			hits++
		}
	}
	p := binomialTail(biasLeast, biasLeast*biasPercent/100, 0.32)
	if got, off := float64(hits)/tries, 5*math.Sqrt(p*(1-p)/tries); math.Abs(got-p) > off {
		t.Errorf("with 68 of 100 failing, %.3f are given up at circuit 150, want %.3f", got, p)
	}
}

// TestBiasSpare: a guard through which few circuits come about is kept while no other can take its place, and given up when one can.
func TestBiasSpare(t *testing.T) {
	k := newKeeper(t, chooser(t, someGuards(100)...), 4)
	first := k.use(always)
	var others []identity.ID
	for _, m := range k.guards.list[1 : 1+FewGuards] {
		others = append(others, m.Relay)
		if _, err := k.guards.Start(k.random, m.Relay, k.now); err != nil {
			t.Fatal(err)
		}
		k.guards.Note(k.random, m.Relay, false, k.now)
	}
	if k.guards.failing() < FewGuards {
		t.Fatalf("%d guards fail", k.guards.failing())
	}
	for range 500 {
		if k.guards.Count(first.Identity, CircuitFailed) {
			t.Fatal("the only guard that answers was given up")
		}
	}
	k.guards.Note(k.random, others[0], true, k.now)
	if !k.guards.Count(first.Identity, CircuitFailed) {
		t.Error("it is kept, although another one answers")
	}
}
