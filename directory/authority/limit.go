package authority

import (
	"context"
	"net"
	"sync"
)

// maxConns is the highest number of connections that one listener has open: what is beyond waits in the system's queue.
const maxConns = 1024

// limitListener is a listener with at most maxConns connections open, for all of which the authority's Close waits.
type limitListener struct {
	net.Listener
	authority *Authority
	slots     chan struct{}
}

func (a *Authority) limit(ln net.Listener, conns int) *limitListener {
	return &limitListener{Listener: ln, authority: a, slots: make(chan struct{}, conns)}
}

// Accept waits for room and then for a connection.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.authority.ctx.Done():
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	if !l.authority.begin() {
		<-l.slots
		_ = c.Close() // nobody has used it
		return nil, net.ErrClosed
	}
	// Close of an http.Server does not see a connection that is just being accepted; this does.
	stop := context.AfterFunc(l.authority.ctx, func() { _ = c.Close() })
	return &limitConn{Conn: c, release: sync.OnceFunc(func() {
		stop()
		<-l.slots
		l.authority.wg.Done()
	})}, nil
}

// limitConn gives its place back when it is closed.
type limitConn struct {
	net.Conn
	release func()
}

// Close closes the connection.
func (c *limitConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}
