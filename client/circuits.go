package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
)

// errBusy says that there are maxCircuits, and all are in use.
var errBusy = errors.New("client: too many circuits are in use; use fewer isolation keys at once, or wait")

// circ is one circuit of the client.
//
//	ready ──(first stream)──▶ assigned to a key ──(10 minutes)──▶ retired ──(no streams)──▶ closed
//	  └─────(30 minutes)─────────────────────────────────────────────────────────────────────┘
type circ struct {
	id     uint64
	epoch  uint64 // that of the client when building it began
	origin *circuit.Origin
	link   *link.Link
	path   []*directory.Relay
	born   time.Time

	// Guarded by Client.mu.
	assigned            bool // belongs to key; ready for anybody until then
	key                 string
	firstUsed, lastUsed time.Time
	retired             bool              // takes no new streams
	names               map[string]answer // what its exit said about names
}

// exit returns the last relay.
func (x *circ) exit() *directory.Relay { return x.path[len(x.path)-1] }

// usable reports whether x takes new streams. c.mu is held.
func (c *Client) usable(x *circ, now time.Time) bool {
	if x.retired || x.epoch != c.epoch || x.origin.Err() != nil || x.origin.Mux().Exhausted() {
		return false
	}
	if x.assigned {
		return now.Sub(x.firstUsed) < maxDirty
	}
	return now.Sub(x.born) < maxUnused
}

// want says what a stream needs of a circuit.
type want struct {
	key  string // isolation
	port uint16 // 0: any exit will do
	ipv6 bool   // the destination is an IPv6 address
}

// servedBy reports whether an exit opens such streams, as far as its policy tells.
func (w want) servedBy(r *directory.Relay) bool {
	return w.port == 0 || r.Exit.AllowsPort(w.port, w.ipv6)
}

// trail is what one Dial has tried so far.
type trail struct {
	circuits map[uint64]bool
	avoid    []identity.ID // exits that refused, and relays that were not reached: others are wanted
	failures int           // circuits that could not be built
	lost     int           // of circuits: those that broke before the exit had answered
	epoch    uint64        // that of the client when it began
}

func (t *trail) tried(x *circ) bool {
	return t.circuits[x.id] || slices.Contains(t.avoid, x.exit().Identity)
}

// buildKey says whom a circuit under construction is for. Those who have tried
// something already do not join those who have not: they need other exits.
type buildKey struct {
	want
	attempt int
	epoch   uint64
}

// build is one circuit under construction that somebody waits for.
type build struct {
	done chan struct{} // closed when circ or err is set
	circ *circ
	err  error
}

