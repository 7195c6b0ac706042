package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
)

// Circuits over vanguards; all ours.
const (
	// minStubs is how many stubs are kept while onion services are in use: a visit to one takes a circuit for the descriptor, one
	// to an introduction point and one to a rendezvous point.
	minStubs = 3
	// maxStubs bounds those that are kept when many are taken within burst, as by a service with visitors.
	maxStubs = 16
	// stubsFor is how long after the last use of a circuit over vanguards stubs are kept.
	stubsFor = time.Hour
	// maxStubBuilding bounds circuits over vanguards under construction, and keepsBuilding those that are built ahead.
	maxStubBuilding = 16
	keepsBuilding   = 4
	// maxVanguardCircuits bounds circuits over vanguards, stubs included: a service has one for each of its visitors, and whoever
	// sends it many must not fill the guard.
	maxVanguardCircuits = 1024
	// keptVanguardCircuits is how many of them those for the visitors of services leave free, and those that are built ahead: else
	// services with many visitors, or a flood of them, would have no circuit to a new introduction point or to publish it.
	keptVanguardCircuits = 128
	// maxVanguardTries is how many circuits are tried for one, when their hops before the last are what fails, and maxDeadTries how
	// many of those beside that a relay said the next one is not reached: that takes moments, and vanguards that are dead are then
	// set aside.
	maxVanguardTries = 3
	maxDeadTries     = 8
)

// errManyVanguards says that there are maxVanguardCircuits.
var errManyVanguards = errors.New("client: too many circuits of onion services are in use; close connections, or wait")

// stub is a circuit over vanguards: a stub until it has a last hop.
//
//	ready ──(taken, and extended to the last hop)──▶ used ──(closed by who uses it)──▶ gone
//	  └──(30 minutes; cannot serve; an hour without use)───────────────────────────────▶┘
type stub struct {
	epoch  uint64 // that of the client when building it began
	origin *circuit.Origin
	link   *link.Link
	path   []*directory.Relay // of the stub
	born   time.Time

	// Guarded by Client.mu.
	ended   bool
	foreign bool        // somebody else chose its last hop, and can end it
	onClose func(error) // of who uses it
}

// stubs is guarded by Client.mu.
type stubs struct {
	all      map[*stub]struct{} // used ones too
	ready    []*stub            // oldest first
	building int
	taken    []time.Time // when circuits were asked for, oldest first; the last maxStubs of them
}

// asked notes that a circuit is wanted.
func (s *stubs) asked(now time.Time) {
	if len(s.taken) == maxStubs {
		s.taken = slices.Delete(s.taken, 0, 1)
	}
	s.taken = append(s.taken, now)
}

// wanted is how many stubs there should be.
func (s *stubs) wanted(now time.Time) int {
	if len(s.taken) == 0 || now.Sub(s.taken[len(s.taken)-1]) >= stubsFor {
		return 0
	}
	lately := 0
	for _, t := range s.taken {
		if now.Sub(t) < burst {
			lately++
		}
	}
	return min(max(minStubs, lately), maxStubs)
}

func (s *stubs) status() VanguardStatus {
	return VanguardStatus{Ready: len(s.ready), Building: s.building, Used: len(s.all) - len(s.ready)}
}

// VanguardCircuit returns a circuit that somebody else can make this client build, such as one to a rendezvous: over its guard, then
// relays that it stays with for weeks and for hours, to a last hop. foreign says that somebody else chose that one; then a middle
// comes before it. While such circuits are in use, stubs of them are kept ready, so that one or two hops are all that is to be added.
//
// The caller closes the circuit. onClose, unless nil, hears once of its end, and nothing if there is an error; it must not wait.
// Errors are those of building a circuit, ErrClosed and ctx's.
func (c *Client) VanguardCircuit(ctx context.Context, last identity.ID, foreign bool, onClose func(error)) (*circuit.Origin, error) {
	return c.vanguardWithin(ctx, maxVanguardCircuits, last, foreign, onClose)
}

