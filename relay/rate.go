package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"golang.org/x/time/rate"

	"cepa/cell"
	"cepa/link"
)

// MinRate is the lowest bandwidth rate of a relay in bytes per second: the
// floor of the network. Below it a relay costs its circuits more than it gives
// them.
const MinRate = 20_000

// minBurst is one record of one cell, in bytes: its length, the cell and a tag.
const minBurst = 2 + cell.Size + cell.TagSize

// paddingShare is how much of the rate may go into padding (design: 5 %).
const paddingShare = 0.05

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
	switch {
	case r.BytesPerSecond != 0 && r.BytesPerSecond < MinRate:
		return fmt.Errorf("bandwidth rate of %d bytes/s is too low: the minimum is 20 KB/s (%d bytes/s)", r.BytesPerSecond, MinRate)
	case r.Burst < 0, r.Burst > 0 && r.Burst < minBurst:
		return fmt.Errorf("bandwidth burst of %d bytes is too small: one cell needs %d", r.Burst, minBurst)
	case r.Burst > 0 && r.BytesPerSecond == 0:
		return fmt.Errorf("a bandwidth burst of %d bytes has no meaning without a bandwidth rate: set one, %d bytes/s or more", r.Burst, MinRate)
	}
	return nil
}

// limiter keeps a Rate: one token bucket for reading and one for writing, that
// all sockets of the relay share. A nil limiter limits nothing.
type limiter struct {
	read, write *rate.Limiter
	padding     *rate.Limiter // asked beside write, which charges padding too
	chunk       int           // most bytes that one read or write moves
}

// slice is how much of the rate one socket may take in one go, so that others
// get their turn and a record does not wait for its own end.
const slice = 10 * time.Millisecond

// maxChunk bounds a slice of a very high rate, in bytes.
const maxChunk = 1 << 20

func newLimiter(r Rate) *limiter {
	if r.BytesPerSecond == 0 {
		return nil
	}
	burst := r.Burst
	if burst == 0 {
		burst = r.BytesPerSecond
	}
	burst = min(burst, math.MaxInt32) // an int on every machine
	chunk := max(minBurst, int64(slice.Seconds()*float64(r.BytesPerSecond)))
	bucket := func(share float64) *rate.Limiter {
		return rate.NewLimiter(rate.Limit(share*float64(r.BytesPerSecond)), max(minBurst, int(share*float64(burst))))
	}
	return &limiter{read: bucket(1), write: bucket(1), padding: bucket(paddingShare), chunk: int(min(chunk, burst, maxChunk))}
}

// recordCells is how many cells a link record may have under this rate:
// 10 ms of it, and at least one.
func (l *limiter) recordCells() int {
	if l == nil {
		return 0 // the link's own bound
	}
	return max(1, min(link.MaxRecordCells, l.chunk/cell.Size))
}

// allowPadding reports whether n bytes of padding may be written now. They are
// charged to the rate when they are.
func (l *limiter) allowPadding(n int) bool { return l == nil || l.padding.AllowN(time.Now(), n) }

// conn wraps c so that its payload is charged, and waits, in Read and Write.
func (l *limiter) conn(c net.Conn) net.Conn { return l.connFor(c, 1) }

// connFor is conn for a connection whose data go on in messages of up to room
// bytes: one Read fills whole messages, where there is that much, so that a low rate
// is not spent on cells with little in them.
func (l *limiter) connFor(c net.Conn, room int) net.Conn {
	if l == nil {
		return c
	}
	ctx, cancel := context.WithCancel(context.Background())
	lc := limitedConn{Conn: c, limiter: l, readChunk: max(1, l.chunk/room) * room, ctx: ctx, cancel: cancel}
	if _, ok := c.(lingerer); ok {
		return &limitedTCP{lc}
	}
	return &lc
}

// limitedConn charges a connection to a limiter. A deadline ends the connection's
// own waiting, but not that for the rate; Close ends both.
type limitedConn struct {
	net.Conn
	limiter   *limiter
	readChunk int             // most bytes of one Read; no more than the burst
	ctx       context.Context // ends with Close, and with it every wait
	cancel    context.CancelFunc
}

// Read implements net.Conn. What was read is paid for before it is handed on.
func (c *limitedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), c.readChunk)])
	if n > 0 && c.limiter.read.WaitN(c.ctx, n) != nil {
		return 0, net.ErrClosed
	}
	return n, err
}

// Write implements net.Conn.
func (c *limitedConn) Write(p []byte) (n int, err error) {
	if len(p) == 0 {
		return c.Conn.Write(p)
	}
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
	return errors.ErrUnsupported
}

// lingerer is what TCP connections have for an abrupt end.
type lingerer interface{ SetLinger(sec int) error }

// limitedTCP is a limitedConn that can end abruptly. One that cannot must not
// pretend to.
type limitedTCP struct{ limitedConn }

// SetLinger is that of net.TCPConn.
func (c *limitedTCP) SetLinger(sec int) error { return c.Conn.(lingerer).SetLinger(sec) }
