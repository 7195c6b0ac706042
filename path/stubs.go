package path

import (
	"fmt"
	"io"
	"slices"

	"cepa/crypto/identity"
	"cepa/directory"
)

// A stub is a circuit that ends at layer 3 and was built before it was known where it would go on to: chosen by Path with no last
// hop. When that is known, some stubs cannot serve, since no hop is one of the two before it: those must not change which of the
// others serve. Whoever may choose the last hop could, else, name relays one after the other, and see which of them move the
// second hops about.
//
// Continue sees to it by letting stubs go that could serve, as often as is needed for all second hops to be left with the same
// chance. So the hops of a stub that serves are as likely as those that Path chooses for the same last hop.

// share is a part of a whole.
type share struct{ part, whole uint64 }

// kept is which share of the stubs with a second hop does not have the last hop of r as its third.
func kept(second, guard identity.ID, three []*directory.Relay, last identity.ID) share {
	var s share
	for _, r := range three {
		if r.Identity == guard || r.Identity == second {
			continue
		}
		if s.whole++; r.Identity != last {
			s.part++
		}
	}
	return s
}

// Continue says how a stub, whose hops are those of a Path without Last, goes on to the last hop of r, whose Guard is ignored: the
// hops that are to be added, a middle and the last or the last alone. It takes no part in the choice what is seen of a stub that
// it lets go: ok is false, and the caller throws that stub away and never uses it for anything else. So it does with a stub one of
// whose relays serves no more. Errors: *NoPathError; ErrRequest; what rand returned. Update comes first.
func (v *Vanguards) Continue(rand io.Reader, stub []*directory.Relay, r VanguardRequest) (more []*directory.Relay, ok bool, err error) {
	if v.chooser == nil || r.Last == nil || len(stub) != 3 {
		return nil, false, fmt.Errorf("%w: a stub has three hops and goes on to a last one", ErrRequest)
	}
	guard, second, third, last := stub[0].Identity, stub[1].Identity, stub[2].Identity, r.Last.Identity
	if !v.Serves(stub) || third == last || !r.Foreign && second == last {
		return nil, false, nil
	}
	three := v.drawable(v.usable(v.state.Layer3)) // from which stubs are built now
	mine, least := kept(second, guard, three, last), share{1, 1}
	for _, o := range v.usable(v.state.Layer2) {
		if o.Identity == guard || !r.Foreign && o.Identity == last {
			continue
		}
		// One without any third hop has no stubs.
		if s := kept(o.Identity, guard, three, last); s.whole > 0 && s.part*least.whole < least.part*s.whole {
			least = s
		}
	}
	if mine.part == 0 || least.part == 0 {
		return nil, false, nil
	}
	x, err := uniform(rand, mine.part*least.whole)
	if err != nil || x >= least.part*mine.whole {
		return nil, false, err
	}
	if r.Foreign {
		m, err := v.before(rand, second, third, last)
		if err != nil {
			return nil, false, err
		}
		more = append(more, m)
	}
	return append(more, r.Last), true, nil
}

// Serves reports whether the relays of a stub are still of their layers, and listed.
func (v *Vanguards) Serves(stub []*directory.Relay) bool {
	if v.chooser == nil || len(stub) != 3 {
		return false
	}
	in := func(layer []Vanguard, r *directory.Relay) bool {
		return slices.ContainsFunc(v.usable(layer), func(x *directory.Relay) bool { return x.Identity == r.Identity })
	}
	return in(v.state.Layer2, stub[1]) && in(v.state.Layer3, stub[2])
}

// before chooses the middle that stands before a last hop that somebody else has chosen.
func (v *Vanguards) before(rand io.Reader, second, third, last identity.ID) (*directory.Relay, error) {
	return v.chooser.pickMiddle(rand, func(m *directory.Relay) bool {
		return m.Identity == second || m.Identity == third || m.Identity == last
	})
}
