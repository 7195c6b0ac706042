package visit

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/onion/work"
)

// TestPoints: introduction points are tried in random order, each once, until one passes the introduction on; the rendezvous waits
// meanwhile.
func TestPoints(t *testing.T) {
	firsts := map[identity.ID]bool{}
	for range 6 {
		run(t, 30, func(w *world) {
			w.newPoints(5)
			w.publish(w.period(), 1)
			bad := map[*point]bool{}
			w.handle = func(p *point, _ work.Proof, _ []byte) (cell.IntroduceStatus, uint32) {
				if len(bad) < 3 || bad[p] {
					bad[p] = true
					return cell.IntroduceUnknown, 0
				}
				return cell.IntroducePassed, 0
			}
			w.dial("")
			seen := slices.Clone(w.intros)
			firsts[seen[0]] = true
			slices.SortFunc(seen, identity.ID.Compare)
			if len(slices.Compact(seen)) != 4 || len(w.meets) != 1 {
				t.Errorf("%d points were tried, %d rendezvous", len(seen), len(w.meets))
			}
			// Those that failed come last the next time.
			w.v.sites[siteKey{"", w.address}].session.circ.Close()
			w.counts()
			w.dial("")
			if _, _, i := w.counts(); i != 1 {
				t.Errorf("%d introductions for the next meeting", i)
			}
		})
	}
	if len(firsts) < 2 {
		t.Error("the first is always the same")
	}
}

// TestPointsUnreached: points that no circuit gets to, and those that the network does not know, are passed over.
func TestPointsUnreached(t *testing.T) {
	run(t, 30, func(w *world) {
		w.newPoints(4)
		w.points[0].Relay = name("unknown").ID()
		w.broken[w.points[1].Relay] = errors.New("nick1 is down")
		w.broken[w.points[2].Relay] = errors.New("nick2 is down")
		w.publish(w.period(), 1)
		w.dial("")
		if len(w.intros) != 1 || w.intros[0] != w.points[3].Relay {
			t.Errorf("%d introductions", len(w.intros))
		}
	})
	run(t, 30, func(w *world) {
		w.points[0].Relay, w.points[1].Relay, w.points[2].Relay = name("a").ID(), name("b").ID(), name("c").ID()
		w.publish(w.period(), 1)
		w.fails(IntroductionFailed)
	})
	run(t, 30, func(w *world) {
		for _, p := range w.points {
			w.broken[p.Relay] = errors.New("nick is down")
		}
		w.publish(w.period(), 1)
		w.fails(IntroductionFailed)
	})
}

// TestPointsChanged: when a point of a descriptor that was known says that the service has left it, it is fetched again at once; as
// long as it is the same, it is a few times more, and its points are not tried again. No descriptor is good for more than six
// introductions when it is new.
func TestPointsChanged(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.dial("")
		reset := func() {
			for _, st := range w.v.sites {
				st.session.circ.Close()
				clear(st.failing)
			}
			w.counts()
		}
		reset()
		w.newPoints(3)
		w.publish(w.period(), 2)
		w.dial("")
		if _, d, i := w.counts(); d != 1 || i != 2 {
			t.Errorf("%d HSDirs, %d introductions", d, i)
		}
		reset()
		w.newPoints(3) // and does not say so
		w.fails(IntroductionFailed)
		if _, d, i := w.counts(); d != maxAsks || i != 3 {
			t.Errorf("%d HSDirs, %d introductions", d, i)
		}
		w.newPoints(20)
		w.publish(w.period(), 3)
		w.newPoints(20)
		w.fails(IntroductionFailed)
		if _, d, i := w.counts(); d != maxAsks || i != 1+maxIntroductions {
			t.Errorf("%d HSDirs, %d introductions", d, i)
		}
	})
}

