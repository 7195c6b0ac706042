// Package client is a user's end of the network: it fetches the consensus,
// keeps a guard and ready circuits, and opens streams to the internet over
// three hops. Streams of different isolation keys never share a circuit. Many
// Clients may live in one process; Close leaves nothing behind.
package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"cepa/circuit"
	"cepa/clock"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/link"
	"cepa/onion/visit"
	"cepa/path"
)

// Limits and times; ours.
const (
	// defaultReady is how many unused circuits are kept: one for the next
	// request and one for an isolated one beside it.
	defaultReady = 2
	// maxReady bounds Config.Ready: more would cost the network more than they
	// give the user.
	maxReady = 32
	// maxBuilding bounds circuits under construction.
	maxBuilding = 32
	// maxCircuits bounds circuits in all: each isolation key has its own, and
	// whoever invents a new one for each request must not fill the guard.
	maxCircuits = 512
	// maxDirty is how long after its first use a circuit takes new streams.
	maxDirty = 10 * time.Minute
	// maxUnused is how long an unused circuit is kept.
	maxUnused = 30 * time.Minute
	// buildTimeout is how long all hops of a circuit may take before there is a history
	// of them, and ever, and with it a link to a guard.
	buildTimeout = 30 * time.Second
	// linkTimeout is how long a link to one guard may take.
	linkTimeout = 10 * time.Second
	// consensusTimeout is how long building a circuit waits for a consensus: as
	// long as a network takes that starts together with the client.
	consensusTimeout = 20 * time.Second
	// consensusRetry is how long a stream waits for another look when the last
	// attempt to fetch one has failed.
	consensusRetry = 5 * time.Second
	// streamTimeout is how long an exit may take to answer: its own limits
	// for a name (10 s) and addresses (15 s), and some way.
	streamTimeout = 30 * time.Second
	// maxAttempts is how many circuits one Dial may use, and maxFailures how
	// many it may fail to get; between those it pauses, twice as long each time up
	// to a bound: 3.1 s in all, in which so many may meet relays that have just gone.
	maxAttempts   = 3
	maxFailures   = 10
	buildPause    = 100 * time.Millisecond
	maxBuildPause = 400 * time.Millisecond
	// tidyEvery is how often old circuits are looked for.
	tidyEvery = 30 * time.Second
	// retryMin and retryMax bound the pause after a circuit that was built ahead
	// of need failed, or was lost within youngAge before it was of use.
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
	youngAge = 30 * time.Second
	// manyFailures in a row are worth a warning: some seconds of them.
	manyFailures = 6
	// clockCheck is how often it is looked whether the date has jumped: so soon after a
	// laptop has woken, the consensus is fetched that has become due meanwhile.
	clockCheck = 10 * time.Second
	// hops of a circuit to the internet.
	hops = 3
)

// Errors that decide.
var (
	// ErrClosed is returned by a Client that was closed.
	ErrClosed = errors.New("client: closed")
	// ErrNotReady is wrapped when there is no valid consensus: the network
	// could not be reached, or not for too long.
	ErrNotReady = errors.New("client: not connected to the network")
)

// Client is one user's client. Its methods are safe for concurrent use.
type Client struct {
	cfg    Config
	mirror *mirror.Mirror
	links  *link.Pool
	guards *guards
	// vanguards are for circuits that others can make this client build.
	vanguards *vanguards
	visitor   *visit.Visitor // reaches onion services

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	ready  chan struct{} // closed when the first circuit stands
	refill chan struct{} // depth 1: fewer ready circuits than wanted
	slots  chan struct{} // one for each circuit under construction
	// stubSlots is the same for circuits with vanguards: whoever has them built takes nothing from the streams to the internet.
	stubSlots chan struct{}
	stubWork  chan struct{} // depth 1: for keepStubs
	// changed, of depth 1, has keepReady try again at once.
	changed chan struct{}
	times   buildTimes

	progressed chan struct{} // depth 1: for tellProgress

	mu          sync.Mutex // guards what follows
	closed      bool       // nothing may be added to wg any more
	wg          sync.WaitGroup
	chooser     *path.Chooser        // for consensus
	consensus   *directory.Consensus // that chooser is for
	circuits    map[uint64]*circ
	builds      map[buildKey]*build
	nextID      uint64
	limit       int       // of circuits: maxCircuits
	lostYoung   int       // unused circuits that were lost soon, since keepReady looked
	epoch       uint64    // circuits of earlier ones take no new streams
	renewed     time.Time // when NewIdentity began this one; zero at first
	needs       needs
	outage      outage
	outageSince time.Time
	outageTold  [4]bool              // of this one, by what it looked like
	checking    map[identity.ID]bool // guards whose links that are doubted
	failures    map[Party]failures
	unreached   unreached
	linkEnds    linkEnds
	stubs       stubs
	unserved    map[want]bool // needs for which the present consensus has no path
	phase       Phase
	percent     int                            // of what has been done; never falls
	fetch       mirror.Progress                // of the consensus
	steps       circuit.Steps                  // how long hops take to add; has its own lock
	dirStrikes  map[identity.ID]int            // how often the directory of a guard was of no use
	problem     error                          // why the last attempt failed, nil when it did not
	ended       struct{ read, written uint64 } // bytes of links that have ended
}

