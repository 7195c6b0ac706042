package client

import (
	"errors"
	"fmt"
	"time"
)

// newIdentityEvery is the least time between two calls of NewIdentity that do something:
// each costs the network as many circuits as the client has. Tor's.
const newIdentityEvery = 10 * time.Second

// ErrTooSoon is wrapped by NewIdentity when the last time was just before.
var ErrTooSoon = errors.New("client: a new identity was taken just before")

// NewIdentity sees to it that no stream from now on uses a circuit of before, nor one
// that is being built. Streams that there are stay where they are. It returns how many
// circuits take no new streams any more. The guard stays: to change it would show the
// client to more relays, and hide nothing.
func (c *Client) NewIdentity() (int, error) {
	now := time.Now()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return 0, ErrClosed
	}
	if wait := newIdentityEvery - now.Sub(c.renewed); !c.renewed.IsZero() && wait > 0 {
		c.mu.Unlock()
		return 0, fmt.Errorf("%w: try again in %d s", ErrTooSoon, (wait+time.Second-1)/time.Second)
	}
	c.renewed = now
	c.epoch++
	n := 0
	for _, x := range c.circuits {
		if !x.retired {
			n++
		}
	}
	c.mu.Unlock()
	c.tidy(now)
	c.tidyStubs(now)
	c.visitor.NewIdentity()
	c.wantMore()
	return n, nil
}
