package path

import (
	"cepa/crypto/identity"
	"cepa/directory"
)

// Path bias: a guard that lets only circuits through partners come about would, unwatched, choose a client's paths. So circuits
// are counted from the moment that their first hop stands, and so are those that die young, which a guard can cause as well. A
// guard through which too few come about is given up. Who counts leaves out what a relay behind the guard says and the guard
// cannot, and counts what happens to many circuits at once, such as the end of a link, as one.
//
// With 5 of 100 failing, an honest guard has 45 successes or fewer in 150 with a probability below 10^-90.
const (
	// biasLeast is after how many circuits a guard is judged.
	biasLeast = 150
	// biasPercent is the share of successes, in percent, up to which it is given up.
	biasPercent = 30
	// biasWindow is at how many circuits both counts are halved, so that the past fades.
	biasWindow = 300
	// biasRest is how many days pass between two guards that are given up: when all circuits fail, whatever the guard, the
	// fault is in the network, or at this end, and going through all guards would only show the client to more of them.
	biasRest = 30
)

// Outcome is what became of a circuit whose first hop stood.
type Outcome uint8

// The outcomes.
const (
	CircuitFailed Outcome = iota + 1 // it was not completed
	CircuitBuilt                     // it was completed
	CircuitDied                      // it was completed, counted as such, and died young
)

// Count takes note of what became of a circuit through a guard, and reports whether the guard was given up for it: then the
// State has changed.
func (g *Guards) Count(id identity.ID, o Outcome) (gaveUp bool) {
	m := g.find(id)
	if m == nil || m.Tried == 0 || !m.in() || g.chooser == nil {
		return false
	}
	switch o {
	case CircuitBuilt:
		m.Circuits++
		m.Good++
	case CircuitFailed:
		m.Circuits++
	case CircuitDied:
		m.Good = max(m.Good-1, 0)
	}
	if m.Circuits >= biasWindow {
		m.Circuits, m.Good = m.Circuits/2, m.Good/2
	}
	if !biased(m.Circuits, m.Good) || g.abandoned != 0 && g.day-g.abandoned < biasRest || !g.spare(m) {
		return false
	}
	m.Out, g.abandoned = outFailing, g.day
	return true
}

// biased is the rule.
func biased(circuits, good int) bool {
	return circuits >= biasLeast && 100*good <= biasPercent*circuits
}

// spare reports whether there is a guard beside m that can take its place now: one that does not fail, or one that may be tried at
// once. A guard through which few circuits come about is better than none.
func (g *Guards) spare(m *member) bool {
	failing := 0
	for _, o := range g.list {
		switch {
		case o == m || !o.in() || o.relay == nil || o.Tried == 0 || o.unfit:
		case o.fails == 0:
			return true
		default:
			failing++
		}
	}
	return failing < FewGuards && g.another(func(r *directory.Relay) bool { return !g.find(r.Identity).unfit }) != nil
}
