package simnet

import (
	"net"
	"net/netip"
	"sync"
)

// backlog bounds the connections that wait for Accept, as Linux does (net.core.somaxconn).
const backlog = 4096

// listener is the net.Listener of a Host.
type listener struct {
	host *Host
	key  netip.AddrPort // in host.listeners
	addr netip.AddrPort

	mu     sync.Mutex // taken after Network.mu
	ready  sync.Cond
	queue  []*Conn
	closed bool
}

func newListener(h *Host, key, addr netip.AddrPort) *listener {
	l := &listener{host: h, key: key, addr: addr}
	l.ready.L = &l.mu
	return l
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.ready.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	c := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return c, nil
}

// Addr returns the *net.TCPAddr at which the listener is reached.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// Close frees the port, makes Accept fail, and resets the connections that nobody accepted.
func (l *listener) Close() error {
	n := l.host.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if !l.shut() {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	return nil
}

// shut closes the listener; it reports whether it was open. The caller holds n.mu.
func (l *listener) shut() bool {
	l.mu.Lock()
	queue, open := l.queue, !l.closed
	l.queue, l.closed = nil, true
	l.ready.Broadcast()
	l.mu.Unlock()
	if !open {
		return false
	}
	delete(l.host.listeners, l.key)
	n := l.host.n
	for _, c := range queue {
		n.reset(c, n.now())
	}
	return true
}

// put queues a connection that is open; it reports false if it cannot.
func (l *listener) put(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.queue) >= backlog {
		return false
	}
	l.queue = append(l.queue, c)
	l.ready.Signal()
	return true
}

func (l *listener) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || len(l.queue) >= backlog
}
