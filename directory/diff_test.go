package directory

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
)

// signedConsensus returns a consensus of the relays, signed and parsed.
func signedConsensus(t testing.TB, network *Network, parties []party, period uint64, relays []Relay, params Params) *Consensus {
	t.Helper()
	relays = slices.Clone(relays)
	slices.SortFunc(relays, func(a, b Relay) int { return a.Identity.Compare(b.Identity) })
	c := &Consensus{Network: network.Name, Interval: network.Interval, Period: period, Params: params, Relays: relays}
	c, err := VerifyConsensus(sealConsensus(encode(c.wire()), parties), network)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkDiff checks that the difference makes exactly the new document, and returns it.
func checkDiff(t testing.TB, network *Network, old, next *Consensus) []byte {
	t.Helper()
	b, err := Diff(old, next)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ApplyDiff(old, b, network, next.ValidAfter)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Raw(), next.Raw()) || !reflect.DeepEqual(got.Relays, next.Relays) || !slices.Equal(got.Signers, next.Signers) {
		t.Fatal("the difference makes another document")
	}
	return b
}

// diffCases are changes, each of one kind.
func diffCases(relays []Relay) map[string]func([]Relay) []Relay {
	one := func(change func(*Relay)) func([]Relay) []Relay {
		return func(r []Relay) []Relay {
			change(&r[0])
			change(&r[len(r)-1])
			return r
		}
	}
	return map[string]func([]Relay) []Relay{
		"nothing":       func(r []Relay) []Relay { return r },
		"all go":        func([]Relay) []Relay { return nil },
		"some go":       func(r []Relay) []Relay { return append(r[1:3:3], r[5:]...) },
		"some come":     func(r []Relay) []Relay { return append(r, relays[len(relays)-2:]...) },
		"come and go":   func(r []Relay) []Relay { return append(r[2:], relays[len(relays)-1]) },
		"weights":       one(func(r *Relay) { r.Weight += 1234 }),
		"lower weights": one(func(r *Relay) { r.Weight = 0 }),
		"high weights":  one(func(r *Relay) { r.Weight = MaxWeight }),
		"flags":         one(func(r *Relay) { r.Flags ^= FlagGuard | FlagHSDir }),
		"onion keys":    one(func(r *Relay) { r.OnionKey[31] ^= 1 }),
		"names":         one(func(r *Relay) { r.Nickname = "another" }),
		"suites":        one(func(r *Relay) { r.Suite = 3 - r.Suite }),
		"versions":      one(func(r *Relay) { r.Version = "9.9" }),
		"policies":      one(func(r *Relay) { r.Exit = PortPolicy{IPv4: []PortRange{{80, 80}}} }),
		"families":      one(func(r *Relay) { r.Family = []FamilyID{{9}, {10}} }),
		"addresses":     one(func(r *Relay) { r.Addresses = []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:99")} }),
		"all": one(func(r *Relay) {
			*r = Relay{r.Identity, [32]byte{1}, 1, "x", r.Addresses, r.Flags ^ FlagFast, 5, AllPorts(), nil, "1"}
		}),
	}
}

func testRelays(t testing.TB, n int) []Relay {
	network, parties := testNetwork(t, 1)
	return testConsensus(t, network, parties, n).Relays
}

// TestDiff: whatever changes, the difference makes the exact signed document, from any consensus to any other.
func TestDiff(t *testing.T) {
	network, parties := testNetwork(t, 4)
	all := testRelays(t, 12)
	base := all[:10]
	period := network.Period(epoch)
	old := signedConsensus(t, network, parties, period, base, Params{"a": 1})
	for name, change := range diffCases(all) {
		next := signedConsensus(t, network, parties[:3], period+1, change(slices.Clone(base)), Params{"b": -2})
		b := checkDiff(t, network, old, next)
		checkDiff(t, network, next, old) // backwards too: whether that is wanted is not for here
		t.Logf("%s: %d bytes", name, len(b))
	}
	empty := signedConsensus(t, network, parties, period+1, nil, nil)
	checkDiff(t, network, empty, old)
	checkDiff(t, network, empty, signedConsensus(t, network, parties, period+2, nil, nil))
}

// TestDiffRefuses: a difference that is for something else, altered, of another time or not in its one form makes nothing.
func TestDiffRefuses(t *testing.T) {
	network, parties := testNetwork(t, 4)
	all := testRelays(t, 6)
	period := network.Period(epoch)
	old := signedConsensus(t, network, parties, period, all[:5], nil)
	changed := slices.Clone(all[1:])
	changed[0].Weight, changed[1].Flags, changed[2].Nickname = 7, FlagRunning|FlagValid, "other"
	next := signedConsensus(t, network, parties, period+1, changed, nil)
	good := checkDiff(t, network, old, next)
	now := next.ValidAfter
	refuse := func(name string, from *Consensus, diff []byte, reason error, at time.Time) {
		t.Helper()
		if c, err := ApplyDiff(from, diff, network, at); c != nil || err == nil {
			t.Errorf("%s: accepted", name)
		} else if reason != nil {
			wantReason(t, err, reason)
		}
	}
	refuse("from another one", next, good, ErrWrongBase, now)
	refuse("too early", old, good, ErrFuture, now.Add(-MaxClockSkew-time.Second))
	refuse("too late", old, good, ErrExpired, now.Add(ValidPeriods*time.Hour))
	refuse("too large", old, make([]byte, MaxDiffSize+1), ErrTooLarge, now)
	refuse("nothing", old, nil, ErrMalformed, now)
	refuse("a consensus", old, next.Raw(), ErrMalformed, now)
	if _, err := Diff(old, &Consensus{Network: old.Network, Interval: old.Interval}); err == nil {
		t.Error("a difference to what nobody signed")
	}
	if _, err := Diff(old, &Consensus{Network: "other", Interval: old.Interval}); err == nil {
		t.Error("a difference between networks")
	}
	refuseMutations(t, good, func(b []byte) error { _, err := ApplyDiff(old, b, network, now); return err })

	var w diffWire
	change := func(name string, reason error, f func(w *diffWire)) {
		t.Helper()
		w = diffWire{}
		if err := decodingBig.Unmarshal(good, &w); err != nil {
			t.Fatal(err)
		}
		f(&w)
		refuse(name, old, encode(w), reason, now)
	}
	under := signedConsensus(t, network, parties[:3], period+1, changed, nil)
	change("under-signed", ErrUndersigned, func(w *diffWire) { w.Signatures = under.signatures[:2] })
	change("wrongly signed", ErrBadSignature, func(w *diffWire) { w.Signatures = old.signatures })
	change("another period", ErrBadSignature, func(w *diffWire) { w.Period++ })
	change("a weight that is what it was", ErrMalformed, func(w *diffWire) {
		w.WeightPlaces, w.Weights = append(w.WeightPlaces, 1), append(w.Weights, 0)
	})
	change("a place too far", ErrMalformed, func(w *diffWire) { w.WeightPlaces[0] = 1 << 31 })
	change("a place beyond the last", ErrMalformed, func(w *diffWire) { w.Dropped[0] = 5 })
	change("a weight below 0", ErrMalformed, func(w *diffWire) { w.Weights[0] = -MaxWeight })
	change("a weight that overflows", ErrMalformed, func(w *diffWire) { w.Weights[0] = -1 << 63 })
	change("flags without places", ErrMalformed, func(w *diffWire) { w.Flags = append(w.Flags, 1) })
	change("places without keys", ErrMalformed, func(w *diffWire) { w.KeyPlaces = append(w.KeyPlaces, 0) })
	change("columns that are not there", ErrMalformed, func(w *diffWire) { w.RestPlaces = nil })
	change("identities where none belong", ErrMalformed, func(w *diffWire) {
		cols := toColumns(next.Relays[:1])
		w.RestPlaces, w.Rest = w.RestPlaces[:1], encode(cols)
	})
	change("a relay that goes and comes", ErrMalformed, func(w *diffWire) {
		w.Dropped = append(w.Dropped, 0)
		added := append([]Relay{next.Relays[0]}, next.Relays[slices.IndexFunc(next.Relays, func(r Relay) bool { _, ok := old.Lookup(r.Identity); return !ok })])
		slices.SortFunc(added, func(a, b Relay) int { return a.Identity.Compare(b.Identity) })
		w.Added = encode(toColumns(added))
	})
}

// FuzzDiff: no input makes anything but what was signed, and what is accepted is in its one form.
func FuzzDiff(f *testing.F) {
	network, parties := testNetwork(f, 4)
	all := testRelays(f, 8)
	period := network.Period(epoch)
	old := signedConsensus(f, network, parties, period, all[:6], nil)
	var nexts []*Consensus
	for _, change := range diffCases(all) {
		next := signedConsensus(f, network, parties, period+1, change(slices.Clone(all[:6])), nil)
		nexts = append(nexts, next)
		b, err := Diff(old, next)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ApplyDiff(old, b, network, epoch.Add(time.Hour))
		if err != nil {
			return
		}
		if !slices.ContainsFunc(nexts, func(n *Consensus) bool { return bytes.Equal(n.body, c.body) }) {
			t.Fatal("accepted what nobody signed")
		}
		again, err := Diff(old, c)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatal("not in its one form")
		}
		if _, err := ApplyDiff(old, again, network, epoch.Add(time.Hour)); err != nil {
			t.Fatal(fmt.Errorf("the same again: %w", err))
		}
	})
}