// vanguardWithin is VanguardCircuit with a bound of its own.
func (c *Client) vanguardWithin(ctx context.Context, most int, last identity.ID, foreign bool, onClose func(error)) (*circuit.Origin, error) {
	if !c.begin() {
		return nil, ErrClosed
	}
	defer c.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	c.mu.Lock()
	c.stubs.asked(time.Now())
	c.mu.Unlock()
	c.workOnStubs()
	if c.expired() {
		c.lookAgain(ctx)
	}
	var err error
	for tries := (vanguardTries{}); tries.more(err); {
		var x *stub
		var again bool
		if x, again, err = c.vanguardCircuit(ctx, most, last, foreign); err == nil {
			if c.hand(x, onClose) {
				return x.origin, nil
			}
			err, again = &hopError{len(x.path), x.path[len(x.path)-1], x.origin.Err()}, true
		}
		if !again || ctx.Err() != nil {
			break
		}
	}
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	return nil, err
}

// vanguardTries counts circuits that failed.
type vanguardTries struct{ dead, others int }

// more notes why one failed, if one did, and reports whether another one may be tried.
func (t *vanguardTries) more(err error) bool {
	var said cell.ExtendError
	switch {
	case err == nil:
	case errors.As(err, &said):
		t.dead++
	default:
		t.others++
	}
	return t.dead < maxDeadTries && t.others < maxVanguardTries
}

// vanguardCircuit makes one circuit. again says that another one may do better.
func (c *Client) vanguardCircuit(ctx context.Context, most int, last identity.ID, foreign bool) (x *stub, again bool, err error) {
	ch, cons, err := c.paths(ctx)
	if err != nil {
		return nil, false, err
	}
	r := path.VanguardRequest{Foreign: foreign}
	var ok bool
	if r.Last, ok = cons.Lookup(last); !ok {
		return nil, false, fmt.Errorf("client: relay %s is not in the consensus", last.Short())
	}
	x, more, err := c.takeStub(ch, r)
	if err == nil && x == nil {
		x, more, err = c.buildStub(ctx, most, ch, r)
	}
	if err != nil {
		var hop *hopError
		return nil, errors.As(err, &hop) && hop.hop > 1, err
	}
	err = c.extendStub(ctx, x, more, foreign)
	if err != nil {
		x.origin.Close()
		var hop *hopError
		return nil, errors.As(err, &hop) && hop.hop < len(x.path)+len(more), err
	}
	return x, false, nil
}

// takeStub returns the oldest stub that goes on to a last hop, and how; nil if there is none. Those before it are given up.
func (c *Client) takeStub(ch *path.Chooser, r path.VanguardRequest) (*stub, []*directory.Relay, error) {
	for {
		x := c.popStub(time.Now())
		if x == nil {
			return nil, nil, nil
		}
		more, ok, err := c.vanguards.proceed(ch, c.cfg.Now(), x.path, r)
		if err == nil && ok {
			return x, more, nil
		}
		x.origin.Close()
		if err != nil {
			return nil, nil, err
		}
	}
}

// popStub takes out the oldest stub.
func (c *Client) popStub(now time.Time) *stub {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, x := range c.stubs.ready {
		if x.epoch == c.epoch && !x.ended && now.Sub(x.born) < maxUnused {
			c.stubs.ready = slices.Delete(c.stubs.ready, i, i+1)
			return x
		}
	}
	return nil
}