// circuitFor returns a circuit that belongs to w.key and whose exit serves w: one
// that it has, a ready one, or a new one, which all wait for who want the same.
// t leaves out what was tried.
func (c *Client) circuitFor(ctx context.Context, w want, t *trail) (*circ, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	if t.epoch != c.epoch {
		// A stream of before NewIdentity shares nothing with those of after it.
		w.key = fmt.Sprintf("before %d: %s", t.epoch+1, w.key)
	}
	c.needs.asked(w, time.Now())
	if x := c.takeLocked(w, t, time.Now()); x != nil {
		c.mu.Unlock()
		return x, nil
	}
	k := buildKey{w, len(t.circuits) + t.failures, c.epoch}
	b := c.builds[k]
	var evicted *circ
	if b == nil {
		var room bool
		if evicted, room = c.roomLocked(); !room {
			c.mu.Unlock()
			return nil, errBusy
		}
		b = &build{done: make(chan struct{})}
		c.builds[k] = b
		avoid := slices.Clone(t.avoid)
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			c.buildFor(k, b, avoid)
		}()
	}
	c.mu.Unlock()
	if evicted != nil {
		evicted.origin.Close()
	}
	select {
	case <-b.done:
		return b.circ, b.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// takeLocked returns the newest circuit that belongs to w.key and serves w, or
// makes the oldest ready one belong to it, or returns nil.
func (c *Client) takeLocked(w want, t *trail, now time.Time) *circ {
	var own, ready *circ
	for _, x := range c.circuits {
		switch {
		case x.assigned && x.key != w.key, !w.servedBy(x.exit()), t.tried(x), !c.usable(x, now):
		case x.assigned && (own == nil || x.id > own.id):
			own = x
		case !x.assigned && (ready == nil || x.id < ready.id):
			ready = x
		}
	}
	if own != nil {
		own.lastUsed = now
		return own
	}
	if ready != nil {
		ready.assign(w.key, now)
		c.needs.took(now)
		c.wantMore()
	}
	return ready
}

// assign makes x belong to key. Client.mu is held.
func (x *circ) assign(key string, now time.Time) {
	x.assigned, x.key, x.firstUsed, x.lastUsed = true, key, now, now
}

// roomLocked reports whether there may be one more circuit. evicted, unless nil, had
// to make room for it, and is for the caller to close: of those without streams the
// one that was not used for longest.
func (c *Client) roomLocked() (evicted *circ, ok bool) {
	if len(c.circuits)+len(c.builds) < c.limit {
		return nil, true
	}
	for _, x := range c.circuits {
		if x.assigned && (evicted == nil || x.lastUsed.Before(evicted.lastUsed)) && x.origin.Mux().Len() == 0 {
			evicted = x
		}
	}
	if evicted == nil {
		return nil, false
	}
	evicted.retired = true
	delete(c.circuits, evicted.id)
	return evicted, true
}

// buildFor builds one circuit for all who wait for it. It goes on when they do
// not: the next to come will have it.
func (c *Client) buildFor(k buildKey, b *build, avoid []identity.ID) {
	x, err := c.newCircuit(c.ctx, k.want, true, avoid)
	c.mu.Lock()
	defer c.mu.Unlock()
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

// keepReady keeps unused circuits until Close.
func (c *Client) keepReady() {
	failures := 0
	var warned time.Time
	for c.ctx.Err() == nil {
		// The wait for a consensus is the mirror's to explain.
		if _, err := c.mirror.Wait(c.ctx); err != nil {
			return
		}
		w, need := c.needReady()
		if !need {
			select {
			case <-c.refill:
			case <-c.ctx.Done():
			}
			continue
		}
		_, err := c.newCircuit(c.ctx, w, false, nil)
		c.mu.Lock()
		if w != (want{}) && errors.Is(err, path.ErrNoPath) {
			// A stream will be told; until there is another consensus it would not help to
			// try again.
			c.unserved[w] = true
			c.problem, err = nil, nil
		}
		lost := c.lostYoung
		c.lostYoung = 0
		c.mu.Unlock()
		if err == nil && lost == 0 {
			failures = 0
			continue
		}
		pause := min(retryMin<<min(failures, 10), c.pauseMax())
		failures++
		if err != nil && c.ctx.Err() == nil {
			c.cfg.Log.Debug("could not build a circuit, trying again", "err", err)
			if failures >= manyFailures && outageOf(err) == outageNone && time.Since(warned) >= time.Minute && !errors.Is(err, ErrNotReady) {
				// The mirror has its own warnings about the consensus, and noteOutage those
				// about the way to guards.
				c.cfg.Log.Warn("no circuit can be built; cepa tries again, and says what stands in the way in cepa status", "count", failures, "err", err)
				warned = time.Now()
			}
		}
		c.rest(pause)
	}
}

// needReady returns what a circuit should be built for ahead of need, if one should,
// and makes room for it.
func (c *Client) needReady() (want, bool) {
	c.mu.Lock()
	w, need := c.missingLocked(time.Now())
	var evicted *circ
	if need {
		evicted, need = c.roomLocked()
	}
	c.mu.Unlock()
	if evicted != nil {
		evicted.origin.Close()
	}
	return w, need
}

// keepTidy retires old circuits until Close.
func (c *Client) keepTidy() {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.tidy(time.Now())
			c.tidyStubs(time.Now())
			c.visitor.Tidy()
			c.probeGuards()
			c.wantMore()
		case <-c.ctx.Done():
			return
		}
	}
}

// tidy retires circuits that take no new streams, and closes those that have
// none left.
func (c *Client) tidy(now time.Time) {
	var idle []*circ
	c.mu.Lock()
	for id, x := range c.circuits {
		if c.usable(x, now) {
			continue
		}
		x.retired = true
		if x.origin.Mux().Len() == 0 {
			delete(c.circuits, id)
			idle = append(idle, x)
		}
	}
	c.mu.Unlock()
	for _, x := range idle {
		x.origin.Close()
	}
}

// retire keeps new streams from x.
func (c *Client) retire(x *circ) {
	c.mu.Lock()
	x.retired = true
	c.mu.Unlock()
}

// forget takes a circuit that ended out of the table.
func (c *Client) forget(x *circ) {
	c.mu.Lock()
	_, there := c.circuits[x.id]
	delete(c.circuits, x.id)
	young := there && !c.closed && time.Since(x.born) < youngAge
	if young && !x.assigned {
		c.lostYoung++
	}
	c.mu.Unlock()
	if young { // apart: the reader of a link may be who calls, and the file may be written
		c.spawn(func() { c.countDeath(x.link, x.path[0]) })
	}
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
