package relay

import (
	"container/list"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"cepa/circuit"
	"cepa/directory"
	"cepa/link"
	"cepa/socket"
)

// acceptLoop takes connections until ctx ends.
func (r *Relay) acceptLoop(ctx context.Context, ln net.Listener) error {
	pending := handshakes{limit: r.limits.handshaking}
	var pause time.Duration
	var failures sparse
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// Out of file descriptors, or the like: it passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			if n := failures.due(time.Now()); n > 0 {
				r.cfg.Log.Warn("could not accept a link; raise the limit of open files if this goes on", "err", err, "count", n)
			}
			wait(ctx, pause)
			continue
		}
		pause = 0
		conn = socket.Wrap(conn)
		done := pending.enter(conn)
		if !r.spawn(func() {
			defer done()
			r.accept(ctx, conn)
		}) {
			done()
			conn.Close()
		}
	}
}

// handshakes are the connections whose handshake is under way, oldest first. A
// new one beyond the limit takes the place of the oldest: an honest handshake
// takes milliseconds, so those that idle make way and nobody can fill the
// places for long.
type handshakes struct {
	limit int

	mu    sync.Mutex
	conns list.List // of net.Conn
}

// enter adds a connection; the func that it returns takes it out, once.
func (h *handshakes) enter(conn net.Conn) (done func()) {
	h.mu.Lock()
	e := h.conns.PushBack(conn)
	var oldest net.Conn
	if h.conns.Len() > h.limit {
		oldest = h.conns.Remove(h.conns.Front()).(net.Conn)
	}
	h.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return func() {
		h.mu.Lock()
		h.conns.Remove(e) // nothing when it has made way
		h.mu.Unlock()
	}
}

// wait waits for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// sparse thins out a warning that repeats: one a minute, with a count.
type sparse struct {
	last  time.Time
	count int
}

// due counts one more, and returns how many there were since the last warning, or
// 0 when that is too recent.
func (s *sparse) due(now time.Time) int {
	s.count++
	if !s.last.IsZero() && now.Sub(s.last) < time.Minute {
		return 0
	}
	n := s.count
	s.last, s.count = now, 0
	return n
}

func (r *Relay) accept(ctx context.Context, conn net.Conn) {
	if !r.takes() {
		conn.Close()
		return
	}
	if !r.linkCount.enter(r.limits.links) {
		r.load.links.Add(1)
		conn.Close()
		return
	}
	near := &neighbour{addr: keyOf(conn.RemoteAddr())}
	limited, meter := r.limiter.reading(r.tally.traffic(conn))
	l, err := link.Server(ctx, limited, r.linkConfig(near, true))
	if err != nil {
		r.linkCount.leave()
		r.cfg.Log.Debug("a link handshake failed", "err", err)
		return
	}
	if !r.track(l) {
		l.Close()
		return
	}
	switch {
	case !r.isRelay(l) && !r.countClient(near):
		r.load.links.Add(1)
		l.Abort(errTooManyLinks)
	default:
		if r.isRelay(l) {
			meter.Join(nil, linkParts)
		} else {
			meter.Join(r.addresses.share(near.addr), 1)
		}
		if _, proved := l.Peer(); proved {
			r.pool.Add(l) // which refuses only when it is closed, and the link too then
		}
	}
}

// errTooManyLinks is why a client's link is closed at once.
var errTooManyLinks = errors.New("too many links of clients")

// countClient counts a client's link until it ends, unless there are too many,
// in all or from its address. The rest of the places is for relays.
func (r *Relay) countClient(near *neighbour) bool {
	if !r.clientCount.enter(r.limits.clientLinks) {
		return false
	}
	if !r.addresses.enter(near.addr) {
		r.clientCount.leave()
		return false
	}
	if !near.counted.CompareAndSwap(linkNotCounted, linkCounted) { // it has ended
		r.uncountClient(near)
	}
	return true
}

func (r *Relay) uncountClient(near *neighbour) {
	r.addresses.leave(near.addr, time.Now())
	r.clientCount.leave()
}

// linkConfig returns the configuration of one link. An incoming one is counted
// until it ends.
func (r *Relay) linkConfig(near *neighbour, incoming bool) *link.Config {
	return &link.Config{
		Auth: r.auth.Load(), Pool: r.cfg.Pool, Buffers: r.cfg.Buffers,
		OnCreate: func(c *link.Circuit, body []byte) { r.creator.onCreate(near, c, body) },
		Pacer:    r.limiter.write, QueueCells: circuit.QueueCells,
		Keepalive: r.keepalive(),
		Rand:      r.cfg.Rand, Now: r.cfg.Now, Log: r.cfg.Log,
		OnClose: func(l *link.Link, _ error) {
			if incoming {
				r.linkCount.leave()
			}
			if near.counted.Swap(linkEnded) == linkCounted {
				r.uncountClient(near)
			}
			r.untrack(l)
		},
	}
}

// keepalive is how a client's link avoids silence, as the present consensus says.
func (r *Relay) keepalive() link.Keepalive {
	p := r.params()
	if p.Get(directory.ParamLinkPadding) == 0 {
		return link.Unpadded()
	}
	k := link.Keepalive{Spend: r.spendPadding}
	k.Min, k.Max = p.LinkPadding()
	k.ReducedMin, k.ReducedMax = p.LinkPaddingReduced()
	return k
}

// spendPadding reports whether n bytes of padding may be written now.
func (r *Relay) spendPadding(n int) bool {
	r.limiter.setPaddingShare(r.params().Get(directory.ParamLinkPaddingShare))
	return r.limiter.allowPadding(n)
}

// track notes a link, unless the relay is closing or the link has ended.
func (r *Relay) track(l *link.Link) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A link without an Err will still call untrack, which waits for mu.
	if r.closed || l.Err() != nil {
		return false
	}
	r.links[l] = struct{}{}
	return true
}

func (r *Relay) untrack(l *link.Link) {
	st := l.Stats()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, l)
	r.ended.read += st.BytesRead
	r.ended.written += st.BytesWritten
}

// closeLinks ends all links at once and waits for them.
func (r *Relay) closeLinks() {
	r.mu.Lock()
	links := make([]*link.Link, 0, len(r.links))
	for l := range r.links {
		links = append(links, l)
	}
	r.mu.Unlock()
	for _, l := range links {
		l.Abort(link.ErrClosed)
	}
	for _, l := range links {
		l.Close()
	}
}
