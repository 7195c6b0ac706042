package link

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
)

// Link is an established link. Client and Server make it; it lives until Close
// or Abort, the end of the connection, or a breach of the protocol, and Err
// then says which: ErrClosed, io.EOF (the peer closed the connection),
// ErrDestroyUnanswered, ErrPeerNotReading, ErrSilent, a *ProtocolError, or an
// error of the connection. Its methods are safe for concurrent use.
type Link struct {
	conn      net.Conn
	cfg       *Config // complete
	initiator bool
	peer      identity.ID // zero: a client
	keepalive bool        // one side is a client
	began     time.Time

	writer *writer // whoever set free to false holds it

	wake       chan struct{} // hands the writer to its goroutine; sent by who holds it, so one token at most
	dying      chan struct{} // closed by fail
	writerDone chan struct{}
	done       chan struct{}

	spare    atomic.Bool // the client wants less padding: see reader.record
	counters counters
	lastRead atomic.Int64 // when something arrived, in nanoseconds since began

	mu     sync.Mutex // guards what follows and, as said there, parts of Circuit; never held in a call out
	closed bool
	err    error
	free   bool // nobody holds the writer: see writer
	sched  scheduler

	table               map[uint32]*Circuit      // all circuits that have an ID and have not ended
	unsent              map[*Circuit]struct{}    // ours without an ID
	destroying          map[uint32]time.Duration // IDs whose DESTROY the peer owes: when ours left, since began, or notSent
	destroys            []destroyCell            // DESTROYs to write, from destroysTaken on
	destroysTaken       int
	ownCount, peerCount int
	opened              uint32    // circuits that Open made, ever
	lastOwn             uint32    // last ID of ours that left
	nextPeer            uint64    // lowest ID that the peer may choose
	idleSince           time.Time // when the last circuit ended
}

// newLink starts the goroutines on a connection whose handshake is done.
func newLink(conn net.Conn, cfg *Config, h *hands) *Link {
	now := time.Now()
	l := &Link{
		conn: conn, cfg: cfg, initiator: h.initiator, peer: h.peer, keepalive: h.client, began: now, idleSince: now,
		wake: make(chan struct{}, 1), dying: make(chan struct{}),
		writerDone: make(chan struct{}), done: make(chan struct{}),
		table: make(map[uint32]*Circuit), unsent: make(map[*Circuit]struct{}),
		destroying: make(map[uint32]time.Duration),
		nextPeer:   cell.InitiatorBit,
	}
	if l.initiator {
		l.lastOwn, l.nextPeer = cell.InitiatorBit, 1
	}
	r := newReader(l, h.receive)
	l.writer = newWriter(l, h.send)
	go func() {
		defer close(l.writerDone)
		l.fail(l.writer.run())
	}()
	go func() {
		defer close(l.done)
		l.fail(r.run())
		<-l.writerDone
		r.finish()
		l.finish()
	}()
	return l
}

// fail ends the link for the given reason if it has not ended. It never waits.
func (l *Link) fail(err error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed, l.err = true, err
	l.mu.Unlock()
	close(l.dying)
	_ = l.conn.Close() // we have the better reason already
}

// finish ends all circuits. It is the last that the reader goroutine does.
func (l *Link) finish() {
	var unsent cell.List
	l.mu.Lock()
	circuits := make([]*Circuit, 0, len(l.table)+len(l.unsent))
	for _, c := range l.table {
		circuits = append(circuits, c)
	}
	for c := range l.unsent {
		circuits = append(circuits, c)
	}
	for _, c := range circuits {
		l.release(c, closed, &unsent)
	}
	clear(l.destroying)
	l.destroys, l.destroysTaken = nil, 0
	err := l.err
	l.mu.Unlock()
	l.discard(&unsent)
	for _, c := range circuits {
		if c.receiver != nil {
			c.receiver.Closed(cell.ReasonLinkLost)
		}
	}
	l.log(err)
	if l.cfg.OnClose != nil {
		l.cfg.OnClose(l, err)
	}
}

// log writes the one line about the link's end. It names a relay and no client,
// and never an error of the connection, which would hold addresses.
func (l *Link) log(err error) {
	attrs := make([]slog.Attr, 0, 2)
	if id, ok := l.Peer(); ok {
		attrs = append(attrs, slog.String("relay", id.Short()))
	}
	attrs = append(attrs, slog.String("reason", reasonText(err)))
	l.cfg.Log.LogAttrs(context.Background(), slog.LevelDebug, "link ended", attrs...)
}

// Close ends the link at once, without sending what is queued, and waits for
// its goroutines: when it returns, every Closed and OnClose has been called. It
// must not be called from a Receiver, OnCreate or OnClose: use Abort there. It returns nil.
func (l *Link) Close() error {
	l.fail(ErrClosed)
	<-l.done
	return nil
}

// Abort ends the link as Close does, with Err as given (ErrClosed when nil),
// but does not wait.
func (l *Link) Abort(err error) {
	if err == nil {
		err = ErrClosed
	}
	l.fail(err)
}

// over tells whether fail was called.
func (l *Link) over() bool {
	select {
	case <-l.dying:
		return true
	default:
		return false
	}
}

// Done is closed when the link has ended and all its callbacks have returned.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err returns nil while the link lives and then why it ended.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Peer returns the identity that the peer proved, or false: then the peer is a client.
func (l *Link) Peer() (identity.ID, bool) { return l.peer, !l.peer.IsZero() }

// Initiator tells whether we opened the connection.
func (l *Link) Initiator() bool { return l.initiator }

// RemoteAddr returns the connection's remote address. A client's must not be
// logged.
func (l *Link) RemoteAddr() net.Addr { return l.conn.RemoteAddr() }

// idle returns since when the link has no circuit, and false if it has some.
func (l *Link) idle() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.idleSince, l.ownCount+l.peerCount == 0
}

// unlockAndWake releases mu and wakes the writer's goroutine if nobody holds
// the writer and there is work.
func (l *Link) unlockAndWake() {
	wake := l.claimLocked()
	l.mu.Unlock()
	if wake {
		l.wake <- struct{}{}
	}
}

// claimLocked takes hold of the writer if nobody has and there is work for it.
func (l *Link) claimLocked() bool {
	if !l.free || l.closed || l.sched.active() == 0 && len(l.destroys) == 0 {
		return false
	}
	l.free = false
	return true
}

// head is the link's tag for its pacer, at virtual time now. DESTROYs go first.
func (l *Link) head(now uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.destroys) > 0 {
		return 0
	}
	return l.sched.head(now)
}

// wanted returns how many bytes the writer would write now, at most two records.
func (l *Link) wanted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0
	}
	n := l.sched.queued + len(l.destroys) - l.destroysTaken
	if n == 0 {
		return 0
	}
	most := l.cfg.RecordCells
	if most == MaxRecordCells {
		most *= recordsPerWrite
	}
	n = min(n, most)
	return n*cellSize + (n+MaxRecordCells-1)/MaxRecordCells*recordOverhead
}

// kick has what is queued written: by who holds the writer, or else by the
// calling goroutine as far as the connection takes it at once. It never waits.
func (l *Link) kick() {
	l.mu.Lock()
	claimed := l.claimLocked()
	l.mu.Unlock()
	switch {
	case !claimed:
	case l.writer.try == nil || !l.writer.runInline():
		l.wake <- struct{}{}
	}
}