// New starts a Client. It returns at once; Ready waits until it can be used.
// Errors say which part of the configuration, or which file, cannot be used.
func New(cfg Config) (*Client, error) {
	if cfg.Network == nil {
		return nil, errors.New("client: a network is needed")
	}
	if cfg.Ready < 0 || cfg.Ready > maxReady {
		return nil, fmt.Errorf("client: %d ready circuits: 1 to %d are possible", cfg.Ready, maxReady)
	}
	cfg.complete()
	c := &Client{
		cfg: cfg, ready: make(chan struct{}), refill: make(chan struct{}, 1), slots: make(chan struct{}, maxBuilding),
		circuits: map[uint64]*circ{}, builds: map[buildKey]*build{}, limit: maxCircuits,
		progressed: make(chan struct{}, 1), dirStrikes: map[identity.ID]int{}, unserved: map[want]bool{},
		changed: make(chan struct{}, 1), checking: map[identity.ID]bool{}, failures: map[Party]failures{}, unreached: unreached{}, linkEnds: linkEnds{},
		stubSlots: make(chan struct{}, maxStubBuilding), stubWork: make(chan struct{}, 1), stubs: stubs{all: map[*stub]struct{}{}},
	}
	var err error
	var moved bool
	if c.guards, moved, err = loadGuards(cfg); err != nil {
		return nil, err
	}
	if c.vanguards, err = loadVanguards(cfg); err != nil {
		return nil, err
	}
	if moved {
		cfg.Log.Warn("the guards come from another directory; if they are a copy and both are used, both can be linked by them: "+
			"move the file away in one, unless this is a backup put back, or a directory that moved", "file", guardsFile)
	}
	if c.mirror, err = c.newMirror(); err != nil {
		return nil, err
	}
	c.links = &link.Pool{Dial: cfg.Dial, Config: c.linkConfig}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.visitor = c.newVisitor()
	c.spawn(func() { c.mirror.Run(c.ctx) })
	c.spawn(c.keepReady)
	c.spawn(c.keepTidy)
	c.spawn(c.keepStubs)
	c.spawn(func() { clock.Watch(c.ctx, clockCheck, clock.Tolerance, c.cfg.Now, c.onJump) })
	if cfg.Interfaces != nil {
		c.spawn(c.watchNetwork)
	}
	if cfg.OnProgress != nil {
		c.spawn(c.tellProgress)
	}
	return c, nil
}

// spawn runs f in a goroutine that Close waits for. After Close it does
// nothing and returns false.
func (c *Client) spawn(f func()) bool {
	if !c.begin() {
		return false
	}
	go func() {
		defer c.wg.Done()
		f()
	}()
	return true
}

// begin makes Close wait for the caller's wg.Done, unless it was called.
func (c *Client) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	return true
}

// Close ends all streams and circuits and returns when nothing is left. Every
// call waits for that; those after the first return ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	already := c.closed
	c.closed = true
	all := make([]*circ, 0, len(c.circuits))
	for _, x := range c.circuits {
		all = append(all, x)
	}
	stubs := slices.Collect(maps.Keys(c.stubs.all))
	c.mu.Unlock()
	c.cancel()
	for _, x := range all {
		x.origin.Close()
	}
	for _, x := range stubs {
		x.origin.Close()
	}
	c.visitor.Close()
	c.links.Close()
	c.wg.Wait()
	c.guards.flush()
	if already {
		return ErrClosed
	}
	return nil
}