// TestServiceRestarted: a service that has other points, and says so a moment later, is reached by who had it open without an error.
func TestServiceRestarted(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.dial("")
		for _, st := range w.v.sites {
			st.session.circ.Close()
		}
		w.newPoints(3)
		go func() {
			time.Sleep(2 * askPause)
			w.publish(w.period(), 2)
		}()
		began := time.Now()
		w.dial("")
		if took := time.Since(began); took < 2*askPause || took > 4*askPause {
			t.Errorf("it took %v", took)
		}
	})
}

// TestPointsBusy: points that have too much to do are asked again after a while.
func TestPointsBusy(t *testing.T) {
	for full := range 7 {
		run(t, 30, func(w *world) {
			w.publish(w.period(), 1)
			n := 0
			w.handle = func(*point, work.Proof, []byte) (cell.IntroduceStatus, uint32) {
				if n++; n <= full {
					return cell.IntroduceFull, 0
				}
				return cell.IntroducePassed, 0
			}
			began := time.Now()
			if full == maxIntroductions {
				if err := w.fails(IntroductionFailed); !errors.Is(err, cell.IntroduceFull) {
					t.Errorf("%v", err)
				}
				return
			}
			w.dial("")
			pauses := []time.Duration{0, 0, 0, busyPause, busyPause, busyPause}[full]
			want := extendTime + tripTime + time.Duration(full+1)*(extendTime+tripTime) + pauses + comeTime + tripTime
			if d := time.Since(began); d != want {
				t.Errorf("after %d refusals: it took %v, want %v", full, d, want)
			}
		})
	}
}

// TestRendezvous: when the service does not come, or somebody else does, others are tried, at most three in all and two at a time.
func TestRendezvous(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.absent = true
		began := time.Now()
		w.fails(RendezvousFailed)
		if d := time.Since(began); len(w.meets) != maxRendezvous || d < 2*joinTime || d > 2*joinTime+time.Second {
			t.Errorf("%d rendezvous in %v", len(w.meets), d)
		}
	})
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.impostor = true
		w.fails(RendezvousFailed)
		if len(w.meets) != maxRendezvous || len(w.intros) != maxRendezvous {
			t.Errorf("%d rendezvous, %d introductions", len(w.meets), len(w.intros))
		}
	})
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		n := 0
		w.handle = func(*point, work.Proof, []byte) (cell.IntroduceStatus, uint32) {
			if n++; n == 1 {
				go func() { // the circuit to the rendezvous point breaks
					w.mu.Lock()
					defer w.mu.Unlock()
					for _, f := range w.waiting {
						go f.Close()
					}
				}()
			}
			return cell.IntroducePassed, 0
		}
		w.dial("")
		if len(w.meets) != 2 || len(w.intros) != 2 {
			t.Errorf("%d rendezvous, %d introductions", len(w.meets), len(w.intros))
		}
	})
	run(t, 30, func(w *world) { // the first rendezvous point is down
		w.publish(w.period(), 1)
		w.broken[w.cons.Relays[29].Identity] = errors.New("down")
		w.dial("")
		if len(w.meets) != 2 || len(w.intros) != 1 {
			t.Errorf("%d rendezvous, %d introductions", len(w.meets), len(w.intros))
		}
	})
}

