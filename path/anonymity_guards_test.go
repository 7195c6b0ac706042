package path

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"cepa/directory"
)

// The model of a network over a year, for guards:
//
//   - the relays of a real network; of the honest guards 0.1 % leave for good each day, and others of the same weight come;
//   - an honest guard has an outage on 2 of 100 days, from a random hour on, for 1 to 24 hours; meanwhile it stays listed;
//   - a share of the guards' weight is hostile; those never leave and are never down;
//   - each client connects four times a day, at random times; on 5 of 100 days it finds no network once, for some minutes.
const (
	churn        = 0.001
	outage       = 0.02
	usesPerDay   = 4
	offline      = 0.05
	tornGuards   = 2   // of Tor as it is live: so many guards in use,
	torGuardLife = 120 // each for so many days
)

// guardWorld is that network. Which slot of it a relay has, and whether it is hostile, is written in its onion key.
type guardWorld struct {
	relays []directory.Relay
	guard  []bool
	down   [][2]float64 // from, until; in days
	random *rand.Rand
	start  time.Time
}

func slotOf(r *directory.Relay) int        { return int(binary.BigEndian.Uint32(r.OnionKey[:])) }
func hostile(r *directory.Relay) bool      { return r.OnionKey[4] == 1 }
func generation(r *directory.Relay, g int) { binary.BigEndian.PutUint32(r.Identity[4:], uint32(g)) }

// newGuardWorld makes hostile a share of the weight in the position of guards, as exactly as it goes.
func newGuardWorld(t *testing.T, relays []directory.Relay, share float64, seed uint64) *guardWorld {
	w := &guardWorld{
		relays: slices.Clone(relays), guard: make([]bool, len(relays)), down: make([][2]float64, len(relays)), random: rand.New(seeded(seed)),
		start: time.Unix(1_700_000_000-1_700_000_000%86400, 0),
	}
	c := chooser(t, w.relays...)
	left := uint64(share * float64(c.guard.total()))
	for _, i := range w.random.Perm(len(relays)) {
		r := &w.relays[i]
		binary.BigEndian.PutUint32(r.OnionKey[:], uint32(i))
		if w.guard[i] = isGuard(r); !w.guard[i] {
			continue
		}
		if weight := c.guard.weight(i); weight > 0 && weight <= left {
			left -= weight
			r.OnionKey[4] = 1
		}
	}
	if float64(left) > 0.001*float64(c.guard.total()) {
		t.Fatal("the hostile weight does not come about")
	}
	return w
}

// day changes the network to that of a day.
func (w *guardWorld) day(t *testing.T, day int) *Chooser {
	relays := slices.Clone(w.relays)
	for i := range relays {
		if !w.guard[i] || hostile(&relays[i]) {
			continue
		}
		if w.random.Float64() < churn {
			generation(&relays[i], day+1)
		}
		if w.random.Float64() < outage {
			from := float64(day) + w.random.Float64()
			w.down[i] = [2]float64{from, from + (1+23*w.random.Float64())/24}
		}
	}
	w.relays = relays
	return chooser(t, relays...)
}

func (w *guardWorld) works(r *directory.Relay, at float64) bool {
	d := w.down[slotOf(r)]
	return at < d[0] || at >= d[1]
}

// policy is how a client chooses guards: ours, or a model of Tor's. use returns the guard that it connects to, or nil.
type policy interface {
	use(ch *Chooser, day Day, now time.Time, works func(*directory.Relay) bool) *directory.Relay
}

// ours is the code that clients run.
type ours struct {
	guards *Guards
	random *rand.ChaCha8
}

