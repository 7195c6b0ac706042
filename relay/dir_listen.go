package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"cepa/pace"
	"cepa/socket"
)

// dirSocket is a connection of plain HTTP to the directory.
type dirSocket struct {
	net.Conn
	release func()
}

func (s *dirSocket) leave() { s.release() }

// dirAddresses counts the connections of plain HTTP from each address, and gives those of one a share of the rate together. Addresses are kept
// in memory only while there is something to count, and never logged.
type dirAddresses struct {
	mu      sync.Mutex
	entries map[netip.Addr]*dirAddress
}

type dirAddress struct {
	open  int64
	share *pace.Share
}

// enter counts one more connection from a, unless that is more than limit. Loopback is where a web cache on the same machine is, and not limited.
func (d *dirAddresses) enter(a netip.Addr, limit int64) (*pace.Share, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[a]
	if e == nil {
		e = &dirAddress{share: new(pace.Share)}
		if d.entries == nil {
			d.entries = map[netip.Addr]*dirAddress{}
		}
		d.entries[a] = e
	}
	if e.open >= limit && !a.IsLoopback() {
		return nil, false
	}
	e.open++
	return e.share, true
}

// leave takes one enter back.
func (d *dirAddresses) leave(a netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[a]
	if e.open--; e.open == 0 {
		delete(d.entries, a)
	}
}

// ServeDir serves the consensus over plain HTTP on ln, which it closes, until ctx or Serve ends: for web caches, and for clients that
// have no consensus yet. It may be called before Serve, and answers as soon as that runs. What it moves is charged to rate and quota. The error is that of the listener.
func (r *Relay) ServeDir(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	if !r.begin() {
		return ErrServed
	}
	defer r.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	stopToo := context.AfterFunc(r.closing, cancel)
	defer stopToo()
	var pause time.Duration
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
			wait(ctx, pause)
			continue
		}
		pause = 0
		r.enterDir(socket.Wrap(conn))
	}
}

// enterDir hands a connection to the directory's server, unless there are too many.
func (r *Relay) enterDir(conn net.Conn) {
	d, addr := r.dir, keyOf(conn.RemoteAddr())
	if !r.takes() || !d.sockets.enter(r.limits.dirSockets) {
		conn.Close()
		return
	}
	share, ok := d.addresses.enter(addr, r.limits.addressDirSockets)
	if !ok {
		d.sockets.leave()
		conn.Close()
		return
	}
	s := &dirSocket{Conn: r.limiter.conn(r.tally.traffic(conn), share, 1)}
	// The server does not see what comes while it ends.
	stop := context.AfterFunc(r.closing, func() { s.Close() })
	s.release = sync.OnceFunc(func() {
		stop()
		d.addresses.leave(addr)
		d.sockets.leave()
	})
	select {
	case d.streams <- s:
	case <-d.done:
		s.Close()
		s.leave()
	}
}
