package path

import (
	"fmt"
	"math"

	"cepa/directory"
)

// Choice explains one hop of a path: from whom it was chosen, and how likely it was.
type Choice struct {
	Hop      int // 1 is the first
	Position Position
	Relay    *directory.Relay
	Fixed    bool // it was not chosen here: the guard that the client stays with; nothing below is set then

	Relays int // in the consensus; each is a candidate, or left out for the first reason that applied
	// Candidates are those that the rules left; the others are as in NoPathError.
	Candidates, Down, Unfit, Refusing, Excluded, Conflicts int
	// Probability is with which the relay was chosen from the candidates, 0 for one without weight that was taken because those
	// with weight left no relay for another hop; Highest is that of the likeliest of them, and Entropy what an observer who knows the hops chosen before lacks, in bits.
	Probability, Highest, Entropy float64
}

// Explain tells, in the order of choice, how the hops of a path that fits the request could come about. The error wraps
// ErrRequest: the request makes no sense, or the path does not fit it.
func (c *Chooser) Explain(r Request, hops []*directory.Relay) ([]Choice, error) {
	s, err := c.search(r)
	if err != nil {
		return nil, err
	}
	if len(hops) != len(s.hops) {
		return nil, fmt.Errorf("%w: the path has %d hops, and %d are asked for", ErrRequest, len(hops), len(s.hops))
	}
	var all []Choice
	if r.Guard != nil {
		s.hops[0] = r.Guard
		all = append(all, Choice{Hop: 1, Position: PositionGuard, Relay: r.Guard, Fixed: true, Relays: len(c.relays)})
	}
	for _, st := range s.order {
		left, counts := s.left(st, nil)
		ch := Choice{
			Hop: st.hop + 1, Position: st.as, Relay: hops[st.hop], Relays: len(c.relays), Candidates: len(left), Down: counts[down],
			Unfit: counts[unfit], Refusing: counts[refusing], Excluded: counts[excluded], Conflicts: counts[conflicting],
		}
		found := false
		if len(left) > 0 {
			weight, total := s.weighing(st.as, left)
			for _, i := range left {
				p := float64(weight(i)) / float64(total)
				if c.relays[i].Relay.Identity == ch.Relay.Identity {
					ch.Probability, found = p, true
				}
				if p > 0 {
					ch.Highest = max(ch.Highest, p)
					ch.Entropy -= p * math.Log2(p)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: by these rules %s is no %v of the path", ErrRequest, ch.Relay.Nickname, st.as)
		}
		s.hops[st.hop] = ch.Relay
		all = append(all, ch)
	}
	return all, nil
}

// ClassShare is how the bandwidth of the relays that may be the same is used: see weights.go.
type ClassShare struct {
	Class     string  `json:"class"`
	Relays    int     `json:"relays"`
	Bandwidth uint64  `json:"bandwidth_KB_per_s"`
	Guard     float64 `json:"as_guard"` // shares of Bandwidth; they sum up to 1, or to 0 without any
	Middle    float64 `json:"as_middle"`
	Exit      float64 `json:"as_exit"`
}

// Shares tells for what the bandwidth of each class of relays is used.
func (c *Chooser) Shares() []ClassShare {
	all := make([]ClassShare, classes)
	for k, name := range [classes]string{neither: "middle only", onlyGuard: "guard", onlyExit: "exit", both: "guard and exit"} {
		s := &all[k]
		s.Class = name
		if t := float64(c.total[k]); t > 0 {
			s.Guard, s.Middle, s.Exit = float64(c.shares.guard[k])/t, float64(c.shares.middle[k])/t, float64(c.shares.exit[k])/t
		}
	}
	for i := range c.relays {
		if r := &c.relays[i]; r.usable {
			s := &all[r.class()]
			s.Relays++
			s.Bandwidth += r.Weight
		}
	}
	return all
}