func (o *ours) use(ch *Chooser, day Day, now time.Time, works func(*directory.Relay) bool) *directory.Relay {
	if _, err := o.guards.Update(ch, o.random, day, nil); err != nil {
		panic(err)
	}
	for _, r := range o.guards.Due(now) {
		o.guards.Note(o.random, r.Identity, works(r), now)
	}
	var asked []*directory.Relay
	for {
		r, err := o.guards.Next(now, func(r *directory.Relay) bool { return !slices.Contains(asked, r) })
		if err != nil {
			panic(err)
		}
		if r == nil {
			return nil
		}
		if !o.guards.Tried(r.Identity) {
			if _, err := o.guards.Start(o.random, r.Identity, now); err != nil {
				panic(err)
			}
		}
		ok := works(r)
		o.guards.Note(o.random, r.Identity, ok, now)
		if ok {
			return r
		}
		asked = append(asked, r)
	}
}

// tor is a model of what Tor does with the parameters of its live consensus: the first two of a list are in use, one or the other
// at random; the next ones only while both are down; each leaves 120 days after it was first used, or when it is listed no more.
type tor struct {
	list   []*directory.Relay
	first  []Day
	random *rand.ChaCha8
	seen   *Chooser
}

func (o *tor) use(ch *Chooser, day Day, _ time.Time, works func(*directory.Relay) bool) *directory.Relay {
	if o.seen != ch {
		o.seen = ch
		list, first := o.list[:0], o.first[:0]
		for i, r := range o.list {
			now, ok := ch.consensus.Lookup(r.Identity)
			if ok && (o.first[i] == 0 || day-o.first[i] < torGuardLife) {
				list, first = append(list, now), append(first, o.first[i])
			}
		}
		o.list, o.first = list, first
		for len(o.list) < SampleSize {
			r, err := ch.PickGuard(o.random, func(r *directory.Relay) bool { return slices.Contains(o.list, r) })
			if err != nil {
				panic(err)
			}
			o.list, o.first = append(o.list, r), append(o.first, 0)
		}
	}
	order := []int{0, 1}
	if o.random.Uint64()%2 == 1 {
		order = []int{1, 0}
	}
	for i := tornGuards; i < len(o.list); i++ {
		order = append(order, i)
	}
	for _, i := range order {
		if works(o.list[i]) {
			if o.first[i] == 0 {
				o.first[i] = day
			}
			return o.list[i]
		}
	}
	return nil
}

// year is what became of the clients.
type year struct {
	distinct []float64 // mean number of guards used, by day
	caught   []float64 // share of clients that ever used a hostile one
}

// live lets clients with a policy live for so many days.
func live(t *testing.T, w *guardWorld, clients, days int, policyOf func(seed uint64) policy) year {
	type person struct {
		policy policy
		used   []*directory.Relay // the first entry of each
		caught bool
		random *rand.Rand
	}
	people := make([]person, clients)
	for i := range people {
		people[i] = person{policy: policyOf(uint64(i)), random: rand.New(seeded(uint64(i) + 1<<32))}
	}
	const workers = 2
	y := year{}
	for day := range days {
		ch := w.day(t, day)
		var wg sync.WaitGroup
		for k := range workers {
			wg.Go(func() {
				for i := k; i < clients; i += workers {
					p := &people[i]
					var at [usesPerDay]float64
					for j := range at {
						at[j] = float64(day) + p.random.Float64()
					}
					slices.Sort(at[:])
					lost := -1
					if p.random.Float64() < offline {
						lost = p.random.IntN(usesPerDay)
					}
					for j, x := range at {
						now := w.start.Add(time.Duration(x * 24 * float64(time.Hour)))
						if j == lost {
							for range 5 {
								p.policy.use(ch, DayOf(now), now, never)
								now = now.Add(time.Minute)
							}
						}
						r := p.policy.use(ch, DayOf(now), now, func(r *directory.Relay) bool { return w.works(r, x) })
						if r != nil && !slices.ContainsFunc(p.used, func(o *directory.Relay) bool { return o.Identity == r.Identity }) {
							p.used = append(p.used, r)
							p.caught = p.caught || hostile(r)
						}
					}
				}
			})
		}
		wg.Wait()
		used, caught := 0, 0
		for i := range people {
			used += len(people[i].used)
			if people[i].caught {
				caught++
			}
		}
		y.distinct = append(y.distinct, float64(used)/float64(clients))
		y.caught = append(y.caught, float64(caught)/float64(clients))
	}
	return y
}

