package service

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
)

// ring returns the relays that should hold a service's descriptor in a period.
func (n *fakeNet) ring(a onion.Address, period uint64) []identity.ID {
	n.t.Helper()
	blinded, err := onion.Blind(a, "test", period)
	if err != nil {
		n.t.Fatal(err)
	}
	return newView(n.Current()).targets(blinded, period)
}

// TestPublish: at once, and at exactly the relays of both periods' rings, with all points and two periods' keys.
func TestPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 40)
		n.wait = time.Second
		s := n.start(Config{})
		ready(t, s)
		after(10 * time.Second)
		run := runOf(time.Now())
		for _, period := range []uint64{run, run - 1} {
			want := n.ring(s.Address(), period)
			if len(want) != 8 {
				t.Fatalf("a ring of %d relays, want 2 replicas of 4", len(want))
			}
			d, err := n.newest(s.Address(), period)
			if err != nil {
				t.Fatal(err)
			}
			relays := map[identity.ID]bool{}
			for _, p := range d.Points {
				relays[p.Relay] = true
			}
			if len(d.Points) != 3 || len(relays) != 3 || d.SingleHop || d.Lifetime != 3*time.Hour {
				t.Errorf("the descriptor has %d points at %d relays, single hop %v, lifetime %v", len(d.Points), len(relays), d.SingleHop, d.Lifetime)
			}
			for id := range n.dirs {
				var got int
				for _, u := range n.uploads(id) {
					if u.period == period {
						got++
					}
				}
				if wanted := slices.Contains(want, id); wanted != (got > 0) {
					t.Errorf("a relay on the ring (%v) has got %d descriptors", wanted, got)
				}
			}
		}
		if now := time.Since(n.find(func(*fakeCircuit) bool { return true })[0].made); now > 20*time.Second {
			t.Errorf("publication took %v", now)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); !errors.Is(err, ErrClosed) {
			t.Errorf("the second Close: %v", err)
		}
		if open := n.find(func(c *fakeCircuit) bool { return !c.closed() }); len(open) > 0 {
			t.Errorf("%d circuits are open after Close", len(open))
		}
	})
}

// TestRefresh: each relay gets the descriptor anew when half of its lifetime is over or somewhat before, each at a time of its
// own, and revisions rise.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 40)
		s := n.start(Config{})
		ready(t, s)
		after(6 * time.Hour)
		times := map[time.Time]bool{}
		for _, id := range n.ring(s.Address(), runOf(time.Now())) {
			ups := n.uploads(id)
			ups = slices.DeleteFunc(ups, func(u fakeUpload) bool { return u.period != runOf(time.Now()) })
			if len(ups) < 4 || len(ups) > 6 {
				t.Errorf("%d uploads in 6 hours, want one in 67 to 90 minutes", len(ups))
			}
			for i, u := range ups[1:] {
				gap := u.at.Sub(ups[i].at)
				if gap < 3*time.Hour*3/8 || gap > 3*time.Hour/2 || u.status != http.StatusOK {
					t.Errorf("the next upload came after %v: %d", gap, u.status)
				}
				times[u.at] = true
			}
		}
		if len(times) < 30 {
			t.Errorf("uploads came at %d times", len(times))
		}
	})
}

// TestRingChanges: when relays come and go, those that are on the ring now have the descriptor within a minute.
func TestRingChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 40)
		s := n.start(Config{})
		ready(t, s)
		before := n.ring(s.Address(), runOf(time.Now()))
		relays := slices.Clone(n.Current().Relays)
		for i := range 40 {
			relays = append(relays, newFakeRelay(t, 40+i))
		}
		relays = slices.DeleteFunc(relays, func(r directory.Relay) bool { return r.Identity == before[0] })
		n.publish(relays)
		after(62 * time.Second)
		now := n.ring(s.Address(), runOf(time.Now()))
		if slices.Equal(before, now) {
			t.Fatal("the ring has not changed")
		}
		for _, id := range now {
			if len(n.uploads(id)) == 0 {
				t.Error("a relay that came onto the ring has no descriptor")
			}
		}
		for _, id := range before {
			if got := len(n.uploads(id)); slices.Contains(now, id) && got > 2 {
				t.Errorf("a relay that stayed got %d descriptors", got)
			}
		}
	})
}

