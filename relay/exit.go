package relay

import (
	"context"
	"net"
	"net/netip"
	"time"

	"cepa/cell"
	"cepa/pace"
	"cepa/pipe"
	"cepa/socket"
	"cepa/stream"
)

// Times of an exit; ours. A client waits for their sum, and some way.
const (
	// exitDialTimeout is how long all addresses of a name together may take to
	// answer.
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
	lookups  gauge
}

// newExitNode fails when the machine's own addresses cannot be listed.
func newExitNode(r *Relay, cfg *Exit) (*exitNode, error) {
	e := &exitNode{relay: r, cfg: *cfg, resolver: cfg.Resolver}
	if e.resolver == nil {
		e.resolver = net.DefaultResolver
	}
	if e.cfg.Dial == nil {
		e.cfg.Dial = new(net.Dialer).DialContext
	}
	e.cfg.Dial = socket.Dialer(e.cfg.Dial)
	if e.cfg.Interfaces == nil {
		e.cfg.Interfaces = net.InterfaceAddrs
	}
	own, err := newOwnAddresses(e.cfg.Interfaces, r.cfg.Log)
	if err != nil {
		return nil, err
	}
	e.addrs = addressPolicy{allowed: cfg.Allow, own: own}
	return e, nil
}

// mayExit reports whether the circuit may have streams to the internet: never
// from where the client would be connecting as itself, at index 1, and only from
// a relay that others know too.
func (h *circuitHandler) mayExit() bool {
	return h.relay.exit != nil && h.transit.Index() > 1 && h.relay.listed(h.prev)
}

// Begin implements stream.Handler.
func (h *circuitHandler) Begin(s *stream.Stream, b cell.BeginBody) {
	e := h.relay.exit
	if !h.mayExit() {
		s.Abort(cell.EndPolicy)
		return
	}
	if !h.work(func() { e.serve(h.ctx, s, b, h.share, cell.Room(int(h.transit.Index()))) }) {
		s.Abort(cell.EndResource)
	}
}

// Resolve implements stream.Handler.
func (h *circuitHandler) Resolve(l *stream.Lookup, b cell.ResolveBody) {
	e := h.relay.exit
	if !h.mayExit() {
		l.Answer(cell.ResolvedBody{Status: cell.EndPolicy})
		return
	}
	if !h.work(func() { l.Answer(e.resolve(h.ctx, b)) }) {
		l.Answer(cell.ResolvedBody{Status: cell.EndResource})
	}
}

// work runs f in a goroutine that counts as a stream, unless there are too many.
func (h *circuitHandler) work(f func()) bool {
	r := h.relay
	if !h.streams.enter(r.limits.circuitStreams) {
		return false
	}
	if !r.streams.enter(r.limits.streams) {
		h.streams.leave()
		return false
	}
	done := func() {
		r.streams.leave()
		h.streams.leave()
	}
	if !r.spawn(func() {
		defer done()
		f()
	}) {
		done()
		return false
	}
	return true
}

// serve connects a stream and carries it to its end, in messages of up to room bytes.
func (e *exitNode) serve(ctx context.Context, s *stream.Stream, b cell.BeginBody, share *pace.Share, room int) {
	conn, addr, why := e.connectFor(ctx, s, b)
	if why != 0 {
		s.Abort(why)
		return
	}
	if err := s.Accept(cell.ConnectedBody{Addr: addr, TTL: answerTTL}); err != nil {
		conn.Close()
		s.Close()
		return
	}
	// Its error is the stream's own affair: both ends have heard of it.
	_, _, _ = pipe.Join(ctx, s, e.relay.limiter.conn(e.relay.tally.traffic(conn), share, room))
}

// connectFor is connect for as long as the client wants the stream.
func (e *exitNode) connectFor(ctx context.Context, s *stream.Stream, b cell.BeginBody) (net.Conn, netip.Addr, cell.EndReason) {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		// Nobody has accepted it: it can only end, with the stream or ctx.
		_ = s.Connected(ctx)
		cancel()
	}()
	defer func() {
		cancel()
		<-watched
	}()
	return e.connect(ctx, b)
}

// connect resolves the host and opens a connection to one of its addresses. The
// addresses that are judged are those that are dialled: a name that resolves
// differently the next time gains nothing.
func (e *exitNode) connect(ctx context.Context, b cell.BeginBody) (net.Conn, netip.Addr, cell.EndReason) {
	found, why := e.lookup(ctx, b.Host, b.Flags)
	if why != 0 {
		return nil, netip.Addr{}, why
	}
	var addrs []netip.Addr
	for _, a := range found {
		if len(addrs) < maxExitAddrs && e.allows(a, b.Port) {
			addrs = append(addrs, a)
		}
	}
	why = cell.EndPolicy // when there is none
	deadline := time.Now().Add(exitDialTimeout)
	for i, a := range addrs {
		// What is left is shared by those that are left, so that the last
		// gets its chance.
		share := time.Until(deadline) / time.Duration(len(addrs)-i)
		dialCtx, cancel := context.WithTimeout(ctx, share)
		c, err := e.cfg.Dial(dialCtx, "tcp", netip.AddrPortFrom(a, b.Port).String())
		cancel()
		if err == nil {
			return c, a, 0
		}
		if why = dialReason(err); ctx.Err() != nil {
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
		if own.Addr().Unmap() == a {
			return false
		}
	}
	return !e.relay.mirror.IsRelayAddr(a)
}
