package directory

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cepa/crypto/identity"
)

// FieldChange is a field that two documents have differently, in text form for people; "" where one has none.
type FieldChange struct {
	Field, Old, New string
}

// RelayChange is a relay that two documents list differently.
type RelayChange struct {
	Identity identity.ID
	Nickname string // the newer one
	Fields   []FieldChange
}

// RelayChanges is how two lists of relays differ; each part is sorted by identity.
type RelayChanges struct {
	Came, Went []Relay
	Changed    []RelayChange
	Same       int // relays that are listed alike
}

// CompareRelays tells how two lists differ, which are sorted by identity as those of a consensus are.
func CompareRelays(before, after []Relay) RelayChanges {
	var c RelayChanges
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && before[0].Identity.Compare(after[0].Identity) < 0:
			c.Went, before = append(c.Went, before[0]), before[1:]
		case len(before) == 0 || before[0].Identity.Compare(after[0].Identity) > 0:
			c.Came, after = append(c.Came, after[0]), after[1:]
		default:
			if fields := compareRelay(&before[0], &after[0]); len(fields) > 0 {
				c.Changed = append(c.Changed, RelayChange{after[0].Identity, after[0].Nickname, fields})
			} else {
				c.Same++
			}
			before, after = before[1:], after[1:]
		}
	}
	return c
}

func compareRelay(a, b *Relay) (out []FieldChange) {
	add := func(field, before, after string) {
		if before != after {
			out = append(out, FieldChange{field, before, after})
		}
	}
	add("flags", a.Flags.String(), b.Flags.String())
	add("weight", fmt.Sprint(a.Weight), fmt.Sprint(b.Weight))
	if a.Nickname == "" || b.Nickname == "" {
		return out // the rest of one is not known: see Vote.Relays
	}
	add("nickname", a.Nickname, b.Nickname)
	add("onion key", onionKeyID(a.OnionKey), onionKeyID(b.OnionKey))
	add("suite", fmt.Sprint(a.Suite), fmt.Sprint(b.Suite))
	add("addresses", joined(a.Addresses), joined(b.Addresses))
	add("exit policy", a.Exit.String(), b.Exit.String())
	add("families", joined(a.Family), joined(b.Family))
	add("version", a.Version, b.Version)
	return out
}

// onionKeyID is the ID by which CREATE names an onion key (doc/spec.md section 2).
func onionKeyID(key [32]byte) string {
	sum := sha256.Sum256(key[:])
	return fmt.Sprintf("%x", sum[:8])
}

func joined[T fmt.Stringer](list []T) string {
	var texts []string
	for _, v := range list {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, " ")
}

// CompareParams tells which parameters two documents state differently, sorted by name.
func CompareParams(before, after Params) (out []FieldChange) {
	names := maps.Clone(after)
	if names == nil {
		names = Params{}
	}
	maps.Copy(names, before)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		text := func(p Params) string {
			if v, ok := p[name]; ok {
				return fmt.Sprint(v)
			}
			return ""
		}
		if a, b := text(before), text(after); a != b {
			out = append(out, FieldChange{name, a, b})
		}
	}
	return out
}

// Relays returns the relays of a vote as they would stand in a consensus that went by this vote alone. Of one whose descriptor was not at hand
// when the vote was parsed, only Identity, Flags and Weight are set: a vote names descriptors by their digests.
func (v *Vote) Relays() []Relay {
	out := make([]Relay, len(v.Entries))
	for i, e := range v.Entries {
		if e.Descriptor == nil {
			out[i] = Relay{Identity: e.Identity, Flags: e.Flags, Weight: e.Weight}
			continue
		}
		out[i] = e.Descriptor.relay(e.Flags, e.Weight)
	}
	return out
}

// CompareDescriptors tells how two descriptors of one relay differ, but for their sequence, date, uptime and history, which always do.
func CompareDescriptors(a, b *Descriptor) []FieldChange {
	ra, rb := a.relay(0, a.BandwidthRate), b.relay(0, b.BandwidthRate)
	fields := compareRelay(&ra, &rb)
	for i := range fields {
		if fields[i].Field == "weight" {
			fields[i].Field = "bandwidth rate"
		}
	}
	if a.Network != b.Network {
		fields = append(fields, FieldChange{"network", a.Network, b.Network})
	}
	if a.Contact != b.Contact {
		fields = append(fields, FieldChange{"contact", a.Contact, b.Contact})
	}
	for _, f := range []struct {
		name          string
		before, after bool
	}{{"hibernating", a.Extra.Hibernating, b.Extra.Hibernating}, {"overloaded", a.Extra.Overloaded, b.Extra.Overloaded}} {
		if f.before != f.after {
			fields = append(fields, FieldChange{f.name, fmt.Sprint(f.before), fmt.Sprint(f.after)})
		}
	}
	return fields
}
