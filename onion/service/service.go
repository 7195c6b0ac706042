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
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/work"
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

	arrived chan *introduction // what points passed on, for the checkers
	queue   *work.Queue[*introduction]
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
		arrived: make(chan *introduction, maxArrived), queue: work.NewQueue[*introduction](work.QueueConfig{}),
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