// TestNetworkDown: a network in which no circuit is to be had is told at once, and not as a descriptor that was not found.
func TestNetworkDown(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.down = errors.New("no guard answers")
		began := time.Now()
		if err := w.fails(w.down); time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestWork: what a service asks for is done, in what its descriptor says or its introduction point, and not more than can be done.
func TestWork(t *testing.T) {
	ask := work.Ask{Effort: 3, Seed: [32]byte{7}}
	set := func(w *world, effort uint32) {
		w.v.pow.rate = 5
		for _, p := range w.points {
			p.Effort, p.Seed = effort, ask.Seed
		}
		w.publish(w.period(), 1)
	}
	check := func(w *world, wanted func() uint32) {
		w.handle = func(p *point, proof work.Proof, sealed []byte) (cell.IntroduceStatus, uint32) {
			a := ask
			a.Effort = wanted()
			switch err := a.Check(&proof, (*[32]byte)(&p.Key), sealed); {
			case errors.Is(err, work.ErrMore):
				return cell.IntroduceWork, a.Effort
			case err != nil:
				w.Error(err)
			}
			return cell.IntroducePassed, 0
		}
	}
	run(t, 30, func(w *world) {
		set(w, 3)
		check(w, func() uint32 { return 3 })
		w.dial("")
		if len(w.intros) != 1 {
			t.Errorf("%d introductions", len(w.intros))
		}
	})
	run(t, 30, func(w *world) { // it has become more
		set(w, 0)
		n := uint32(0)
		check(w, func() uint32 { n++; return min(4*n, 8) })
		w.dial("")
		if len(w.intros) != 3 {
			t.Errorf("%d introductions", len(w.intros))
		}
		for _, id := range w.intros {
			if id != w.intros[0] {
				t.Error("another point was asked")
			}
		}
	})
	run(t, 30, func(w *world) { // it never ends
		set(w, 0)
		n := uint32(1)
		check(w, func() uint32 { n *= 8; return n })
		w.fails(IntroductionFailed)
		if len(w.intros) > 3*maxProofs {
			t.Errorf("%d introductions", len(w.intros))
		}
	})
	run(t, 30, func(w *world) { // more than this machine does in ten seconds
		set(w, 1_000_000)
		w.fails(IntroductionFailed)
		if len(w.intros) != 0 {
			t.Errorf("%d introductions", len(w.intros))
		}
	})
}

// TestWorkOldSeed: when the seed of a descriptor in use is too old, the work is not done again and again: the descriptor is fetched.
func TestWorkOldSeed(t *testing.T) {
	run(t, 30, func(w *world) {
		w.v.pow.rate = 5
		seed := func(b byte, revision uint64) {
			for _, p := range w.points {
				p.Effort, p.Seed = 3, [32]byte{b}
			}
			w.publish(w.period(), revision)
		}
		seed(7, 1)
		w.handle = func(p *point, proof work.Proof, sealed []byte) (cell.IntroduceStatus, uint32) {
			a := work.Ask{Effort: p.Effort, Seed: p.Seed}
			switch err := a.Check(&proof, (*[32]byte)(&p.Key), sealed); {
			case errors.Is(err, work.ErrSeed):
				return cell.IntroduceWork, a.Effort
			case err != nil:
				w.Error(err)
			}
			return cell.IntroducePassed, 0
		}
		w.dial("")
		w.v.sites[siteKey{"", w.address}].session.circ.Close()
		w.counts()
		seed(8, 2)
		w.dial("")
		if _, d, i := w.counts(); d != 1 || i != 2 {
			t.Errorf("%d HSDirs, %d introductions", d, i)
		}
	})
}

// TestRateMeasured: the speed of this machine is measured when it is needed.
func TestRateMeasured(t *testing.T) {
	var p pow
	rate, err := p.measure(t.Context(), 1)
	if err != nil || rate <= 0 || p.rate != rate {
		t.Errorf("%v, %v", rate, err)
	}
}

// TestPointsOld: when a relay gives an old descriptor of the period, whose points are gone, others are asked for a newer one.
func TestPointsOld(t *testing.T) {
	run(t, 30, func(w *world) {
		old := w.publish(w.period(), 1)
		w.newPoints(3)
		w.publish(w.period(), 2)
		n := 0
		for i := range w.cons.Relays {
			w.dirs[w.cons.Relays[i].Identity] = func() ([]byte, int, time.Duration) {
				if n++; n == 1 {
					return old, http.StatusOK, tripTime
				}
				return nil, 0, 0
			}
		}
		w.dial("")
		if _, d, _ := w.counts(); d != 2 {
			t.Errorf("%d HSDirs were asked", d)
		}
	})
}