// Ready waits until the first circuit stands. When ctx ends first, the error
// wraps ErrNotReady, ctx's error and what the last attempt met.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
	case <-c.ctx.Done():
	case <-ctx.Done():
	}
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	select {
	case <-c.ready: // whatever ctx says
		return nil
	default:
	}
	c.mu.Lock()
	phase := c.phase
	problem := c.problemLocked()
	c.mu.Unlock()
	if problem == nil {
		return fmt.Errorf("%w (%s): %w", ErrNotReady, phase, ctx.Err())
	}
	return fmt.Errorf("%w (%s): %w; the last problem: %w", ErrNotReady, phase, ctx.Err(), problem)
}

// Directory returns the client's copy of the consensus.
func (c *Client) Directory() *mirror.Mirror { return c.mirror }

// problemLocked returns what stands in the way, nil when nothing is known. c.mu is
// held.
func (c *Client) problemLocked() error {
	switch {
	case c.mirror.Current() == nil:
		return c.mirror.Problem()
	case c.expired():
		return c.noConsensus()
	case c.problem == nil && !c.mirror.Current().Fresh(c.cfg.Now()):
		return c.mirror.Problem()
	}
	return c.problem
}

// linkConfig returns the configuration of a link: a client's, without
// identity.
func (c *Client) linkConfig() *link.Config {
	return &link.Config{
		Pool: c.cfg.Pool, Buffers: c.cfg.Buffers, QueueCells: circuit.QueueCells,
		Keepalive: c.keepalive(),
		Rand:      c.cfg.Rand, Now: c.cfg.Now, Log: c.cfg.Log,
		OnClose: func(l *link.Link, _ error) {
			st := l.Stats()
			c.mu.Lock()
			c.ended.read += st.BytesRead
			c.ended.written += st.BytesWritten
			c.mu.Unlock()
		},
	}
}

// params returns the parameters of the present consensus; their defaults before
// there is one.
func (c *Client) params() directory.Params {
	if cons := c.mirror.Current(); cons != nil {
		return cons.Params
	}
	return nil
}

// paths returns the chooser for the present consensus. It waits for one that is
// valid, but not when what there is has expired and no newer one can be had: no
// path is chosen from that.
func (c *Client) paths(ctx context.Context) (*path.Chooser, *directory.Consensus, error) {
	cons, err := c.validConsensus(ctx)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	ch, same := c.chooser, c.consensus == cons
	c.mu.Unlock()
	if same {
		return ch, cons, nil
	}
	if ch, err = path.New(cons); err != nil {
		return nil, nil, fmt.Errorf("client: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.chooser, c.consensus = ch, cons
	clear(c.unserved)
	return ch, cons, nil
}

// expired reports whether there is a consensus, and it is not valid.
func (c *Client) expired() bool {
	cons := c.mirror.Current()
	return cons != nil && cons.CheckTime(c.cfg.Now()) != nil
}

// validConsensus returns a consensus to choose from.
func (c *Client) validConsensus(ctx context.Context) (*directory.Consensus, error) {
	waitCtx, cancel := context.WithTimeout(ctx, consensusTimeout)
	defer cancel()
	// With an old one and a reason why there is no newer one, there is nothing to
	// wait for.
	if c.mirror.Current() == nil || c.mirror.Problem() == nil {
		if cons, err := c.mirror.Wait(waitCtx); err == nil {
			return cons, nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if cons := c.mirror.Current(); cons != nil && cons.CheckTime(c.cfg.Now()) == nil {
		return cons, nil
	}
	return nil, c.noConsensus()
}

// noConsensus says why there is no valid consensus.
func (c *Client) noConsensus() error {
	err := fmt.Errorf("%w: no consensus could be fetched yet", ErrNotReady)
	if cons := c.mirror.Current(); cons != nil {
		if stale := cons.CheckTime(c.cfg.Now()); stale != nil {
			err = fmt.Errorf("%w: %w", ErrNotReady, stale)
		}
	}
	if problem := c.mirror.Problem(); problem != nil {
		err = fmt.Errorf("%w; the last attempt to fetch one: %w", err, problem)
	}
	return err
}
