package relay

import (
	"context"
	"errors"
	"net"
	"time"

	"cepa/circuit"
	"cepa/link"
)

// acceptLoop takes connections until ctx ends.
func (r *Relay) acceptLoop(ctx context.Context, ln net.Listener) error {
	slots := make(chan struct{}, maxHandshaking)
	var pause time.Duration
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil && errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// Out of file descriptors, or the like: it passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			r.cfg.Log.Warn("could not accept a link; raise the limit of open files if this goes on", "error", err, "retry_in", pause)
			wait(ctx, pause)
			continue
		}
		pause = 0
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		r.spawn(func() {
			defer func() { <-slots }()
			r.accept(ctx, conn)
		})
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

func (r *Relay) accept(ctx context.Context, conn net.Conn) {
	r.mu.Lock()
	full := len(r.links) >= maxLinks
	r.mu.Unlock()
	if full {
		conn.Close()
		return
	}
	l, err := link.Server(ctx, r.limiter.conn(conn), r.linkConfig())
	if err != nil {
		r.cfg.Log.Debug("a link handshake failed", "error", err)
		return
	}
	if _, isRelay := l.Peer(); isRelay {
		r.pool.Add(l)
	}
	if !r.track(l) {
		l.Close()
	}
}

// linkConfig returns the configuration of one link, incoming or outgoing.
func (r *Relay) linkConfig() *link.Config {
	return &link.Config{
		Auth: r.auth.Load(), Pool: r.cfg.Pool, Buffers: r.cfg.Buffers,
		OnCreate:    r.creator.onCreate,
		RecordCells: r.limiter.recordCells(), QueueCells: circuit.QueueCells,
		Keepalive: link.Keepalive{Spend: r.limiter.allow},
		Rand:      r.cfg.Rand, Now: r.cfg.Now, Log: r.cfg.Log,
		OnClose: r.untrack,
	}
}

// track notes a link, unless the relay is closing or the link has ended.
func (r *Relay) track(l *link.Link) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return false
	}
	select {
	case <-l.Done():
		return false
	default:
	}
	r.links[l] = struct{}{}
	return true
}

func (r *Relay) untrack(l *link.Link, _ error) {
	st := l.Stats()
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, tracked := r.links[l]; tracked {
		delete(r.links, l)
		r.ended.read += st.BytesRead
		r.ended.written += st.BytesWritten
	}
}

func (r *Relay) closeLinks() {
	r.mu.Lock()
	links := make([]*link.Link, 0, len(r.links))
	for l := range r.links {
		links = append(links, l)
	}
	r.mu.Unlock()
	for _, l := range links {
		l.Close()
	}
}
