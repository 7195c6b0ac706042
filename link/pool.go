package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"cepa/crypto/identity"
)

// Bounds of a Pool. All are ours.
const (
	// DefaultIdleTimeout is how long a link without circuits is kept: longer
	// than the pause between a client's circuits, shorter than most address
	// translators remember.
	DefaultIdleTimeout = 3 * time.Minute
	// DefaultDialTimeout bounds one attempt to open a connection: as long as a
	// handshake, so that a relay that drops packets costs no more than a slow one.
	DefaultDialTimeout = 10 * time.Second
	// MaxAddresses is how many addresses of one relay Get tries.
	MaxAddresses = 4
)

var (
	// ErrPoolClosed says that Close was called.
	ErrPoolClosed = errors.New("link: pool is closed")
	// ErrUnreachable says that no address of a relay led to it; the errors of
	// all attempts are wrapped beside it.
	ErrUnreachable = errors.New("link: relay not reached")
)

// Pool holds links to relays, so that circuits share them. It dials each relay
// at most once at a time, uses a link only for the identity that the link
// proved, and closes those that had no circuit for a while. Its fields are set
// before first use and not changed; its methods are safe for concurrent use. The
// zero value works, as a client's with the network of the machine.
type Pool struct {
	// Dial opens connections; net.Dialer's when nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Config returns the configuration of a link that is about to be made; nil
	// stands for a nil Config.
	Config func() *Config
	// IdleTimeout and DialTimeout are the defaults above when 0.
	IdleTimeout, DialTimeout time.Duration

	mu      sync.Mutex // guards what follows; never held while waiting or calling out
	closed  bool
	links   map[identity.ID][]*pooled // newest last; some may have ended
	dials   map[identity.ID]*dial
	janitor *time.Timer    // runs sweep; nil until the first link
	running sync.WaitGroup // dials and sweeps
}

// pooled is a link in the pool.
type pooled struct {
	link *Link
	used time.Time // when Get last returned it, or it came
}

// Get returns a link to the relay with this identity: one that is there, or a
// new one, for which it tries the addresses in their order, MaxAddresses at most. Who
// comes while an attempt is under way waits for its outcome, whatever addresses it
// gave. It gives up when ctx is done; the attempt goes on as long as somebody waits.
// The link may end at any time, also before it is used. Errors wrap
// ErrUnreachable and what Client says, ErrPoolClosed, or ctx's.
func (p *Pool) Get(ctx context.Context, id identity.ID, addrs []netip.AddrPort) (*Link, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("link: to %s: %w", id.Short(), context.Cause(ctx))
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrPoolClosed
	}
	if e := p.newest(id); e != nil {
		e.used = time.Now()
		p.mu.Unlock()
		return e.link, nil
	}
	d := p.dials[id]
	if d == nil {
		d = p.startDial(id, slices.Clone(addrs[:min(len(addrs), MaxAddresses)]))
	}
	d.waiters++
	p.mu.Unlock()

	select {
	case <-d.done:
		return d.link, d.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	d.waiters--
	if d.waiters == 0 {
		d.cancel()
		if p.dials[id] == d { // who comes now starts anew
			delete(p.dials, id)
		}
	}
	p.mu.Unlock()
	return nil, fmt.Errorf("link: to %s: %w", id.Short(), context.Cause(ctx))
}

// newest returns the newest link to id that has not ended, or nil. mu is held.
func (p *Pool) newest(id identity.ID) *pooled {
	for _, e := range slices.Backward(p.links[id]) {
		if !e.link.over() {
			return e
		}
	}
	return nil
}

// Add hands the pool a link that a relay opened to us: from now on it serves
// circuits to that relay too, and the pool closes it when it is idle. Links of
// clients are refused with ErrConfig, and with ErrPoolClosed all; then the link stays the caller's.
func (p *Pool) Add(l *Link) error {
	id, ok := l.Peer()
	if !ok {
		return fmt.Errorf("%w: a client's link serves no circuits of ours", ErrConfig)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrPoolClosed
	}
	p.enter(id, l)
	return nil
}

// enter holds l and sees to it that sweep runs. mu is held and the pool open.
func (p *Pool) enter(id identity.ID, l *Link) {
	if p.links == nil {
		p.links = make(map[identity.ID][]*pooled)
	}
	p.links[id] = append(p.links[id], &pooled{link: l, used: time.Now()})
	p.schedule()
}

// schedule arms the janitor unless it is armed. mu is held and the pool open.
func (p *Pool) schedule() {
	if p.janitor != nil {
		return
	}
	p.running.Add(1) // sweep, or Close if it stops the timer, ends it
	p.janitor = time.AfterFunc(p.idleTimeout()/4, p.sweep)
}

func (p *Pool) idleTimeout() time.Duration {
	if p.IdleTimeout == 0 {
		return DefaultIdleTimeout
	}
	return p.IdleTimeout
}

// sweep forgets links that have ended and closes those without circuits. It runs
// four times an IdleTimeout, so a link is idle for at most 5/4 of it.
func (p *Pool) sweep() {
	defer p.running.Done()
	var idle []*Link
	p.mu.Lock()
	now := time.Now()
	for id, entries := range p.links {
		entries = slices.DeleteFunc(entries, func(e *pooled) bool {
			if e.link.over() {
				return true
			}
			since, none := e.link.idle()
			if !none || now.Sub(since) < p.idleTimeout() || now.Sub(e.used) < p.idleTimeout() {
				return false
			}
			idle = append(idle, e.link)
			return true
		})
		if p.links[id] = entries; len(entries) == 0 {
			delete(p.links, id)
		}
	}
	p.janitor = nil
	if !p.closed && len(p.links) > 0 {
		p.schedule()
	}
	p.mu.Unlock()
	for _, l := range idle {
		_ = l.Close() // always nil
	}
}

// Links returns the links that have not ended, in no order.
func (p *Pool) Links() []*Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*Link
	for _, entries := range p.links {
		for _, e := range entries {
			if !e.link.over() {
				all = append(all, e.link)
			}
		}
	}
	return all
}

// Close gives up attempts under way, closes all links, those of Add too, and
// waits for all of it. Later calls of Get and Add fail. It returns nil.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	for _, d := range p.dials {
		d.cancel()
	}
	if p.janitor != nil && p.janitor.Stop() {
		p.janitor = nil
		p.running.Done()
	}
	var all []*Link
	for _, entries := range p.links {
		for _, e := range entries {
			all = append(all, e.link)
		}
	}
	p.links = nil
	p.mu.Unlock()
	for _, l := range all {
		l.Abort(ErrClosed)
	}
	for _, l := range all {
		_ = l.Close() // always nil
	}
	p.running.Wait()
	return nil
}
