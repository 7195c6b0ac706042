package visit

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
)

// answers has every HSDir answer in the same way.
func (w *world) answers(f func() ([]byte, int, time.Duration)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.cons.Relays {
		w.dirs[w.cons.Relays[i].Identity] = f
	}
}

// nth has HSDirs answer by the order in which they are asked; those after the last as they would.
func (w *world) nth(list ...func() ([]byte, int, time.Duration)) {
	n := 0
	w.answers(func() ([]byte, int, time.Duration) {
		n++
		if n <= len(list) {
			return list[n-1]()
		}
		return nil, 0, 0
	})
}

func hangs() ([]byte, int, time.Duration)    { return nil, 0, time.Hour }
func hasNone() ([]byte, int, time.Duration)  { return nil, http.StatusNotFound, tripTime }
func rubbish() ([]byte, int, time.Duration)  { return []byte("rubbish"), http.StatusOK, tripTime }
func tooLarge() ([]byte, int, time.Duration) { return make([]byte, 100_000), http.StatusOK, tripTime }

// TestFetchHedges: one that does not answer costs a second, one that refuses or lies the time of its answer.
func TestFetchHedges(t *testing.T) {
	for name, c := range map[string]struct {
		first []func() ([]byte, int, time.Duration)
		more  time.Duration // than a fetch at which all goes well
	}{
		"one hangs":         {[]func() ([]byte, int, time.Duration){hangs}, hedgeAfter},
		"two hang":          {[]func() ([]byte, int, time.Duration){hangs, hangs}, 2 * hedgeAfter},
		"one has none":      {[]func() ([]byte, int, time.Duration){hasNone}, extendTime + tripTime},
		"three have none":   {[]func() ([]byte, int, time.Duration){hasNone, hasNone, hasNone}, 2 * (extendTime + tripTime)},
		"rubbish":           {[]func() ([]byte, int, time.Duration){rubbish}, extendTime + tripTime},
		"too large":         {[]func() ([]byte, int, time.Duration){tooLarge}, extendTime + tripTime},
		"one of each":       {[]func() ([]byte, int, time.Duration){rubbish, hasNone, hangs}, 2 * (extendTime + tripTime)},
		"hangs, and a lie":  {[]func() ([]byte, int, time.Duration){hangs, rubbish}, hedgeAfter + extendTime + tripTime},
		"all goes well":     {nil, 0},
		"the fourth has it": {[]func() ([]byte, int, time.Duration){hangs, hangs, hasNone}, 2*hedgeAfter + extendTime + tripTime},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, 30, func(w *world) {
				w.publish(w.period(), 1)
				w.publish(w.period()-1, 1)
				w.nth(c.first...)
				began := time.Now()
				w.dial("")
				if d, want := time.Since(began), c.more+extendTime+tripTime+extendTime+tripTime+comeTime+tripTime; d != want {
					t.Errorf("it took %v, want %v", d, want)
				}
			})
		})
	}
}

// TestFetchWhom: the relays that are responsible are asked, each once, those of the period before between them from the second on,
// in an order that is not always the same; and nobody else.
func TestFetchWhom(t *testing.T) {
	firsts := map[identity.ID]bool{}
	for range 6 {
		run(t, 60, func(w *world) {
			w.fails(DescriptorNotFound)
			firsts[w.asked[0]] = true
			var now, before int
			seen := map[identity.ID]int{}
			for _, id := range w.asked {
				seen[id]++
			}
			for i, random := range []directory.RandomValue{w.cons.Random.Current, w.cons.Random.Previous} {
				var all []identity.ID
				for i := range w.cons.Relays {
					all = append(all, w.cons.Relays[i].Identity)
				}
				blinded, err := onion.Blind(w.address, "test", w.period()-uint64(i))
				if err != nil {
					t.Fatal(err)
				}
				list := onion.NewRing(all, "test", w.period()-uint64(i), random).Responsible(blinded, 2, 3)
				for _, id := range list {
					seen[id]--
				}
				if i == 0 {
					now = len(list)
					if !slices.Contains(list, w.asked[0]) {
						t.Error("the first is not of the present period")
					}
				} else {
					before = len(list)
				}
			}
			for _, n := range seen {
				if n != 0 {
					t.Errorf("%d were asked, of %d and %d", len(w.asked), now, before)
					break
				}
			}
		})
	}
	if len(firsts) < 2 {
		t.Error("the first is always the same")
	}
}

// TestFetchPeriods: a service whose consensus is a period behind is found.
func TestFetchPeriods(t *testing.T) {
	run(t, 60, func(w *world) {
		w.publish(w.period()-1, 1)
		st, err := w.v.enter(siteKey{"", w.address})
		if err != nil {
			t.Fatal(err)
		}
		defer w.v.leave(st)
		k, err := w.v.descriptor(context.Background(), st, false)
		if err != nil || k.period != w.period()-1 || len(w.asked) > 4 {
			t.Errorf("of period %d, after %d relays; %v", k.period, len(w.asked), err)
		}
		// When two more periods have passed, it is of no use.
		w.cons.Period += 2 * directory.RandomPeriods
		if _, err := w.v.descriptor(context.Background(), st, false); !errors.Is(err, DescriptorNotFound) {
			t.Errorf("two periods later: %v", err)
		}
	})
}

