package relay

import (
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"cepa/cell"
	"cepa/directory"
	"cepa/pace"
)

// MinRate is the lowest bandwidth rate of a relay in bytes per second: the
// floor of the network. Below it a relay costs its circuits more than it gives
// them.
const MinRate = 20_000

// minBurst is one record of one cell, in bytes: its length, the cell and a tag.
const minBurst = 2 + cell.Size + cell.TagSize

// DefaultBurst is the least burst when none is asked for, in bytes. Sharing fairly,
// and quiet circuits first, needs something to choose from: what was read and not
// yet written, which the burst bounds. Ours: a few cells of each of 50 circuits.
const DefaultBurst = 512 << 10

// writeShare is the part of the burst that writing may have at once: reading may run
// ahead of it by the rest. A relay whose reading held it up would leave its queues to
// the systems of its neighbours, where the first come is the first served.
const writeShare = 4

// Rate is a volunteer's promise: what the relay reads, and what it writes, at
// most. The zero value means no limit.
type Rate struct {
	// BytesPerSecond for each direction, MinRate or more; 0: no limit.
	BytesPerSecond int64
	// Burst is how many bytes may go at once after a pause; when 0, one second's
	// worth, and 512 KiB at least. Writing does with a quarter of it.
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

// bursts returns the depth of the buckets of reading and writing.
func (r Rate) bursts() (read, write int) {
	burst := r.Burst
	if burst == 0 {
		burst = max(r.BytesPerSecond, DefaultBurst)
	}
	burst = min(burst, math.MaxInt32) // an int on every machine
	return int(burst), int(max(minBurst, burst/writeShare))
}

// limiter keeps a Rate: one pacer for reading and one for writing, that all sockets
// of the relay share.
type limiter struct {
	read, write *pace.Pacer

	mu      sync.Mutex
	rate    Rate
	share   int64         // of the rate that padding may have, in percent
	padding *rate.Limiter // asked beside write, which charges padding too
}

func newLimiter(r Rate) *limiter {
	read, write := r.bursts()
	share := directory.Params(nil).Get(directory.ParamLinkPaddingShare)
	return &limiter{
		read: pace.New(r.BytesPerSecond, read, minBurst), write: pace.New(r.BytesPerSecond, write, minBurst),
		rate: r, share: share, padding: paddingLimiter(r, share),
	}
}

func paddingLimiter(r Rate, share int64) *rate.Limiter {
	switch {
	case r.BytesPerSecond == 0:
		return rate.NewLimiter(rate.Inf, 0)
	case share == 0:
		return rate.NewLimiter(0, 0)
	}
	_, burst := r.bursts()
	part := float64(share) / 100
	return rate.NewLimiter(rate.Limit(part*float64(r.BytesPerSecond)), max(minBurst, int(part*float64(burst))))
}

// set changes the rate at once, also for who waits.
func (l *limiter) set(r Rate) {
	read, write := r.bursts()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.padding = r, paddingLimiter(r, l.share)
	l.read.Set(r.BytesPerSecond, read, minBurst)
	l.write.Set(r.BytesPerSecond, write, minBurst)
}

func (l *limiter) get() Rate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// close ends all waiting.
func (l *limiter) close() {
	l.read.Close()
	l.write.Close()
}

// setPaddingShare says how much of the rate padding may have, in percent.
func (l *limiter) setPaddingShare(share int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if share != l.share {
		l.share, l.padding = share, paddingLimiter(l.rate, share)
	}
}

// allowPadding reports whether n bytes of padding may be written now. They are
// charged to the rate when they are.
func (l *limiter) allowPadding(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.padding.AllowN(time.Now(), n)
}

// exhausted reports whether the rate holds back reads or writes at this moment.
func (l *limiter) exhausted() bool { return l.read.Busy() || l.write.Busy() }

// linkParts is for how many the link to another relay counts among those that want
// to read: it carries the circuits of many clients.
const linkParts = 32

// reading wraps the connection of a link, which charges what it writes by itself,
// so that what it reads is charged and waits. Until meter says more, it counts as
// one that nobody else belongs to.
func (l *limiter) reading(c net.Conn) (lc net.Conn, meter *pace.Meter) {
	rc := &readingConn{Conn: c, in: l.account(l.read, nil)}
	if t, ok := c.(tryWriter); ok {
		return &quickReadingConn{rc, t}, rc.in.meter
	}
	return rc, rc.in.meter
}

// conn wraps c so that its payload is charged, and waits, in Read and Write. Its data
// go on in messages of up to room bytes: one Read fills whole messages, where there
// is that much, so that a low rate is not spent on cells with little in them.
func (l *limiter) conn(c net.Conn, share *pace.Share, room int) net.Conn {
	lc := limitedConn{readingConn: readingConn{Conn: c, in: l.account(l.read, share), room: room}, out: l.account(l.write, share)}
	if _, ok := c.(lingerer); ok {
		return &limitedTCP{lc}
	}
	return &lc
}

// account is one direction of a connection before its pacer.
type account struct {
	pacer *pace.Pacer
	meter *pace.Meter
	claim *pace.Claimant
	done  chan struct{} // closed by close, once
	ended atomic.Bool
}

func (l *limiter) account(p *pace.Pacer, share *pace.Share) *account {
	m := pace.NewMeter(share)
	return &account{pacer: p, meter: m, claim: p.Claimant(m.Head), done: make(chan struct{})}
}

func (a *account) close() {
	if !a.ended.Swap(true) {
		close(a.done)
	}
}

// wait waits until some of n bytes may move, and returns how many.
func (a *account) wait(least, n int) (int, error) {
	if a.ended.Load() {
		return 0, net.ErrClosed
	}
	if k := a.claim.Try(least, n); k > 0 {
		a.meter.Count(k)
		return k, nil
	}
	a.meter.Want()
	defer a.meter.Done()
	k, err := a.claim.Wait(a.done, least, n)
	if err != nil {
		return 0, net.ErrClosed
	}
	a.meter.Count(k)
	return k, nil
}

// readingConn charges what is read. A deadline ends the connection's own waiting,
// but not that for the rate; Close ends both.
type readingConn struct {
	net.Conn
	in   *account
	room int // Reads are of multiples of so many bytes; 0: of any number
}

// Read implements net.Conn. What was read is paid for before it is handed on.
func (c *readingConn) Read(p []byte) (int, error) {
	if chunk := c.in.pacer.Slice(); chunk > 0 && len(p) > chunk {
		if c.room > 0 {
			chunk = max(1, chunk/c.room) * c.room
		}
		p = p[:min(len(p), chunk)]
	}
	n, err := c.Conn.Read(p)
	for left := n; left > 0; {
		k, err := c.in.wait(left, left)
		if err != nil {
			return 0, err
		}
		left -= k
	}
	return n, err
}

// Close implements net.Conn.
func (c *readingConn) Close() error {
	c.in.close()
	return c.Conn.Close()
}

// quickReadingConn is a readingConn that can write without waiting.
type quickReadingConn struct {
	*readingConn
	tryWriter
}

// limitedConn charges a connection both ways.
type limitedConn struct {
	readingConn
	out *account
}

// Write implements net.Conn.
func (c *limitedConn) Write(p []byte) (n int, err error) {
	if len(p) == 0 {
		return c.Conn.Write(p)
	}
	for n < len(p) {
		k, err := c.out.wait(len(p)-n, len(p)-n)
		if err != nil {
			return n, err
		}
		k, err = c.Conn.Write(p[n : n+k])
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.out.close()
	return c.readingConn.Close()
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
