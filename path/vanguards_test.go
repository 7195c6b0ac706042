package path

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cepa/crypto/identity"
	"cepa/directory"
)

// manyMiddles are so many stable relays, with more and more weight.
func manyMiddles(n int) []directory.Relay {
	var relays []directory.Relay
	for i := range n {
		relays = append(relays, relayAt(i+1, uint64(100+i), directory.FlagStable|directory.FlagGuard))
	}
	return relays
}

func newVanguards(t rapid.TB, s VanguardState) *Vanguards {
	v, err := NewVanguards(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustUpdate(t rapid.TB, v *Vanguards, ch *Chooser, random interface{ Read([]byte) (int, error) }, now time.Time) bool {
	changed, err := v.Update(ch, random, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.State().Check(); err != nil {
		t.Fatal(err)
	}
	return changed
}

// TestVanguardLives: relays of both layers serve as long as the parameters say, the longer of two draws, and restarts change
// nothing.
func TestVanguardLives(t *testing.T) {
	for _, c := range []struct {
		params            directory.Params
		two, three        int
		low2, high2, mid2 float64 // days
		low3, high3, mid3 float64 // hours
	}{
		{nil, 4, 8, 1, 45, 1 + 44*0.667, 1, 48, 1 + 47*0.667},
		{directory.Params{
			directory.ParamVanguardLayer2: 2, directory.ParamVanguardLayer2Min: 50, directory.ParamVanguardLayer2Max: 10,
			directory.ParamVanguardLayer3: 3, directory.ParamVanguardLayer3Min: 4, directory.ParamVanguardLayer3Max: 4,
		}, 2, 3, 10, 10, 10, 4, 4, 4},
	} {
		ch, err := New(&directory.Consensus{Relays: manyMiddles(200), Params: c.params})
		if err != nil {
			t.Fatal(err)
		}
		random := seeded(1)
		v := newVanguards(t, VanguardState{})
		start := time.Unix(1_700_000_000, 0)
		since := [2]map[Vanguard]time.Time{{}, {}} // one may be drawn again, for another time
		var lives [2][]float64                     // hours
		for now := start; now.Sub(start) < 250*24*time.Hour; now = now.Add(time.Hour) {
			before := v.State()
			v = newVanguards(t, before)
			changed := mustUpdate(t, v, ch, random, now)
			after := v.State()
			if changed == (slices.Equal(before.Layer2, after.Layer2) && slices.Equal(before.Layer3, after.Layer3)) {
				t.Fatal("what is said of a change is not so")
			}
			if len(after.Layer2) != c.two || len(after.Layer3) != c.three {
				t.Fatalf("layers of %d and %d", len(after.Layer2), len(after.Layer3))
			}
			for k, list := range [2][]Vanguard{after.Layer2, after.Layer3} {
				for x, from := range since[k] {
					if !slices.Contains(list, x) {
						if from != start { // the first come all at once
							lives[k] = append(lives[k], now.Sub(from).Hours())
						}
						delete(since[k], x)
					}
				}
				for _, x := range list {
					if _, ok := since[k][x]; !ok {
						since[k][x] = now
					}
				}
			}
		}
		for k, want := range [2][3]float64{{24 * c.low2, 24 * c.high2, 24 * c.mid2}, {c.low3, c.high3, c.mid3}} {
			low, high, sum := slices.Min(lives[k]), slices.Max(lives[k]), 0.0
			for _, l := range lives[k] {
				sum += l
			}
			mean := sum / float64(len(lives[k]))
			if low < want[0] || high > want[1]+1 || mean < 0.85*want[2] || mean > 1.1*want[2]+1 {
				t.Errorf("layer %d: %d lives of %.0f to %.0f hours, mean %.0f; want %.0f to %.0f, mean %.0f", k+2, len(lives[k]), low, high, mean, want[0], want[1], want[2])
			}
		}
	}
}

// TestVanguardUnlisted: a relay that is not listed for less than a day keeps its place and is not used meanwhile; one that is gone
// for longer is replaced; and when none of a layer is listed, one is replaced at once.
func TestVanguardUnlisted(t *testing.T) {
	relays := manyMiddles(50)
	full := chooser(t, relays...)
	random := seeded(2)
	now := time.Unix(1_700_000_000, 0)
	long := func(s VanguardState) VanguardState {
		for i := range s.Layer2 {
			s.Layer2[i].Until = now.Add(45 * 24 * time.Hour).Unix()
		}
		return s
	}
	v := newVanguards(t, VanguardState{})
	mustUpdate(t, v, full, random, now)
	v = newVanguards(t, long(v.State()))
	gone := v.State().Layer2[1].Relay
	without1 := chooser(t, without(relays, gone)...)
	mustUpdate(t, v, without1, random, now)
	now = now.Add(23 * time.Hour)
	mustUpdate(t, v, without1, random, now)
	if !holds(v.State().Layer2, gone) {
		t.Error("a relay lost its place within a day")
	}
	guard := full.guardOf(identity.ID{3: 50})
	for range 100 {
		hops, err := v.Path(random, VanguardRequest{Guard: guard})
		if err != nil || hops[1].Identity == gone {
			t.Fatalf("%v, %v", hops, err)
		}
	}
	mustUpdate(t, v, full, random, now)
	if v.State().Layer2[1].Unlisted != 0 {
		t.Error("a relay that is back is still taken for gone")
	}
	mustUpdate(t, v, without1, random, now)
	now = now.Add(24 * time.Hour)
	mustUpdate(t, v, without1, random, now)
	if holds(v.State().Layer2, gone) || len(v.State().Layer2) != 4 {
		t.Error("a relay that is gone for a day keeps its place")
	}
	var all []identity.ID
	for _, x := range v.State().Layer2 {
		all = append(all, x.Relay)
	}
	mustUpdate(t, v, chooser(t, without(relays, all...)...), random, now)
	if hops, err := v.Path(random, VanguardRequest{Guard: guard}); err != nil || slices.Contains(all, hops[1].Identity) {
		t.Errorf("with none of layer 2 listed: %v, %v", hops, err)
	}
	kept := 0
	for _, id := range all {
		if holds(v.State().Layer2, id) {
			kept++
		}
	}
	if kept != 3 {
		t.Errorf("%d of 4 keep their place, want 3", kept)
	}
}

// TestVanguardPathProperties: paths have their form, nobody is one of the two before it, and what another has chosen as the last
// hop influences neither guard nor layer 2.
func TestVanguardPathProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		relays := manyMiddles(rapid.IntRange(12, 40).Draw(t, "relays"))
		ch, err := New(&directory.Consensus{Relays: relays})
		if err != nil {
			t.Fatal(err)
		}
		random := seeded(rapid.Uint64().Draw(t, "seed"))
		v := newVanguards(t, VanguardState{})
		mustUpdate(t, v, ch, random, time.Unix(1_700_000_000, 0))
		one := func(name string) *directory.Relay { return &relays[rapid.IntRange(0, len(relays)-1).Draw(t, name)] }
		r := VanguardRequest{Guard: one("guard"), Foreign: rapid.Bool().Draw(t, "foreign")}
		if r.Foreign || rapid.Bool().Draw(t, "with a last hop") {
			r.Last = one("last")
		}
		want := 3
		if r.Last != nil {
			want++
		}
		if r.Foreign {
			want++
		}
		hops, err := v.Path(random, r)
		if err != nil {
			t.Fatal(err)
		}
		if len(hops) != want || hops[0] != r.Guard || r.Last != nil && hops[want-1] != r.Last {
			t.Fatalf("%d hops, want %d", len(hops), want)
		}
		if !holds(v.state.Layer2, hops[1].Identity) || !holds(v.state.Layer3, hops[2].Identity) {
			t.Fatal("a hop is none of its layer")
		}
		for i, h := range hops {
			if i > 0 && hops[i-1] == h || i > 1 && hops[i-2] == h {
				t.Fatalf("hop %d repeats one of the two before it", i+1)
			}
		}
	})
}

