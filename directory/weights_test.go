package directory

import (
	"fmt"
	"net/netip"
	"testing"

	"cepa/crypto/identity"
)

// weighed returns relays that differ in name, address and stated rate only; they are signed by one key each, as cheaply as can be.
func weighed(t testing.TB, name string, n int, change func(i int, d *Descriptor)) []*Descriptor {
	t.Helper()
	list := make([]*Descriptor, n)
	for i := range list {
		d := testDescriptor(t, 0)
		who := fmt.Sprint(name, " ", i)
		d.Identity = newParty(t, who, identity.PurposeDescriptor).id
		d.Addresses = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(20 + i>>8), byte(i), 0, 1}), 9001)}
		d.BandwidthRate, d.Extra = 1000, Extra{}
		change(i, d)
		list[i] = signedDescriptor(t, d, who)
	}
	return list
}

// TestSybils: a thousand relays that come in one period, from ten /16s, eight on each address, have at most five hundredths of the weight until they are
// measured, whatever they state and whatever one malicious authority of four says for them.
func TestSybils(t *testing.T) {
	network, parties := testNetwork(t, 4)
	old := weighed(t, "old", 200, func(i int, d *Descriptor) { d.BandwidthRate = uint64(100 + 37*i) })
	sybils := weighed(t, "sybil", 1000, func(i int, d *Descriptor) {
		place := i / 8
		d.Addresses = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{60, byte(place % 10), byte(place / 10), 1}), uint16(9001+i%8))}
		d.BandwidthRate = MaxWeight
	})
	sybil := make(map[identity.ID]bool)
	for _, d := range sybils {
		sybil[d.Identity] = true
	}
	compute := func(change func(authority, relay int, e *VoteEntry)) (ofSybils, all uint64, count int) {
		t.Helper()
		var votes []*Vote
		for a, p := range parties {
			v := testVote(network, p, nil)
			add := func(i int, d *Descriptor, flags Flags) {
				e := VoteEntry{Descriptor: d, Flags: FlagRunning | FlagValid | flags, Weight: min(d.BandwidthRate, 10_000)}
				change(a, i, &e)
				v.Entries = append(v.Entries, e)
			}
			for i, d := range old {
				add(i, d, FlagStable)
			}
			for _, d := range sybils {
				add(-1, d, 0)
			}
			sortEntries(v)
			votes = append(votes, v)
		}
		c, err := Compute(votes, network)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.Relays {
			all += r.Weight
			if sybil[r.Identity] {
				ofSybils += r.Weight
				count++
			}
		}
		return ofSybils, all, count
	}
	measure := func(upTo int) func(a, i int, e *VoteEntry) {
		return func(a, i int, e *VoteEntry) {
			if i >= 0 && i < upTo {
				e.Measured = e.Weight
			}
			if a == 3 && i < 0 { // the malicious one
				e.Measured, e.Weight, e.Flags = MaxWeight, MaxWeight, AllFlags
			}
		}
	}
	for _, c := range []struct {
		name     string
		measured int // of the 200
	}{{"nothing measured", 0}, {"a part measured", 100}, {"nearly all measured", 190}, {"all measured", 200}} {
		got, all, count := compute(measure(c.measured))
		if count != len(sybils) || all == 0 || got*100 > all*5 {
			t.Errorf("%s: %d sybils have %d of %d", c.name, count, got, all)
		}
		if got*100 < all*4 {
			t.Errorf("%s: newcomers have %d of %d: less than they may", c.name, got, all)
		}
	}
	// Those that stayed, and are stable by now, are no better off where the others are measured.
	got, all, _ := compute(func(a, i int, e *VoteEntry) {
		measure(190)(a, i, e)
		e.Flags |= FlagStable
	})
	if got*100 > all*5 {
		t.Errorf("after long, still unmeasured: %d of %d", got, all)
	}
	// Once measured, they have what they were measured at.
	got, all, _ = compute(func(_, _ int, e *VoteEntry) { e.Measured = 50 })
	if got != 1000*50 || all != 1200*50 {
		t.Errorf("measured like all others: %d of %d", got, all)
	}
	// And where nobody was there before, nobody is a newcomer.
	got, all, _ = compute(func(_, _ int, e *VoteEntry) { e.Flags &^= FlagStable })
	if got < 900*10_000 || all <= got {
		t.Errorf("in the first consensus: %d of %d", got, all)
	}
}

