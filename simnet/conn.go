package simnet

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Conn is one end of a connection. It behaves as *net.TCPConn does. Errors are *net.OpError and wrap:
//
//   - os.ErrDeadlineExceeded: the deadline passed (Timeout reports true)
//   - net.ErrClosed: this end, its host or the network was closed
//   - syscall.ECONNRESET: the peer gave the connection up, with data unread or under way
//   - syscall.EPIPE: a write after CloseWrite
//
// Read returns a bare io.EOF when the peer has closed and all was read.
type Conn struct {
	n        *Network
	id       uint64
	host     *Host
	peer     *Conn
	in, out  *half
	local    netip.AddrPort
	opened   chan error // the outcome of dialling; nil at the accepting end
	listener *listener  // at the accepting end, once the request has arrived

	// Guarded by n.mu.
	hard   bool // Close resets
	closed bool // by Close
	over   bool // this end takes no more part: closed, reset, or its host crashed
	gaveUp bool // a reset was sent
}

// Read reads what has arrived, or waits for the first byte.
func (c *Conn) Read(p []byte) (int, error) {
	m, err := c.in.readBytes(p)
	return m, c.opError("read", err)
}

// Write puts p into the buffer and returns; it waits while the buffer is full. Concurrent writes do not mix.
func (c *Conn) Write(p []byte) (int, error) {
	m, err := c.out.writeBytes(p, true)
	return m, c.opError("write", err)
}

// TryWrite puts as much of p as fits into the buffer, without waiting. It must not be called while a Write is under way.
func (c *Conn) TryWrite(p []byte) (int, error) {
	m, err := c.out.writeBytes(p, false)
	return m, c.opError("write", err)
}

// Close ends the connection. What was written is still delivered and then the peer reads io.EOF; but if there is
// data that was not read, or more arrives later, or after SetLinger(0), the peer's calls fail with ECONNRESET. Close does
// not wait.
func (c *Conn) Close() error {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	if c.over {
		c.in.mu.Lock()
		c.in.readErr = net.ErrClosed
		c.in.mu.Unlock()
		c.out.mu.Lock()
		c.out.sendErr = net.ErrClosed
		c.out.mu.Unlock()
		return nil
	}
	c.in.mu.Lock()
	unread := c.in.arrived > c.in.read
	c.in.mu.Unlock()
	if unread || c.hard {
		n.reset(c, n.now())
		return nil
	}
	c.end()
	n.fail(c, net.ErrClosed)
	return nil
}

// CloseWrite ends the stream to the peer, which reads io.EOF after the last byte, and leaves the other open.
func (c *Conn) CloseWrite() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.over {
		return c.opError("close", net.ErrClosed)
	}
	c.end()
	return nil
}

// end sends the end of the outgoing stream. The caller holds n.mu.
func (c *Conn) end() {
	h := c.out
	h.mu.Lock()
	if h.direct {
		h.leaveDirect()
	}
	h.fin = true
	h.canSend.Broadcast()
	h.mu.Unlock()
	c.n.finish(h, c.n.now())
}

// SetLinger with 0 makes Close reset the connection and discard what was not sent. Any other number restores the
// default; Close never waits.
func (c *Conn) SetLinger(sec int) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.over {
		return c.opError("set", net.ErrClosed)
	}
	c.hard = sec == 0
	return nil
}

// LocalAddr returns this end's *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the other end's *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer.local) }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline limits Read, also one that waits now. The zero time removes the limit.
func (c *Conn) SetReadDeadline(t time.Time) error {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	return c.setLimit(h, &h.readLimit, &h.canRead, h.readErr, t)
}

// SetWriteDeadline limits Write, also one that waits now. The zero time removes the limit.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	return c.setLimit(h, &h.sendLimit, &h.canSend, h.sendErr, t)
}

// setLimit sets a deadline. Calls that fail for good already need none. The caller holds h.mu.
func (c *Conn) setLimit(h *half, d *deadline, cond *sync.Cond, fate error, t time.Time) error {
	switch fate {
	case nil:
		d.set(h, cond, t)
		return nil
	case net.ErrClosed:
		return c.opError("set", net.ErrClosed)
	default:
		return nil
	}
}

func (c *Conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// String names the connection for messages.
func (c *Conn) String() string { return fmt.Sprintf("conn %d %v-%v", c.id, c.local, c.peer.local) }

// reset gives the connection up at c's end, and tells the peer once. The caller holds n.mu.
func (n *Network) reset(c *Conn, t int64) {
	if c.gaveUp || n.closed {
		return
	}
	c.gaveUp = true
	c.out.mu.Lock()
	if c.out.direct {
		c.out.leaveDirect()
	}
	c.out.purged = true
	c.out.mu.Unlock()
	// Before fail: it lets go of everything once both ends are over, and then nobody is left to be told.
	n.send(c.out, event{kind: evReset}, t)
	n.fail(c, net.ErrClosed)
}

// fail ends c's part: its calls return err (or what they already return). When both ends are over, everything about
// the connection is let go. The caller holds n.mu.
func (n *Network) fail(c *Conn, err error) {
	if c.opened != nil {
		select {
		case c.opened <- err: // nobody looks, if dialling is done
		default:
		}
	}
	c.over = true
	in, out := c.in, c.out
	in.mu.Lock()
	if in.readErr == nil {
		in.readErr = err
	}
	in.discard = true
	in.read = in.arrived
	in.readLimit.stop(in)
	in.canRead.Broadcast()
	in.canSend.Broadcast()
	in.mu.Unlock()
	out.mu.Lock()
	if out.sendErr == nil {
		out.sendErr = err
	}
	out.sendLimit.stop(out)
	out.canSend.Broadcast()
	out.mu.Unlock()
	if c.peer.over {
		n.forget(c)
	}
}

// forget lets go of a connection whose ends are both over. The caller holds n.mu.
func (n *Network) forget(c *Conn) {
	if c.opened == nil {
		c = c.peer
	}
	if _, ok := n.conns[c]; !ok {
		return
	}
	delete(n.conns, c)
	delete(c.host.ports, c.local.Port())
	for _, h := range []*half{c.in, c.out} {
		h.dead = true
		h.held = nil
		h.mu.Lock()
		h.ring.buf, h.read = nil, h.written
		h.arrived = h.written
		h.mu.Unlock()
	}
}
