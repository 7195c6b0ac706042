package authority

import (
	"context"
	"net"
	"net/netip"
	"sync"
)

// maxConns is the highest number of connections that one listener has open: what is beyond waits in the system's queue.
const maxConns = 1024

// maxAddressConns is how many of them may come from one address, an IPv4 address or an IPv6 /64; more are closed. Loopback, where a web server in front
// may be, is not limited.
const maxAddressConns = 64

// limitListener is a listener with at most maxConns connections open, for all of which the authority's Close waits.
type limitListener struct {
	net.Listener
	authority *Authority
	slots     chan struct{}

	mu   sync.Mutex
	open map[netip.Addr]int
}

func (a *Authority) limit(ln net.Listener, conns int) *limitListener {
	return &limitListener{Listener: ln, authority: a, slots: make(chan struct{}, conns), open: make(map[netip.Addr]int)}
}

// Accept waits for room and then for a connection from an address that does not have too many.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.authority.ctx.Done():
		return nil, net.ErrClosed
	}
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		addr := addressOf(c.RemoteAddr())
		if !l.enter(addr) {
			_ = c.Close() // nobody has used it
			continue
		}
		if !l.authority.begin() {
			l.leave(addr)
			<-l.slots
			_ = c.Close() // nobody has used it
			return nil, net.ErrClosed
		}
		// Close of an http.Server does not see a connection that is just being accepted; this does.
		stop := context.AfterFunc(l.authority.ctx, func() { _ = c.Close() })
		return &limitConn{Conn: c, release: sync.OnceFunc(func() {
			stop()
			l.leave(addr)
			<-l.slots
			l.authority.wg.Done()
		})}, nil
	}
}

// addressOf is what counts as one address; the zero Addr stands for what is not limited.
func addressOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	ip := ap.Addr().Unmap().WithZone("")
	if err != nil || ip.IsLoopback() {
		return netip.Addr{}
	}
	if ip.Is6() {
		p, _ := ip.Prefix(64) // which every IPv6 address has
		ip = p.Addr()
	}
	return ip
}

// enter counts a connection in, unless its address has too many.
func (l *limitListener) enter(addr netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if addr.IsValid() && l.open[addr] >= maxAddressConns {
		return false
	}
	l.open[addr]++
	return true
}

func (l *limitListener) leave(addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[addr]--; l.open[addr] == 0 {
		delete(l.open, addr)
	}
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
