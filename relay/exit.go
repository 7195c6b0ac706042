package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"cepa/cell"
	"cepa/pipe"
	"cepa/stream"
)

// Limits of an exit; ours.
const (
	// exitDialTimeout is how long one address may take to answer.
	exitDialTimeout = 15 * time.Second
	// resolveTimeout is how long a name may take.
	resolveTimeout = 10 * time.Second
	// maxExitAddrs is how many addresses of a name are tried.
	maxExitAddrs = 4
	// answerTTL is the time in seconds for which answers hold: the resolver
	// does not tell us theirs, and one fixed figure tells nobody what this
	// exit has looked up before.
	answerTTL = 60
)

// exitNode opens streams to the internet.
type exitNode struct {
	relay    *Relay
	cfg      Exit
	resolver Resolver
	addrs    addressPolicy
}

func newExitNode(r *Relay, cfg *Exit) *exitNode {
	e := &exitNode{relay: r, cfg: *cfg, resolver: cfg.Resolver}
	if e.resolver == nil {
		e.resolver = net.DefaultResolver
	}
	if e.cfg.Dial == nil {
		e.cfg.Dial = new(net.Dialer).DialContext
	}
	e.addrs = addressPolicy{forbidden: forbidden(), allowed: cfg.Allow}
	return e
}

// Begin implements stream.Handler.
func (h *circuitHandler) Begin(s *stream.Stream, b cell.BeginBody) {
	r := h.relay
	if r.exit == nil || h.transit.Index() == 1 {
		// At index 1 the client would be connecting as itself.
		s.Abort(cell.EndPolicy)
		return
	}
	r.spawn(func() {
		r.streams.Add(1)
		defer r.streams.Add(-1)
		r.exit.serve(h.ctx, s, b)
	})
}

// Resolve implements stream.Handler.
func (h *circuitHandler) Resolve(l *stream.Lookup, b cell.ResolveBody) {
	r := h.relay
	if r.exit == nil || h.transit.Index() == 1 {
		l.Answer(cell.ResolvedBody{Status: cell.EndPolicy})
		return
	}
	r.spawn(func() { l.Answer(r.exit.resolve(h.ctx, b)) })
}

// BeginDir implements stream.Handler.
func (h *circuitHandler) BeginDir(s *stream.Stream) {
	h.relay.dir.offer(s)
}

// serve connects a stream and carries it to its end.
func (e *exitNode) serve(ctx context.Context, s *stream.Stream, b cell.BeginBody) {
	conn, addr, why := e.connect(ctx, b)
	if why != 0 {
		s.Abort(why)
		return
	}
	if err := s.Accept(cell.ConnectedBody{Addr: addr, TTL: answerTTL}); err != nil {
		conn.Close()
		s.Close()
		return
	}
	pipe.Join(ctx, s, conn)
}

// connect resolves the host and opens a connection to one of its addresses.
func (e *exitNode) connect(ctx context.Context, b cell.BeginBody) (net.Conn, netip.Addr, cell.EndReason) {
	addrs, why := e.lookup(ctx, b.Host, b.Flags)
	if why != 0 {
		return nil, netip.Addr{}, why
	}
	why = cell.EndPolicy
	tried := 0
	for _, a := range addrs {
		a = a.Unmap()
		if !e.allows(a, b.Port) || tried == maxExitAddrs {
			continue
		}
		tried++
		dialCtx, cancel := context.WithTimeout(ctx, exitDialTimeout)
		c, err := e.cfg.Dial(dialCtx, "tcp", netip.AddrPortFrom(a, b.Port).String())
		cancel()
		if err == nil {
			return e.relay.limiter.conn(c), a, 0
		}
		if why = endReason(err); ctx.Err() != nil {
			break
		}
	}
	return nil, netip.Addr{}, why
}

// allows applies all rules to one address.
func (e *exitNode) allows(a netip.Addr, port uint16) bool {
	if !e.cfg.Policy.AllowsPort(port, a.Is6()) || !e.addrs.allows(a) {
		return false
	}
	// Never to a relay: a stream must not become a link, or a path of more
	// hops than anybody agreed to.
	for _, own := range e.relay.cfg.Addresses {
		if own.Addr() == a {
			return false
		}
	}
	return !e.relay.mirror.IsRelayAddr(a)
}

// lookup returns the addresses of a host, in the order in which to try them.
func (e *exitNode) lookup(ctx context.Context, host string, flags cell.BeginFlags) ([]netip.Addr, cell.EndReason) {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return nil, cell.EndPolicy
		}
		return []netip.Addr{a}, 0
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := e.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, resolveReason(err)
	}
	var v4, v6 []netip.Addr
	for _, a := range found {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else if flags&cell.BeginIPv6 != 0 {
			v6 = append(v6, a)
		}
	}
	all := append(v4, v6...)
	if flags&cell.BeginPreferIPv6 != 0 {
		all = append(v6, v4...)
	}
	if len(all) == 0 {
		return nil, cell.EndNotFound
	}
	return all, 0
}

// resolve answers RESOLVE.
func (e *exitNode) resolve(ctx context.Context, b cell.ResolveBody) cell.ResolvedBody {
	if a, err := netip.ParseAddr(b.Name); err == nil {
		if !e.addrs.allows(a) {
			return cell.ResolvedBody{Status: cell.EndPolicy}
		}
		ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
		defer cancel()
		names, err := e.resolver.LookupAddr(ctx, a.String())
		if err != nil {
			return cell.ResolvedBody{Status: resolveReason(err)}
		}
		if len(names) == 0 {
			return cell.ResolvedBody{Status: cell.EndNotFound}
		}
		return cell.ResolvedBody{TTL: answerTTL, Names: names[:min(len(names), cell.MaxAnswers)]}
	}
	addrs, why := e.lookup(ctx, b.Name, b.Flags)
	allowed := addrs[:0]
	for _, a := range addrs {
		if e.addrs.allows(a) {
			allowed = append(allowed, a)
		}
	}
	if why == 0 && len(allowed) == 0 {
		why = cell.EndPolicy
	}
	if why != 0 {
		return cell.ResolvedBody{Status: why}
	}
	return cell.ResolvedBody{TTL: answerTTL, Addrs: allowed[:min(len(allowed), cell.MaxAnswers)]}
}

// resolveReason turns a resolver's error into a reason of the wire.
func resolveReason(err error) cell.EndReason {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return cell.EndNotFound
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return cell.EndTimeout
	default:
		return cell.EndNotFound
	}
}

// endReason turns a dial error into a reason of the wire.
func endReason(err error) cell.EndReason {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return cell.EndRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return cell.EndNetwork
	case errors.Is(err, syscall.EHOSTUNREACH):
		return cell.EndHost
	case errors.Is(err, syscall.ECONNRESET):
		return cell.EndReset
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return cell.EndResource
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return cell.EndTimeout
	default:
		return cell.EndHost
	}
}