// TestUnmeasuredStable: where three quarters of the stable relays are measured, the others count as newcomers; before that they keep their weight.
func TestUnmeasuredStable(t *testing.T) {
	network, parties := testNetwork(t, 4)
	relays := weighed(t, "relay", 20, func(int, *Descriptor) {})
	for measured, want := range map[int]uint64{0: 20_000, 14: 20_000, 15: 15_000 + 5*(15_000*5/95)/5, 20: 20_000} {
		var votes []*Vote
		for _, p := range parties {
			v := testVote(network, p, nil)
			for i, d := range relays {
				e := VoteEntry{Descriptor: d, Flags: FlagRunning | FlagValid | FlagStable, Weight: 1000}
				if i < measured {
					e.Measured = 1000
				}
				v.Entries = append(v.Entries, e)
			}
			sortEntries(v)
			votes = append(votes, v)
		}
		c, err := Compute(votes, network)
		if err != nil {
			t.Fatal(err)
		}
		var all uint64
		for _, r := range c.Relays {
			all += r.Weight
		}
		if all > want || all+5 < want {
			t.Errorf("%d of 20 measured: the weights sum up to %d, want %d", measured, all, want)
		}
	}
}

// TestCombinedWeight: what a relay is measured at bounds its weight from above, with a third to spare for what it says it carried; what it
// promises does too.
func TestCombinedWeight(t *testing.T) {
	day := func(kbps uint64) uint64 { return kbps*1000*24*3600/HistoryUnit + 2 } // rounded up, and one more that is left out again
	for _, c := range []struct {
		name                    string
		measured, rate, carried uint64
		want                    uint64
	}{
		{"as it promises", 1000, 1000, 0, 1000},
		{"more than it promises", 1200, 1000, 0, 1000},
		{"less than it promises", 800, 1000, 0, 800},
		{"states a hundred times", 1000, 100_000, 0, 1000},
		{"carried more than was left to measure", 900, 100_000, 1000, 1000},
		{"carried less than measured", 900, 100_000, 500, 900},
		{"says it carried a hundred times", 900, 100_000, 90_000, 1200},
		{"and promises less", 900, 1100, 90_000, 1100},
		{"hardly anything", 1, 1000, 1000, 1},
		{"the most", MaxWeight, MaxWeight, 0, MaxWeight},
	} {
		d := &Descriptor{BandwidthRate: c.rate}
		if c.carried > 0 {
			d.Extra.History = []DayUse{{1, 1}, {day(c.carried), 2 * day(c.carried)}}
		}
		got := CombinedWeight(c.measured, d)
		if got < c.want || got > c.want+4 && got != c.want { // a unit of history is 3 KB/s
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	for x := range uint64(1000) {
		for _, y := range []uint64{0, 1, 500, maxDayUnits} {
			d := &Descriptor{BandwidthRate: MaxWeight, Extra: Extra{History: []DayUse{{y, y}}}}
			if w := CombinedWeight(x, d); w < x || 3*w > 4*x {
				t.Fatalf("measured at %d: weight %d, outside of x to 4/3 x", x, w)
			}
		}
	}
}

// TestMeasuredRange: with f < n/3 malicious authorities, a relay that was measured has a weight within what the others have measured; fewer
// measurements than 2f+1 do not count.
func TestMeasuredRange(t *testing.T) {
	random := &testRand{}
	for _, n := range []int{1, 4, 5, 7, 10, 31} {
		network, parties := testNetwork(t, n)
		faults := (n - 1) / 3
		d := weighed(t, "relay", 1, func(_ int, d *Descriptor) { d.BandwidthRate = MaxWeight })[0]
		for range 200 {
			var votes []*Vote
			lo, hi, count := uint64(MaxWeight), uint64(0), 0
			lie := []uint64{0, 1, MaxWeight}[random.intn(3)]
			likely := random.intn(9)
			for i, p := range parties {
				e := VoteEntry{Descriptor: d, Flags: FlagRunning | FlagValid, Weight: 7}
				switch {
				case i < faults:
					e.Measured = lie
				case random.intn(8) < likely:
					e.Measured = uint64(100 + random.intn(100))
					lo, hi = min(lo, e.Measured), max(hi, e.Measured)
				}
				if e.Measured > 0 {
					count++
				}
				v := testVote(network, p, nil)
				v.Entries = []VoteEntry{e}
				votes = append(votes, v)
			}
			c, err := Compute(votes, network)
			if err != nil {
				t.Fatal(err)
			}
			got := c.Relays[0].Weight
			if count < 2*faults+1 {
				lo, hi = 7, 7
			}
			if got < lo || got > hi {
				t.Fatalf("n=%d: %d measurements, weight %d is outside of %d…%d", n, count, got, lo, hi)
			}
		}
	}
}
