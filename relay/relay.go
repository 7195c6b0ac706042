// Package relay is a relay of the network: it accepts links, creates and
// extends circuits, opens streams to the internet where its volunteer allows
// that, serves the consensus to clients, publishes its descriptor and keeps its
// bandwidth rate. Source: doc/spec.md.
package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/link"
)

// Limits of a relay; ours unless said.
const (
	// maxHandshaking bounds connections whose link handshake is under way.
	maxHandshaking = 256
	// maxLinks bounds links in all; each costs some 20 KB at rest.
	maxLinks = 16384
	// linkCertLifetime is how long a link key is certified; it is renewed
	// at half of that.
	linkCertLifetime = 14 * 24 * time.Hour
	// clockSlack is how far another's clock may be behind ours.
	clockSlack = 24 * time.Hour
)

// Resolver looks names up for an exit. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
}

// Exit is what a relay needs to open streams to the internet.
type Exit struct {
	// Policy says to which ports; the zero value opens none.
	Policy directory.PortPolicy
	// Allow lists ranges that are reachable although they are not the
	// internet's; for networks on one machine.
	Allow []netip.Prefix
	// Resolver looks names up; the system's when nil.
	Resolver Resolver
	// Dial opens connections to addresses; net.Dialer's when nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Config is what a Relay is made of. Network, Identity, OnionKey and Addresses
// are needed.
type Config struct {
	Network   *directory.Network
	Identity  *identity.Key
	OnionKey  *handshake.OnionKey
	Nickname  string           // 1…19 letters and digits; "unnamed" when empty
	Contact   string           // whom to write to; may be empty
	Version   string           // software version for the descriptor
	Addresses []netip.AddrPort // where others reach the listener
	Suite     layer.Suite      // AES256GCM when 0
	Rate      Rate
	Exit      *Exit // nil: no streams to the internet
	// Dial opens connections to other relays and authorities; net.Dialer's
	// when nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Store keeps the consensus across restarts; nothing when nil.
	Store mirror.Store
	// NextSequence returns the number of the next descriptor, higher than
	// all before, across restarts too. When nil it is the time in
	// milliseconds.
	NextSequence func() (uint64, error)
	// CreateWorkers is how many handshakes run at once; one a core when 0.
	CreateWorkers int
	Pool          *cell.Pool
	Buffers       *link.Buffers
	Rand          io.Reader        // crypto/rand when nil
	Now           func() time.Time // the date, for validity; time.Now when nil
	Log           *slog.Logger     // nothing when nil
}

// Relay is one relay. Make it with New and run it with Serve.
type Relay struct {
	cfg     Config
	mirror  *mirror.Mirror
	limiter *limiter
	auth    atomic.Pointer[link.Auth]
	pool    *link.Pool
	exit    *exitNode
	creator *creator
	dir     *dirServer
	ctx     context.Context // ends with Serve
	wg      sync.WaitGroup  // everything that Serve waits for

	circuits atomic.Int64
	streams  atomic.Int64

	mu      sync.Mutex // guards what follows
	started time.Time
	links   map[*link.Link]struct{}
	ended   struct{ read, written uint64 } // bytes of links that have ended
}

// New checks the configuration and returns a Relay that does nothing yet.
func New(cfg Config) (*Relay, error) {
	if cfg.Network == nil || cfg.Identity == nil || cfg.OnionKey == nil || len(cfg.Addresses) == 0 {
		return nil, errors.New("relay: network, identity, onion key and an address are needed")
	}
	if err := cfg.Rate.Check(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if cfg.Nickname == "" {
		cfg.Nickname = "unnamed"
	}
	if cfg.Version == "" {
		cfg.Version = "devel"
	}
	if cfg.Suite == 0 {
		cfg.Suite = layer.AES256GCM
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
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
	r := &Relay{cfg: cfg, limiter: newLimiter(cfg.Rate), links: map[*link.Link]struct{}{}}
	if cfg.Exit != nil {
		r.exit = newExitNode(r, cfg.Exit)
	}
	var err error
	r.mirror, err = mirror.New(mirror.Config{
		Network: cfg.Network, Dial: r.limitedDial, Early: true, Store: cfg.Store,
		Rand: cfg.Rand, Now: cfg.Now, Log: cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r.pool = &link.Pool{Dial: r.limitedDial, Config: r.linkConfig}
	r.creator = newCreator(r)
	r.dir = newDirServer(r.mirror.Handler())
	return r, nil
}

// Identity returns the relay's identity.
func (r *Relay) Identity() identity.ID { return r.cfg.Identity.ID() }

// Directory returns the relay's copy of the consensus.
func (r *Relay) Directory() *mirror.Mirror { return r.mirror }

// Serve runs the relay on ln until ctx ends, and returns nil when all that it
// started has ended. It may be called once.
func (r *Relay) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.ctx = ctx
	r.mu.Lock()
	r.started = time.Now()
	r.mu.Unlock()
	if err := r.renewAuth(); err != nil {
		return err
	}
	r.spawn(func() { r.mirror.Run(ctx) })
	r.spawn(func() { r.dir.serve(ctx) })
	r.spawn(func() { r.publishLoop(ctx) })
	r.spawn(func() { r.renewLoop(ctx) })
	r.creator.run(ctx)
	r.spawn(func() {
		<-ctx.Done()
		ln.Close()
	})
	err := r.acceptLoop(ctx, ln)
	cancel()
	r.closeLinks()
	r.pool.Close()
	r.wg.Wait()
	return err
}

func (r *Relay) spawn(f func()) {
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		f()
	}()
}

// limitedDial opens a connection whose bytes are charged to the rate.
func (r *Relay) limitedDial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := r.cfg.Dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return r.limiter.conn(c), nil
}

// renewAuth makes and certifies a new link key.
func (r *Relay) renewAuth() error {
	key, err := identity.Generate(r.cfg.Rand)
	if err != nil {
		return fmt.Errorf("relay: link key: %w", err)
	}
	now := r.cfg.Now()
	cert, err := r.cfg.Identity.Certify(identity.PurposeLink, key.ID(), now.Add(-clockSlack), now.Add(linkCertLifetime))
	if err != nil {
		return fmt.Errorf("relay: link key: %w", err)
	}
	r.auth.Store(&link.Auth{Identity: r.Identity(), Key: key, Certificate: cert})
	return nil
}

func (r *Relay) renewLoop(ctx context.Context) {
	tick := time.NewTicker(linkCertLifetime / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := r.renewAuth(); err != nil {
				r.cfg.Log.Error("could not renew the link key; links will fail when it expires", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
