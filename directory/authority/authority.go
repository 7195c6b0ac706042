// Package authority is one of those who agree on the consensus: it accepts descriptors of relays, votes, computes the consensus together
// with its peers, signs it and serves it. All of it is plain HTTP on whatever listener it is given; nothing in it needs to be secret,
// and everything that counts is signed.
package authority

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

const (
	// defaultMaxRelays bounds the descriptors that are kept.
	defaultMaxRelays = 12_000
)

// Store keeps what must survive a restart; *state.Dir is one. The files are "consensus", "descriptors", "vote", "signed", "random.json", "evidence",
// "certificates" and SigningFile, which is secret; NAME.damaged is a copy of one that could not be read.
type Store = mirror.Store

// Prober tells what relays do not have to say themselves; *probe.Prober is one. Its methods do not wait, but for Run.
type Prober interface {
	// Watch tells it of a relay's newest descriptor: the relay is to be tested.
	Watch(d *directory.Descriptor)
	// Forget tells it that there is no current descriptor of a relay any more.
	Forget(id identity.ID)
	// Observed returns what its tests say of a relay now.
	Observed(id identity.ID) directory.Observed
	// Run tests relays until ctx ends. consensus returns the newest one, or nil; changed is to be called when Observed has changed, without locks.
	Run(ctx context.Context, consensus func() *directory.Consensus, changed func())
}

// FirstRound makes a new network start at once instead of at its next period. It matters only to an authority that has no
// valid consensus when it starts.
type FirstRound struct {
	// Relays is how many running relays to wait for; 0 switches the first round off.
	Relays int
	// Deadline is after how long to vote with fewer; 0 means to wait until the schedule takes over.
	Deadline time.Duration
}

// Config is what an Authority needs. Network must be set, and Key, or Store with a signing key in it.
type Config struct {
	// Network names the authorities, among them this one. All must have the same.
	Network *directory.Network
	// Key is the authority's identity. It certifies a signing key, and a new one when half of its time is over. When it is nil, the signing
	// key is that of Store's SigningFile, which somebody makes anew in time (NewSigningKey): so the identity can be kept offline.
	Key *identity.Key
	// Dial opens connections to the other authorities; net.Dialer's when nil.
	Dial mirror.DialFunc
	// Store keeps descriptors, consensus, and what was signed; without one, a restart within a period could make an authority sign
	// a second consensus for it, so only tests do without.
	Store Store
	// Prober tests relays; without one all count as running and their uptime is the time since they came, so only tests do without.
	Prober Prober
	// FirstRound makes a new network start at once.
	FirstRound FirstRound
	// TestingFlags gives new relays Guard, HSDir, Fast and Stable at once. Only for networks whose operator runs all relays.
	TestingFlags bool
	// AllowPrivateAddresses accepts relays on loopback and private addresses. Only for networks on one machine or in one building.
	AllowPrivateAddresses bool
	// MaxRelays bounds the relays that are kept; 12,000 when 0.
	MaxRelays int
	// Rules returns the operator's rules for single relays, as directory.ParseRules reads them; there are none when nil. It is called before each
	// vote.
	Rules func() ([]byte, error)
	// Rand is where the signing key and the shared randomness come from; crypto/rand.Reader when nil.
	Rand io.Reader
	// Now is the date; time.Now when nil.
	Now func() time.Time
	// Log tells what happens; nothing is logged when nil.
	Log *slog.Logger
}

// Authority is one authority. Make it with New, let it work with Serve and Run, and end it with Close.
type Authority struct {
	cfg    Config
	self   *directory.Authority
	client *http.Client
	server *http.Server
	now    func() time.Time
	log    *slog.Logger

	signing  atomic.Pointer[SigningKey] // signs votes and consensuses
	verified directory.Verified         // signatures of ballots

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // what Close waits for

	mu        sync.Mutex // guards everything below; never held while waiting
	closed    bool
	relays    map[identity.ID]*entry
	byDigest  map[[32]byte]*directory.Descriptor // of relays
	dirty     chan struct{}                      // capacity 1: descriptors are to be saved
	rounds    map[uint64]*round                  // by period
	lastRound uint64                             // newest period whose round has begun here
	document  *mirror.Document                   // what is served; nil until the first
	changed   chan struct{}                      // closed and replaced when relays, rounds or document change
	jumps     int                                // how often the clock has jumped
	bases     map[identity.ID][]byte             // the last vote that counted of each authority, against which its next one is sent
	evidence  []*directory.Evidence
	newest    map[identity.ID]*identity.Certificate // of each authority, as far as seen

	superseded [2]map[[32]byte]*directory.Descriptor // replaced by newer ones since the last round began, and in the one before: votes may name them
	refused    map[[32]byte]bool                     // descriptors of peers' votes that are not worth asking for
	randomness *randomState                          // nil before the first vote
	noVote     uint64                                // up to this period there may have been a vote that the store has lost
	noSign     uint64                                // the same for signatures

	dirtyEvidence chan struct{}   // capacity 1: evidence is to be saved
	rules         directory.Rules // of the last vote; used by the schedule alone
	packing       chan struct{}   // capacity 1: held while a vote is compressed
	saving        chan struct{}   // capacity 1: held while descriptors or certificates are written
	archive       *mirror.Archive // what is served: the newest consensus and differences to it
}