// TestFetchErrors: why there is no descriptor is told apart.
func TestFetchErrors(t *testing.T) {
	secret, err := onion.NewClientSecret(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		set  func(w *world)
		auth []*onion.ClientSecret
		want error
		time time.Duration // at most
	}{
		"nobody has it":       {func(w *world) {}, nil, DescriptorNotFound, time.Second},
		"nobody answers":      {func(w *world) { w.answers(hangs) }, nil, TimedOut, 2 * time.Minute},
		"all give rubbish":    {func(w *world) { w.answers(rubbish) }, nil, DescriptorInvalid, time.Second},
		"all refuse":          {func(w *world) { w.answers(func() ([]byte, int, time.Duration) { return nil, 500, tripTime }) }, nil, DescriptorNotFound, time.Second},
		"of another service":  {func(w *world) { w.other() }, nil, DescriptorInvalid, time.Second},
		"of another period":   {func(w *world) { b := w.publish(w.period()+1, 1); w.answers(gives(b)) }, nil, DescriptorInvalid, time.Second},
		"a key is needed":     {func(w *world) { w.publish(w.period(), 1, secret.Key()) }, nil, AuthNeeded, 100 * time.Millisecond},
		"it is another's key": {func(w *world) { w.publish(w.period(), 1, onion.ClientKey(name("x").ID())) }, []*onion.ClientSecret{secret}, AuthWrong, 100 * time.Millisecond},
		"no HSDirs": {func(w *world) {
			for i := range w.cons.Relays {
				w.cons.Relays[i].Flags &^= directory.FlagHSDir
			}
		}, nil, errNoDirectories, 100 * time.Millisecond},
		"the key fits": {func(w *world) { w.publish(w.period(), 1, secret.Key()) }, []*onion.ClientSecret{secret}, nil, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, 30, func(w *world) {
				w.visitor(Config{Auth: func(a onion.Address) []*onion.ClientSecret {
					if a != w.address {
						t.Error("asked for the key of another service")
					}
					return c.auth
				}})
				c.set(w)
				began := time.Now()
				if c.want == nil {
					w.dial("")
				} else {
					w.fails(c.want)
				}
				if d := time.Since(began); d > c.time {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}

func gives(b []byte) func() ([]byte, int, time.Duration) {
	return func() ([]byte, int, time.Duration) { return b, http.StatusOK, tripTime }
}

// other has all HSDirs give the descriptor of another service.
func (w *world) other() {
	own, address := w.key, w.address
	w.key = name("another service")
	w.address = onion.AddressOf(w.key.ID())
	b := w.publish(w.period(), 1)
	w.key, w.address = own, address
	w.answers(gives(b))
}

// TestFetchOlder: once a revision was seen, an older one is not taken as long as a relay has one that is not; the newest of older
// ones is, when nobody else answers in time.
func TestFetchOlder(t *testing.T) {
	run(t, 60, func(w *world) {
		st, err := w.v.enter(siteKey{"", w.address})
		if err != nil {
			t.Fatal(err)
		}
		defer w.v.leave(st)
		fetches := func(what string, revision uint64, most time.Duration) {
			t.Helper()
			began := time.Now()
			k, err := w.v.descriptor(context.Background(), st, true)
			if err != nil || k.descriptor.Revision != revision {
				t.Errorf("%s: revision %d, %v, want %d", what, k.period, err, revision)
			}
			if took := time.Since(began); took > most {
				t.Errorf("%s took %v", what, took)
			}
		}
		four, five, six := w.publish(w.period(), 4), w.publish(w.period(), 5), w.publish(w.period(), 6)
		fetches("the first", 6, time.Second)
		w.nth(gives(five), gives(four), gives(five), gives(six))
		fetches("one that is not older among them", 6, time.Second)
		w.publish(w.period(), 4)
		w.nth(gives(four), gives(five), gives(five)) // the third is for the period before, or the second
		fetches("older ones alone", 5, time.Second)
		w.nth(gives(four), hangs, hangs, hangs, hangs, hangs, hangs, hangs, hangs, hangs, hangs, hangs, hangs)
		fetches("an older one, and nobody else answers", 4, newerTime+time.Second)
		w.publish(w.period(), 5)
		w.nth(gives(five), gives(six), gives(six))
		fetches("after older ones were taken", 6, time.Second)
	})
}

// TestOlderLeadsOn: when the points of the newest descriptor are gone, and the relays that are left have an older one, it is tried.
func TestOlderLeadsOn(t *testing.T) {
	run(t, 30, func(w *world) {
		old := w.publish(w.period(), 5)
		living := w.points
		w.newPoints(3)
		w.publish(w.period(), 6)
		w.dial("").Close()
		for _, st := range w.v.sites {
			st.session.circ.Close()
		}
		w.mu.Lock()
		w.points = living
		w.mu.Unlock()
		w.answers(gives(old))
		w.dial("")
	})
}

// TestFetchAgain: that there is none holds for some seconds; what there is holds for as long as it says, and three hours at most.
func TestFetchAgain(t *testing.T) {
	run(t, 30, func(w *world) {
		w.fails(DescriptorNotFound)
		w.counts()
		w.publish(w.period(), 1)
		w.fails(DescriptorNotFound)
		if _, d, _ := w.counts(); d != 0 {
			t.Errorf("%d HSDirs were asked at once again", d)
		}
		time.Sleep(unfoundTime)
		w.dial("")
		st := w.v.sites[siteKey{"", w.address}]
		for _, c := range []struct {
			after   time.Duration
			queries int
		}{{maxKnown - time.Minute, 0}, {2 * time.Minute, 1}} {
			w.counts()
			time.Sleep(c.after)
			if _, err := w.v.descriptor(context.Background(), st, false); err != nil {
				t.Fatal(err)
			}
			if _, d, _ := w.counts(); d != c.queries {
				t.Errorf("after %v: %d HSDirs were asked, want %d", c.after, d, c.queries)
			}
		}
	})
}
