// Package testnet boots whole networks of the real code: authorities, relays
// and clients, on this machine's loopback or on a simnet in memory, in real or
// in virtual time. `cepa simnet` is one, and so is every test of the whole.
//
// A test of a program that embeds cepa needs a few lines:
//
//	func TestMine(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) { // virtual time: nothing waits for real
//			n := testnet.New(t, testnet.Config{Sim: simnet.New(simnet.Config{})})
//			if _, err := n.ServeSite("hello.test", 80, handler); err != nil {
//				t.Fatal(err)
//			}
//			c, err := n.NewClient(client.Config{})
//			if err != nil {
//				t.Fatal(err)
//			}
//			web := &http.Client{Transport: &http.Transport{DialContext: c.Dial}}
//			…
//		})
//	}
//
// New ends everything with the test, and when the test has failed it shows what
// happened on the network. Nodes can be stopped, crashed and started again; on a
// simnet they have a Host each, whose links can be made slow, lossy or cut.
package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/probe"
	"cepa/link"
	"cepa/relay"
	"cepa/simnet"
	"cepa/state"
)

// Defaults and bounds of a Config. All are ours.
const (
	DefaultAuthorities = 4
	DefaultRelays      = 8
	DefaultExits       = 4
	// DefaultInterval is the time from one consensus to the next.
	DefaultInterval = 20 * time.Second
	// MaxRelays bounds what one process is good for.
	MaxRelays = 1000
	// networkName is what documents of test networks are bound to.
	networkName = "simnet"
	// firstRound is how long authorities wait for all relays before they
	// vote for the first time without the rest.
	firstRound = 10 * time.Second
	// probeGap is between two tests of one address: all are our own.
	probeGap = time.Second
)

// ErrClosed is returned by what a Net is asked for after Close.
var ErrClosed = errors.New("testnet: the network is closed")

// Config says what network to boot. The zero value is 4 authorities and 8
// relays, 4 of them exits, on loopback, with nothing on disk.
type Config struct {
	// Authorities, Relays and Exits are how many there are; the last Exits of
	// the relays are exits.
	Authorities, Relays, Exits int
	// Rate is that of each relay; no limit when zero.
	Rate relay.Rate
	// Interval is the time from one consensus to the next: whole seconds. A
	// consensus is valid for directory.ValidPeriods of it.
	Interval time.Duration
	// Sim is the simnet that the network lives on, with no hosts on it yet;
	// loopback TCP when nil. The caller closes it, after the network.
	Sim *simnet.Network
	// Dir keeps keys and documents; nothing is kept when nil. The caller
	// closes it.
	Dir *state.Dir
	// Tune, when not nil, may change the configuration of the i-th relay, from
	// 0, before it is made: its policy, suite, rate, randomness.
	Tune func(i int, cfg *relay.Config)
	// Measure makes the authorities measure relays; they do not when nil.
	Measure *probe.Measure
	// Progress, when not nil, hears what has been done so far.
	Progress func(stage string)
	// Trace, when not nil, keeps what happens, to be shown when a test fails.
	Trace *Trace
	Rand  io.Reader        // crypto/rand when nil
	Now   func() time.Time // the date, for validity; time.Now when nil
	Log   *slog.Logger     // of all nodes; nothing when nil
}

// Net is a running network. Its methods are safe for concurrent use; starting
// and stopping one node is for one goroutine at a time.
type Net struct {
	// Network is its description, as further nodes need it.
	Network *directory.Network
	// Authorities and Relays do not change after Start, whether they run or not.
	Authorities []*Authority
	Relays      []*Relay
	// Sites are the names that exits can reach.
	Sites *Sites
	// Pool is shared by all nodes, so that a cell that leaks anywhere shows.
	Pool *cell.Pool

	cfg     Config
	buffers *link.Buffers
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup // all that Close waits for
	errs    chan error     // first failure of a node

	mu      sync.Mutex // guards what follows
	closed  bool
	clients []*client.Client
	hosts   int                     // given out by NewHost
	sites   map[string]*simnet.Host // by address
}

