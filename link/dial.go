package link

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"cepa/crypto/identity"
)

// dial is an attempt under way, shared by all who want the same relay.
type dial struct {
	done    chan struct{} // closed when link or err is set
	link    *Link
	err     error
	waiters int // guarded by Pool.mu; at 0 the attempt is given up
	cancel  context.CancelFunc
}

// startDial starts an attempt. mu is held.
func (p *Pool) startDial(id identity.ID, addrs []netip.AddrPort) *dial {
	ctx, cancel := context.WithCancel(context.Background())
	d := &dial{done: make(chan struct{}), cancel: cancel}
	if p.dials == nil {
		p.dials = make(map[identity.ID]*dial)
	}
	p.dials[id] = d
	p.running.Add(1)
	go func() {
		defer p.running.Done()
		defer cancel()
		l, err := p.connect(ctx, id, addrs)
		p.mu.Lock()
		if p.dials[id] == d {
			delete(p.dials, id)
		}
		switch {
		case err != nil:
		case p.closed:
			err = ErrPoolClosed
		default:
			p.enter(id, l)
		}
		p.mu.Unlock()
		if err != nil && l != nil {
			_ = l.Close() // always nil
			l = nil
		}
		d.link, d.err = l, err
		close(d.done)
	}()
	return d
}

// connect tries addresses until one leads to the relay.
func (p *Pool) connect(ctx context.Context, id identity.ID, addrs []netip.AddrPort) (*Link, error) {
	var cfg *Config
	if p.Config != nil {
		cfg = p.Config()
	}
	failed := fmt.Errorf("%w: %s at %d addresses", ErrUnreachable, id.Short(), len(addrs))
	if cfg != nil && cfg.Auth != nil && cfg.Auth.Identity == id {
		return nil, fmt.Errorf("%w: %w", failed, ErrOwnIdentity)
	}
	for _, addr := range addrs {
		l, err := p.connectTo(ctx, id, addr, cfg)
		if err == nil {
			return l, nil
		}
		failed = fmt.Errorf("%w; %w", failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func (p *Pool) connectTo(ctx context.Context, id identity.ID, addr netip.AddrPort, cfg *Config) (*Link, error) {
	dial := p.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	limit := p.DialTimeout
	if limit == 0 {
		limit = DefaultDialTimeout
	}
	dialCtx, cancel := context.WithTimeout(ctx, limit)
	conn, err := dial(dialCtx, "tcp", addr.String())
	cancel()
	if err != nil {
		return nil, err
	}
	return Client(ctx, conn, id, cfg)
}