// buildStub builds a stub for r, unless there are so many circuits, and says how it goes on; with no last hop, it does not.
func (c *Client) buildStub(ctx context.Context, most int, ch *path.Chooser, r path.VanguardRequest) (*stub, []*directory.Relay, error) {
	select {
	case c.stubSlots <- struct{}{}:
		defer func() { <-c.stubSlots }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	c.mu.Lock()
	full := len(c.stubs.all)+c.stubs.building >= most
	if !full {
		c.stubs.building++
	}
	x := &stub{epoch: c.epoch}
	c.mu.Unlock()
	if full {
		return nil, nil, errManyVanguards
	}
	more, err := c.openStub(ctx, ch, r, x)
	c.mu.Lock()
	c.stubs.building--
	ended, closed := x.ended, c.closed
	if err == nil && !ended && !closed {
		c.stubs.all[x] = struct{}{}
	}
	c.mu.Unlock()
	switch {
	case err != nil:
	case closed:
		x.origin.Close()
		err = ErrClosed
	case ended:
		err = &hopError{len(x.path), x.path[len(x.path)-1], x.origin.Err()}
	}
	if !errors.Is(err, path.ErrNoPath) { // which does not hinder streams to the internet
		c.noteBuild(ctx, err)
	}
	return x, more, err
}

// openStub opens the circuit of x.
func (c *Client) openStub(ctx context.Context, ch *path.Chooser, r path.VanguardRequest, x *stub) (more []*directory.Relay, err error) {
	if r.Guard, x.link, err = c.guardLink(ctx, ch); err != nil {
		return nil, err
	}
	relays, err := c.vanguards.path(ch, c.cfg.Now(), r)
	if err != nil {
		return nil, err
	}
	x.path = relays[:hops]
	x.origin, err = c.openTimed(ctx, x.link, x.path, func(err error) { c.stubEnded(x, err) })
	x.born = time.Now()
	if err != nil && ctx.Err() == nil && x.link.Err() == nil {
		c.noteVanguard(err)
	}
	return relays[hops:], err
}

// noteVanguard sets a vanguard aside that was not reached, or did not answer in time.
func (c *Client) noteVanguard(err error) {
	var hop *hopError
	var said cell.ExtendError
	if errors.As(err, &hop) && hop.hop > 1 && (errors.As(err, &said) || errors.Is(err, context.DeadlineExceeded)) {
		c.vanguards.setAside(hop.relay, c.cfg.Now())
	}
}

// extendStub adds the last hops. Nothing that somebody else may have caused by the choice of the last one counts for the guard or
// for other circuits.
func (c *Client) extendStub(ctx context.Context, x *stub, more []*directory.Relay, foreign bool) error {
	timed, cancel := context.WithTimeout(ctx, c.times.timeout())
	defer cancel()
	for i, r := range more {
		last := i == len(more)-1
		if last && foreign {
			c.mu.Lock()
			x.foreign = true
			c.mu.Unlock()
		}
		if err := x.origin.Extend(timed, specOf(r)); err != nil {
			err = &hopError{len(x.path) + i + 1, r, err}
			if last && foreign || ctx.Err() != nil {
				c.mu.Lock()
				x.foreign = true // its end is no mark against the guard
				c.mu.Unlock()
			}
			if timed.Err() != nil && ctx.Err() == nil {
				c.checkLink(x.link) // which may be dead without a word
			}
			return err
		}
	}
	return nil
}

// hand gives a circuit to who uses it, unless it has ended.
func (c *Client) hand(x *stub, onClose func(error)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	x.onClose = onClose
	return !x.ended
}

// stubEnded is told of the end of each.
func (c *Client) stubEnded(x *stub, err error) {
	c.mu.Lock()
	x.ended = true
	_, there := c.stubs.all[x]
	delete(c.stubs.all, x)
	if i := slices.Index(c.stubs.ready, x); i >= 0 {
		c.stubs.ready = slices.Delete(c.stubs.ready, i, i+1)
	}
	young := there && !c.closed && !x.foreign && !errors.Is(err, circuit.ErrClosed) && time.Since(x.born) < youngAge
	onClose := x.onClose
	c.mu.Unlock()
	if young { // apart, as in forget
		c.spawn(func() { c.countDeath(x.link, x.path[0]) })
	}
	if onClose != nil {
		onClose(err)
	}
	c.workOnStubs()
}
