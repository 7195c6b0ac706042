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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/clock"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/link"
	"cepa/socket"
)

// dialTimeout is how long a connection to a relay or an authority may take to
// open. Ours: as long as a link handshake.
const dialTimeout = 10 * time.Second

// ErrServed is returned by a second Serve.
var ErrServed = errors.New("relay: Serve was called before; make another Relay")

// Resolver looks names up for an exit. *net.Resolver is one. Names end with a
// dot.
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
	// Interfaces lists the addresses of the machine, to which no stream goes
	// unless Allow lists them: net.InterfaceAddrs when nil. It is called at most
	// once a minute, and from several goroutines.
	Interfaces func() ([]net.Addr, error)
	// Resolver looks names up; the system's when nil.
	Resolver Resolver
	// Dial opens connections to addresses; net.Dialer's when nil. It must
	// heed its context.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Config is what a Relay is made of. Network, Identity and Addresses are needed.
type Config struct {
	Network  *directory.Network
	Identity *identity.Key
	// OnionKey is the first onion key, when Store has none; a new one when nil. After
	// 28 days another takes its place.
	OnionKey *handshake.OnionKey
	// FamilyKeys are keys of families that the relay belongs to; Memberships are
	// certificates by other families for Identity, with purpose family. A relay can
	// be in directory.MaxFamilies.
	FamilyKeys  []*identity.Key
	Memberships []*identity.Certificate
	Nickname    string           // 1…19 letters and digits; "unnamed" when empty
	Contact     string           // whom to write to; may be empty
	Version     string           // software version for the descriptor
	Addresses   []netip.AddrPort // where others reach the listener
	Suite       layer.Suite      // AES256GCM when 0
	Rate        Rate
	Quota       Quota
	Exit        *Exit // nil: no streams to the internet
	// Dial opens connections to other relays and authorities; net.Dialer's
	// when nil. It must heed its context.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Store keeps the consensus, the onion keys, which are secret, and what was used of
	// the quota, across restarts; nothing when nil.
	Store mirror.Store
	// NextSequence returns the number of the next descriptor, higher than
	// all before, across restarts too. When nil it is the time in
	// milliseconds.
	NextSequence func() (uint64, error)
	// MaxFiles is how many file descriptors the process may have; the limits
	// of links and streams are fitted to it. 0: no bound is known.
	MaxFiles int
	// MaxMemory is how many bytes cells, links, circuits and streams may take; then
	// the circuits with the oldest queued data are destroyed. The limits of links,
	// circuits and streams are fitted to it. 0: no bound. It needs a Pool and Buffers
	// that nobody else uses.
	MaxMemory int64
	// CreateWorkers is how many handshakes run at once; one for every two cores,
	// rounded up, when 0.
	CreateWorkers int
	Pool          *cell.Pool
	Buffers       *link.Buffers
	Rand          io.Reader        // crypto/rand when nil; safe for concurrent use
	Now           func() time.Time // the date, for validity and months; time.Now when nil
	Log           *slog.Logger     // nothing when nil
}

// Relay is one relay. Make it with New and run it with Serve. Its other methods
// are safe for concurrent use.
type Relay struct {
	cfg     Config
	limits  limits
	mirror  *mirror.Mirror
	limiter *limiter
	tally   *tally
	books   *books
	load    loadStats
	auth    atomic.Pointer[link.Auth]
	onion   *keyring
	pool    *link.Pool
	exit    *exitNode // nil: none
	creator *creator
	memory  *memory // nil: no bound
	dir     *dirServer

	intros      *introTable
	meetings    *meetingTable
	descriptors *descriptorStore

	ctx     context.Context // ends with Serve
	closing context.Context // ends when Serve is about to end; there before it begins
	close   context.CancelFunc

	addresses *addressBook
	republish chan struct{} // capacity 1: the descriptor has become another
	jumped    chan struct{} // capacity 1: the date has jumped

	lastPublished atomic.Int64 // date of the last descriptor that was accepted, in Unix seconds

	linkCount   gauge // incoming links, those that shake hands too
	clientCount gauge // those of clients
	circuits    gauge
	extending   gauge
	streams     gauge // to the internet, and look-ups

	mu      sync.Mutex // guards what follows
	wg      sync.WaitGroup
	closed  bool // nothing may be added to wg any more
	started time.Time
	links   map[*link.Link]struct{}
	ended   struct{ read, written uint64 } // bytes of links that have ended
}

