package work

import (
	"container/heap"
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"
)

// flood is a simulated service under attack. Honest clients come at random, each with
// one core; the attackers have as many cores as honest clients bring at most together,
// and send what they like as soon as it is solved.
type flood struct {
	name     string
	capacity float64       // introductions a second that the service answers
	honest   float64       // share of it that honest clients need
	rate     Rate          // of a core
	power    float64       // attackers' cores, as a multiple of what honest clients bring
	attack   float64       // introductions a second that attackers send at most, as a multiple of the capacity
	factor   float64       // attackers solve for so many times what is asked
	on, off  time.Duration // attack in turns; 0: always
	lasts    time.Duration
	without  bool    // nobody does any work
	least    float64 // share of visitors that must be served,
	most     float64 // and that cannot be, where not 0
}

// Times of the simulation. A message takes a while to a point; points learn at once what
// the service wants, clients from the descriptor some time later.
const (
	trip     = 500 * time.Millisecond
	publish  = time.Minute
	patience = QueueAge + 2*time.Second // until a client tries again
	calm     = 2 * time.Minute          // before and after the attack
	attempts = 4
)

// visitor is an honest client.
type visitor struct {
	attempt int
	spent   time.Duration
	begun   time.Time
	done    bool
	served  time.Time
}

// result is what came of a simulation. Visitors who came during the attack count.
type result struct {
	visitors, served int
	work, wait       []time.Duration
	refused          int // for lack of work at a point, honest ones
	top              uint32
	settled          time.Duration // from the attack on, until effort first reached nine tenths of its mean in the last third
	idle             time.Duration // from its end on, until effort is 0
	attackers        int           // introductions of theirs that were served
	lastThird        float64
}

func (r *result) success() float64 { return float64(r.served) / float64(r.visitors) }

