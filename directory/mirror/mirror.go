// Package mirror fetches the consensus from others, verifies it, holds it, tells about new ones and serves them. Clients and relays have
// one each. It trusts nobody that it fetches from: it keeps what enough authorities signed, and never goes back to an older one.
package mirror

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// ErrOlder says that a fetched consensus is older than the one at hand.
var ErrOlder = errors.New("mirror: consensus is older than the one at hand")

// Store keeps documents across restarts; *state.Dir is one.
type Store interface {
	// Read returns a file of at most max bytes; the error wraps fs.ErrNotExist if there is none.
	Read(name string, max int64) ([]byte, error)
	// Write replaces a file atomically.
	Write(name string, data []byte) error
}

// storeName is the file of the last good consensus.
const storeName = "consensus"

// Config is what a Mirror needs. Only Network must be set.
type Config struct {
	// Network says whose signatures count.
	Network *directory.Network
	// Dial opens connections to authorities; net.Dialer's when nil.
	Dial DialFunc
	// Sources returns where to fetch from next, given the current consensus (nil before the first). When the func is nil or returns none, and when the
	// consensus has lost half of its time, the network's fallback caches and authorities are asked, after these.
	Sources func(current *directory.Consensus) []Source
	// Archive keeps the last consensuses too, to serve differences.
	Archive bool
	// OnProgress, unless nil, hears how far each attempt has come. It is called by several goroutines and must not wait.
	OnProgress func(Progress)
	// Early fetches as soon as there should be something new, instead of leaving that time to those who serve others.
	Early bool
	// Store keeps the last good consensus across restarts; nothing is kept when nil.
	Store Store
	// Rand is the source of choices; crypto/rand.Reader when nil.
	Rand io.Reader
	// Now is the date; time.Now when nil.
	Now func() time.Time
	// Log tells what happens; nothing is logged when nil.
	Log *slog.Logger
}

// Mirror holds the newest consensus it could get. Its methods may be called by many goroutines at once.
type Mirror struct {
	cfg       Config
	hurry     chan struct{}  // capacity 1: the next attempt is to come soon
	woken     chan struct{}  // capacity 1: the date is to be looked at again
	archive   *Archive       // nil: nothing is kept but the current one
	strikes   map[string]int // of each source; Run's
	wholeOnly atomic.Bool    // the last difference was not good

	mu       sync.Mutex
	current  *Document // nil until the first
	problem  error     // of the last fetch
	changed  chan struct{}
	departed map[identity.ID]departure // relays that the current consensus no longer lists
	addrs    map[netip.Addr]bool       // IP addresses of all relays, departed ones too
}

// departure is a relay that was in an older consensus.
type departure struct {
	relay *directory.Relay
	until time.Time // others may still build circuits through it until then
}

// New returns a mirror with what its store holds. A stored consensus that has expired or does not verify is left where it is and
// not used. Nothing is fetched before Run.
func New(cfg Config) (*Mirror, error) {
	if cfg.Network == nil {
		return nil, errors.New("mirror: Config.Network is missing")
	}
	if err := cfg.Network.Validate(); err != nil {
		return nil, fmt.Errorf("mirror: network: %w", err)
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
	m := &Mirror{
		cfg: cfg, hurry: make(chan struct{}, 1), woken: make(chan struct{}, 1), strikes: make(map[string]int), changed: make(chan struct{}),
		departed: make(map[identity.ID]departure),
	}
	if cfg.Archive {
		m.archive = NewArchive(cfg.Network, cfg.Store, cfg.Log)
	}
	m.load()
	return m, nil
}

// load takes the stored consensus if it is good.
func (m *Mirror) load() {
	if m.cfg.Store == nil {
		return
	}
	b, err := m.cfg.Store.Read(storeName, directory.MaxConsensusSize)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		var c *directory.Consensus
		if c, err = directory.ParseConsensus(b, m.cfg.Network, m.cfg.Now()); err == nil {
			m.set(c)
			return
		}
	}
	m.cfg.Log.Warn("stored consensus is not used, a new one will be fetched", "error", err)
}

// Current returns the newest consensus, nil before the first. It may have expired since: ask its CheckTime before building on it.
func (m *Mirror) Current() *directory.Consensus {
	if doc := m.document(); doc != nil {
		return doc.Consensus()
	}
	return nil
}

func (m *Mirror) document() *Document {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

// Problem returns why the last fetch failed; nil if it did not, or if there was none.
func (m *Mirror) Problem() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.problem
}