// TestPeriodChanges: with the consensus of a new period the descriptor of that is published too, and clients of both find it.
func TestPeriodChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 40)
		s := n.start(Config{})
		ready(t, s)
		run := runOf(time.Now())
		after(time.Until(PeriodStart(interval, run+1)) + 30*time.Minute) // the clock alone changes nothing
		if _, err := n.newest(s.Address(), run+1); err == nil {
			t.Error("a service goes by its clock, and not by its consensus")
		}
		n.publish(n.Current().Relays)
		after(30 * time.Minute)
		for _, period := range []uint64{run, run + 1} {
			for _, id := range n.ring(s.Address(), period) {
				if !slices.ContainsFunc(n.uploads(id), func(u fakeUpload) bool { return u.period == period }) {
					t.Errorf("a relay of period %+d has no descriptor", int(period-run))
				}
			}
		}
		d, err := n.newest(s.Address(), run-1)
		if err != nil {
			t.Fatal(err)
		}
		// A client with an old descriptor is still met, and after its lifetime not.
		v := n.visitor(s.Address(), d, 0, run-1, n.Current().Relays[0].Identity)
		v.introduce()
		if v.meeting() == nil {
			t.Error("a client with the descriptor of two periods ago is not met half an hour later")
		}
		after(3 * time.Hour)
		v = n.visitor(s.Address(), d, 1, run-1, n.Current().Relays[0].Identity)
		v.introduce()
		if v.meeting() != nil {
			t.Error("a client with the descriptor of two periods ago is met after the end of its life")
		}
	})
}

// TestNewerDescriptor: where relays hold a newer descriptor, because the clock was ahead before, it is caught up with, and told of.
func TestNewerDescriptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		key := newKey(t)
		a, run := onion.AddressOf(key.ID()), runOf(time.Now())
		from, to := KeyTimes(interval, run)
		k, err := onion.NewPeriodKey(key, "test", run, from, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		ahead := time.Since(PeriodStart(interval, run)) + 17*time.Hour
		for _, id := range n.ring(a, run) {
			n.dir(id, func(d *fakeDir) { d.held[k.Blinded] = onion.Revision(k, ahead, 24*time.Hour) })
		}
		s := n.start(Config{Identity: key})
		after(10 * time.Minute)
		if st := s.Status(); !st.Ready {
			t.Errorf("it is not published after 10 minutes: %s", st.Problem)
		}
		for _, id := range n.ring(a, run) {
			if !slices.ContainsFunc(n.uploads(id), func(u fakeUpload) bool { return u.period == run && u.status == http.StatusOK }) {
				t.Error("a relay has none of its descriptors")
			}
		}
		if got := strings.Count(n.logged(), "relays hold a newer"); got != 1 {
			t.Errorf("it was told of %d times, want once", got)
		}
	})
}

// TestNewerLiar: one relay that says that it holds a newer descriptor does not drive revisions ahead of the clock, so that after a
// restart, which knows nothing of them, every other relay takes the descriptor at once.
func TestNewerLiar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		key := newKey(t)
		ring := n.ring(onion.AddressOf(key.ID()), runOf(time.Now()))
		n.dir(ring[0], func(d *fakeDir) { d.status = http.StatusConflict })
		s := n.start(Config{Identity: key})
		ready(t, s)
		after(2 * time.Hour)
		s.Close()
		before := len(n.uploads(ring[1]))
		ready(t, n.start(Config{Identity: key}))
		after(20 * time.Second)
		if ups := n.uploads(ring[1]); len(ups) == before || ups[before].status != http.StatusOK {
			t.Errorf("an honest relay answers the first upload after a restart with %d", ups[before].status)
		}
	})
}