// New checks the configuration and returns a Relay that does nothing yet.
func New(cfg Config) (*Relay, error) {
	if cfg.Network == nil || cfg.Identity == nil || len(cfg.Addresses) == 0 {
		return nil, errors.New("relay: network, identity and an address are needed")
	}
	if err := cfg.Rate.Check(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if err := cfg.Quota.Check(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if cfg.CreateWorkers < 0 {
		return nil, fmt.Errorf("relay: %d workers for handshakes: 1 or more are needed, or 0 for half the cores", cfg.CreateWorkers)
	}
	if cfg.MaxMemory < 0 {
		return nil, fmt.Errorf("relay: %d bytes of memory: want how many it may take, or 0 for no bound", cfg.MaxMemory)
	}
	cfg.complete()
	if err := cfg.checkFamilies(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if cfg.MaxFiles < 0 {
		return nil, fmt.Errorf("relay: %d file descriptors: want how many there are, or 0 when that is not known", cfg.MaxFiles)
	}
	r := &Relay{
		cfg: cfg, limits: defaultLimits(), limiter: newLimiter(cfg.Rate), links: map[*link.Link]struct{}{},
		tally: newTally(), republish: make(chan struct{}, 1), jumped: make(chan struct{}, 1),
	}
	r.limits.fit(cfg.MaxFiles)
	r.limits.fitMemory(cfg.MaxMemory)
	var err error
	if r.onion, err = newKeyring(cfg.Store, cfg.OnionKey, cfg.Rand, graceOf(cfg.Network), cfg.Now()); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if r.books, err = r.newBooks(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	if cfg.Exit != nil {
		if r.exit, err = newExitNode(r, cfg.Exit); err != nil {
			return nil, fmt.Errorf("relay: %w", err)
		}
	}
	r.mirror, err = mirror.New(mirror.Config{
		Network: cfg.Network, Dial: r.limitedDial, Early: true, Archive: true, Store: cfg.Store,
		Rand: cfg.Rand, Now: cfg.Now, Log: cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	// What cannot be published is found now, and not by the authorities.
	if _, err := r.descriptor(1); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r.pool = &link.Pool{Dial: r.linkDial, DialTimeout: dialTimeout, Config: func() *link.Config { return r.linkConfig(new(neighbour), false) }}
	r.addresses = newAddressBook(r.params)
	r.creator = newCreator(r)
	r.intros, r.meetings, r.descriptors = newIntroTable(r), newMeetingTable(r), newDescriptorStore(r)
	r.memory = newMemory(r)
	r.dir = newDirServer(r.dirHandler(), &r.limits)
	r.closing, r.close = context.WithCancel(context.Background())
	return r, nil
}

// params returns the parameters of the present consensus; their defaults before
// there is one.
func (r *Relay) params() directory.Params {
	if c := r.mirror.Current(); c != nil {
		return c.Params
	}
	return nil
}

// complete fills in the defaults.
func (c *Config) complete() {
	c.Addresses = slices.Clone(c.Addresses)
	if c.Nickname == "" {
		c.Nickname = "unnamed"
	}
	if c.Version == "" {
		c.Version = "devel"
	}
	if c.Suite == 0 {
		c.Suite = layer.AES256GCM
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	c.Dial = socket.Dialer(c.Dial)
	if c.Pool == nil {
		c.Pool = new(cell.Pool)
	}
	if c.Buffers == nil {
		c.Buffers = new(link.Buffers)
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Identity returns the relay's identity.
func (r *Relay) Identity() identity.ID { return r.cfg.Identity.ID() }

// Directory returns the relay's copy of the consensus.
func (r *Relay) Directory() *mirror.Mirror { return r.mirror }

// Serve runs the relay on ln, which it closes, until ctx ends, and returns nil
// when all that it started has ended. It may be called once: then its error is
// ErrServed. Other errors are those of the listener, and of Rand.
func (r *Relay) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	r.mu.Lock()
	again := !r.started.IsZero()
	if !again {
		r.started = time.Now()
	}
	r.mu.Unlock()
	if again {
		return ErrServed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.ctx = ctx
	defer r.close()
	if err := r.renewAuth(); err != nil {
		return err
	}
	if err := r.openBooks(); err != nil {
		return err
	}
	r.keepOnionKeys()
	r.spawn(func() { r.keepBooks(ctx) })
	r.spawn(func() { r.mirrorLoop(ctx) })
	r.spawn(func() { r.dir.serve(ctx) })
	r.spawn(func() { r.publishLoop(ctx) })
	r.spawn(func() { r.renewLoop(ctx) })
	r.spawn(func() { clock.Watch(ctx, clockCheck, clock.Tolerance, r.cfg.Now, r.onJump) })
	r.spawn(func() { r.intros.run(ctx) })
	r.spawn(func() { r.meetings.run(ctx) })
	r.spawn(func() { r.descriptors.run(ctx) })
	r.creator.run(ctx)
	if r.memory != nil {
		r.spawn(func() { r.memory.run(ctx) })
	}
	r.spawn(func() {
		<-ctx.Done()
		ln.Close()
	})
	err := r.acceptLoop(ctx, ln)
	cancel()
	r.close()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.closeLinks()
	r.pool.Close()
	r.limiter.close()
	r.wg.Wait()
	r.creator.drain()
	if failed := r.save(true); failed != nil {
		r.cfg.Log.Error("use is not stored", "err", failed)
	}
	return err
}

// spawn runs f in a goroutine that Serve waits for. When Serve is ending it does
// not, and returns false.
func (r *Relay) spawn(f func()) bool {
	if !r.begin() {
		return false
	}
	go func() {
		defer r.wg.Done()
		f()
	}()
	return true
}

// begin makes Serve wait for the caller's wg.Done, unless it is ending.
func (r *Relay) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.wg.Add(1)
	return true
}

// limitedDial opens a connection to an authority, whose bytes are charged to rate and
// quota.
func (r *Relay) limitedDial(ctx context.Context, network, addr string) (net.Conn, error) {
	if r.tally.spent() {
		return nil, errQuota
	}
	c, err := r.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return r.limiter.conn(r.tally.directory(c), nil, 1), nil
}

// linkDial opens a connection for a link, which charges what it writes by itself.
func (r *Relay) linkDial(ctx context.Context, network, addr string) (net.Conn, error) {
	if p, _ := r.books.state(); p == asleep {
		return nil, errQuota
	}
	c, err := r.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	limited, meter := r.limiter.reading(r.tally.traffic(c))
	meter.Join(nil, linkParts)
	return limited, nil
}

func (r *Relay) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if !r.begin() { // net/http dials apart from who asked for it
		return nil, net.ErrClosed
	}
	defer r.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return r.cfg.Dial(ctx, network, addr)
}
