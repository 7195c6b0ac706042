package client

import (
	"errors"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
)

// What counts against a guard (path.Guards.Count), and what does not. A guard is given up for good, and a client tries few in all
// its life: what others can do must not take it from the client.

// linkEnds remembers which link to a guard ended last, of those that were counted. Guarded by Client.mu; there are as few as guards.
type linkEnds map[identity.ID]*link.Link

// countFailed takes note of a circuit that was not completed although its first hop stood; relays are the hops up to the one that
// was not added.
func (c *Client) countFailed(l *link.Link, relays []*directory.Relay, err error) {
	var said cell.ExtendError
	switch refused := errors.As(err, &said); {
	case l.Err() != nil:
		c.countLinkEnd(l, relays[0], path.CircuitFailed)
	case refused && len(relays) > 2:
		// A relay behind the guard says that the next one is not reached. The guard cannot say it in that one's name.
	case refused && c.vanguards.setAside(relays[1], c.cfg.Now()):
		// A vanguard of which the guard has said so lately: as long as it is true, the same few relays are tried again and again.
	default:
		c.countCircuit(relays[0], path.CircuitFailed)
	}
}

// countDeath takes note of a circuit that was completed, and died young.
func (c *Client) countDeath(l *link.Link, guard *directory.Relay) {
	if l.Err() != nil {
		c.countLinkEnd(l, guard, path.CircuitDied)
		return
	}
	c.countCircuit(guard, path.CircuitDied)
}

// countLinkEnd counts the end of a link once, however many circuits were on it: anybody on the way can end it.
func (c *Client) countLinkEnd(l *link.Link, guard *directory.Relay, o path.Outcome) {
	c.mu.Lock()
	counted := c.linkEnds[guard.Identity] == l
	c.linkEnds[guard.Identity] = l
	c.mu.Unlock()
	if !counted {
		c.countCircuit(guard, o)
	}
}
