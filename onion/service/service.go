// Package service is the host's side of an onion service: it keeps introduction points, publishes where they are, meets
// clients at rendezvous points, and gives their streams to a net.Listener.
//
//	INTRODUCED ──▶ point.take ──▶ checkers ──▶ queue by effort ──▶ meeters: open, circuit, RENDEZVOUS ──▶ joined ──▶ Accept
//	(link's reader)  (rate, size)   (work, replay)                    (bounded workers)
//
// It knows circuits through the small interfaces of network.go, and no guards: whoever gives it circuits chooses those.
package service

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/work"
)

// Defaults and bounds of a Config; ours.
const (
	// DefaultPoints is how many introduction points a service has: one may fail, and one be replaced, and clients still find one.
	DefaultPoints = 3
	// DefaultIntroRate and DefaultIntroBurst are how many introductions a second, and at once, a point is asked to let through:
	// above what a service can answer (work.Capacity), so that there is something to choose from when it is flooded.
	DefaultIntroRate  = 25
	DefaultIntroBurst = 200
	// MaxIntroRate bounds both.
	MaxIntroRate = 1 << 20
	// DefaultMaxStreams is how many streams one joined circuit carries at a time: one client's.
	DefaultMaxStreams = 64
	// MaxMaxStreams bounds it.
	MaxMaxStreams = 1024
	// DefaultMaxCircuits is how many clients are joined, or about to be, at a time.
	DefaultMaxCircuits = 512
	// MaxMaxCircuits bounds it.
	MaxMaxCircuits = 1 << 16
	// DefaultBacklog is how many streams wait for Accept.
	DefaultBacklog = 128
	// MaxBacklog bounds it.
	MaxBacklog = 4096
	// DefaultIdle is after how long without streams a joined circuit ends: somewhat more than clients use one for.
	DefaultIdle = 15 * time.Minute
)

// Errors that decide.
var (
	// ErrClosed is returned by a Service that was closed.
	ErrClosed = errors.New("service: closed")
	// ErrNotReady is wrapped when a service is not published yet.
	ErrNotReady = errors.New("service: not reachable yet")
	// ErrNoKey says that the prepared keys have none for the present period.
	ErrNoKey = errors.New("service: there is no key for the present period")
)

// Config is what a Service is made of. Network, and Identity or Keys, are needed.
type Config struct {
	Network Network
	// Identity is the service's, when it is online; Keys are what stands in for it when it is not. One of them.
	Identity *identity.Key
	Keys     *onion.KeyBundle
	// Front, unless nil, is the address whose clients this service answers too: it is a backend. Its own address works as well,
	// and is where the front fetches this service's points.
	Front *onion.Address
	// Backends, unless empty, are the addresses of the services that answer for this one, which has no points of its own then, and
	// accepts nothing. Fetch gets the newest descriptor of one. Their layers must have this service's Suite.
	Backends []onion.Address
	Fetch    func(ctx context.Context, a onion.Address) (*onion.Descriptor, error)
	// Points is how many introduction points there are, 1 to onion.MaxPoints; DefaultPoints when 0.
	Points int
	// Clients lets in only clients with these keys; everybody who knows the address when empty. See SetClients.
	Clients []onion.ClientKey
	// Ports are those to which streams are taken; all when nil. Others are refused.
	Ports []uint16
	// MaxStreams is how many streams a joined circuit carries at a time; DefaultMaxStreams when 0. More are refused, or, with
	// EndOnStreams, the circuit is ended.
	MaxStreams   int
	EndOnStreams bool
	// MaxCircuits is how many clients are served at a time; DefaultMaxCircuits when 0. Others wait, those with most work first.
	MaxCircuits int
	// Backlog is how many streams wait for Accept; DefaultBacklog when 0. More are refused.
	Backlog int
	// Idle is after how long without streams a joined circuit ends; DefaultIdle when 0.
	Idle time.Duration
	// IntroRate and IntroBurst are how many introductions a second, and at once, each point lets through; the defaults when both
	// are 0. A negative rate is no limit.
	IntroRate, IntroBurst int
	// Work asks clients for proof of work when more come than can be answered.
	Work bool
	// Capacity is how many introductions a second the service can answer, for Work; work.Capacity when 0.
	Capacity float64
	// SingleHop gives the service's place away: its circuits go straight to its points and to where clients wait. Its descriptor
	// says so. It is faster, for services that need not hide.
	SingleHop bool
	// Suite is the cipher of the layer between client and service; layer.AES256GCM when 0.
	Suite layer.Suite
	// Probe visits the service through the network, as a client does, with auth, unless nil, as its key; Test fails when nil.
	Probe func(ctx context.Context, auth *onion.ClientSecret) error
	Rand  io.Reader        // crypto/rand when nil; safe for concurrent use
	Now   func() time.Time // the date, for keys and descriptors; time.Now when nil
	Log   *slog.Logger     // nothing when nil
}

