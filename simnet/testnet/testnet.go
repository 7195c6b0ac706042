// Package testnet boots whole networks of the real code: authorities, relays
// and clients, on this machine's loopback or on a simnet in memory, in real or
// in virtual time. `cepa simnet` is one, and so is every test of the whole.
package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/authority"
	"cepa/link"
	"cepa/relay"
	"cepa/simnet"
	"cepa/state"
)

// Defaults of a Config.
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
)

// Config says what network to boot. The zero value is 4 authorities and 8
// relays, 4 of them exits, on loopback, with nothing on disk.
type Config struct {
	Authorities, Relays, Exits int
	// Rate is that of each relay; no limit when zero.
	Rate relay.Rate
	// Interval is the time from one consensus to the next.
	Interval time.Duration
	// Sim is the simnet that the network lives on; loopback TCP when nil.
	Sim *simnet.Network
	// Dir keeps keys and documents; nothing is kept when nil. The caller
	// closes it.
	Dir *state.Dir
	// Progress, when not nil, hears what has been done so far.
	Progress func(stage string)
	Rand     io.Reader
	Now      func() time.Time
	Log      *slog.Logger
}

// Authority is a running authority.
type Authority struct {
	*authority.Authority
	Nickname string
	Identity identity.ID
	Addr     netip.AddrPort
}

// Relay is a running relay.
type Relay struct {
	*relay.Relay
	Nickname string
	Addr     netip.AddrPort
	Exit     bool
	stop     context.CancelFunc
	done     chan struct{}
}

// Net is a running network.
type Net struct {
	Network     *directory.Network
	Authorities []*Authority
	Relays      []*Relay
	Sites       *Sites
	// Pool is shared by all nodes, so that a cell that leaks anywhere shows.
	Pool *cell.Pool

	cfg     Config
	buffers *link.Buffers
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	errs    chan error // first failure of a node
	clients int
}

// Start boots a network and returns when every relay is in a consensus, or
// with the error that prevented it.
func Start(ctx context.Context, cfg Config) (*Net, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Net{cfg: cfg, Sites: newSites(), Pool: new(cell.Pool), buffers: new(link.Buffers), errs: make(chan error, 1)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.start(ctx); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

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
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
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
	identities, listeners, err := n.prepare()
	if err != nil {
		return err
	}
	n.cfg.Progress(fmt.Sprintf("keys of %d authorities and %d relays", n.cfg.Authorities, n.cfg.Relays))
	for i, id := range identities {
		if err := n.startAuthority(i, id, listeners[i]); err != nil {
			return err
		}
	}
	for i := range n.cfg.Relays {
		if err := n.startRelay(i); err != nil {
			return err
		}
	}
	return n.awaitConsensus(ctx)
}

// prepare makes the authorities' keys and listeners, and from them the
// network's description.
func (n *Net) prepare() (ids []*identity.Key, listeners []net.Listener, err error) {
	old := n.oldPorts()
	n.Network = &directory.Network{Name: networkName, Interval: n.cfg.Interval}
	for i := range n.cfg.Authorities {
		name := fmt.Sprintf("auth%d", i+1)
		dir, err := n.sub(name)
		if err != nil {
			return nil, nil, err
		}
		key, err := n.identity(dir)
		if err != nil {
			return nil, nil, err
		}
		addr := authorityAddr(n.cfg.Sim, i)
		ln, at, err := listen(hostFor(n.cfg.Sim, name, addr), addr, old[key.ID()])
		if err != nil {
			return nil, nil, err
		}
		context.AfterFunc(n.ctx, func() { ln.Close() })
		ids, listeners = append(ids, key), append(listeners, ln)
		n.Network.Authorities = append(n.Network.Authorities, directory.Authority{Nickname: name, Identity: key.ID(), Address: at.String()})
	}
	if err := n.Network.Validate(); err != nil {
		return nil, nil, err
	}
	return ids, listeners, n.writeNetworkFile()
}

// sub returns a node's folder, or nil when nothing is kept.
func (n *Net) sub(name string) (*state.Dir, error) {
	if n.cfg.Dir == nil {
		return nil, nil
	}
	return n.cfg.Dir.Sub(name)
}

// identity returns the identity in dir, made when there is none.
func (n *Net) identity(dir *state.Dir) (*identity.Key, error) {
	if dir == nil {
		return identity.Generate(n.cfg.Rand)
	}
	secret, _, err := dir.LoadOrCreateKey("identity.key", identity.KindIdentity, n.cfg.Rand)
	if err != nil {
		return nil, err
	}
	return identity.FromSeed(secret[:])
}

func (n *Net) onionKey(dir *state.Dir) (*handshake.OnionKey, error) {
	if dir == nil {
		return handshake.GenerateOnionKey(n.cfg.Rand)
	}
	secret, _, err := dir.LoadOrCreateKey("onion.key", identity.KindOnion, n.cfg.Rand)
	if err != nil {
		return nil, err
	}
	return handshake.OnionKeyFromSecret(secret)
}

// run runs a node until the network closes; a node that fails is heard of.
func (n *Net) run(what string, f func() error) {
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		if err := f(); err != nil && n.ctx.Err() == nil {
			select {
			case n.errs <- fmt.Errorf("%s: %w", what, err):
			default:
			}
		}
	}()
}

// Stop ends one relay, as its volunteer would, and waits for it.
func (r *Relay) Stop() {
	r.stop()
	<-r.done
}

// NewClient starts a client of the network. What cfg leaves out is filled in;
// on a simnet the client gets a host of its own. The caller closes it.
func (n *Net) NewClient(cfg client.Config) (*client.Client, error) {
	n.clients++
	cfg.Network = n.Network
	if cfg.Dial == nil {
		addr := netip.AddrFrom4([4]byte{127, 2, byte(n.clients >> 8), byte(n.clients)})
		cfg.Dial = hostFor(n.cfg.Sim, fmt.Sprintf("client%d", n.clients), addr).Dial
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
	return client.New(cfg)
}

// Err returns a channel that gets the first failure of a node.
func (n *Net) Err() <-chan error { return n.errs }

// Close ends all nodes and returns when nothing is left of them.
func (n *Net) Close() error {
	n.cancel()
	for _, a := range n.Authorities {
		a.Close()
	}
	n.wg.Wait()
	return nil
}

var errNoConsensus = errors.New("testnet: the authorities have not agreed on a consensus with all relays")