// TestForeignLastHop: whoever chooses the last hop, be it the guard, or one of either layer, sees the same second hops.
func TestForeignLastHop(t *testing.T) {
	relays := manyMiddles(60)
	ch := chooser(t, relays...)
	random := seeded(3)
	v := newVanguards(t, VanguardState{})
	mustUpdate(t, v, ch, random, time.Unix(1_700_000_000, 0))
	guard := slices.IndexFunc(relays, func(r directory.Relay) bool {
		return !holds(v.state.Layer2, r.Identity) && !holds(v.state.Layer3, r.Identity)
	})
	const count = 3000
	for name, last := range map[string]identity.ID{
		"the guard": relays[guard].Identity, "of layer 2": v.state.Layer2[0].Relay, "of layer 3": v.state.Layer3[0].Relay,
	} {
		r, _ := ch.consensus.Lookup(last)
		seen := make([]int, len(v.state.Layer2))
		for range count {
			hops, err := v.Path(random, VanguardRequest{Guard: &relays[guard], Last: r, Foreign: true})
			if err != nil {
				t.Fatal(err)
			}
			seen[slices.IndexFunc(v.state.Layer2, func(x Vanguard) bool { return x.Relay == hops[1].Identity })]++
		}
		want := make([]float64, len(seen))
		for i := range want {
			want[i] = count / float64(len(seen))
		}
		if _, _, p := goodness(seen, want); p < 0.001 {
			t.Errorf("the last hop is %s: second hops were chosen %v times", name, seen)
		}
	}
}

