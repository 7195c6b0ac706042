// Package probe is how an authority learns what relays do not have to say themselves: whether they are reached at their addresses, with
// their identity and their onion key, and how much goes through them.
//
// A test opens a link to each address of a relay, on which the relay proves its identity, and a circuit of one hop on it, for which it
// needs its onion key. A measurement draws the directory of other relays through circuits of three hops, of which the relay under
// measurement is the middle: for it they are circuits like others (draw.go).
package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
)

// Bounds. All are ours.
const (
	// DefaultGap is the least time between two connections to one address (an IPv4 address, an IPv6 /64): whoever names the address of somebody
	// else in descriptors makes an authority send it no more than that, a few packets a minute.
	DefaultGap = time.Minute
	// DefaultParallel is how many relays are tested at once. At most half of them are such as were not running before, so that those who take connections
	// and answer nothing do not hold up the tests of others.
	DefaultParallel = 64
	// parallelCutOff is the same while the authority takes itself to be cut off: what is left of its connection is needed for votes.
	parallelCutOff = 8
	// testTimeout bounds the test of one address, from dialling to CREATED; the link's own limits are half of it.
	testTimeout = 20 * time.Second
	// leastFailures is how many tests in a row a relay must fail before it is not running any more, however much time has passed.
	leastFailures = 3
	// leastLost is how many running relays must be failing before the authority takes itself to be cut off.
	leastLost = 3
)

// The times of tests, as parts of the interval between consensuses, with the least they are in networks with very short ones.
const (
	// A running relay is tested again after three quarters of this to all of it: 15 to 20 minutes.
	everyPart, everyLeast = 3, 30 * time.Second
	// One that has failed a test, after this: 5 minutes.
	retryPart, retryLeast = 12, 5 * time.Second
	// It stops being running when its last passed test is so long ago, as a multiple of a quarter: 45 minutes.
	patienceQuarters, patienceLeast = 3, 30 * time.Second
	// One that is not running, or never was, after againLeast, then after this, and twice that each time: 1 minute, at most 1 hour, and 6 hours if it never was.
	againPart, againLeast  = 60, 5 * time.Second
	downMost, strangerMost = 1, 6
)

// IPv6 says whether an authority tests the IPv6 addresses of relays.
type IPv6 uint8

const (
	// IPv6Auto tests them, and takes no notice of failures while fewer than half of the relays that pass over IPv4 pass over IPv6 too: then it is
	// this authority that has no IPv6.
	IPv6Auto IPv6 = iota
	// IPv6Yes tests them, and a relay is not running unless all its addresses pass.
	IPv6Yes
	// IPv6No does not test them.
	IPv6No
)

// Store keeps what was found across restarts; *state.Dir is one. The file is "observed".
type Store interface {
	Read(name string, limit int64) ([]byte, error)
	Write(name string, data []byte) error
}

// Config is what a Prober is made of. Network and Self are needed.
type Config struct {
	// Network is the authority's. Its interval sets the pace.
	Network *directory.Network
	// Self is the authority's identity: authorities take turns in measuring.
	Self identity.ID
	// Dial opens connections to relays; net.Dialer's when nil. It must heed its context.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Store keeps what was found; nothing is kept when nil.
	Store Store
	// AllowPrivateAddresses tests relays on addresses that are not the internet's.
	AllowPrivateAddresses bool
	// IPv6 says whether IPv6 addresses are tested.
	IPv6 IPv6
	// Gap is the least time between two connections to one address; DefaultGap when 0.
	Gap time.Duration
	// Parallel is how many relays are tested at once; DefaultParallel when 0.
	Parallel int
	// Measure says how relays are measured; they are not when nil.
	Measure *Measure
	Pool    *cell.Pool
	Buffers *link.Buffers
	Rand    io.Reader        // crypto/rand when nil; safe for concurrent use
	Now     func() time.Time // the date; time.Now when nil
	Log     *slog.Logger     // nothing when nil
}

// Prober tests and measures relays. Its methods are safe for concurrent use and do not wait, but for Run.
type Prober struct {
	cfg     Config
	times   times
	measure *measurer // nil: does not measure

	mu      sync.Mutex // guards what follows; never held while waiting or calling out
	relays  map[identity.ID]*relay
	queues  [lanes]queue
	busy    [lanes]int // tests under way
	running int        // relays that are running and have a descriptor
	failing int        // those of them whose last test failed
	both    int        // running relays that pass over IPv4 and have IPv6 addresses
	both6   int        // those of them that pass over IPv6
	cutOff  bool
	dialled map[netip.Prefix]time.Time // when an address was last dialled
	dirty   bool                       // there is something to save
	changed func()
	wake    chan struct{} // capacity 1
}

// times are the constants above for an interval.
type times struct{ every, retry, patience, again, downMost, strangerMost time.Duration }