type event struct {
	at  time.Time
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// run simulates the flood in virtual time.
func (f flood) run(t *testing.T, seed int64) result {
	random := rand.New(rand.NewSource(seed))
	now := time.Unix(1_000_000, 0)
	start := now.Add(calm)
	stop := start.Add(f.lasts)
	end := stop.Add(calm + 30*time.Minute)
	var todo events
	seq := 0
	after := func(d time.Duration, do func()) {
		seq++
		heap.Push(&todo, event{now.Add(d), seq, do})
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

	queue := NewQueue[*visitor](QueueConfig{})
	control, err := NewController(ControllerConfig{Capacity: f.capacity}, now, random)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	asked := uint32(0)     // what points know
	published := uint32(0) // what the descriptor says
	type sample struct {
		at     time.Time
		effort uint32
	}
	var samples []sample

	// The service works at its capacity, and looks at its load.
	var serve func()
	serve = func() {
		if v, _, ok := queue.TryPop(now); ok {
			if v == nil {
				r.attackers++
			} else if !v.done {
				v.done, v.served = true, now
			}
		}
		after(seconds(1/f.capacity), serve)
	}
	serve()
	var update func()
	update = func() {
		ask, _, err := control.Update(now, queue.TakeLoad(now), random)
		if err != nil {
			t.Fatal(err)
		}
		effort := ask.Effort
		if f.without {
			effort = 0
		}
		after(trip, func() { asked = effort })
		after(publish, func() { published = effort })
		r.top = max(r.top, effort)
		samples = append(samples, sample{now, effort})
		after(Interval, update)
	}
	after(Interval, update)

	// arrive is an introduction at a point: false if more work is wanted.
	arrive := func(effort uint32, v *visitor) bool {
		if effort < asked {
			return false
		}
		queue.Push(now, effort, v)
		return true
	}

	// Honest clients.
	var visitors []*visitor
	var try func(v *visitor, wanted uint32)
	try = func(v *visitor, wanted uint32) {
		effort, able := f.rate.Choose(wanted, v.attempt)
		if f.without {
			effort, able = 0, true
		}
		if v.done || v.attempt >= attempts || !able {
			return
		}
		took := seconds(random.ExpFloat64() * float64(effort) / float64(f.rate))
		if v.spent+took > ClientTime {
			v.spent = ClientTime
			return // gives up
		}
		v.spent += took
		after(took+trip, func() {
			if !arrive(effort, v) {
				r.refused++
				wanted := asked
				after(trip, func() { try(v, wanted) })
				return
			}
			after(patience, func() {
				v.attempt++
				try(v, max(published, asked))
			})
		})
	}
	var come func()
	come = func() {
		v := &visitor{begun: now}
		if !now.Before(start) && now.Before(stop) {
			visitors = append(visitors, v)
		}
		try(v, published)
		after(seconds(random.ExpFloat64()/(f.honest*f.capacity)), come)
	}
	come()

	// Attackers: all cores work all the time on what is asked at this moment.
	cores := f.power * f.honest * f.capacity * ClientTime.Seconds()
	var strike func()
	strike = func() {
		if !now.Before(stop) {
			return
		}
		if f.on > 0 && now.Sub(start)%(f.on+f.off) >= f.on {
			after(f.on+f.off-now.Sub(start)%(f.on+f.off), strike)
			return
		}
		effort := uint32(float64(asked) * f.factor)
		rate := f.attack * f.capacity
		if effort > 0 {
			rate = min(rate, cores*float64(f.rate)/float64(effort))
		}
		after(seconds(random.ExpFloat64()/rate), func() {
			arrive(effort, nil)
			strike()
		})
	}
	after(calm, strike)

	for now.Before(end) {
		e := heap.Pop(&todo).(event)
		now = e.at
		e.do()
	}

	for _, v := range visitors {
		r.visitors++
		if v.done {
			r.served++
			r.wait = append(r.wait, v.served.Sub(v.begun))
		}
		r.work = append(r.work, v.spent)
	}
	slices.Sort(r.work)
	slices.Sort(r.wait)
	late := 0
	for _, s := range samples {
		if s.at.After(stop.Add(-f.lasts/3)) && s.at.Before(stop) {
			r.lastThird += float64(s.effort)
			late++
		}
		if s.at.After(stop) && s.effort == 0 && r.idle == 0 {
			r.idle = s.at.Sub(stop)
		}
	}
	r.lastThird /= float64(late)
	for _, s := range samples {
		if s.at.After(start) && float64(s.effort) >= 0.9*r.lastThird {
			r.settled = s.at.Sub(start)
			break
		}
	}
	return r
}

func part(d []time.Duration, share float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[min(int(share*float64(len(d))), len(d)-1)]
}

func mean(d []time.Duration) time.Duration {
	sum := time.Duration(0)
	for _, x := range d {
		sum += x
	}
	return sum / time.Duration(max(len(d), 1))
}

func (r *result) String() string {
	return fmt.Sprintf("%d visitors, %.1f %% served; work mean %.1f s, 90%% %.1f s, 99%% %.1f s; time until served median %.1f s, 90%% %.1f s; effort at last %.0f, at most %d, there after %v; 0 again after %v; refused once %.2f a visitor; attackers served %d",
		r.visitors, 100*r.success(), mean(r.work).Seconds(), part(r.work, 0.9).Seconds(), part(r.work, 0.99).Seconds(),
		part(r.wait, 0.5).Seconds(), part(r.wait, 0.9).Seconds(), r.lastThird, r.top, r.settled, r.idle, float64(r.refused)/float64(r.visitors), r.attackers)
}

// TestFlood: a flood of ten times the capacity, by attackers with as much computing power as
// all honest clients bring, leaves 90 % of these served with at most 10 s of work each. With
// more power it does not; the figures are in doc/onion-work.md.
func TestFlood(t *testing.T) {
	base := flood{capacity: 20, honest: 0.2, rate: 500, power: 1, attack: 10, factor: 1, lasts: 15 * time.Minute, least: 0.9}
	var cases []flood
	add := func(name string, change func(*flood)) {
		f := base
		f.name = name
		change(&f)
		cases = append(cases, f)
	}
	add("what is asked", func(*flood) {})
	add("twice what is asked", func(f *flood) { f.factor = 2 })
	add("5 times what is asked", func(f *flood) { f.factor = 5 })
	add("half of what is asked", func(f *flood) { f.factor = 0.5 })
	add("2 minutes in 5", func(f *flood) { f.on, f.off = 2*time.Minute, 3*time.Minute })
	add("20 s in a minute", func(f *flood) { f.on, f.off = 20*time.Second, 40*time.Second })
	add("30 % honest", func(f *flood) { f.honest, f.least = 0.3, 0.7 })
	add("twice the power", func(f *flood) { f.power, f.least = 2, 0.6 })
	add("5 times the power", func(f *flood) { f.power, f.least, f.most = 5, 0, 0.2 })
	add("no work asked", func(f *flood) { f.without, f.least, f.most = true, 0, 0.5 })
	for _, f := range cases {
		t.Run(f.name, func(t *testing.T) {
			seeds := int64(1)
			if *soak {
				f.lasts, seeds = 2*time.Hour, 10
			}
			for seed := range seeds {
				r := f.run(t, seed+1)
				t.Log(r.String())
				if r.success() < f.least || f.most > 0 && r.success() > f.most {
					t.Errorf("seed %d: %.1f %% served, want %.0f %% at least (at most %.0f %%, if not 0)", seed+1, 100*r.success(), 100*f.least, 100*f.most)
				}
				if longest := part(r.work, 1); longest > ClientTime {
					t.Errorf("seed %d: a visitor worked for %v", seed+1, longest)
				}
				if r.idle == 0 || r.idle > 20*time.Minute {
					t.Errorf("seed %d: effort 0 again after %v (0: never)", seed+1, r.idle)
				}
			}
		})
	}
}
