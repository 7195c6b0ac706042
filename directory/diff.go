package directory

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// kindDiff is the first element of a difference.
const kindDiff = "cepa/1 consensus difference"

// MaxDiffSize is the hard cap of a difference in bytes, uncompressed. A longer one would be worse than the consensus itself.
const MaxDiffSize = MaxConsensusSize

// diffWire is what turns one consensus into another, column by column. It holds nothing that would have to be believed: what comes of
// it is a signed document, which is verified like any other.
//
// Places are positions in a list of relays, ascending, and written as the number of relays skipped since the last one. "Kept" are the relays
// of the old consensus without the dropped ones.
type diffWire struct {
	_            struct{} `cbor:",toarray"`
	Kind         string
	From         [32]byte // digest of the old consensus
	Period       uint64   // of the new one, as all that follows
	Params       Params
	Versions     [2]string
	Random       [2][]byte
	Dropped      []uint32        // places in the old consensus
	Added        cbor.RawMessage // columns of the relays that are new
	FlagPlaces   []uint32        // among the kept ones
	Flags        []uint32        // those that changed, of each
	WeightPlaces []uint32
	Weights      []int64 // new weight less old weight
	KeyPlaces    []uint32
	Keys         []byte // onion keys, 32 each
	RestPlaces   []uint32
	Rest         cbor.RawMessage // columns of those of which anything else changed; without identities, onion keys, flags, weights
	Signatures   []signatureWire
}

// places collects positions.
type places struct {
	gaps []uint32
	next int
}

func (p *places) add(i int) {
	p.gaps = append(p.gaps, uint32(i-p.next))
	p.next = i + 1
}

// each calls f for the place of each gap, all of which must be below n.
func each(gaps []uint32, n int, f func(k, place int) error) error {
	next := int64(0)
	for k, gap := range gaps {
		place := next + int64(gap)
		if place >= int64(n) {
			return fmt.Errorf("place %d of %d relays", place, n)
		}
		if err := f(k, int(place)); err != nil {
			return err
		}
		next = place + 1
	}
	return nil
}

// Diff returns what ApplyDiff needs to make the signed document of another consensus from old. Both must be of one network and interval, and
// the new one signed.
func Diff(old, next *Consensus) ([]byte, error) {
	if old.Network != next.Network || old.Interval != next.Interval {
		return nil, fmt.Errorf("directory: difference between consensuses of %q and %q, with intervals of %v and %v: both must be of one network",
			old.Network, next.Network, old.Interval, next.Interval)
	}
	if len(next.signatures) == 0 {
		return nil, errors.New("directory: difference to a consensus that nobody signed")
	}
	w := diffWire{
		Kind: kindDiff, From: old.Digest(), Period: next.Period, Params: next.Params,
		Versions: next.Versions.wire(), Random: next.Random.wire(), Signatures: next.signatures,
	}
	var dropped, flags, weights, keys, rest places
	var added, changed []Relay
	kept := 0
	for i, j := 0, 0; i < len(old.Relays) || j < len(next.Relays); {
		order := 0
		switch {
		case i == len(old.Relays):
			order = 1
		case j == len(next.Relays):
			order = -1
		default:
			order = old.Relays[i].Identity.Compare(next.Relays[j].Identity)
		}
		switch {
		case order < 0:
			dropped.add(i)
			i++
			continue
		case order > 0:
			added = append(added, next.Relays[j])
			j++
			continue
		}
		a, b := &old.Relays[i], &next.Relays[j]
		if a.Flags != b.Flags {
			flags.add(kept)
			w.Flags = append(w.Flags, uint32(a.Flags^b.Flags))
		}
		if a.Weight != b.Weight {
			weights.add(kept)
			w.Weights = append(w.Weights, int64(b.Weight)-int64(a.Weight))
		}
		if a.OnionKey != b.OnionKey {
			keys.add(kept)
			w.Keys = append(w.Keys, b.OnionKey[:]...)
		}
		if !a.sameRest(b) {
			rest.add(kept)
			changed = append(changed, *b)
		}
		i, j, kept = i+1, j+1, kept+1
	}
	w.Dropped, w.FlagPlaces, w.WeightPlaces, w.KeyPlaces, w.RestPlaces = dropped.gaps, flags.gaps, weights.gaps, keys.gaps, rest.gaps
	w.Added = encode(toColumns(added))
	cols := toColumns(changed)
	cols.IdentityGaps, cols.Identities, cols.OnionKeys, cols.Flags, cols.Weights = nil, nil, nil, nil, nil
	w.Rest = encode(cols)
	return encode(w), nil
}

// sameRest reports whether both agree in all that has no column of its own in a difference.
func (r *Relay) sameRest(other *Relay) bool {
	return r.Suite == other.Suite && r.Nickname == other.Nickname && r.Version == other.Version &&
		slices.Equal(r.Addresses, other.Addresses) && slices.Equal(r.Family, other.Family) && r.Exit.Equal(other.Exit)
}