func timesOf(interval time.Duration) times {
	return times{
		every:        max(interval/everyPart, everyLeast),
		retry:        max(interval/retryPart, retryLeast),
		patience:     max(interval*patienceQuarters/4, patienceLeast),
		again:        max(interval/againPart, againLeast),
		downMost:     max(interval*downMost, everyLeast),
		strangerMost: max(interval*strangerMost, everyLeast),
	}
}

// New returns a prober with what its store holds. It does nothing before Run. A store that cannot be read, or holds something damaged, is
// an error.
func New(cfg Config) (*Prober, error) {
	if cfg.Network == nil {
		return nil, errors.New("probe: Config.Network must be set")
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Gap == 0 {
		cfg.Gap = DefaultGap
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = DefaultParallel
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
	p := &Prober{
		cfg: cfg, times: timesOf(cfg.Network.Interval),
		relays: make(map[identity.ID]*relay), dialled: make(map[netip.Prefix]time.Time),
		changed: func() {}, wake: make(chan struct{}, 1),
	}
	if cfg.Measure != nil {
		var err error
		if p.measure, err = newMeasurer(p, *cfg.Measure); err != nil {
			return nil, err
		}
	}
	return p, p.load()
}

// Watch tells of a relay's newest descriptor. A relay that is new, or not running, or has another address or onion key, is tested soon.
func (p *Prober) Watch(d *directory.Descriptor) {
	now := time.Now()
	p.mu.Lock()
	r := p.relays[d.Identity]
	if r == nil {
		r = &relay{id: d.Identity, place: nowhere}
		p.relays[d.Identity] = r
	}
	p.uncount(r)
	old := r.descriptor
	r.descriptor = d
	back := old == nil || old.Extra.Hibernating != d.Extra.Hibernating
	moved := old != nil && !sameDoor(old, d)
	if back {
		r.accounted = now // the time without a descriptor, or asleep, does not count
	}
	if moved {
		r.proved = false
	}
	if back || moved || !r.up {
		r.due, r.failures = now, 0
	}
	p.count(r)
	p.enqueue(r)
	p.mu.Unlock()
	p.poke()
}

// Forget tells that there is no current descriptor of a relay any more. What is known of one that was reached is kept for a while.
func (p *Prober) Forget(id identity.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.relays[id]
	if r == nil {
		return
	}
	p.uncount(r)
	r.descriptor = nil
	p.dequeue(r)
	if !r.reached && !r.testing {
		delete(p.relays, id)
	}
}

// Observed returns what the tests say of a relay now.
func (p *Prober) Observed(id identity.ID) directory.Observed {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.relays[id]
	if r == nil {
		return directory.Observed{}
	}
	o := r.observed()
	o.Running = r.reached && r.up && (r.proved || p.cutOff)
	o.Measured = p.measuredLocked(r)
	return o
}

// Status is how far a prober has come.
type Status struct {
	Known    int  `json:"relays_known"`    // with a current descriptor
	Running  int  `json:"relays_running"`  // of them
	Failing  int  `json:"relays_failing"`  // running ones that failed their last test
	Measured int  `json:"relays_measured"` // of those known
	CutOff   bool `json:"cut_off"`         // so many fail that it is this authority that has no connection
	IPv6     bool `json:"ipv6"`            // IPv6 addresses count
}

// Status tells how far the prober has come.
func (p *Prober) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Running: p.running, Failing: p.failing, CutOff: p.cutOff, IPv6: p.ipv6Counts()}
	for _, r := range p.relays {
		if r.descriptor == nil {
			continue
		}
		s.Known++
		if p.measuredLocked(r) > 0 {
			s.Measured++
		}
	}
	return s
}

// Run tests, and measures if it is to, until ctx ends, and returns when all that it started has ended. consensus returns the newest one, or nil;
// changed is called after each test and measurement. Run may be called once.
func (p *Prober) Run(ctx context.Context, consensus func() *directory.Consensus, changed func()) {
	var wg sync.WaitGroup
	p.mu.Lock()
	p.changed = changed
	p.mu.Unlock()
	wg.Go(func() { p.saveLoop(ctx) })
	if p.measure != nil {
		wg.Go(func() { p.measure.run(ctx, consensus) })
	}
	p.testLoop(ctx, &wg)
	wg.Wait()
	p.save()
}

func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// notify tells who called Run that something has changed.
func (p *Prober) notify() {
	p.mu.Lock()
	changed := p.changed
	p.mu.Unlock()
	changed()
}

// upTo returns a random time from a quarter less than d to d, so that what began together does not go on together.
func (p *Prober) upTo(d time.Duration) time.Duration {
	var b [8]byte
	if _, err := io.ReadFull(p.cfg.Rand, b[:]); err != nil {
		return d // without randomness all goes on, only less evenly
	}
	return d - time.Duration(binary.BigEndian.Uint64(b[:])%uint64(d/4+1))
}
