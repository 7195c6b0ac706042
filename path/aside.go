package path

import (
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// A vanguard that was just seen dead is set aside: no circuit is tried over it for asideFor. Nothing of that is kept on disk, and
// its place is not given to another one: it is drawn again afterwards. It is the hop before who says that it is dead, and that one
// may lie to have others drawn more often. So at least half of a layer, of those that are listed, is always left to draw from:
// whoever lies doubles the share of another vanguard at most, one that the client has already. Who is set aside when there is no
// room brings back who has been for longest; so all are tried in turn when none answers.

// asideFor is as long as relays are left out in other circuits that were not reached: most are back, or out of the consensus, not
// much later.
const asideFor = time.Minute

// aside is one that was said to be dead.
type aside struct {
	relay identity.ID
	until time.Time
	back  bool // it is drawn again all the same
}

// SetAside has paths go around a vanguard for a while, and reports whether it was said to be dead lately already. It does nothing
// with what is no vanguard. Update comes first.
func (v *Vanguards) SetAside(id identity.ID, now time.Time) (again bool) {
	if v.chooser == nil {
		return false
	}
	v.forgetAside(now)
	if v.isAside(id) {
		return true
	}
	is := false
	for _, layer := range [][]Vanguard{v.state.Layer2, v.state.Layer3} {
		listed := v.usable(layer)
		in := func(id identity.ID) bool {
			return slices.ContainsFunc(listed, func(r *directory.Relay) bool { return r.Identity == id })
		}
		if !in(id) {
			continue
		}
		is = true
		out := 1
		for i := len(v.aside) - 1; i >= 0; i-- { // the oldest are first
			if a := &v.aside[i]; !a.back && in(a.relay) {
				out++
				a.back = out > len(listed)/2
			}
		}
	}
	if !is {
		return false
	}
	i := slices.IndexFunc(v.aside, func(a aside) bool { return a.relay == id })
	if again = i >= 0; again {
		v.aside = slices.Delete(v.aside, i, i+1)
	}
	v.aside = append(v.aside, aside{relay: id, until: now.Add(asideFor)})
	return again
}

// forgetAside brings back those whose time is over, or is that of a clock that was ahead.
func (v *Vanguards) forgetAside(now time.Time) {
	v.aside = slices.DeleteFunc(v.aside, func(a aside) bool { return !now.Before(a.until) || a.until.Sub(now) > asideFor })
}

func (v *Vanguards) isAside(id identity.ID) bool {
	return slices.ContainsFunc(v.aside, func(a aside) bool { return a.relay == id && !a.back })
}

// drawable returns those of relays of a layer that are not set aside, or all when nobody else is left.
func (v *Vanguards) drawable(relays []*directory.Relay) []*directory.Relay {
	left := slices.DeleteFunc(slices.Clone(relays), func(r *directory.Relay) bool { return v.isAside(r.Identity) })
	if 2*len(left) < len(relays) || len(left) == 0 {
		// Relays that were aside are of both layers, or others are not listed any more.
		return relays
	}
	return left
}
