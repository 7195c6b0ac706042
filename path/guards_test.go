package path

import (
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cepa/crypto/identity"
	"cepa/directory"
)

// someGuards are so many guards, and five exits.
func someGuards(n int) []directory.Relay {
	var relays []directory.Relay
	for i := range n + 5 {
		flags := directory.FlagGuard
		if i >= n {
			flags = directory.FlagExit
		}
		relays = append(relays, relayAt(i+1, 100, flags))
	}
	return relays
}

// keeper drives Guards as a client does, by a clock of its own.
type keeper struct {
	t      rapid.TB
	guards *Guards
	ch     *Chooser
	random interface{ Read([]byte) (int, error) }
	now    time.Time
	ever   map[identity.ID]bool // that were tried
}

func newKeeper(t rapid.TB, ch *Chooser, seed uint64) *keeper {
	k := &keeper{t: t, ch: ch, random: seeded(seed), now: time.Unix(1_700_000_000, 0), ever: map[identity.ID]bool{}}
	k.restart(GuardState{})
	return k
}

func (k *keeper) restart(s GuardState) {
	k.t.Helper()
	var err error
	if k.guards, err = NewGuards(s, k.now); err != nil {
		k.t.Fatal(err)
	}
}

// use asks for guards until one works, and returns it; nil when all fail.
func (k *keeper) use(works func(*directory.Relay) bool) *directory.Relay {
	k.t.Helper()
	if _, err := k.guards.Update(k.ch, k.random, DayOf(k.now), nil); err != nil {
		k.t.Fatal(err)
	}
	for _, r := range k.guards.Due(k.now) {
		k.guards.Note(k.random, r.Identity, works(r), k.now)
	}
	var asked []identity.ID
	for {
		r, err := k.guards.Next(k.now, func(r *directory.Relay) bool { return !slices.Contains(asked, r.Identity) })
		if err != nil || r == nil {
			return nil
		}
		if !k.guards.Tried(r.Identity) {
			if _, err := k.guards.Start(k.random, r.Identity, k.now); err != nil {
				k.t.Fatal(err)
			}
		}
		if err := k.guards.State().Check(); err != nil {
			k.t.Fatal(err)
		}
		asked = append(asked, r.Identity)
		k.ever[r.Identity] = true
		ok := works(r)
		k.guards.Note(k.random, r.Identity, ok, k.now)
		if ok {
			return r
		}
	}
}

func always(*directory.Relay) bool { return true }
func never(*directory.Relay) bool  { return false }

// TestGuardLife: a guard serves from 120 to 270 days, spread over all of that, and then the next one does.
func TestGuardLife(t *testing.T) {
	ch := chooser(t, someGuards(100)...)
	var lives []int
	for seed := range uint64(16) {
		k := newKeeper(t, ch, seed)
		for range 3 {
			r := k.use(always)
			began := k.now
			for k.use(always) == r {
				k.now = k.now.Add(24 * time.Hour)
			}
			lives = append(lives, int(math.Round(k.now.Sub(began).Hours()/24)))
		}
		if len(k.ever) != 4 {
			t.Errorf("%d guards served, want 4", len(k.ever))
		}
	}
	slices.Sort(lives)
	n := len(lives)
	if lives[0] < LifeMin-1 || lives[n-1] > LifeMax+1 || lives[n/4] > 185 || lives[3*n/4] < 205 || lives[n/4] < 135 || lives[3*n/4] > 255 {
		t.Errorf("guards served %d to %d days, quarters at %d and %d", lives[0], lives[n-1], lives[n/4], lives[3*n/4])
	}
}