// complete fills in the defaults, and says what cannot be.
func (c *Config) complete() error {
	switch {
	case c.Network == nil:
		return errors.New("service: a network is needed")
	case (c.Identity == nil) == (c.Keys == nil):
		return errors.New("service: an identity or keys of periods are needed, and not both")
	case len(c.Backends) > 0 && c.Fetch == nil:
		return errors.New("service: a front needs a way to fetch the descriptors of its backends")
	case len(c.Backends) > 0 && c.Front != nil:
		return errors.New("service: a service is a front or a backend, not both")
	case len(c.Backends) > onion.MaxPoints:
		return fmt.Errorf("service: %d backends: at most %d are possible, since each needs an introduction point", len(c.Backends), onion.MaxPoints)
	case c.Suite != 0 && !c.Suite.Valid():
		return fmt.Errorf("service: %v", c.Suite)
	}
	if c.IntroRate == 0 && c.IntroBurst == 0 {
		c.IntroRate, c.IntroBurst = DefaultIntroRate, DefaultIntroBurst
	}
	for _, b := range []struct {
		what      string
		v         *int
		or, least int
		most      int
	}{
		{"introduction points", &c.Points, DefaultPoints, 1, onion.MaxPoints},
		{"streams of a circuit", &c.MaxStreams, DefaultMaxStreams, 1, MaxMaxStreams},
		{"circuits", &c.MaxCircuits, DefaultMaxCircuits, 1, MaxMaxCircuits},
		{"streams in the backlog", &c.Backlog, DefaultBacklog, 1, MaxBacklog},
		{"introductions a second", &c.IntroRate, DefaultIntroRate, -1, MaxIntroRate},
		{"introductions at once", &c.IntroBurst, DefaultIntroBurst, 1, MaxIntroRate},
	} {
		if *b.v == 0 {
			*b.v = b.or
		}
		if *b.v < b.least || *b.v > b.most {
			return fmt.Errorf("service: %d %s: %d to %d are possible", *b.v, b.what, b.least, b.most)
		}
	}
	if err := checkClients(c.Clients); err != nil {
		return err
	}
	if c.Idle <= 0 {
		c.Idle = DefaultIdle
	}
	if c.Capacity <= 0 {
		c.Capacity = work.Capacity
	}
	if c.Suite == 0 {
		c.Suite = layer.AES256GCM
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
	return nil
}

// MaxClients is how many clients can be let in by name: one is the service itself, when it tests whether it is reached.
const MaxClients = onion.MaxClients - 1

func checkClients(clients []onion.ClientKey) error {
	if len(clients) > MaxClients {
		return fmt.Errorf("service: %d clients: at most %d can be let in by name", len(clients), MaxClients)
	}
	return nil
}

// Service is a running onion service. Its methods are safe for concurrent use.
type Service struct {
	cfg     Config
	address onion.Address
	self    *onion.ClientSecret // by which it is let in itself, where clients are by name

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing is left
	work   chan struct{} // depth 1: for keepPoints
	upload chan struct{} // depth 1: for keepPublished
	ready  chan struct{} // closed when it was reachable for the first time

	arrived chan arrival // what points passed on, for the checkers
	queue   *work.Queue[arrival]
	slots   chan struct{} // one for each joined circuit, and each about to be
	backlog chan *Conn    // for Accept

	ask      atomic.Pointer[work.Ask] // what clients are asked for
	bindings atomic.Pointer[[]onion.Binding]
	counts   counts
	told     sync.Once // that it is ready

	mu         sync.Mutex // guards what follows; never held while waiting or calling out
	wg         sync.WaitGroup
	closed     bool
	net        *view     // of the consensus; nil before the first
	runSince   time.Time // since when its period is the present one
	generation uint64    // of what the descriptor says
	gather     time.Time // until when a publication waits for points that are missing
	warned     time.Time // of newer descriptors elsewhere
	points     []*point
	building   map[identity.ID]bool      // relays that are being made points
	failed     map[identity.ID]time.Time // relays that failed as points, and until when they are passed over
	retry      backoff                   // for points
	merged     []onion.Point             // a front's
	mergedAt   time.Time
	fetched    map[onion.Address]*fetched
	clients    []onion.ClientKey
	periods    map[uint64]*publication
	keyless    error // why there is no key for the present period
	problem    error // why it is not published, nil if it is or nothing is known
	circuits   map[uint64]*joined
	nextID     uint64
	uses       uses
	tested     tested
}

// New starts a service. It returns at once; Ready waits until clients find it. Errors say what in the Config cannot be used.
func New(cfg Config) (*Service, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, done: make(chan struct{}), work: make(chan struct{}, 1), upload: make(chan struct{}, 1), ready: make(chan struct{}),
		arrived: make(chan arrival, maxArrived), queue: work.NewQueue[arrival](work.QueueConfig{}),
		slots: make(chan struct{}, cfg.MaxCircuits), backlog: make(chan *Conn, cfg.Backlog),
		building: map[identity.ID]bool{}, failed: map[identity.ID]time.Time{}, fetched: map[onion.Address]*fetched{},
		clients: slices.Clone(cfg.Clients), periods: map[uint64]*publication{}, circuits: map[uint64]*joined{},
	}
	if cfg.Identity != nil {
		s.address = onion.AddressOf(cfg.Identity.ID())
	} else {
		s.address = cfg.Keys.Address
	}
	if slices.Contains(cfg.Backends, s.address) || cfg.Front != nil && *cfg.Front == s.address {
		return nil, errors.New("service: a front and its backend have different addresses")
	}
	var err error
	if s.self, err = onion.NewClientSecret(cfg.Rand); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	control, err := work.NewController(work.ControllerConfig{Capacity: cfg.Capacity}, time.Now(), cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	ask := work.Ask{}
	if cfg.Work {
		ask = control.Ask()
	}
	s.ask.Store(&ask)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.spawn(s.followConsensus)
	s.spawn(s.keepPublished)
	if len(cfg.Backends) > 0 {
		s.spawn(s.keepMerged)
		return s, nil
	}
	s.spawn(s.keepPoints)
	s.spawn(s.tidy)
	for range checkers {
		s.spawn(s.check)
	}
	s.spawn(s.meet)
	if cfg.Work {
		s.spawn(func() { s.controlWork(control) })
	}
	return s, nil
}

// Address returns the service's address.
func (s *Service) Address() onion.Address { return s.address }

// spawn runs f in a goroutine that Close waits for; after Close it does nothing and returns false.
func (s *Service) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
	return true
}

