package path

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// Vanguards are the relays behind the guard in circuits that others can make a client build: those of onion services, mostly.
// Whoever can ask for as many circuits as he likes would, if all hops were chosen anew each time, soon have a relay of his own
// beside the guard, and so know the guard. So the second hop is one of a few relays that are kept for weeks, and the third one
// of some that are kept for hours, which hide the second.
//
//	guard (months) ── layer 2 (weeks) ── layer 3 (hours) ──┬── the last hop, if the client has chosen it
//	                                                       └── a middle ── the last hop, if somebody else has
//
// The rules against families and networks do not hold on these paths: somebody who may choose the last hop could learn from them
// who the others are. No hop is one of the two before it, because relays refuse to extend to themselves or back. Where somebody
// else has chosen the last hop, it influences the middle before it and, if it is of layer 3, the choice among that layer, and
// nothing else.

// vanguardGrace is how long a relay that is not listed keeps its place: a restart is no reason to choose another, and somebody
// who can stop relays for a while gains nothing.
const vanguardGrace = 24 * time.Hour

// Bounds of a VanguardState: those of the parameters.
const (
	maxLayer2 = 32
	maxLayer3 = 64
)

// ErrVanguardState is wrapped by what is wrong with a VanguardState.
var ErrVanguardState = errors.New("not a state of vanguards")

// Vanguard is one relay of a layer. Times are Unix seconds.
type Vanguard struct {
	Relay    identity.ID `json:"relay"`
	Until    int64       `json:"until"`
	Unlisted int64       `json:"unlisted,omitempty"` // since when; 0: it is listed
}

// VanguardState is what a client must keep across restarts: each restart would else be a draw for the adversary.
type VanguardState struct {
	Layer2 []Vanguard `json:"layer2"`
	Layer3 []Vanguard `json:"layer3"`
}

// Check refuses what no Vanguards would have stored; errors wrap ErrVanguardState.
func (s VanguardState) Check() error {
	for _, layer := range []struct {
		n    int
		max  int
		list []Vanguard
	}{{2, maxLayer2, s.Layer2}, {3, maxLayer3, s.Layer3}} {
		if len(layer.list) > layer.max {
			return fmt.Errorf("%w: %d relays in layer %d, at most %d are kept", ErrVanguardState, len(layer.list), layer.n, layer.max)
		}
		for i, v := range layer.list {
			switch {
			case v.Relay.IsZero(), slices.ContainsFunc(layer.list[:i], func(o Vanguard) bool { return o.Relay == v.Relay }):
				return fmt.Errorf("%w: place %d of layer %d has no relay or one twice", ErrVanguardState, i+1, layer.n)
			case v.Until < 0, v.Unlisted < 0, v.Until > maxDay*86400, v.Unlisted > maxDay*86400:
				return fmt.Errorf("%w: place %d of layer %d has a time that is none", ErrVanguardState, i+1, layer.n)
			}
		}
	}
	return nil
}

// Vanguards keeps both layers. Its methods must not be called at the same time.
type Vanguards struct {
	state   VanguardState
	chooser *Chooser
	aside   []aside // oldest first
}

// NewVanguards returns the vanguards of a state, which may be empty. Errors wrap ErrVanguardState.
func NewVanguards(s VanguardState) (*Vanguards, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	return &Vanguards{state: VanguardState{slices.Clone(s.Layer2), slices.Clone(s.Layer3)}}, nil
}

// State returns what must be kept.
func (v *Vanguards) State() VanguardState {
	return VanguardState{slices.Clone(v.state.Layer2), slices.Clone(v.state.Layer3)}
}

// layerRules are the parameters of one layer.
type layerRules struct {
	size     int
	min, max time.Duration
}

// rulesOf returns the rules of both layers; a minimum above the maximum counts as that.
func rulesOf(p directory.Params) (two, three layerRules) {
	const day = 24 * time.Hour
	rules := func(size, low, high string, unit time.Duration) layerRules {
		longest := time.Duration(p.Get(high)) * unit
		return layerRules{int(p.Get(size)), min(time.Duration(p.Get(low))*unit, longest), longest}
	}
	return rules(directory.ParamVanguardLayer2, directory.ParamVanguardLayer2Min, directory.ParamVanguardLayer2Max, day),
		rules(directory.ParamVanguardLayer3, directory.ParamVanguardLayer3Min, directory.ParamVanguardLayer3Max, time.Hour)
}