// ApplyDiff makes the consensus to which Diff found the difference from old, and verifies it as ParseConsensus does: a difference can be wrong, but not lead
// to anything that was not signed. Errors are *Error: ErrWrongBase when it is not for old, ErrMalformed, ErrTooLarge, and those of
// ParseConsensus.
func ApplyDiff(old *Consensus, diff []byte, net *Network, now time.Time) (*Consensus, error) {
	const name = "difference"
	if len(diff) > MaxDiffSize {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(diff), MaxDiffSize)
	}
	var w diffWire
	if err := decodingBig.Unmarshal(diff, &w); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if w.Kind != kindDiff {
		return nil, fail(name, ErrMalformed, "it is %q, not %q", clip(w.Kind), kindDiff)
	}
	if digest := old.Digest(); w.From != digest {
		return nil, fail(name, ErrWrongBase, "it begins at %x…, not at %x…", w.From[:4], digest[:4])
	}
	relays, err := w.apply(old.Relays)
	if err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	next := &Consensus{
		Network: old.Network, Interval: old.Interval, Period: w.Period, Params: w.Params, Versions: Versions{w.Versions[0], w.Versions[1]}, Relays: relays,
	}
	if err := parseRandom(w.Random[:], &next.Random.Previous, &next.Random.Current); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	c, err := ParseConsensus(encode(envelope{Kind: kindConsensus, Body: encode(next.wire()), Signatures: w.Signatures}), net, now)
	if err != nil {
		return nil, err
	}
	if again, err := Diff(old, c); err != nil || !bytes.Equal(again, diff) {
		return nil, fail(name, ErrMalformed, "not in its one form")
	}
	return c, nil
}

// apply returns the relays of the new consensus. Whether they are lawful and in order is for the parser of the whole.
func (w *diffWire) apply(old []Relay) ([]Relay, error) {
	var added, rest columns
	if err := decodingBig.Unmarshal(w.Added, &added); err != nil {
		return nil, err
	}
	if err := decodingBig.Unmarshal(w.Rest, &rest); err != nil {
		return nil, err
	}
	if len(w.Flags) != len(w.FlagPlaces) || len(w.Weights) != len(w.WeightPlaces) || len(w.Keys) != 32*len(w.KeyPlaces) || len(w.Dropped) > len(old) {
		return nil, errors.New("columns differ in length")
	}
	kept := make([]Relay, 0, len(old)-len(w.Dropped))
	next := 0
	if err := each(w.Dropped, len(old), func(_, place int) error {
		kept = append(kept, old[next:place]...)
		next = place + 1
		return nil
	}); err != nil {
		return nil, err
	}
	kept = append(kept, old[next:]...)
	err := cmp.Or(
		each(w.FlagPlaces, len(kept), func(k, place int) error {
			kept[place].Flags ^= Flags(w.Flags[k])
			return nil
		}),
		each(w.WeightPlaces, len(kept), func(k, place int) error {
			change := w.Weights[k]
			if change < -MaxWeight || change > MaxWeight || int64(kept[place].Weight)+change < 0 {
				return errors.New("a weight is out of range")
			}
			kept[place].Weight = uint64(int64(kept[place].Weight) + change)
			return nil
		}),
		each(w.KeyPlaces, len(kept), func(k, place int) error {
			kept[place].OnionKey = [32]byte(w.Keys[32*k:])
			return nil
		}),
		w.applyRest(&rest, kept),
	)
	if err != nil {
		return nil, err
	}
	fresh, err := added.relays()
	if err != nil {
		return nil, err
	}
	if len(kept)+len(fresh) > MaxRelays {
		return nil, fmt.Errorf("%d relays: at most %d are allowed", len(kept)+len(fresh), MaxRelays)
	}
	return merge(kept, fresh), nil
}

// applyRest changes what has no column of its own.
func (w *diffWire) applyRest(rest *columns, kept []Relay) error {
	if len(rest.IdentityGaps)+len(rest.Identities)+len(rest.OnionKeys)+len(rest.Flags)+len(rest.Weights) > 0 || len(rest.Suites) != len(w.RestPlaces) {
		return errors.New("columns differ in length")
	}
	// What is not written is as it is.
	var same []Relay
	if err := each(w.RestPlaces, len(kept), func(_, place int) error {
		same = append(same, kept[place])
		return nil
	}); err != nil {
		return err
	}
	cols := toColumns(same)
	rest.IdentityGaps, rest.Identities, rest.OnionKeys, rest.Flags, rest.Weights = cols.IdentityGaps, cols.Identities, cols.OnionKeys, cols.Flags, cols.Weights
	changed, err := rest.relays()
	if err != nil {
		return err
	}
	return each(w.RestPlaces, len(kept), func(k, place int) error {
		kept[place] = changed[k]
		return nil
	})
}

// merge returns the relays of both lists by their identities.
func merge(a, b []Relay) []Relay {
	all := make([]Relay, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].Identity.Compare(b[0].Identity) < 0 {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}
