package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
)

// webPort is what circuits that are built ahead of need are for.
const webPort = 443

// hopError says at which hop building a circuit failed.
type hopError struct {
	hop   int
	relay *directory.Relay
	err   error
}

// Error implements error.
func (e *hopError) Error() string {
	return fmt.Sprintf("client: hop %d (%s): %v", e.hop, e.relay.Nickname, e.err)
}

// Unwrap returns the cause.
func (e *hopError) Unwrap() error { return e.err }

// newCircuit builds one circuit that serves w, with none of the relays in avoid,
// and enters it in the table, belonging to w.key at once if assigned.
func (c *Client) newCircuit(ctx context.Context, w want, assigned bool, avoid []identity.ID) (*circ, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	x, err := c.buildCircuit(ctx, w, avoid)
	if err == nil {
		err = c.enter(x, w.key, assigned)
	}
	c.noteBuild(ctx, err)
	if err != nil {
		return nil, err
	}
	return x, nil
}

// noteBuild remembers what an attempt to build a circuit came to, unless ctx was why.
func (c *Client) noteBuild(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	c.problem = err
	c.unreached.note(err, time.Now())
	c.mu.Unlock()
	c.noteOutage(err)
}

func (c *Client) buildCircuit(ctx context.Context, w want, avoid []identity.ID) (*circ, error) {
	c.mu.Lock()
	epoch := c.epoch
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	chooser, _, err := c.paths(ctx)
	if err != nil {
		return nil, err
	}
	c.reached(PhaseGuard)
	guard, l, err := c.guardLink(ctx, chooser)
	if err != nil {
		return nil, err
	}
	c.reached(PhaseCircuits)
	if w.port == 0 {
		w.port = webPort
	}
	relays, err := c.pick(chooser, path.Request{
		Port: w.port, IPv6: w.ipv6, Exit: true, Length: hops, Guard: guard,
		Exclude: func(r *directory.Relay) bool { return slices.Contains(avoid, r.Identity) },
	})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c.mu.Lock()
	c.nextID++
	x := &circ{id: c.nextID, epoch: epoch, path: relays, link: l}
	c.mu.Unlock()
	if x.origin, err = c.openTimed(ctx, l, relays, func(error) { c.forget(x) }); err != nil {
		return nil, err
	}
	x.born = time.Now()
	return x, nil
}

// openTimed is openOrigin within the time that circuits take here.
func (c *Client) openTimed(ctx context.Context, l *link.Link, relays []*directory.Relay, onClose func(error)) (*circuit.Origin, error) {
	timeout := c.times.timeout()
	timed, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	o, err := c.openOrigin(timed, l, relays, onClose)
	switch {
	case err == nil:
		c.times.add(time.Since(began))
	case timed.Err() != nil && ctx.Err() == nil:
		c.times.add(2 * timeout)
		if hop := (*hopError)(nil); errors.As(err, &hop) && hop.hop == 1 {
			c.checkLink(l) // which may be dead without a word
		}
	}
	return o, err
}

// openOrigin opens a circuit on the link to a guard and extends it to all relays,
// that one first; on an error nothing is left of it.
func (c *Client) openOrigin(ctx context.Context, l *link.Link, relays []*directory.Relay, onClose func(error)) (*circuit.Origin, error) {
	o := circuit.NewOrigin(circuit.OriginConfig{Pool: c.cfg.Pool, Rand: c.cfg.Rand, OnClose: onClose, Flow: circuit.FlowOf(c.params().Get)})
	out, err := l.Open(o)
	if err != nil {
		return nil, &hopError{1, relays[0], err}
	}
	o.Attach(out)
	for i, r := range relays {
		err := o.Extend(ctx, specOf(r))
		if i == 0 && l.Err() == nil { // a lost link says nothing about circuits
			c.judge(r, err)
		}
		if err != nil {
			o.Close()
			if i > 0 {
				c.countFailed(l, relays[:i+1], err)
			}
			return nil, &hopError{i + 1, r, err}
		}
	}
	if err := c.padSetup(ctx, o); err != nil {
		o.Close()
		if len(relays) > 1 {
			c.countFailed(l, relays, err)
		}
		return nil, &hopError{len(relays), relays[len(relays)-1], err}
	}
	if len(relays) > 1 {
		c.countCircuit(relays[0], path.CircuitBuilt)
	}
	return o, nil
}

func specOf(r *directory.Relay) circuit.HopSpec {
	return circuit.HopSpec{Identity: r.Identity, OnionKey: r.OnionKey, Suite: layer.Suite(r.Suite)}
}

// judge notes whether a guard took a circuit. One that does not is passed over for
// a while, like one that does not answer.
func (c *Client) judge(guard *directory.Relay, err error) {
	if c.ctx.Err() == nil {
		c.guards.note(guard.Identity, err == nil)
	}
}

// enter adds a finished circuit to the table.
func (c *Client) enter(x *circ, key string, assigned bool) error {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		if assigned {
			x.assign(key, time.Now())
			c.needs.took(x.firstUsed)
		}
		c.circuits[x.id] = x
	}
	c.mu.Unlock()
	if closed {
		x.origin.Close()
		return ErrClosed
	}
	// When it ended before it was entered, nobody else takes it out again.
	if err := x.origin.Err(); err != nil {
		c.forget(x)
		return &hopError{hops, x.exit(), err}
	}
	c.reached(PhaseReady)
	return nil
}