// TestGuardFallbackDoesNotAge: what serves for an hour while the first is down does not begin its lifetime then, and takes over
// for a whole one later: so a client meets few guards.
func TestGuardFallbackDoesNotAge(t *testing.T) {
	k := newKeeper(t, chooser(t, someGuards(100)...), 1)
	first := k.use(always)
	second := k.use(func(r *directory.Relay) bool { return r != first })
	if second == nil || second == first {
		t.Fatal("there is no second guard")
	}
	k.now = k.now.Add(2 * time.Hour)
	if got := k.use(always); got != first {
		k.use(always)
		if got = k.use(always); got != first {
			t.Fatal("the first is not back")
		}
	}
	for k.use(always) == first {
		k.now = k.now.Add(24 * time.Hour)
	}
	from := k.now
	for k.use(always) == second {
		k.now = k.now.Add(24 * time.Hour)
	}
	if days := k.now.Sub(from).Hours() / 24; days < LifeMin {
		t.Errorf("the second served %.0f days after the first", days)
	}
	// One that is only ever a fallback does not stay for ever either.
	m := k.guards.first()
	m.First, m.Tried = 0, k.guards.day-fallbackLife
	k.now = k.now.Add(24 * time.Hour)
	k.use(always)
	if m.Out != outExpired {
		t.Error("a fallback is kept for ever")
	}
}

// TestNetworkDownIsNotGuardDown: when everything fails for hours and works again, the first guard is used again within moments,
// and no guard was tried beyond the few; when one guard is down, it alone is passed over, for longer each time.
func TestNetworkDownIsNotGuardDown(t *testing.T) {
	ch := chooser(t, someGuards(100)...)
	k := newKeeper(t, ch, 2)
	first := k.use(always)
	for range 40 {
		k.use(never)
		k.now = k.now.Add(30 * time.Second)
	}
	if len(k.ever) > FewGuards {
		t.Errorf("%d guards were tried in 20 minutes without network", len(k.ever))
	}
	// The network comes back in the middle of an attempt: the first guard has failed once more by then.
	if got := k.use(func(r *directory.Relay) bool { return r != first }); got == nil || got == first {
		t.Fatal("no other guard works")
	}
	k.now = k.now.Add(time.Second)
	if got := k.use(always); got != first {
		t.Errorf("a second after the network is back, %v is used, want the first again", got.Nickname)
	}

	k = newKeeper(t, ch, 3)
	first = k.use(always)
	probes, last := 0, k.now
	var gaps []time.Duration
	up := func(r *directory.Relay) bool {
		if r == first {
			probes++
			gaps = append(gaps, k.now.Sub(last))
			last = k.now
			return false
		}
		return true
	}
	for range 24 * 60 {
		k.use(up)
		k.now = k.now.Add(time.Minute)
	}
	if len(k.ever) != 2 {
		t.Errorf("%d guards were tried while one is down", len(k.ever))
	}
	// 1, 2, 4, 8, 16, 32 minutes, then every hour, each but a quarter; time goes by minutes here.
	if probes < 24 || probes > 40 {
		t.Errorf("a guard that is down was tried %d times in a day: %v", probes, gaps)
	}
	if got := k.use(always); got == first {
		t.Error("it is used before it was seen to work")
	}
	k.now = k.now.Add(2 * time.Hour)
	k.use(always)
	if got := k.use(always); got != first {
		t.Error("it works again, and is not the first")
	}
}

// TestTwoGuardsDown: that two are down and a third works is not taken for a network that was down: they are not tried again and
// again at once.
func TestTwoGuardsDown(t *testing.T) {
	k := newKeeper(t, chooser(t, someGuards(100)...), 4)
	a := k.use(always)
	b := k.use(func(r *directory.Relay) bool { return r != a })
	asked := 0
	for range 60 {
		k.use(func(r *directory.Relay) bool {
			if r == a || r == b {
				asked++
				return false
			}
			return true
		})
		k.now = k.now.Add(time.Second)
	}
	if asked > 4 {
		t.Errorf("two guards that are down were asked %d times in a minute", asked)
	}
}

