// Package client is a user's end of the network: it fetches the consensus,
// keeps a guard and ready circuits, and opens streams to the internet over
// three hops. Streams of different isolation keys never share a circuit. Many
// Clients may live in one process; Close leaves nothing behind.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"cepa/cell"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/link"
	"cepa/path"
)

// Limits and times; ours.
const (
	// defaultReady is how many unused circuits are kept: one for the next
	// request and one for an isolated one beside it.
	defaultReady = 2
	// maxBuilding bounds circuits under construction.
	maxBuilding = 32
	// maxDirty is how long after its first use a circuit takes new streams.
	maxDirty = 10 * time.Minute
	// maxUnused is how long an unused circuit is kept.
	maxUnused = 30 * time.Minute
	// buildTimeout is how long all hops of a circuit may take.
	buildTimeout = 30 * time.Second
	// linkTimeout is how long a link to the guard may take.
	linkTimeout = 10 * time.Second
	// streamTimeout is how long an exit may take to answer: its own limits
	// for a name and an address, and some way.
	streamTimeout = 30 * time.Second
	// maxAttempts is how many circuits one Dial may use.
	maxAttempts = 3
	// tidyEvery is how often old circuits are looked for.
	tidyEvery = 30 * time.Second
	// hops of a circuit to the internet.
	hops = 3
)

// Errors that decide.
var (
	// ErrClosed is returned by a Client that was closed.
	ErrClosed = errors.New("client: closed")
	// ErrNotReady is wrapped when there is no consensus yet: the network
	// could not be reached so far.
	ErrNotReady = errors.New("client: not connected to the network yet")
)

// Files keeps what must survive a restart. *state.Dir is one.
type Files interface {
	Read(name string, max int64) ([]byte, error)
	Write(name string, data []byte) error
	ReadJSON(name string, version int, max int64, v any) error
	WriteJSON(name string, version int, v any) error
}

// Config is what a Client is made of. Only Network is needed.
type Config struct {
	Network *directory.Network
	// Files keeps the guards and the consensus; nothing survives when nil.
	Files Files
	// Dial opens connections to the guard and, before there is a consensus,
	// to authorities; net.Dialer's when nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Ready is how many unused circuits are kept; 2 when 0.
	Ready   int
	Pool    *cell.Pool
	Buffers *link.Buffers
	Rand    io.Reader        // crypto/rand when nil
	Now     func() time.Time // the date, for validity; time.Now when nil
	Log     *slog.Logger     // nothing when nil
}

// Client is one user's client. Its methods are safe for concurrent use.
type Client struct {
	cfg    Config
	mirror *mirror.Mirror
	links  *link.Pool
	guards *guards

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ready  chan struct{} // closed when the first circuit stands
	refill chan struct{} // depth 1: fewer ready circuits than wanted
	slots  chan struct{} // one for each circuit under construction

	mu        sync.Mutex // guards what follows
	closed    bool
	chooser   *path.Chooser        // for consensus
	consensus *directory.Consensus // that chooser is for
	circuits  map[uint64]*circ
	builds    map[buildKey]*build
	nextID    uint64
	phase     Phase
	problem   error // why the last attempt failed, nil when it did not
}

// New starts a Client. It returns at once; Ready waits until it can be used.
func New(cfg Config) (*Client, error) {
	if cfg.Network == nil {
		return nil, errors.New("client: a network is needed")
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Ready == 0 {
		cfg.Ready = defaultReady
	}
	if cfg.Pool == nil {
		cfg.Pool = new(cell.Pool)
	}
	if cfg.Buffers == nil {
		cfg.Buffers = new(link.Buffers)
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		cfg: cfg, ready: make(chan struct{}), refill: make(chan struct{}, 1), slots: make(chan struct{}, maxBuilding),
		circuits: map[uint64]*circ{}, builds: map[buildKey]*build{}, phase: PhaseConsensus,
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	var err error
	if c.guards, err = loadGuards(cfg.Files, cfg.Rand); err != nil {
		return nil, err
	}
	if c.mirror, err = c.newMirror(); err != nil {
		return nil, err
	}
	c.links = &link.Pool{Dial: cfg.Dial, Config: c.linkConfig}
	c.spawn(func() { c.mirror.Run(c.ctx) })
	c.spawn(c.keepReady)
	return c, nil
}

// spawn runs f in a goroutine that Close waits for. After Close it does
// nothing and returns false.
func (c *Client) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		f()
	}()
	return true
}

// Close ends all streams and circuits and returns when nothing is left.
func (c *Client) Close() error {
	c.mu.Lock()
	already := c.closed
	c.closed = true
	all := make([]*circ, 0, len(c.circuits))
	for _, x := range c.circuits {
		all = append(all, x)
	}
	c.mu.Unlock()
	c.cancel()
	for _, x := range all {
		x.origin.Close()
	}
	c.links.Close()
	c.wg.Wait()
	if already {
		return ErrClosed
	}
	return nil
}

// Ready waits until the first circuit stands. It returns ctx's error joined
// with what the last attempt met.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-c.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		return errors.Join(fmt.Errorf("%w: %s", ErrNotReady, c.phase), c.problem, ctx.Err())
	}
}

// linkConfig returns the configuration of a link: a client's, without
// identity.
func (c *Client) linkConfig() *link.Config {
	return &link.Config{
		Pool: c.cfg.Pool, Buffers: c.cfg.Buffers, QueueCells: queueCells,
		Rand: c.cfg.Rand, Now: c.cfg.Now, Log: c.cfg.Log,
	}
}

// paths returns the chooser for the present consensus.
func (c *Client) paths(ctx context.Context) (*path.Chooser, *directory.Consensus, error) {
	cons, err := c.mirror.Wait(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.consensus != cons {
		ch, err := path.New(cons)
		if err != nil {
			return nil, nil, fmt.Errorf("client: %w", err)
		}
		c.chooser, c.consensus = ch, cons
	}
	return c.chooser, cons, nil
}