// TestVanguardsSmallNetwork: too few relays give an error that says so, not a path that breaks the rules.
func TestVanguardsSmallNetwork(t *testing.T) {
	for n := 1; n < 6; n++ {
		relays := manyMiddles(n)
		ch := chooser(t, relays...)
		v := newVanguards(t, VanguardState{})
		mustUpdate(t, v, ch, seeded(1), time.Unix(1_700_000_000, 0))
		for _, foreign := range []bool{false, true} {
			hops, err := v.Path(seeded(2), VanguardRequest{Guard: &relays[0], Last: &relays[n-1], Foreign: foreign})
			if err == nil && n < 4 || err != nil && !errors.Is(err, ErrNoPath) {
				t.Errorf("%d relays: %d hops, %v", n, len(hops), err)
			}
		}
	}
	v := newVanguards(t, VanguardState{})
	if _, err := v.Path(seeded(1), VanguardRequest{}); !errors.Is(err, ErrRequest) {
		t.Errorf("before any consensus: %v", err)
	}
	// Relays that are not stable serve where there are too few others, and only there.
	relays := manyMiddles(20)
	for i := range relays {
		if i >= 5 {
			relays[i].Flags &^= directory.FlagStable
		}
	}
	mustUpdate(t, v, chooser(t, relays...), seeded(1), time.Unix(1_700_000_000, 0))
	for _, x := range v.state.Layer2 {
		if x.Relay[3] > 5 {
			t.Error("a relay that is not stable is in layer 2")
		}
	}
	if len(v.state.Layer3) != 8 {
		t.Errorf("layer 3 has %d relays", len(v.state.Layer3))
	}
}

// TestVanguardState: what cannot have been stored is refused, and a clock that was ahead keeps nobody.
func TestVanguardState(t *testing.T) {
	many := func(n int) (list []Vanguard) {
		for i := range n {
			list = append(list, Vanguard{Relay: identity.ID{1, byte(i)}, Until: 5})
		}
		return list
	}
	for name, s := range map[string]VanguardState{
		"no relay": {Layer2: []Vanguard{{}}}, "twice": {Layer3: append(many(2), many(1)...)}, "too many": {Layer2: many(33)}, "too many of 3": {Layer3: many(65)},
		"a negative time": {Layer2: []Vanguard{{Relay: identity.ID{1}, Until: -1}}}, "too late": {Layer2: []Vanguard{{Relay: identity.ID{1}, Until: 1 << 50}}},
	} {
		if _, err := NewVanguards(s); !errors.Is(err, ErrVanguardState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	now := time.Unix(1_700_000_000, 0)
	relays := manyMiddles(30)
	v := newVanguards(t, VanguardState{Layer2: []Vanguard{{Relay: relays[0].Identity, Until: now.Add(200 * 365 * 24 * time.Hour).Unix()}}})
	mustUpdate(t, v, chooser(t, relays...), seeded(1), now)
	if until := time.Unix(v.State().Layer2[0].Until, 0).Sub(now); until > 45*24*time.Hour {
		t.Errorf("a relay stays for %v", until)
	}
}

// TestVanguardWeights: layers are drawn by the weights of middles.
func TestVanguardWeights(t *testing.T) {
	relays := manyMiddles(30)
	for i := range relays {
		relays[i].Weight = uint64(1 + i%3*10)
	}
	ch := chooser(t, relays...)
	seen := map[string]int{}
	random := seeded(5)
	for range 1500 {
		v := newVanguards(t, VanguardState{})
		mustUpdate(t, v, ch, random, time.Unix(1_700_000_000, 0))
		// The first is drawn from all.
		seen[fmt.Sprint((v.state.Layer2[0].Relay[3]-1)%3)]++
	}
	if a, b, c := seen["0"], seen["1"], seen["2"]; a > 75 || b < 400 || c < 850 {
		t.Errorf("relays of weight 1, 11, 21 were drawn %d, %d, %d times of 1500", a, b, c)
	}
}
