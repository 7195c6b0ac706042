package relay

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/time/rate"

	"cepa/cell"
)

// MinRate is the lowest bandwidth rate of a relay in bytes per second: the
// floor of the network. Below it a relay costs its circuits more than it gives
// them.
const MinRate = 20_000

// Rate is a volunteer's promise: what the relay reads, and what it writes, at
// most. The zero value means no limit.
type Rate struct {
	// BytesPerSecond for each direction, MinRate or more; 0: no limit.
	BytesPerSecond int64
	// Burst is how many bytes may go at once after a pause; one second's
	// worth when 0.
	Burst int64
}

// Check returns an error that names the minimum when the rate is below it.
func (r Rate) Check() error {
	if r.BytesPerSecond != 0 && r.BytesPerSecond < MinRate {
		return fmt.Errorf("bandwidth rate of %d bytes/s is too low: the minimum is 20 KB/s (%d bytes/s)", r.BytesPerSecond, MinRate)
	}
	if r.Burst < 0 || r.Burst > 0 && r.Burst < cell.Size+64 {
		return fmt.Errorf("bandwidth burst of %d bytes is too small: one cell needs %d", r.Burst, cell.Size+64)
	}
	return nil
}

// limiter keeps a Rate: one token bucket for reading and one for writing, that
// all sockets of the relay share. A nil limiter limits nothing.
type limiter struct {
	read, write *rate.Limiter
	chunk       int // most bytes that one read or write moves
}

// slice is how much of the rate one socket may take in one go, so that others
// get their turn and a record does not wait for its own end.
const slice = 10 * time.Millisecond

func newLimiter(r Rate) *limiter {
	if r.BytesPerSecond == 0 {
		return nil
	}
	burst := r.Burst
	if burst == 0 {
		burst = r.BytesPerSecond
	}
	chunk := max(cell.Size+64, int64(slice.Seconds()*float64(r.BytesPerSecond)))
	return &limiter{
		read:  rate.NewLimiter(rate.Limit(r.BytesPerSecond), int(burst)),
		write: rate.NewLimiter(rate.Limit(r.BytesPerSecond), int(burst)),
		chunk: int(min(chunk, burst, 1<<20)),
	}
}

// recordCells is how many cells a link record may have under this rate:
// 10 ms of it, and at least one.
func (l *limiter) recordCells() int {
	if l == nil {
		return 0 // the link's own bound
	}
	return max(1, min(46, l.chunk/cell.Size))
}

// allow takes n bytes of the writing bucket when they are there at once.
func (l *limiter) allow(n int) bool { return l == nil || l.write.AllowN(time.Now(), n) }

// conn wraps c so that its payload is charged, and waits, in Read and Write.
func (l *limiter) conn(c net.Conn) net.Conn {
	if l == nil {
		return c
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &limitedConn{Conn: c, limiter: l, ctx: ctx, cancel: cancel}
}

type limitedConn struct {
	net.Conn
	limiter *limiter
	ctx     context.Context // ends with Close, and with it every wait
	cancel  context.CancelFunc
}

// Read implements net.Conn. What was read is paid for before it is handed on.
func (c *limitedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), c.limiter.chunk)])
	if n > 0 && c.limiter.read.WaitN(c.ctx, n) != nil {
		return n, net.ErrClosed
	}
	return n, err
}

// Write implements net.Conn.
func (c *limitedConn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+c.limiter.chunk)]
		if c.limiter.write.WaitN(c.ctx, len(part)) != nil {
			return n, net.ErrClosed
		}
		k, err := c.Conn.Write(part)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.cancel()
	return c.Conn.Close()
}

// CloseWrite closes the writing half where the connection can.
func (c *limitedConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// SetLinger is that of TCP connections, for an abrupt end.
func (c *limitedConn) SetLinger(sec int) error {
	if h, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return h.SetLinger(sec)
	}
	return nil
}