func (m *Mirror) setProblem(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problem = err
}

// Changed returns a channel that is closed when the next new consensus arrives. To miss none, call it before Current.
func (m *Mirror) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Wait returns the current consensus, as soon as there is one that is valid now. The error is that of ctx.
func (m *Mirror) Wait(ctx context.Context) (*directory.Consensus, error) {
	for {
		changed := m.Changed()
		if c := m.Current(); c != nil && c.CheckTime(m.cfg.Now()) == nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("mirror: waiting for a consensus: %w", ctx.Err())
		}
	}
}

// Lookup returns the entry of a relay in the current consensus, or, while that may still be in use elsewhere, in the newest one
// that lists it.
func (m *Mirror) Lookup(id identity.ID) (*directory.Relay, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil {
		return nil, false
	}
	if r, ok := m.current.consensus.Lookup(id); ok {
		return r, true
	}
	if d, ok := m.departed[id]; ok && m.cfg.Now().Before(d.until) {
		return d.relay, true
	}
	return nil, false
}

// IsRelayAddr reports whether ip is an address of a relay that Lookup might return.
func (m *Mirror) IsRelayAddr(ip netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addrs[ip.Unmap()]
}

// Handler serves the current consensus at PathConsensus and, with Config.Archive, differences at PathDifference.
func (m *Mirror) Handler() http.Handler {
	if m.archive != nil {
		return m.archive.Handler()
	}
	return Handler(m.document)
}

// Add takes a signed consensus that the caller got somewhere. It is verified like a fetched one; errors are those of
// directory.ParseConsensus and ErrOlder. One that the mirror has already is not an error.
func (m *Mirror) Add(b []byte) error {
	c, err := directory.ParseConsensus(b, m.cfg.Network, m.cfg.Now())
	if err != nil {
		return err
	}
	return m.accept(c)
}

// accept takes a verified consensus, unless it is older than the one at hand.
func (m *Mirror) accept(c *directory.Consensus) error {
	if cur := m.Current(); cur != nil {
		if c.Period < cur.Period {
			return fmt.Errorf("%w: period %d after %d", ErrOlder, c.Period, cur.Period)
		}
		if c.Period == cur.Period {
			if c.Digest() != cur.Digest() {
				// More than a third of the authorities signed both.
				m.cfg.Log.Error("the authorities signed two different consensuses for one period; keeping the first", "period", c.Period)
				return fmt.Errorf("%w: another one of period %d is at hand", ErrOlder, c.Period)
			}
			return nil
		}
	}
	m.set(c)
	if m.cfg.Store != nil {
		if err := m.cfg.Store.Write(storeName, c.Raw()); err != nil {
			m.cfg.Log.Warn("consensus could not be stored and will be fetched again after a restart", "error", err)
		}
	}
	return nil
}

// set makes c the current consensus unless a newer one has become it meanwhile.
func (m *Mirror) set(c *directory.Consensus) {
	doc := NewDocument(c)
	if m.archive != nil {
		m.archive.Add(c)
		doc = m.archive.Newest()
	}
	now := m.cfg.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		old := m.current.consensus
		if doc.consensus.Period <= old.Period {
			return
		}
		m.depart(old, doc.consensus, now)
	}
	c = doc.consensus
	m.current = doc
	m.wholeOnly.Store(false)
	m.addrs = make(map[netip.Addr]bool)
	for i := range c.Relays {
		addAddrs(m.addrs, &c.Relays[i])
	}
	for _, d := range m.departed {
		addAddrs(m.addrs, d.relay)
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

// depart remembers the relays that were in old and are no longer in c, and forgets those whose time is over. Copies, because a
// pointer into old would keep all of it.
func (m *Mirror) depart(old, c *directory.Consensus, now time.Time) {
	for id, d := range m.departed {
		if _, back := c.Lookup(id); back || !now.Before(d.until) {
			delete(m.departed, id)
		}
	}
	for i := range old.Relays {
		r := &old.Relays[i]
		if _, ok := c.Lookup(r.Identity); !ok && now.Before(old.ValidUntil) && len(m.departed) < directory.MaxRelays {
			clone := *r
			m.departed[r.Identity] = departure{&clone, old.ValidUntil}
		}
	}
}

func addAddrs(set map[netip.Addr]bool, r *directory.Relay) {
	for _, a := range r.Addresses {
		set[a.Addr()] = true
	}
}