// TestAllBlocked: an adversary who blocks all guards but his own does not get a client beyond the bound, however long it takes,
// however often it restarts, and although guards expire.
func TestAllBlocked(t *testing.T) {
	for _, n := range []int{3, 16, 40, 100} {
		limit := min(max(3, n/5), 20)
		relays := someGuards(n)
		ch := chooser(t, relays...)
		if ch.Limit() != limit {
			t.Errorf("of %d guards %d may be tried, want %d", n, ch.Limit(), limit)
		}
		k := newKeeper(t, ch, uint64(n))
		for i := range 3 * 365 {
			k.use(never)
			k.now = k.now.Add(24 * time.Hour)
			if i%50 == 0 {
				k.restart(k.guards.State())
			}
		}
		if len(k.ever) > limit {
			t.Errorf("of %d guards %d were tried in three years, at most %d may be", n, len(k.ever), limit)
		}
		if n >= 40 && len(k.ever) < limit/2 {
			t.Errorf("of %d guards only %d were tried in three years", n, len(k.ever))
		}
	}
}

// TestSmallNetworkGoesOn: where the bound is reached, guards that have served before serve again, for ever.
func TestSmallNetworkGoesOn(t *testing.T) {
	k := newKeeper(t, chooser(t, someGuards(12)...), 5)
	served := map[string]int{}
	for day := range 5 * 365 {
		r := k.use(always)
		if r == nil {
			t.Fatalf("on day %d there is no guard", day)
		}
		served[r.Nickname]++
		k.now = k.now.Add(24 * time.Hour)
	}
	if len(k.ever) != FewGuards || len(served) != FewGuards {
		t.Errorf("in five years %d guards were tried and %d served, want %d", len(k.ever), len(served), FewGuards)
	}
}

// without returns the relays but those.
func without(relays []directory.Relay, ids ...identity.ID) []directory.Relay {
	return slices.DeleteFunc(slices.Clone(relays), func(r directory.Relay) bool { return slices.Contains(ids, r.Identity) })
}

// TestUnlisted: a guard that is not listed is not used, is the first again when it is back within 20 days, and leaves the sample
// then; after 90 days it does not count any more.
func TestUnlisted(t *testing.T) {
	relays := someGuards(100)
	full := chooser(t, relays...)
	k := newKeeper(t, full, 6)
	first := k.use(always)
	k.ch = chooser(t, without(relays, first.Identity)...)
	day := func(n int) {
		for range n {
			k.now = k.now.Add(24 * time.Hour)
			if r := k.use(always); r == nil || r.Identity == first.Identity {
				t.Fatal("a guard that is not listed is used, or none")
			}
		}
	}
	day(19)
	k.ch = full
	if r := k.use(always); r.Identity != first.Identity {
		t.Error("back after 19 days, it is not the first")
	}
	k.ch = chooser(t, without(relays, first.Identity)...)
	day(21)
	if m := k.guards.find(first.Identity); m == nil || m.Out != outUnlisted {
		t.Errorf("after 21 days it is %+v", m)
	}
	day(60)
	if k.guards.find(first.Identity) == nil {
		t.Error("after 81 days it is forgotten: a tried guard must count for longer")
	}
	day(10)
	if k.guards.find(first.Identity) != nil {
		t.Error("after 91 days it still counts")
	}
	// All that may be used gone at once.
	var ids []identity.ID
	for id := range k.ever {
		ids = append(ids, id)
	}
	small := someGuards(9)
	k = newKeeper(t, chooser(t, small...), 7)
	for range 10 {
		k.use(never)
		k.now = k.now.Add(time.Minute)
	}
	ids = ids[:0]
	for id := range k.ever {
		ids = append(ids, id)
	}
	k.ch = chooser(t, without(small, ids...)...)
	if _, err := k.guards.Update(k.ch, k.random, DayOf(k.now), nil); err != nil {
		t.Fatal(err)
	}
	if r, err := k.guards.Next(k.now, nil); !errors.Is(err, ErrNoGuard) {
		t.Errorf("with all that were tried gone: %v, %v", r, err)
	}
	k.now = k.now.Add(ForgetAfter * 24 * time.Hour)
	if r := k.use(always); r == nil {
		t.Error("after 90 days there is still no guard")
	}
}

