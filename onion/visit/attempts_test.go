package visit

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/onion/work"
)

// comes has the service come so much later to the rendezvous of each introduction, in order, and never after those.
func (w *world) comes(late ...time.Duration) {
	n := 0
	w.late = func() time.Duration {
		w.mu.Lock()
		defer w.mu.Unlock()
		if n++; n <= len(late) {
			return late[n-1]
		}
		return -1
	}
}

// TestLost: when the service was told and does not come, a second attempt is made beside the first, by other relays, and the one
// that it comes to first is taken. Of the other nothing is left.
func TestLost(t *testing.T) {
	const never = -1
	first := 3*(extendTime+tripTime) + comeTime // descriptor, introduction, stream
	for _, x := range []struct {
		name  string
		late  []time.Duration
		least time.Duration
		intro int
	}{
		{"at once", []time.Duration{0}, 0, 1},
		{"somewhat late", []time.Duration{hurryTime - time.Second}, hurryTime - time.Second, 1},
		{"the first is lost", []time.Duration{never, 0}, hurryTime, 2},
		{"the second is lost", []time.Duration{hurryTime + time.Second, never}, hurryTime + time.Second, 2},
		{"the second is late", []time.Duration{hurryTime + time.Second, time.Second}, hurryTime + time.Second, 2},
		{"the first is late", []time.Duration{joinTime - time.Second, 0}, hurryTime, 2},
	} {
		t.Run(x.name, func(t *testing.T) {
			run(t, 30, func(w *world) {
				w.publish(w.period(), 1)
				w.comes(x.late...)
				began := time.Now()
				w.dial("")
				if d := time.Since(began); d < x.least || d > x.least+2*first {
					t.Errorf("it took %v", d)
				}
				if len(w.intros) != x.intro || len(w.meets) != x.intro {
					t.Errorf("%d introductions, %d rendezvous", len(w.intros), len(w.meets))
				}
				if len(w.intros) == 2 && len(w.meets) == 2 && (w.intros[0] == w.intros[1] || w.meets[0] == w.meets[1]) {
					t.Error("the second attempt goes by the relays of the first")
				}
				time.Sleep(2 * joinTime)
				synctest.Wait()
				if s := w.v.Status(); w.open != 1 || s.Joined != 1 || s.Meeting != 0 {
					t.Errorf("%d circuits, %+v", w.open, s)
				}
			})
		})
	}
}

// TestLostOnePoint: a service with one introduction point is told by it again.
func TestLostOnePoint(t *testing.T) {
	run(t, 30, func(w *world) {
		w.newPoints(1)
		w.publish(w.period(), 1)
		w.comes(-1, 0)
		began := time.Now()
		w.dial("")
		if d := time.Since(began); d > hurryTime+time.Second || len(w.intros) != 2 {
			t.Errorf("%d introductions, %v", len(w.intros), d)
		}
	})
}

// TestLostAll: there are never more than two attempts at a time, and three in all.
func TestLostAll(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.absent = true
		most := 0
		go func() {
			for range int(2 * joinTime / time.Second) {
				time.Sleep(time.Second)
				w.mu.Lock()
				most = max(most, w.open)
				w.mu.Unlock()
			}
		}()
		w.fails(RendezvousFailed)
		if most != 2*maxAttempts { // each has a circuit to a rendezvous point and one to an introduction point
			t.Errorf("%d circuits at a time", most)
		}
		if len(w.meets) != maxRendezvous || len(w.intros) != maxRendezvous {
			t.Errorf("%d rendezvous, %d introductions", len(w.meets), len(w.intros))
		}
	})
}

// TestLostAlone: when the second attempt comes to nothing, the first is waited for all the same.
func TestLostAlone(t *testing.T) {
	run(t, 30, func(w *world) { // no second circuit is to be had
		w.publish(w.period(), 1)
		w.comes(2 * hurryTime)
		go func() {
			time.Sleep(hurryTime / 2)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.down = errors.New("no guard answers")
		}()
		began := time.Now()
		w.dial("")
		if d := time.Since(began); d < 2*hurryTime || d > 2*hurryTime+time.Second {
			t.Errorf("it took %v", d)
		}
	})
	run(t, 30, func(w *world) { // the other points know nothing of the service any more
		w.publish(w.period(), 1)
		w.comes(2 * hurryTime)
		n := 0
		w.handle = func(*point, work.Proof, []byte) (cell.IntroduceStatus, uint32) {
			if n++; n == 1 {
				return cell.IntroducePassed, 0
			}
			return cell.IntroduceUnknown, 0
		}
		began := time.Now()
		w.dial("")
		if d := time.Since(began); d < 2*hurryTime || d > 2*hurryTime+time.Second {
			t.Errorf("it took %v", d)
		}
		if len(w.intros) > maxIntroductions {
			t.Errorf("%d introductions", len(w.intros))
		}
	})
}

// TestLostWork: a service that asks for work has much to do, and is not told twice meanwhile.
func TestLostWork(t *testing.T) {
	run(t, 30, func(w *world) {
		w.v.pow.rate = 5
		for _, p := range w.points {
			p.Effort, p.Seed = 1, [32]byte{7}
		}
		w.publish(w.period(), 1)
		w.comes(joinTime - time.Second)
		w.dial("")
		if len(w.intros) != 1 || len(w.meets) != 1 {
			t.Errorf("%d introductions, %d rendezvous", len(w.intros), len(w.meets))
		}
	})
}

// TestLostClosed: Close ends both attempts.
func TestLostClosed(t *testing.T) {
	run(t, 30, func(w *world) {
		w.publish(w.period(), 1)
		w.absent = true
		go func() {
			time.Sleep(hurryTime + time.Second)
			w.v.Close()
		}()
		w.fails(ErrClosed)
	})
}
