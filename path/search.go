package path

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"cepa/directory"
)

// ErrNoPath is what every *NoPathError wraps.
var ErrNoPath = errors.New("no path")

// Position is what a hop is chosen as.
type Position uint8

// The positions.
const (
	PositionGuard  Position = iota + 1 // first
	PositionMiddle                     // neither first nor last
	PositionExit                       // last, and opens streams to the outside
	PositionLast                       // last, and need not
)

// String returns the position as used in a sentence.
func (p Position) String() string {
	switch p {
	case PositionGuard:
		return "guard"
	case PositionMiddle:
		return "middle"
	case PositionExit:
		return "exit"
	case PositionLast:
		return "last hop"
	}
	return "unknown position"
}

// NoPathError says for which position there was no relay, and what became of all of them. Each is counted once, for
// the first reason that applied.
type NoPathError struct {
	Position  Position
	Relays    int // in the consensus
	Down      int // not Running and Valid
	Unfit     int // lack the flags of the position
	Refusing  int // exits whose policy refuses the port
	Excluded  int // by Request.Exclude
	Conflicts int // are in the path, or share a family or network with a relay that is
	Dead      int // were tried, and left no relay for another position
	Stopped   bool
}

// Error says everything in one sentence.
func (e *NoPathError) Error() string {
	var why []string
	for _, c := range []struct {
		count int
		what  string
	}{
		{e.Down, "not running and valid"},
		{e.Unfit, "without the flags for it"},
		{e.Refusing, "refusing the port"},
		{e.Excluded, "excluded by the caller"},
		{e.Conflicts, "in the path or in the family or network of a relay that is"},
		{e.Dead, "leaving no relay for another position"},
	} {
		if c.count > 0 {
			why = append(why, fmt.Sprintf("%d %s", c.count, c.what))
		}
	}
	text := fmt.Sprintf("%v: no %v among %d relays", ErrNoPath, e.Position, e.Relays)
	if len(why) > 0 {
		text += ": " + strings.Join(why, ", ")
	}
	if e.Stopped {
		text += "; the search was given up before everything was tried"
	}
	return text
}

// Unwrap returns ErrNoPath.
func (e *NoPathError) Unwrap() error { return ErrNoPath }

// step is a hop to be chosen.
type step struct {
	hop int
	as  Position
}

// search is the choice of one path.
type search struct {
	*Chooser
	rand    io.Reader
	request Request
	order   []step
	hops    []*directory.Relay // nil where not yet chosen
	work    int                // relays looked at one by one
	deepest *NoPathError       // of the step that nobody got beyond
	depth   int
}

// fill chooses the hops from step k on. If a choice leaves nothing for a later step it is taken back and never made
// again here, so that a path is found if there is one (within maxWork).
func (s *search) fill(k int) (bool, error) {
	if k == len(s.order) {
		return true, nil
	}
	st := s.order[k]
	var dead []*directory.Relay
	for {
		r, err := s.choose(st, dead)
		var none *NoPathError
		if errors.As(err, &none) {
			if s.deepest == nil || k > s.depth {
				s.deepest, s.depth = none, k
			}
			return false, nil
		}
		if err != nil {
			return false, err
		}
		s.hops[st.hop] = r
		if ok, err := s.fill(k + 1); ok || err != nil {
			return ok, err
		}
		s.hops[st.hop] = nil
		if s.work > maxWork {
			s.deepest.Stopped = true
			return false, nil
		}
		dead = append(dead, r)
	}
}

// choose draws a relay for one hop: by rejection first, then among those that the rules leave. Both give every relay
// the same chance.
func (s *search) choose(st step, dead []*directory.Relay) (*directory.Relay, error) {
	t := s.tableFor(st.as)
	if len(dead) == 0 && t.total() > 0 {
		for range maxTries {
			x, err := uniform(s.rand, t.total())
			if err != nil {
				return nil, err
			}
			if c := &s.relays[t.at(x)]; s.verdict(c, st.as, nil) == fine {
				return c.Relay, nil
			}
		}
	}
	return s.chooseExactly(st, dead)
}

func (s *search) tableFor(p Position) *table {
	switch p {
	case PositionGuard:
		return &s.guard
	case PositionExit:
		return &s.exit
	default:
		return &s.middle
	}
}

// chooseExactly looks at every relay.
func (s *search) chooseExactly(st step, dead []*directory.Relay) (*directory.Relay, error) {
	s.work += len(s.relays)
	left, counts := s.left(st, dead)
	if len(left) == 0 {
		return nil, &NoPathError{
			Position: st.as, Relays: len(s.relays), Down: counts[down], Unfit: counts[unfit], Refusing: counts[refusing],
			Excluded: counts[excluded], Conflicts: counts[conflicting], Dead: counts[tried],
		}
	}
	weight, total := s.weighing(st.as, left)
	x, err := uniform(s.rand, total)
	if err != nil {
		return nil, err
	}
	for _, i := range left {
		w := weight(i)
		if x < w {
			return s.relays[i].Relay, nil
		}
		x -= w
	}
	panic("path: a draw went beyond the sum of all weights")
}

// left returns the relays that the rules leave for a step, and how many had each verdict.
func (s *search) left(st step, dead []*directory.Relay) (left []int, counts [verdicts]int) {
	for i := range s.relays {
		v := s.verdict(&s.relays[i], st.as, dead)
		counts[v]++
		if v == fine {
			left = append(left, i)
		}
	}
	return left, counts
}

// weighing returns by what relays are chosen of those that are left, at least one, and its sum over them: the weights of the
// position; where none is left, bandwidths; and where no bandwidth is, all alike.
func (s *search) weighing(as Position, left []int) (weight func(i int) uint64, total uint64) {
	for _, weight = range []func(i int) uint64{
		s.tableFor(as).weight,
		func(i int) uint64 { return s.relays[i].Weight },
		func(int) uint64 { return 1 },
	} {
		total = 0
		for _, i := range left {
			total += weight(i)
		}
		if total > 0 {
			break
		}
	}
	return weight, total
}

// verdict is whether a relay may be chosen, or the first reason why not.
type verdict uint8

const (
	fine verdict = iota
	down
	unfit
	refusing
	excluded
	conflicting
	tried
	verdicts
)

func (s *search) verdict(c *candidate, as Position, dead []*directory.Relay) verdict {
	switch {
	case !c.usable:
		return down
	case as == PositionGuard && !c.guard, as == PositionExit && !c.exit, as == PositionLast && !c.last:
		return unfit
	case as == PositionExit && s.request.Port != 0 && !c.Exit.AllowsPort(s.request.Port, s.request.IPv6):
		return refusing
	case s.request.Exclude != nil && s.request.Exclude(c.Relay):
		return excluded
	}
	for _, hop := range s.hops {
		if hop != nil && Conflict(hop, c.Relay) {
			return conflicting
		}
	}
	if slices.Contains(dead, c.Relay) {
		return tried
	}
	return fine
}
