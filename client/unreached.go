package client

import (
	"errors"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/path"
)

// Relays that others could not extend to; both ours.
const (
	// unreachedFor is how long such a relay is not chosen: most are back, or out of the
	// consensus, not much later.
	unreachedFor = time.Minute
	// maxUnreached bounds them. Who says so is the relay before it, which may lie to be
	// rid of relays that it does not like: so they are few, of however many there are.
	maxUnreached = 16
)

// unreached are relays that could not be extended to lately, and until when they are left
// out.
type unreached map[identity.ID]time.Time

// note adds the relay that an attempt to build a circuit stopped at.
func (u unreached) note(err error, now time.Time) {
	var hop *hopError
	if !errors.As(err, &hop) || hop.hop == 1 {
		return
	}
	for id, until := range u {
		if !now.Before(until) {
			delete(u, id)
		}
	}
	if len(u) < maxUnreached {
		u[hop.relay.Identity] = now.Add(unreachedFor)
	}
}

// pick chooses a path without relays that were not reached lately, and with them if there
// is no other.
func (c *Client) pick(chooser *path.Chooser, req path.Request) ([]*directory.Relay, error) {
	now := time.Now()
	out := map[identity.ID]bool{}
	c.mu.Lock()
	for id, until := range c.unreached {
		if now.Before(until) {
			out[id] = true
		}
	}
	c.mu.Unlock()
	if len(out) > 0 {
		narrow := req
		narrow.Exclude = func(r *directory.Relay) bool {
			return out[r.Identity] || req.Exclude != nil && req.Exclude(r)
		}
		if relays, err := chooser.Pick(c.cfg.Rand, narrow); !errors.Is(err, path.ErrNoPath) {
			return relays, err
		}
	}
	return chooser.Pick(c.cfg.Rand, req)
}
