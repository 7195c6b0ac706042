package probe

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// fileStore is a store with one file.
type fileStore struct{ file []byte }

func (s *fileStore) Read(string, int64) ([]byte, error) {
	if s.file == nil {
		return nil, fs.ErrNotExist
	}
	return s.file, nil
}

func (s *fileStore) Write(_ string, data []byte) error {
	s.file = data
	return nil
}

// measuring returns a prober that measures, of a network with one authority.
func measuring(t *testing.T, store Store) *Prober {
	t.Helper()
	self := identity.ID{1}
	p, err := New(Config{
		Network: &directory.Network{Interval: time.Hour, Authorities: []directory.Authority{{Identity: self}}}, Self: self,
		Store: store, Measure: &Measure{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestMeasuredIsKept: a measurement survives a restart, counts for four times the time between two, and not for an authority that does not measure any more.
func TestMeasuredIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(fileStore)
		target := &directory.Relay{Identity: identity.ID{7}, Nickname: "x"}
		p := measuring(t, store)
		p.Watch(&directory.Descriptor{Identity: target.Identity, BandwidthRate: 1})
		r := p.relays[target.Identity]
		r.reached = true
		p.measure.note(target, 1234, nil)
		p.measure.note(target, 0, errNothing) // a failure takes nothing away
		p.save()
		for restart := range 2 {
			if o := p.Observed(target.Identity); o.Measured != 1234 {
				t.Errorf("after %d restarts: measured %d", restart, o.Measured)
			}
			p = measuring(t, store)
		}
		p.cfg.Now = func() time.Time { return time.Now().Add(keepMeasured*DefaultMeasureEvery + time.Minute) }
		if o := p.Observed(target.Identity); o.Measured != 0 {
			t.Errorf("after four days: measured %d", o.Measured)
		}
		p, err := New(Config{Network: p.cfg.Network, Store: store})
		if err != nil {
			t.Fatal(err)
		}
		if o := p.Observed(target.Identity); o.Measured != 0 {
			t.Errorf("without --measure: measured %d", o.Measured)
		}
	})
}

// TestWhoIsNext: who was never measured comes first, then who was measured longest ago and is due; relays at one address together; none twice at once, and
// in a small network only one.
func TestWhoIsNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := measuring(t, nil)
		m := p.measure
		c := &directory.Consensus{Interval: time.Hour, Period: uint64(time.Now().Unix() / 3600)}
		c.ValidAfter, c.FreshUntil, c.ValidUntil = time.Now(), time.Now().Add(time.Hour), time.Now().Add(48*time.Hour)
		for i := range 6 {
			id := identity.ID(sha256.Sum256(fmt.Append(nil, i)))
			host := []byte{10, 0, 0, byte(i)}
			if i == 5 {
				host[3] = 4 // the address of the one before
			}
			at := []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte(host)), uint16(9000+i))}
			c.Relays = append(c.Relays, directory.Relay{Identity: id, Addresses: at, Nickname: fmt.Sprint(i)})
			p.Watch(&directory.Descriptor{Identity: id, Addresses: at})
		}
		next := func() (names []string) {
			for _, r := range m.next(c) {
				names = append(names, r.Nickname)
			}
			slices.Sort(names)
			return names
		}
		done := func(names []string) {
			for i := range c.Relays {
				if slices.Contains(names, c.Relays[i].Nickname) {
					m.note(&c.Relays[i], 1, nil)
					p.relays[c.Relays[i].Identity].measured.busy = false
				}
			}
		}
		if m.next(nil) != nil {
			t.Error("without a consensus")
		}
		var order []string
		for range 5 {
			names := next()
			if len(names) == 0 || names[0] == "4" != (len(names) == 2) {
				t.Fatalf("next are %v", names)
			}
			if more := next(); more != nil {
				t.Fatalf("%v at once with %v", more, names)
			}
			done(names)
			order = append(order, names[0])
			time.Sleep(time.Minute)
		}
		if names := next(); names != nil {
			t.Errorf("%v again, though all were measured", names)
		}
		time.Sleep(24 * time.Hour)
		for i := range 5 {
			names := next()
			if len(names) == 0 || names[0] != order[i] {
				t.Errorf("the next day: %v, want %s: the order was %v", names, order[i], order)
			}
			done(names)
			time.Sleep(time.Minute)
		}
		// One that fails waits longer each time, and holds up nobody.
		for i, atLeast := range []time.Duration{20 * time.Minute, 40 * time.Minute, 80 * time.Minute} {
			r := p.relays[c.Relays[0].Identity]
			m.note(&c.Relays[0], 0, errNothing)
			if d := time.Until(r.measured.next); d < atLeast || d > 2*atLeast {
				t.Errorf("after failure %d: again in %v", i+1, d)
			}
		}
	})
}

// TestMeasureConfig: what tells nothing is refused.
func TestMeasureConfig(t *testing.T) {
	self := identity.ID{1}
	network := &directory.Network{Interval: time.Hour, Authorities: []directory.Authority{{Identity: self}}}
	for name, cfg := range map[string]Config{
		"too often":       {Network: network, Self: self, Measure: &Measure{Every: time.Second}},
		"too few bytes":   {Network: network, Self: self, Measure: &Measure{Bytes: 1000}},
		"too slow":        {Network: network, Self: self, Measure: &Measure{Rate: 1000}},
		"no authority":    {Network: network, Self: identity.ID{2}, Measure: &Measure{}},
		"without network": {Self: self},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