// Start boots a network and returns when every relay is in a consensus that all
// of them hold. Errors say what was wrong with cfg, name the file or node that
// prevented it, or wrap ctx's and tell how far each node had come.
func Start(ctx context.Context, cfg Config) (*Net, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Net{
		cfg: cfg, Sites: newSites(), Pool: new(cell.Pool), buffers: new(link.Buffers),
		errs: make(chan error, 1), sites: map[string]*simnet.Host{},
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if cfg.Trace != nil && cfg.Sim != nil {
		cfg.Sim.Tap(cfg.Trace.tap)
	}
	if err := n.start(ctx); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// complete fills in defaults and checks the rest.
func (c *Config) complete() error {
	if c.Authorities == 0 {
		c.Authorities = DefaultAuthorities
	}
	if c.Relays == 0 {
		c.Relays = DefaultRelays
	}
	if c.Exits == 0 {
		c.Exits = min(DefaultExits, c.Relays)
	}
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Tune == nil {
		c.Tune = func(int, *relay.Config) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Log == nil && c.Trace == nil:
		c.Log = slog.New(slog.DiscardHandler)
	case c.Log == nil:
		c.Log = slog.New(c.Trace.Handler())
	case c.Trace != nil:
		c.Log = slog.New(slog.NewMultiHandler(c.Log.Handler(), c.Trace.Handler()))
	}
	switch {
	case c.Authorities < 1 || c.Authorities > directory.MaxAuthorities:
		return fmt.Errorf("a network has 1 to %d authorities, not %d", directory.MaxAuthorities, c.Authorities)
	case c.Relays < 3 || c.Relays > MaxRelays:
		return fmt.Errorf("a network on one machine has 3 to %d relays, not %d: a circuit needs 3", MaxRelays, c.Relays)
	case c.Exits < 1 || c.Exits > c.Relays:
		return fmt.Errorf("of %d relays, 1 to %d can be exits, not %d", c.Relays, c.Relays, c.Exits)
	}
	return c.Rate.Check()
}

func (n *Net) start(ctx context.Context) error {
	if err := n.makeAuthorities(); err != nil {
		return err
	}
	for i := range n.cfg.Relays {
		if err := n.makeRelay(i); err != nil {
			return err
		}
	}
	n.cfg.Progress(fmt.Sprintf("keys of %d authorities and %d relays", n.cfg.Authorities, n.cfg.Relays))
	for _, a := range n.Authorities {
		if err := a.Start(); err != nil {
			return err
		}
	}
	for _, r := range n.Relays {
		if err := r.Start(); err != nil {
			return err
		}
	}
	if err := n.AwaitConsensus(ctx); err != nil {
		return err
	}
	n.cfg.Progress(fmt.Sprintf("consensus of %d authorities on %d relays", n.cfg.Authorities, n.cfg.Relays))
	return nil
}

// Sim returns the simnet that the network lives on, nil on loopback.
func (n *Net) Sim() *simnet.Network { return n.cfg.Sim }

// Trace returns what keeps what happens: that of the Config, or New's.
func (n *Net) Trace() *Trace { return n.cfg.Trace }

// Relay returns the relay with that identity, or nil.
func (n *Net) Relay(id identity.ID) *Relay {
	for _, r := range n.Relays {
		if r.Identity() == id {
			return r
		}
	}
	return nil
}

// NewClient starts a client of the network. What cfg leaves out is filled in: on
// a simnet the client gets a host of its own, unless cfg.Dial is that of a host
// from NewHost. The caller closes it; Close does at the latest.
func (n *Net) NewClient(cfg client.Config) (*client.Client, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	cfg.Network = n.Network
	cfg.AllowPrivateAddresses = true // those of Sites
	if cfg.Dial == nil {
		cfg.Dial = loopback{}.Dial
		if n.cfg.Sim != nil {
			cfg.Dial = n.newHost(fmt.Sprintf("client%d", len(n.clients)+1)).Dial
		}
	}
	if cfg.Pool == nil {
		cfg.Pool, cfg.Buffers = n.Pool, n.buffers
	}
	if cfg.Rand == nil {
		cfg.Rand = n.cfg.Rand
	}
	if cfg.Now == nil {
		cfg.Now = n.cfg.Now
	}
	if cfg.Log == nil {
		cfg.Log = n.cfg.Log
	}
	c, err := client.New(cfg)
	if err == nil {
		n.clients = append(n.clients, c)
	}
	return c, err
}

// Err returns a channel that gets the first failure of a node that nobody had
// stopped.
func (n *Net) Err() <-chan error { return n.errs }

// Close ends all clients, nodes and sites, and returns when nothing is left of
// them. It always returns nil, and may be called again.
func (n *Net) Close() error {
	n.mu.Lock()
	n.closed = true
	clients := n.clients
	n.clients = nil
	n.mu.Unlock()
	for _, c := range clients {
		_ = c.Close() // it may be closed already
	}
	n.cancel()
	for _, a := range n.Authorities {
		a.Stop()
		a.first.Close() // of one that was never started
	}
	for _, r := range n.Relays {
		r.Stop()
		r.first.Close()
	}
	n.wg.Wait()
	return nil
}

// Leaks returns an error when cells or link buffers of the network were taken
// and not given back. After Close there must be none, provided that all streams
// were closed, which own what was not read from them.
func (n *Net) Leaks() error {
	cells, buffers := n.Pool.Outstanding(), n.buffers.Outstanding()
	if cells == 0 && buffers == 0 {
		return nil
	}
	return fmt.Errorf("testnet: %d cells and %d link buffers were not given back", cells, buffers)
}

// begin counts something in that Close waits for, unless it is too late.
func (n *Net) begin() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	n.wg.Add(1)
	return nil
}

// failed notes that a node ended on its own.
func (n *Net) failed(name string, err error) {
	n.cfg.Log.Error("a node failed", "node", name, "error", err)
	select {
	case n.errs <- fmt.Errorf("%s: %w", name, err):
	default:
	}
}
