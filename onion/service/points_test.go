package service

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
)

// TestPointsByWeight: points are chosen by weight, distinct, and not of relays that are unfit.
func TestPointsByWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 12)
		relays := slices.Clone(n.Current().Relays)
		heavy, middle := relays[0].Identity, relays[1].Identity
		relays[0].Weight = 20000
		relays[1].Flags |= directory.FlagMiddleOnly
		relays[2].Flags &^= directory.FlagStable
		relays[3].Flags &^= directory.FlagRunning
		n.publish(relays)
		count := map[identity.ID]int{}
		s := n.start(Config{Points: 8})
		ready(t, s)
		seen := map[identity.ID]bool{}
		for _, p := range s.Status().Points {
			if seen[p.Relay] {
				t.Error("two points at one relay")
			}
			seen[p.Relay] = true
			count[p.Relay]++
		}
		s.mu.Lock()
		points := s.points
		s.points = nil // as if there were none, while no time passes
		s.mu.Unlock()
		for range 40 {
			r, err := s.pick(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			count[r.Identity]++
		}
		s.mu.Lock()
		s.points = points
		s.mu.Unlock()
		for _, id := range []identity.ID{middle, relays[2].Identity, relays[3].Identity} {
			if count[id] > 0 {
				t.Errorf("a relay that is unfit was chosen %d times", count[id])
			}
		}
		if count[heavy] < 20 {
			t.Errorf("the relay with most of the weight was chosen %d times of 40", count[heavy])
		}
	})
}

// TestPointKilled: a point that is lost is replaced at once, by another relay, and clients learn of it within half a minute.
func TestPointKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		n.wait = 2 * time.Second
		s := n.start(Config{})
		ready(t, s)
		after(10 * time.Minute)
		lost := n.points()[1]
		lost.Close()
		after(3 * time.Second)
		points := n.points()
		if len(points) != 3 {
			t.Fatalf("%d points after a loss, want 3", len(points))
		}
		for _, p := range points {
			if p.to.Relay == lost.to.Relay {
				t.Error("the relay that was lost is a point again")
			}
		}
		after(30 * time.Second)
		for _, period := range []uint64{runOf(time.Now()), runOf(time.Now()) - 1} {
			for _, id := range n.ring(s.Address(), period) {
				ups := slices.DeleteFunc(n.uploads(id), func(u fakeUpload) bool { return u.period != period })
				d, err := onion.OpenDescriptor(ups[len(ups)-1].doc, "test", s.Address(), period, time.Now(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if len(d.Points) != 3 || slices.ContainsFunc(d.Points, func(p onion.Point) bool { return p.Key == lost.intro.Key }) {
					t.Error("a relay still has the descriptor with the lost point")
				}
			}
		}
	})
}

// TestPointBackoff: where no point can be established, it is tried at once, and then ever more rarely, up to each half a minute,
// since nobody reaches the service; and it recovers.
func TestPointBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		var count atomic.Int32
		n.refuse = func(h Hop) error {
			count.Add(1)
			return errors.New("there is no way")
		}
		s := n.start(Config{Points: 1})
		after(time.Second / 2)
		if tries := count.Load(); tries != 2 {
			t.Errorf("%d tries at once, want 2", tries)
		}
		after(time.Hour)
		if tries := count.Load(); tries < 120 || tries > 130 {
			t.Errorf("%d tries in an hour", tries)
		}
		if st := s.Status(); st.Ready || st.Problem == "" {
			t.Errorf("without points, status says %+v", st)
		}
		n.mu.Lock()
		n.refuse = nil
		n.mu.Unlock()
		after(pointRetryMax + time.Minute)
		if !s.Status().Ready {
			t.Error("it did not recover")
		}
	})
}

// TestPointAges: after 18 to 24 hours each point is replaced, and the old one stands until the new descriptor is everywhere.
func TestPointAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s := n.start(Config{})
		ready(t, s)
		old := n.points()
		for range 26 { // as authorities do
			after(time.Hour)
			n.publish(n.Current().Relays)
		}
		lives := map[time.Duration]bool{}
		for _, c := range old {
			if !c.closed() {
				t.Fatal("a point lived for more than 26 hours")
			}
			life := c.endedAt.Sub(c.made)
			lives[life] = true
			if life < pointLifeMin || life > pointLifeMax+retiredMost {
				t.Errorf("a point lived for %v", life)
			}
			// At its end, every relay had a descriptor without it.
			for _, period := range []uint64{runOf(c.endedAt), runOf(c.endedAt) - 1} {
				for _, id := range n.ring(s.Address(), period) {
					ups := slices.DeleteFunc(n.uploads(id), func(u fakeUpload) bool { return u.period != period || u.at.After(c.endedAt) })
					if len(ups) == 0 {
						continue // it is of the next period, and gets its first one later
					}
					d, err := onion.OpenDescriptor(ups[len(ups)-1].doc, "test", s.Address(), period, c.endedAt, nil)
					if err != nil {
						t.Fatal(err)
					}
					if slices.ContainsFunc(d.Points, func(p onion.Point) bool { return p.Key == c.intro.Key }) {
						t.Errorf("a point was given up %v before a relay had another descriptor", life)
					}
				}
			}
		}
		if len(lives) != 3 {
			t.Errorf("points lived for %v: not each for a time of its own", lives)
		}
		if got := len(n.points()); got != 3 {
			t.Errorf("%d points stand, want 3", got)
		}
	})
}

// TestPointUsedUp: so does one that has passed on as many introductions as it may, and what it passes on is bounded.
func TestPointUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		s := n.start(Config{Points: 1, IntroRate: -1})
		ready(t, s)
		s.mu.Lock()
		p := s.points[0]
		if p.uses < pointUsesMin || p.uses > pointUsesMax {
			t.Errorf("a point is good for %d introductions", p.uses)
		}
		p.uses = 5
		s.mu.Unlock()
		run := runOf(time.Now())
		d, err := n.newest(s.Address(), run)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			n.visitor(s.Address(), d, 0, run, n.Current().Relays[0].Identity).introduce()
		}
		after(time.Minute)
		if now := n.points(); len(now) != 1 || now[0].intro.Key == [32]byte(d.Points[0].Key) {
			t.Error("a point that was used up was not replaced")
		}
	})
}