// TestClocks: a date that was far ahead does not keep a guard for ever, and one that goes back breaks nothing.
func TestClocks(t *testing.T) {
	k := newKeeper(t, chooser(t, someGuards(100)...), 8)
	start := k.now
	k.now = start.AddDate(300, 0, 0)
	ahead := k.use(always)
	k.now = start
	if got := k.use(always); got != ahead {
		t.Error("the guard changes because the clock goes back")
	}
	for range LifeMax + 1 {
		k.now = k.now.Add(24 * time.Hour)
		k.use(always)
	}
	if got := k.use(always); got == ahead {
		t.Error("a guard that was chosen with a wrong clock is kept for ever")
	}
	if DayOf(time.Unix(-1e15, 0)) != 1 || DayOf(time.Unix(1<<60, 0)) != maxDay {
		t.Error("days are not bounded")
	}
}

// TestGuardStateCheck: what cannot have been stored is refused.
func TestGuardStateCheck(t *testing.T) {
	good := GuardRecord{Relay: identity.ID{1}, Sampled: 100, Life: 150, Tried: 101, First: 102, Circuits: 10, Good: 9}
	if err := (GuardState{Guards: []GuardRecord{good}}).Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*GuardRecord){
		"no relay":          func(r *GuardRecord) { r.Relay = identity.ID{} },
		"no day":            func(r *GuardRecord) { r.Sampled = 0 },
		"a negative day":    func(r *GuardRecord) { r.Tried = -1 },
		"a day too late":    func(r *GuardRecord) { r.Unlisted = maxDay + 1 },
		"too short a life":  func(r *GuardRecord) { r.Life = LifeMin - 1 },
		"too long a life":   func(r *GuardRecord) { r.Life = LifeMax + 1 },
		"another reason":    func(r *GuardRecord) { r.Out = "bored" },
		"used, not tried":   func(r *GuardRecord) { r.Tried = 0 },
		"more good than":    func(r *GuardRecord) { r.Good = 11 },
		"negative counts":   func(r *GuardRecord) { r.Good = -1 },
		"counts too large":  func(r *GuardRecord) { r.Circuits = biasWindow + 1 },
		"left, never tried": func(r *GuardRecord) { r.Tried, r.First, r.Circuits, r.Good, r.Out = 0, 0, 0, 0, outExpired },
	} {
		bad := good
		change(&bad)
		if _, err := NewGuards(GuardState{Guards: []GuardRecord{bad}}, time.Now()); !errors.Is(err, ErrGuardState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range map[string]GuardState{
		"twice": {Guards: []GuardRecord{good, good}}, "a day": {Abandoned: -1}, "too many": {Guards: make([]GuardRecord, maxRecords+1)},
	} {
		if !errors.Is(s.Check(), ErrGuardState) {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestGuardProperties: whatever happens to a client, its state is one that can be stored, the bound holds, and there is a guard
// whenever all work and one may be used.
func TestGuardProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "guards")
		relays := someGuards(n)
		ch, err := New(&directory.Consensus{Relays: relays})
		if err != nil {
			t.Fatal(err)
		}
		k := newKeeper(t, ch, rapid.Uint64().Draw(t, "seed"))
		most := k.ch.Limit()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				k.now = k.now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "days")) * 24 * time.Hour)
			case 1:
				k.now = k.now.Add(time.Duration(rapid.IntRange(0, 7200).Draw(t, "seconds")) * time.Second)
			case 2:
				k.restart(k.guards.State())
			case 3:
				bit := rapid.Byte().Draw(t, "who works")
				k.use(func(r *directory.Relay) bool { return bit>>(r.Identity[3]%8)&1 == 1 })
			case 4:
				if k.use(always) == nil {
					t.Fatal("all work, and none is used")
				}
			case 5:
				for range 100 {
					for _, m := range k.guards.list {
						k.guards.Count(m.Relay, Outcome(1+m.Relay[3]%3))
					}
				}
				if err := k.guards.State().Check(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(k.ever) > most {
			t.Fatalf("of %d guards %d were tried, at most %d may be", n, len(k.ever), most)
		}
	})
}
