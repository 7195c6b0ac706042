package client

import (
	"errors"
	"testing"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/relay"
)

// TestUnreachedHasBounds: what relays say of others is believed of few, and not for long.
func TestUnreachedHasBounds(t *testing.T) {
	t.Parallel()
	u, now := unreached{}, time.Now()
	at := func(hop, i int) error {
		return &hopError{hop, &directory.Relay{Identity: identity.ID{byte(i), byte(i >> 8), 1}}, cell.ExtendConnect}
	}
	for i := range 1000 {
		u.note(at(2, i), now)
		u.note(at(1, 5000+i), now) // guards have a list of their own
	}
	if len(u) != maxUnreached {
		t.Errorf("%d relays are left out", len(u))
	}
	u.note(errors.New("something else"), now)
	u.note(at(3, 2000), now.Add(unreachedFor))
	if len(u) != 1 {
		t.Errorf("%d relays are left out after their time", len(u))
	}
}

// TestUnreachedIsLearnt: one stream pays for a relay that is gone, and the others do not;
// a relay without which there is no path is tried all the same.
func TestUnreachedIsLearnt(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		var exits []func(*relay.Config)
		for range 6 {
			exits = append(exits, exit("9.9.9.9"))
		}
		_, outs := w.small(exits...)
		c := w.readyClient(nil)
		for _, o := range outs[1:] {
			o.halt()
		}
		time.Sleep(5 * time.Second) // meanwhile circuits are built ahead, and some fail
		for range 20 {
			w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
			for _, x := range table(c) {
				c.retire(x)
			}
		}
		before := built(c)
		for range 10 {
			w.dial(c, "example.org:80")
			for _, x := range table(c) {
				c.retire(x)
			}
		}
		if n := built(c) - before; n > 60 {
			t.Errorf("%d circuits were begun for ten streams", n)
		}
		outs[0].halt()
		began := time.Now()
		if _, err := c.Dial(w.within(time.Minute), "tcp", "example.org:80"); err == nil {
			t.Fatal("connected without exits")
		} else {
			t.Logf("after %v: %v", time.Since(began), err)
		}
		w.start(outs[0])
		w.must(roundTrip(w.dial(c, "example.org:80"), "hello"))
	})
}