// Close ends the service, all its circuits and streams, and returns when nothing is left. Every call waits for that; those after
// the first return ErrClosed. Descriptors are left to expire where they are: nobody can take one back, and clients find no point.
func (s *Service) Close() error {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	var all []Circuit
	for _, p := range s.points {
		all = append(all, p.circuit)
	}
	for _, j := range s.circuits {
		all = append(all, j.circuit)
	}
	s.mu.Unlock()
	if already {
		<-s.done
		return ErrClosed
	}
	s.cancel()
	s.queue.Close()
	for _, c := range all {
		c.Close()
	}
	s.wg.Wait()
	for {
		select {
		case c := <-s.backlog:
			c.Close()
			continue
		default:
		}
		break
	}
	close(s.done)
	return nil
}

// Done returns a channel that is closed when Close has ended the service.
func (s *Service) Done() <-chan struct{} { return s.done }

// Ready waits until the service was reachable for the first time: all points stand and half of the relays that should hold its
// descriptor do. When ctx ends first, the error wraps ErrNotReady, ctx's error and what stands in the way, as far as it is known.
func (s *Service) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
	}
	s.mu.Lock()
	problem := cmp.Or(s.keyless, s.problem)
	s.mu.Unlock()
	if problem == nil {
		return fmt.Errorf("%w: %w", ErrNotReady, ctx.Err())
	}
	return fmt.Errorf("%w: %w; the last problem: %w", ErrNotReady, ctx.Err(), problem)
}

// SetClients replaces the list of clients that are let in; an empty one lets in everybody who knows the address. It counts for
// who fetches the descriptor from now on: joined circuits stay, and who has fetched it before may come until the points are
// replaced, which happens at once when somebody is left out.
func (s *Service) SetClients(clients []onion.ClientKey) error {
	if err := checkClients(clients); err != nil {
		return err
	}
	s.mu.Lock()
	if slices.Equal(s.clients, clients) {
		s.mu.Unlock()
		return nil
	}
	left := len(clients) > 0 && (len(s.clients) == 0 || slices.ContainsFunc(s.clients, func(k onion.ClientKey) bool { return !slices.Contains(clients, k) }))
	s.clients = slices.Clone(clients)
	if left {
		for _, p := range s.points {
			p.spent = true
		}
	}
	s.republishLocked(soon)
	s.mu.Unlock()
	wake(s.work)
	return nil
}

// fail remembers why the service is not reachable.
func (s *Service) fail(err error) {
	s.mu.Lock()
	s.problem = err
	s.mu.Unlock()
}

// sleep waits for d or until ctx ends, and reports whether it was d.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wake puts a token in a channel of depth one, unless there is one.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// soonFailures is how many failures in a row have the shortest pause: what serves instead is mostly found within them.
const soonFailures = 4

// backoff is a pause that doubles with each failure in a row, from the soonFailures-th on.
type backoff struct {
	failures int
	until    time.Time
}

// failed notes one: after the first it may be tried again at once.
func (b *backoff) failed(now time.Time, least, most time.Duration) {
	if b.failures > 0 {
		b.until = now.Add(min(least<<min(max(b.failures-soonFailures, 0), 20), most))
	}
	b.failures++
}

// view is what the service needs of one consensus.
type view struct {
	consensus *directory.Consensus
	run       uint64 // the period of onion services
	length    time.Duration
	dirs      []identity.ID // relays that hold descriptors
	weight    uint64        // of all relays
}
