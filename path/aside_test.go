package path

import (
	"reflect"
	"testing"
	"time"

	"cepa/directory"
)

// drawn counts the second and third hops of many paths by their place in relays.
func drawn(t *testing.T, v *Vanguards, relays []directory.Relay, r VanguardRequest) (second, third map[int]int) {
	t.Helper()
	second, third = map[int]int{}, map[int]int{}
	random := seeded(5)
	for range 2000 {
		hops, err := v.Path(random, r)
		if err != nil {
			t.Fatal(err)
		}
		for i := range relays {
			switch relays[i].Identity {
			case hops[1].Identity:
				second[i]++
			case hops[2].Identity:
				third[i]++
			}
		}
	}
	return second, third
}

// TestSetAside: vanguards that were seen dead are not drawn for a minute, and then again; what is kept does not change; half of
// each layer is always left, whoever is said to be dead; and none is left out that is the only one that can serve.
func TestSetAside(t *testing.T) {
	relays, v := stubNetwork(t) // layer 2 is 0 to 3, layer 3 is 2 to 9
	now := time.Unix(1_700_000_000, 0)
	guard := VanguardRequest{Guard: &relays[30]}
	before := v.State()
	for i, c := range []struct {
		relay int
		want  bool
	}{{20, false}, {20, false}, {0, false}, {0, true}} { // 20 is none
		if got := v.SetAside(relays[c.relay].Identity, now); got != c.want {
			t.Errorf("%d: that %d was said to be dead already is %v", i, c.relay, got)
		}
	}
	if second, third := drawn(t, v, relays, guard); second[0] != 0 || len(second) != 3 || len(third) != 8 {
		t.Errorf("with one aside: %v and %v", second, third)
	}
	for i := range 10 {
		now = now.Add(time.Second)
		v.SetAside(relays[i].Identity, now)
		second, third := drawn(t, v, relays, guard)
		if second[i] != 0 || third[i] != 0 {
			t.Errorf("%d is drawn although it is aside", i)
		}
		if len(second) < 2 || len(third) < 4 {
			t.Errorf("after %d: %d second and %d third hops are left", i, len(second), len(third))
		}
		for j, n := range second {
			if n > 2000/2+150 {
				t.Errorf("after %d: %d is in %d of 2000 paths", i, j, n)
			}
		}
	}
	for i := range 10 {
		if !v.SetAside(relays[i].Identity, now) {
			t.Errorf("that %d is dead is new", i)
		}
	}
	if after := v.State(); !reflect.DeepEqual(before, after) {
		t.Errorf("the state has changed from %v to %v", before, after)
	}
	now = now.Add(asideFor)
	mustUpdate(t, v, v.chooser, seeded(1), now)
	if second, third := drawn(t, v, relays, guard); len(second) != 4 || len(third) != 8 {
		t.Errorf("a minute later: %v and %v", second, third)
	}
	// 0 is the only one that can serve here.
	small := newVanguards(t, VanguardState{Layer2: before.Layer2[:2], Layer3: before.Layer3})
	mustUpdate(t, small, v.chooser, seeded(1), now)
	small.state.Layer2 = before.Layer2[:2]
	small.SetAside(relays[0].Identity, now)
	if hops, err := small.Path(seeded(1), VanguardRequest{Guard: &relays[30], Last: &relays[1]}); err != nil || hops[1].Identity != relays[0].Identity {
		t.Errorf("with nobody else: %v, %v", hops, err)
	}
	// A clock that was ahead keeps nobody aside.
	small.SetAside(relays[0].Identity, now.Add(time.Hour))
	mustUpdate(t, small, v.chooser, seeded(1), now)
	if len(small.aside) != 0 {
		t.Error("a vanguard is aside until far in the future")
	}
}

// TestSetAsideStubs: stubs that stand serve on, also when their relays are said to be dead, and all second hops with the same chance.
func TestSetAsideStubs(t *testing.T) {
	relays, v := stubNetwork(t)
	now := time.Unix(1_700_000_000, 0)
	for _, i := range []int{1, 4, 5, 6} {
		v.SetAside(relays[i].Identity, now)
	}
	r := VanguardRequest{Last: &relays[2], Foreign: true}
	served := map[int]int{}
	random := seeded(3)
	for range 40_000 {
		stub, err := v.Path(random, VanguardRequest{Guard: &relays[30]})
		if err != nil {
			t.Fatal(err)
		}
		_, ok, err := v.Continue(random, stub, r)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			if ok && stub[1].Identity == relays[i].Identity {
				served[i]++
			}
		}
	}
	total := served[0] + served[2] + served[3]
	for _, i := range []int{0, 2, 3} {
		if off := served[i]*3 - total; off > total/20 || -off > total/20 {
			t.Errorf("of %d stubs that serve, %v have each second hop", total, served)
		}
	}
	old := []*directory.Relay{&relays[30], &relays[1], &relays[4]} // both aside
	if _, ok, err := v.Continue(seeded(1), old, VanguardRequest{Last: &relays[20], Foreign: true}); !ok || err != nil {
		t.Errorf("a stub that stands does not serve: %v", err)
	}
}