// TestAnonymityGuards: how many guards clients meet in a year, and how many of them ever meet a hostile one, beside Tor's.
func TestAnonymityGuards(t *testing.T) {
	relays, clients, shares := realRelays(t)[:1000], 100, []float64{0.10}
	if *soak {
		relays, clients, shares = realRelays(t), 10_000, []float64{0.05, 0.10}
	}
	const days = 365
	our := func(seed uint64) policy { return &ours{&Guards{}, seeded(seed)} }
	tors := func(seed uint64) policy { return &tor{random: seeded(seed)} }
	limit := map[float64]float64{0.05: 0.21, 0.10: 0.38}
	head := []string{"day"}
	var columns [][]float64
	guards := plot{title: "Guards that a client has used", x: "days", y: "mean number", limits: map[string]float64{"goal: 4.5": 4.5}}
	met := plot{title: "Clients that ever used a hostile guard", x: "days", y: "share", limits: map[string]float64{}}
	axis := make([]float64, days)
	for i := range axis {
		axis[i] = float64(i + 1)
	}
	for k, share := range shares {
		colour := []string{"#1b7837", "#762a83"}[k]
		ourYear := live(t, newGuardWorld(t, relays, share, uint64(10+k)), clients, days, our)
		torYear := live(t, newGuardWorld(t, relays, share, uint64(10+k)), clients, days, tors)
		percent := fmt.Sprintf("%.0f %%", 100*share)
		o, z := ourYear.caught[days-1], torYear.caught[days-1]
		t.Logf("%s hostile: %.2f guards and %.1f %% ever hostile; Tor's settings %.2f and %.1f %%; ratio %.2f",
			percent, ourYear.distinct[days-1], 100*o, torYear.distinct[days-1], 100*z, o/z)
		// Chance, in small instances.
		slack := 3 * math.Sqrt(limit[share]*(1-limit[share])/float64(clients))
		if *soak {
			slack = 0
		}
		if n := ourYear.distinct[days-1]; n > 4.5 || n < 2 {
			t.Errorf("%s: clients used %.2f guards on average, at most 4.5 may be", percent, n)
		}
		if o > limit[share]+slack {
			t.Errorf("%s: %.1f %% of clients used a hostile guard, at most %.0f %% may", percent, 100*o, 100*limit[share])
		}
		if o > 0.6*z+slack {
			t.Errorf("%s: %.1f %% of clients used a hostile guard, with Tor's settings %.1f %%: at most 0.6 times as many may", percent, 100*o, 100*z)
		}
		head = append(head, "guards, "+percent+" hostile", "share that met a hostile one, "+percent, "Tor: guards, "+percent, "Tor: share, "+percent)
		columns = append(columns, ourYear.distinct, ourYear.caught, torYear.distinct, torYear.caught)
		if k == 0 {
			guards.curves = append(guards.curves, curve{"cepa", colour, false, axis, ourYear.distinct}, curve{"Tor: 2, 120 days", "#888", true, axis, torYear.distinct})
		}
		met.limits[fmt.Sprintf("goal at %s: %.0f %%", percent, 100*limit[share])] = limit[share]
		met.curves = append(met.curves, curve{"cepa, " + percent, colour, false, axis, ourYear.caught}, curve{"Tor, " + percent, colour, true, axis, torYear.caught})
	}
	rows := [][]string{head}
	for d := range days {
		row := []string{fmt.Sprint(d + 1)}
		for _, c := range columns {
			row = append(row, fmt.Sprintf("%.4f", c[d]))
		}
		rows = append(rows, row)
	}
	writeTable(t, "guards.csv", rows)
	writePlot(t, "guards.svg", guards)
	writePlot(t, "hostile-guards.svg", met)
}
