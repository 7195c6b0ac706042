package client

import (
	"context"
	"fmt"
	"time"

	"cepa/circuit"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/path"
)

// queueCells is the bound of a circuit's queue on a link.
const queueCells = circuit.QueueCells

// circ is one circuit of the client.
type circ struct {
	id     uint64
	origin *circuit.Origin
	path   []*directory.Relay
	born   time.Time

	// Guarded by Client.mu.
	assigned  bool // belongs to key; ready for anybody until then
	key       string
	firstUsed time.Time
	retired   bool // takes no new streams
}

// exit returns the last relay.
func (x *circ) exit() *directory.Relay { return x.path[len(x.path)-1] }

// serves reports whether the exit opens streams to the port; 0: whatever.
func (x *circ) serves(port uint16) bool {
	p := x.exit().Exit
	return port == 0 || p.AllowsPort(port, false) || p.AllowsPort(port, true)
}

// usable reports whether x takes new streams. Client.mu is held.
func (x *circ) usable(now time.Time) bool {
	if x.retired || x.origin.Err() != nil || x.origin.Mux().Exhausted() {
		return false
	}
	return !x.assigned || now.Sub(x.firstUsed) < maxDirty
}

// buildKey says whom a circuit under construction is for.
type buildKey struct {
	key  string
	port uint16
}

// build is one circuit under construction that somebody waits for.
type build struct {
	done chan struct{}
	circ *circ
	err  error
}

// circuitFor returns a circuit that belongs to key and whose exit serves port:
// one that it has, a ready one, or a new one. skip leaves out those that were
// tried.
func (c *Client) circuitFor(ctx context.Context, key string, port uint16, skip map[uint64]bool) (*circ, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	now := time.Now()
	var ready *circ
	for _, x := range c.circuits {
		if skip[x.id] || !x.usable(now) || !x.serves(port) {
			continue
		}
		if x.assigned && x.key == key {
			c.mu.Unlock()
			return x, nil
		}
		if !x.assigned && (ready == nil || x.id < ready.id) {
			ready = x
		}
	}
	k := buildKey{key, port}
	b := c.builds[k]
	if ready != nil && b == nil {
		c.assign(ready, key, now)
		c.mu.Unlock()
		c.wantMore()
		return ready, nil
	}
	if b == nil {
		b = &build{done: make(chan struct{})}
		c.builds[k] = b
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			c.buildFor(k, b, skip)
		}()
	}
	c.mu.Unlock()
	select {
	case <-b.done:
		return b.circ, b.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// assign makes x belong to key. Client.mu is held.
func (c *Client) assign(x *circ, key string, now time.Time) {
	x.assigned, x.key, x.firstUsed = true, key, now
}

func (c *Client) buildFor(k buildKey, b *build, skip map[uint64]bool) {
	var avoid []*directory.Relay
	c.mu.Lock()
	for id := range skip {
		if x := c.circuits[id]; x != nil {
			avoid = append(avoid, x.exit())
		}
	}
	c.mu.Unlock()
	x, err := c.newCircuit(c.ctx, k.port, avoid)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.assign(x, k.key, time.Now())
	}
	b.circ, b.err = x, err
	delete(c.builds, k)
	close(b.done)
}

// wantMore wakes keepReady.
func (c *Client) wantMore() {
	select {
	case c.refill <- struct{}{}:
	default:
	}
}

// keepReady keeps unused circuits, and retires old ones, until Close.
func (c *Client) keepReady() {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	var pause time.Duration
	for c.ctx.Err() == nil {
		if c.tidy() < c.cfg.Ready {
			if _, err := c.newCircuit(c.ctx, 0, nil); err != nil {
				pause = min(max(2*pause, 100*time.Millisecond), 30*time.Second)
				if c.ctx.Err() == nil {
					c.cfg.Log.Warn("could not build a circuit; trying again", "error", err, "retry_in", pause)
				}
				sleep(c.ctx, pause)
				continue
			}
			pause = 0
			continue
		}
		select {
		case <-c.refill:
		case <-tick.C:
		case <-c.ctx.Done():
		}
	}
}

// tidy retires circuits that are old, closes retired ones without streams and
// returns how many are ready.
func (c *Client) tidy() (ready int) {
	now := time.Now()
	var idle []*circ
	c.mu.Lock()
	for _, x := range c.circuits {
		switch {
		case x.assigned && !x.usable(now), !x.assigned && now.Sub(x.born) > maxUnused:
			x.retired = true
			if x.origin.Mux().Len() == 0 {
				idle = append(idle, x)
			}
		case !x.assigned && x.usable(now):
			ready++
		}
	}
	c.mu.Unlock()
	for _, x := range idle {
		x.origin.Close()
	}
	return ready
}

// newCircuit builds one circuit whose exit serves port (0: the web) and
// returns it unassigned.
func (c *Client) newCircuit(ctx context.Context, port uint16, avoid []*directory.Relay) (*circ, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	x, err := c.buildCircuit(ctx, port, avoid)
	c.mu.Lock()
	c.problem = err
	c.mu.Unlock()
	return x, err
}

func (c *Client) buildCircuit(ctx context.Context, port uint16, avoid []*directory.Relay) (*circ, error) {
	chooser, cons, err := c.paths(ctx)
	if err != nil {
		return nil, err
	}
	c.reached(PhaseGuard)
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	guard, l, err := c.guardLink(ctx, chooser, cons)
	if err != nil {
		return nil, err
	}
	c.reached(PhaseCircuits)
	if port == 0 {
		port = 443
	}
	relays, err := chooser.Pick(c.cfg.Rand, path.Request{
		Port: port, Exit: true, Length: hops, Guard: guard,
		Exclude: func(r *directory.Relay) bool {
			for _, a := range avoid {
				if a.Identity == r.Identity {
					return true
				}
			}
			return false
		},
	})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c.mu.Lock()
	c.nextID++
	x := &circ{id: c.nextID, path: relays, born: time.Now()}
	c.mu.Unlock()
	x.origin = circuit.NewOrigin(circuit.OriginConfig{
		Pool: c.cfg.Pool, Rand: c.cfg.Rand, OnClose: func(error) { c.forget(x) },
	})
	out, err := l.Open(x.origin)
	if err != nil {
		return nil, fmt.Errorf("client: guard %s: %w", guard.Nickname, err)
	}
	x.origin.Attach(out)
	for i, r := range relays {
		if err := x.origin.Extend(ctx, specOf(r)); err != nil {
			x.origin.Close()
			return nil, fmt.Errorf("client: hop %d (%s): %w", i+1, r.Nickname, err)
		}
	}
	return x, c.enter(x)
}

func specOf(r *directory.Relay) circuit.HopSpec {
	return circuit.HopSpec{Identity: r.Identity, OnionKey: r.OnionKey, Suite: layer.Suite(r.Suite)}
}

// enter adds a finished circuit to the table.
func (c *Client) enter(x *circ) error {
	c.mu.Lock()
	closed := c.closed
	if !closed && x.origin.Err() == nil {
		c.circuits[x.id] = x
	}
	c.mu.Unlock()
	if closed {
		x.origin.Close()
		return ErrClosed
	}
	if err := x.origin.Err(); err != nil {
		c.forget(x)
		return err
	}
	c.reached(PhaseReady)
	return nil
}

// forget takes a circuit that ended out of the table.
func (c *Client) forget(x *circ) {
	c.mu.Lock()
	delete(c.circuits, x.id)
	c.mu.Unlock()
	c.wantMore()
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
