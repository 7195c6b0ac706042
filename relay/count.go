package relay

import (
	"errors"
	"math"
	"net"
	"sync/atomic"
)

// errQuota is what a socket says when the quota allows no more.
var errQuota = errors.New("relay: the monthly quota allows no more")

// noEnd is the end of what has none.
const noEnd = math.MaxUint64

// leastRead is what a read is shortened to when a longer one would not fit into the
// quota, in bytes.
const leastRead = minBurst

// tally counts the payload of all sockets of a relay, links, streams and directory,
// and keeps it from passing an end: what is about to be moved is held against it
// first, so it is never passed, by nobody. All its methods are safe for concurrent
// use; none allocates.
type tally struct {
	read    atomic.Uint64 // bytes since the relay was made
	_       [56]byte      // each on a cache line of its own
	written atomic.Uint64
	_       [56]byte
	held    atomic.Int64 // bytes of reads and writes under way
	_       [56]byte

	// In bytes of both directions together; noEnd for none.
	trafficEnd   atomic.Uint64 // for links and streams
	directoryEnd atomic.Uint64 // for the directory
	alarm        atomic.Uint64 // poke is sent once when the count gets there

	full atomic.Bool   // something was refused
	poke chan struct{} // capacity 1
}

func newTally() *tally {
	m := &tally{poke: make(chan struct{}, 1)}
	for _, v := range []*atomic.Uint64{&m.trafficEnd, &m.directoryEnd, &m.alarm} {
		v.Store(noEnd)
	}
	return m
}

// total returns the bytes of both directions.
func (m *tally) total() uint64 { return m.read.Load() + m.written.Load() }

// hold reserves n bytes below an end and returns what release must be given, or
// false when there is no room.
func (m *tally) hold(n int, end *atomic.Uint64) (held int64, ok bool) {
	last := end.Load()
	if last == noEnd {
		return 0, true
	}
	// Who is done counts first and gives back then: nothing is in neither.
	all := m.held.Add(int64(n))
	if m.total()+uint64(all) > last {
		m.held.Add(-int64(n))
		return 0, false
	}
	return int64(n), true
}

// refuse notes that there was no room.
func (m *tally) refuse() error {
	m.full.Store(true)
	m.wake()
	return errQuota
}

// count adds n bytes to a direction and gives back what was held for them.
func (m *tally) count(direction *atomic.Uint64, n int, held int64) {
	if n > 0 {
		direction.Add(uint64(n))
	}
	if held > 0 {
		m.held.Add(-held)
	}
	if at := m.alarm.Load(); at != noEnd && m.total() >= at && m.alarm.CompareAndSwap(at, noEnd) {
		m.wake()
	}
}

// directoryLeast is what one exchange with an authority may need, in bytes: a descriptor,
// and the heads of request and answer.
const directoryLeast = 16 << 10

// spent reports whether there is no room for an exchange with an authority.
func (m *tally) spent() bool {
	end := m.directoryEnd.Load()
	return end != noEnd && m.total()+directoryLeast > end
}

func (m *tally) wake() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// traffic wraps the socket of a link or a stream, directory one to an authority. What
// the wrapper offers beside net.Conn is what the socket does.
func (m *tally) traffic(c net.Conn) net.Conn   { return m.conn(c, &m.trafficEnd) }
func (m *tally) directory(c net.Conn) net.Conn { return m.conn(c, &m.directoryEnd) }

func (m *tally) conn(c net.Conn, end *atomic.Uint64) net.Conn {
	counted := countedConn{Conn: c, tally: m, end: end}
	try, tries := c.(tryWriter)
	_, lingers := c.(lingerer)
	switch {
	case tries && lingers:
		return &countedTCP{countedTry{counted, try}}
	case tries:
		return &countedTry{counted, try}
	case lingers:
		return &countedLinger{counted}
	}
	return &counted
}

// countedConn counts what goes over a connection.
type countedConn struct {
	net.Conn
	tally *tally
	end   *atomic.Uint64
}

// Read implements net.Conn.
func (c *countedConn) Read(p []byte) (int, error) {
	held, ok := c.tally.hold(len(p), c.end)
	if !ok {
		p = p[:min(len(p), leastRead)]
		if held, ok = c.tally.hold(len(p), c.end); !ok {
			return 0, c.tally.refuse()
		}
	}
	n, err := c.Conn.Read(p)
	c.tally.count(&c.tally.read, n, held)
	return n, err
}

// Write implements net.Conn.
func (c *countedConn) Write(p []byte) (int, error) {
	held, ok := c.tally.hold(len(p), c.end)
	if !ok {
		return 0, c.tally.refuse()
	}
	n, err := c.Conn.Write(p)
	c.tally.count(&c.tally.written, n, held)
	return n, err
}

// CloseWrite closes the writing half where the connection can.
func (c *countedConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// tryWriter is what a connection may offer beside Write: package socket says more.
type tryWriter interface {
	TryWrite(p []byte) (n int, err error)
}

// countedTry is a countedConn that can write without waiting.
type countedTry struct {
	countedConn
	try tryWriter
}

// TryWrite writes what the connection takes at once.
func (c *countedTry) TryWrite(p []byte) (int, error) {
	held, ok := c.tally.hold(len(p), c.end)
	if !ok {
		return 0, c.tally.refuse()
	}
	n, err := c.try.TryWrite(p)
	c.tally.count(&c.tally.written, n, held)
	return n, err
}

// countedTCP is one that can end abruptly too.
type countedTCP struct{ countedTry }

// SetLinger is that of net.TCPConn.
func (c *countedTCP) SetLinger(sec int) error { return c.Conn.(lingerer).SetLinger(sec) }

// countedLinger can end abruptly, and not write without waiting.
type countedLinger struct{ countedConn }

// SetLinger is that of net.TCPConn.
func (c *countedLinger) SetLinger(sec int) error { return c.Conn.(lingerer).SetLinger(sec) }
