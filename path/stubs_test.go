package path

import (
	"errors"
	"slices"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// stubNetwork is a network of 40 relays, with layers that overlap: 1 to 4 are layer 2, 3 to 10 layer 3.
func stubNetwork(t *testing.T) (relays []directory.Relay, v *Vanguards) {
	relays = manyMiddles(40)
	until := time.Unix(1_700_000_000, 0).Add(time.Hour).Unix()
	var s VanguardState
	for i := range 4 {
		s.Layer2 = append(s.Layer2, Vanguard{Relay: relays[i].Identity, Until: until})
	}
	for i := 2; i < 10; i++ {
		s.Layer3 = append(s.Layer3, Vanguard{Relay: relays[i].Identity, Until: until})
	}
	v = newVanguards(t, s)
	if mustUpdate(t, v, chooser(t, relays...), seeded(1), time.Unix(1_700_000_000, 0)) {
		t.Fatal("the layers were changed")
	}
	return relays, v
}

// even is how often each was to be seen, were all as likely.
func even(seen []int) (want []float64) {
	sum := 0
	for _, n := range seen {
		sum += n
	}
	for range seen {
		want = append(want, float64(sum)/float64(len(seen)))
	}
	return want
}

// TestStubChoice: whatever the last hop is, and whoever chose it, the second and third hops of the stubs that serve are as likely
// as those of paths that are chosen for it; the second hops do not depend on a foreign one at all.
func TestStubChoice(t *testing.T) {
	relays, v := stubNetwork(t)
	random := seeded(2)
	at := func(id identity.ID) int { return int(id[3]) - 1 } // of relayAt
	const count = 10_000
	for _, c := range []struct {
		guard   int
		name    string
		last    int
		foreign bool
	}{
		{39, "of neither layer", 30, true},
		{39, "of layer 3", 7, true},
		{39, "of both", 2, true},
		{39, "of both", 2, false},
		{3, "of both", 2, true},
		{3, "the guard, of both", 3, true},
		{3, "of layer 2", 0, false},
	} {
		guard, name, last, foreign := c.guard, c.name, c.last, c.foreign
		r := VanguardRequest{Guard: &relays[guard], Last: &relays[last], Foreign: foreign}
		var seconds [4]int
		pairs := map[[2]int]int{}
		thrown := 0
		for n := 0; n < count; {
			stub, err := v.Path(random, VanguardRequest{Guard: r.Guard})
			if err != nil {
				t.Fatal(err)
			}
			more, ok, err := v.Continue(random, stub, r)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				thrown++
				continue
			}
			n++
			hops := append(slices.Clone(stub), more...)
			if want := map[bool]int{true: 5, false: 4}[foreign]; len(hops) != want || hops[want-1] != r.Last {
				t.Fatalf("%d hops", len(hops))
			}
			for i, h := range hops {
				if i > 0 && hops[i-1] == h || i > 1 && hops[i-2] == h {
					t.Fatalf("hop %d repeats one of the two before it", i+1)
				}
			}
			seconds[at(stub[1].Identity)]++
			pairs[[2]int{at(stub[1].Identity), at(stub[2].Identity)}]++
		}
		// What Path does: each second hop is as likely, and behind it each third.
		var seen, seenPairs []int
		for second := range seconds {
			if second == guard || !foreign && second == last {
				continue
			}
			seen = append(seen, seconds[second])
			var thirds []int
			for third := 2; third < 10; third++ {
				if third != guard && third != second && third != last {
					thirds = append(thirds, pairs[[2]int{second, third}])
				}
			}
			seenPairs = append(seenPairs, thirds...)
			if _, _, p := goodness(thirds, even(thirds)); p < 0.0001 {
				t.Errorf("guard %d, last hop %s, foreign %v: third hops behind %d: %v", guard, name, foreign, second, thirds)
			}
		}
		if _, _, p := goodness(seen, even(seen)); p < 0.0001 {
			t.Errorf("guard %d, last hop %s, foreign %v: second hops %v", guard, name, foreign, seen)
		}
		sum := 0
		for _, n := range seenPairs {
			sum += n
		}
		if sum != count {
			t.Errorf("guard %d, last hop %s, foreign %v: %d of %d stubs have hops that no path has", guard, name, foreign, count-sum, count)
		}
		if thrown > count {
			t.Errorf("guard %d, last hop %s, foreign %v: %d stubs were thrown away for %d", guard, name, foreign, thrown, count)
		}
	}
}

// TestStubOutOfDate: a stub one of whose relays has lost its place serves no more.
func TestStubOutOfDate(t *testing.T) {
	relays, v := stubNetwork(t)
	random := seeded(3)
	stub, err := v.Path(random, VanguardRequest{Guard: &relays[39]})
	if err != nil || !v.Serves(stub) {
		t.Fatalf("a new stub does not serve, %v", err)
	}
	for i := 1; i < 3; i++ {
		mustUpdate(t, v, chooser(t, without(relays, stub[i].Identity)...), random, time.Unix(1_700_000_000, 0))
		if v.Serves(stub) {
			t.Errorf("without hop %d the stub serves on", i+1)
		}
		if _, ok, err := v.Continue(random, stub, VanguardRequest{Last: &relays[30], Foreign: true}); ok || err != nil {
			t.Errorf("without hop %d the stub goes on: %v, %v", i+1, ok, err)
		}
	}
	for name, f := range map[string]func() error{
		"no last hop": func() error {
			_, _, err := v.Continue(random, stub, VanguardRequest{})
			return err
		},
		"two hops": func() error {
			_, _, err := v.Continue(random, stub[:2], VanguardRequest{Last: &relays[30]})
			return err
		},
		"no consensus": func() error {
			_, _, err := newVanguards(t, VanguardState{}).Continue(random, stub, VanguardRequest{Last: &relays[30]})
			return err
		},
	} {
		if err := f(); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