// New returns an authority with what its store holds. It neither listens nor dials before Serve and Run.
func New(cfg Config) (*Authority, error) {
	if cfg.Network == nil || cfg.Key == nil && cfg.Store == nil {
		return nil, errors.New("authority: Config.Network and Config.Key, or Config.Store with a signing key, must be set")
	}
	if err := cfg.Network.Validate(); err != nil {
		return nil, fmt.Errorf("authority: network: %w", err)
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
	if cfg.MaxRelays == 0 {
		cfg.MaxRelays = defaultMaxRelays
	}
	a := &Authority{
		cfg:      cfg,
		client:   mirror.NewHTTPClient(cfg.Dial),
		now:      cfg.Now,
		relays:   make(map[identity.ID]*entry),
		byDigest: make(map[[32]byte]*directory.Descriptor),
		dirty:    make(chan struct{}, 1),
		rounds:   make(map[uint64]*round),
		changed:  make(chan struct{}),
		bases:    make(map[identity.ID][]byte),
		refused:  make(map[[32]byte]bool),
		packing:  make(chan struct{}, 1),
		saving:   make(chan struct{}, 1),
		archive:  mirror.NewArchive(cfg.Network, cfg.Store, cfg.Log),
		newest:   make(map[identity.ID]*identity.Certificate),

		dirtyEvidence: make(chan struct{}, 1),
	}
	if err := a.loadCertificates(); err != nil {
		return nil, err
	}
	if err := a.firstKey(); err != nil {
		return nil, err
	}
	if err := a.load(); err != nil {
		return nil, err
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.server = a.newServer()
	return a, nil
}

// Identity returns the authority's identity.
func (a *Authority) Identity() identity.ID { return a.self.Identity }

// Consensus returns the newest consensus, nil before the first.
func (a *Authority) Consensus() *directory.Consensus {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.document == nil {
		return nil
	}
	return a.document.Consensus()
}

// Changed returns a channel that is closed at the next change: of descriptors, tests, votes, signatures or the consensus.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// notify wakes all who wait on changed. a.mu is held.
func (a *Authority) notify() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Serve answers HTTP on ln until Close, then returns nil. It closes ln. Several may run at once.
func (a *Authority) Serve(ln net.Listener) error {
	if !a.begin() {
		_ = ln.Close() // it is never used
		return nil
	}
	defer a.wg.Done()
	if err := a.server.Serve(a.limit(ln, maxConns)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("authority: serving: %w", err)
	}
	return nil
}

// Run keeps the schedule until ctx or the authority ends, then returns nil. Only one Run may be active.
func (a *Authority) Run(ctx context.Context) error {
	if !a.begin() {
		return nil
	}
	defer a.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(a.ctx, cancel)
	defer stop()
	var helpers sync.WaitGroup
	helpers.Go(func() { a.saveLoop(ctx) })
	helpers.Go(func() { a.keyLoop(ctx) })
	helpers.Go(func() { a.watchClock(ctx) })
	if a.cfg.Prober != nil {
		helpers.Go(func() { a.cfg.Prober.Run(ctx, a.Consensus, a.tested) })
	}
	a.schedule(ctx)
	cancel()
	helpers.Wait()
	return nil
}

// begin registers something that Close waits for, unless it is too late.
func (a *Authority) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.wg.Add(1)
	return true
}

// Close ends Serve and Run, closes all connections, and waits for everything that they started. It returns nil.
func (a *Authority) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cancel()
	_ = a.server.Close() // its error is that of closing listeners, which are gone either way
	a.wg.Wait()
	a.client.CloseIdleConnections()
	return nil
}