// Update brings both layers up to date with a consensus: who has served its time or is listed no more goes, and others are drawn
// by the weights of middles. changed says that the State is another, which must be stored before a Path is used. A network with
// too few relays gives small layers. The error is what rand returned.
func (v *Vanguards) Update(ch *Chooser, rand io.Reader, now time.Time) (changed bool, err error) {
	v.chooser = ch
	v.forgetAside(now)
	two, three := rulesOf(ch.consensus.Params)
	for _, l := range []struct {
		list  *[]Vanguard
		rules layerRules
	}{{&v.state.Layer2, two}, {&v.state.Layer3, three}} {
		c, err := ch.renew(l.list, l.rules, rand, now)
		changed = changed || c
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// renew brings one layer up to date.
func (c *Chooser) renew(list *[]Vanguard, rules layerRules, rand io.Reader, now time.Time) (changed bool, err error) {
	kept := (*list)[:0:0]
	for _, v := range *list {
		// A clock that was ahead must not keep a relay for longer than any may be kept.
		old := v
		v.Until, v.Unlisted = min(v.Until, now.Add(rules.max).Unix()), min(v.Unlisted, now.Unix())
		switch r, ok := c.consensus.Lookup(v.Relay); {
		case ok && isUsable(r):
			v.Unlisted = 0
		case v.Unlisted == 0:
			v.Unlisted = now.Unix()
		}
		changed = changed || v != old
		if now.Unix() >= v.Until || v.Unlisted != 0 && now.Unix()-v.Unlisted >= int64(vanguardGrace/time.Second) || len(kept) == rules.size {
			changed = true
			continue
		}
		kept = append(kept, v)
	}
	if len(kept) > 0 && !slices.ContainsFunc(kept, func(v Vanguard) bool { return v.Unlisted == 0 }) {
		kept, changed = kept[1:], true // none would serve until the first of them has lost its place
	}
	*list = kept
	stable := false
	for i := range c.relays {
		stable = stable || c.relays[i].usable && c.relays[i].Flags.Has(directory.FlagStable)
	}
	for len(*list) < rules.size {
		r, err := c.pickMiddle(rand, func(r *directory.Relay) bool {
			return stable && !r.Flags.Has(directory.FlagStable) || holds(*list, r.Identity)
		})
		switch {
		case errors.Is(err, ErrNoPath) && stable:
			stable = false // too few are: others will do
			continue
		case errors.Is(err, ErrNoPath):
			return changed, nil
		case err != nil:
			return changed, err
		}
		life, err := longer(rand, rules.min, rules.max)
		if err != nil {
			return changed, err
		}
		*list = append(*list, Vanguard{Relay: r.Identity, Until: now.Add(life).Unix()})
		changed = true
	}
	return changed, nil
}

// longer draws a time between two bounds: the longer of two that are drawn evenly. So many stay for long, and nobody knows for
// how long.
func longer(rand io.Reader, low, high time.Duration) (time.Duration, error) {
	var most uint64
	for range 2 {
		x, err := uniform(rand, uint64((high-low)/time.Second)+1)
		if err != nil {
			return 0, err
		}
		most = max(most, x)
	}
	return low + time.Duration(most)*time.Second, nil
}

func holds(list []Vanguard, id identity.ID) bool {
	return slices.ContainsFunc(list, func(v Vanguard) bool { return v.Relay == id })
}

// pickMiddle chooses one relay by the weights of middles.
func (c *Chooser) pickMiddle(rand io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error) {
	s := &search{Chooser: c, rand: rand, request: Request{Exclude: exclude}}
	return s.choose(step{0, PositionMiddle}, nil)
}

// VanguardRequest says what a path with vanguards is for.
type VanguardRequest struct {
	// Guard is the first hop.
	Guard *directory.Relay
	// Last is the last hop; nil if the circuit ends at layer 3.
	Last *directory.Relay
	// Foreign says that somebody else chose Last: then a middle stands before it, so that he does not learn who is in layer 3.
	Foreign bool
}

// Path chooses the hops of one circuit: 3 to 5. Errors: *NoPathError, when the layers, or the middles, leave nobody; ErrRequest;
// what rand returned. Update comes first.
func (v *Vanguards) Path(rand io.Reader, r VanguardRequest) ([]*directory.Relay, error) {
	switch {
	case v.chooser == nil || r.Guard == nil:
		return nil, fmt.Errorf("%w: vanguards need a consensus and a guard", ErrRequest)
	case r.Foreign && r.Last == nil:
		return nil, fmt.Errorf("%w: somebody else chose the last hop, and there is none", ErrRequest)
	}
	two := v.usable(v.state.Layer2)
	three := v.usable(v.state.Layer3)
	var own identity.ID // a last hop of the client's own is behind layer 3, and so none of it or layer 2
	if r.Last != nil && !r.Foreign {
		own = r.Last.Identity
	}
	second, err := v.one(rand, two, r.Guard.Identity, own)
	if err != nil {
		return nil, err
	}
	avoid := own
	if r.Foreign {
		avoid = r.Last.Identity
	}
	third, err := v.one(rand, three, r.Guard.Identity, second.Identity, avoid)
	if err != nil {
		return nil, err
	}
	hops := []*directory.Relay{r.Guard, second, third}
	if r.Foreign {
		m, err := v.before(rand, second.Identity, third.Identity, r.Last.Identity)
		if err != nil {
			return nil, err
		}
		hops = append(hops, m)
	}
	if r.Last != nil {
		hops = append(hops, r.Last)
	}
	return hops, nil
}

// usable returns the relays of a layer that are listed.
func (v *Vanguards) usable(list []Vanguard) (relays []*directory.Relay) {
	for _, x := range list {
		if r, ok := v.chooser.consensus.Lookup(x.Relay); ok && isUsable(r) {
			relays = append(relays, r)
		}
	}
	return relays
}

// one draws evenly from a layer one that is none of those, and is not set aside as long as there is such a one.
func (v *Vanguards) one(rand io.Reader, layer []*directory.Relay, not ...identity.ID) (*directory.Relay, error) {
	without := func(list []*directory.Relay) []*directory.Relay {
		return slices.DeleteFunc(slices.Clone(list), func(r *directory.Relay) bool { return slices.Contains(not, r.Identity) })
	}
	left := without(v.drawable(layer))
	if len(left) == 0 {
		left = without(layer)
	}
	if len(left) == 0 {
		n := len(v.chooser.relays)
		return nil, &NoPathError{Position: PositionMiddle, Relays: n, Excluded: n - len(layer), Conflicts: len(layer)}
	}
	x, err := uniform(rand, uint64(len(left)))
	if err != nil {
		return nil, err
	}
	return left[x], nil
}