// TestUploadRetries: a relay that does not take it is asked again, ever more rarely, and the rest are enough to be ready.
func TestUploadRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 30)
		key := newKey(t)
		bad := n.ring(onion.AddressOf(key.ID()), runOf(time.Now()))[3]
		n.dir(bad, func(d *fakeDir) { d.status = http.StatusInternalServerError })
		s := n.start(Config{Identity: key})
		ready(t, s)
		after(time.Hour)
		ups := slices.DeleteFunc(n.uploads(bad), func(u fakeUpload) bool { return u.period != runOf(u.at) })
		if len(ups) < 7 || len(ups) > 18 {
			t.Fatalf("a relay that failed was asked %d times in an hour", len(ups))
		}
		if first := ups[1].at.Sub(ups[0].at); first > time.Second {
			t.Errorf("it was tried again after %v, want at once", first)
		}
		st := s.Status()
		var seen bool
		for _, p := range st.Periods {
			for _, u := range p.Uploads {
				seen = seen || u.Relay == bad && p.Current && u.Age < 0 && u.Problem != ""
			}
		}
		if !seen {
			t.Errorf("the status does not show the relay that fails: %+v", st.Periods)
		}
		n.dir(bad, func(d *fakeDir) { d.status = 0 })
		after(25 * time.Minute)
		if got := n.uploads(bad); got[len(got)-1].status != http.StatusOK {
			t.Error("it was not tried again when the relay had recovered")
		}
	})
}

// TestPreparedKeys: a service with its identity offline lives as long as its keys, and warns before they end.
func TestPreparedKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		key, run := newKey(t), runOf(time.Now())
		network := &directory.Network{Name: "test", Interval: interval}
		keys, err := Prepare(key, network, run, 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := n.start(Config{Keys: keys})
		ready(t, s)
		if s.Address() != onion.AddressOf(key.ID()) {
			t.Error("it has another address")
		}
		if !strings.Contains(n.logged(), "end soon") {
			t.Error("it did not warn that its keys end soon")
		}
		after(24 * time.Hour)
		n.publish(n.Current().Relays)
		after(30 * time.Minute)
		if _, err := n.newest(s.Address(), run+1); err != nil {
			t.Errorf("the second period: %v", err)
		}
		after(24 * time.Hour)
		n.publish(n.Current().Relays)
		after(time.Minute)
		if st := s.Status(); st.Ready || !strings.Contains(st.Problem, "cepa onion keys prepare") {
			t.Errorf("after the end of its keys, ready is %v and the problem %q", st.Ready, st.Problem)
		}
		after(3 * time.Hour) // what is uploaded for clients with an old consensus is no solution
		if st := s.Status(); st.Ready || !strings.Contains(st.Problem, "cepa onion keys prepare") {
			t.Errorf("three hours later, ready is %v and the problem %q", st.Ready, st.Problem)
		}

		// One that starts without a key says so at once.
		late := n.start(Config{Keys: keys})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := late.Ready(ctx); !errors.Is(err, ErrNoKey) || !errors.Is(err, ErrNotReady) {
			t.Errorf("Ready without a key: %v", err)
		}
	})
}

// TestClients: only who is let in reads the descriptor; who is left out later cannot use what it has read either.
func TestClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet(t, 20)
		alice, err := onion.NewClientSecret(nil)
		if err != nil {
			t.Fatal(err)
		}
		bob, err := onion.NewClientSecret(nil)
		if err != nil {
			t.Fatal(err)
		}
		s := n.start(Config{Clients: []onion.ClientKey{alice.Key(), bob.Key()}})
		ready(t, s)
		run := runOf(time.Now())
		if _, err := n.newest(s.Address(), run); !errors.Is(err, onion.ErrAuthNeeded) {
			t.Errorf("a client without a key: %v", err)
		}
		old, err := n.newest(s.Address(), run, bob)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetClients([]onion.ClientKey{alice.Key()}); err != nil {
			t.Fatal(err)
		}
		after(15 * time.Minute)
		now, err := n.newest(s.Address(), run, alice)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range old.Points {
			if slices.ContainsFunc(now.Points, func(q onion.Point) bool { return q.Key == p.Key }) {
				t.Error("a point that bob knows is still used")
			}
			if slices.ContainsFunc(n.points(), func(c *fakeCircuit) bool { return c.intro.Key == [32]byte(p.Key) }) {
				t.Error("a point that bob knows still stands")
			}
		}
		for _, id := range n.ring(s.Address(), run) {
			ups := n.uploads(id)
			if _, err := onion.OpenDescriptor(ups[len(ups)-1].doc, "test", s.Address(), ups[len(ups)-1].period, time.Now(), []*onion.ClientSecret{bob}); !errors.Is(err, onion.ErrAuthWrong) {
				t.Errorf("bob opens the new descriptor: %v", err)
			}
		}
	})
}
