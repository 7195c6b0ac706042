package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"cepa/cell"
)

// ErrWriteClosed is returned by writes after CloseWrite.
var ErrWriteClosed = errors.New("stream: write after CloseWrite")

// errNotAccepted is a mistake of the relay's code.
var errNotAccepted = errors.New("stream: Accept must come before anything is written")

// Stream is one stream of a circuit. It is a net.Conn with CloseWrite for the
// half-close, and Reset and Abort for an abrupt end.
//
// Its errors: io.EOF when the peer has sent all it will; a cell.EndReason when
// the far end refused or lost the stream; os.ErrDeadlineExceeded; net.ErrClosed
// after Close; ErrWriteClosed; anything else is why the circuit was lost.
//
// State, each side for itself (doc/spec.md section 5):
//
//	open -> EOF sent -> final sent
//	open -> final sent
//
// and the stream is forgotten when both finals have passed.
type Stream struct {
	mux    *Mux
	id     uint16
	origin bool
	to     string // where it goes, at the end that opened it to a host; for Destinations

	readLock  chan struct{} // one Read at a time; a channel, since a Read waits
	writeLock chan struct{}
	readable  chan struct{} // depth 1: something happened for the reader
	writable  chan struct{} // depth 1: something happened for the writer
	opened    chan struct{} // closed when answered: CONNECTED, END or loss
	readDL    deadline
	writeDL   deadline

	counted bool // guarded by mux.mu: counts in mux.closing
	waiting bool // guarded by mux.mu: is in mux.blocked

	mu         sync.Mutex // guards what follows; held while a message is sent, never while waiting
	recv       cell.List  // DATA not yet read, each body starting with its message
	recvOff    int        // bytes already read of the first one's payload
	in         receiving
	granted    [4]byte // payload of the CREDIT being sent; here, so that it is not allocated
	sendCredit int64   // bytes that we may still send
	read       int64   // bytes in all, for Status
	written    int64

	answered             bool // CONNECTED has passed
	remote               cell.ConnectedBody
	sentEOF, rcvdEOF     bool
	sentFinal, rcvdFinal bool
	closed               bool  // by our user
	endErr               error // why the stream ended: for reads after the data when there was no EOF, and for writes
}

func newStream(m *Mux, id uint16, origin bool) *Stream {
	return &Stream{
		mux: m, id: id, origin: origin,
		readLock: make(chan struct{}, 1), writeLock: make(chan struct{}, 1),
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
		opened: make(chan struct{}),
		in:     newReceiving(), sendCredit: InitialCredit,
	}
}

// ID returns the stream's ID, unique on its circuit.
func (s *Stream) ID() uint16 { return s.id }

// Connected waits until the far end has answered and returns nil, or why there
// is no connection. It may be called by several goroutines and more than once.
func (s *Stream) Connected(ctx context.Context) error {
	select {
	case <-s.opened:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.answered:
		return nil
	case s.closed:
		return net.ErrClosed
	case s.endErr == nil || s.endErr == io.EOF:
		return cell.EndClosed
	}
	return s.endErr
}

// Peer returns what CONNECTED said of the destination: its address as the exit
// saw it, and for how many seconds that holds.
func (s *Stream) Peer() (netip.Addr, uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remote.Addr, s.remote.TTL
}

// Accept answers BEGIN with CONNECTED, at the relay. Nothing can be written
// before.
func (s *Stream) Accept(c cell.ConnectedBody) error {
	err := s.accept(c)
	s.mux.cfg.Carrier.Kick()
	return err
}

func (s *Stream) accept(c cell.ConnectedBody) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sentFinal || s.answered {
		return net.ErrClosed
	}
	s.answered = true
	s.remote = c
	s.openedLocked()
	if err := s.mux.cfg.Carrier.Send(cell.Connected, s.id, c.AppendTo(nil)); err != nil {
		return err
	}
	s.grantLocked() // for what was read before
	return nil
}

// acceptedLocked reports whether the peer takes messages of the stream: not
// from a relay that has not answered.
func (s *Stream) acceptedLocked() bool { return s.origin || s.answered }

func (s *Stream) openedLocked() {
	if !isClosed(s.opened) {
		close(s.opened)
	}
}

// Read implements net.Conn. It fills p from as many cells as have arrived.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := acquire(s.readLock, &s.readDL); err != nil {
		return 0, err
	}
	defer func() { <-s.readLock }()
	for {
		if s.readDL.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		n, err := s.tryRead(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-s.readable:
		case <-s.readDL.done():
		}
	}
}

// tryRead copies out what is there. 0 and nil: nothing yet.
func (s *Stream) tryRead(p []byte) (n int, err error) {
	var used cell.List
	granted := false
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		s.mux.cfg.Pool.PutList(&used)
		if granted {
			s.mux.cfg.Carrier.Kick()
		}
	}()
	if s.closed {
		return 0, net.ErrClosed
	}
	for n < len(p) {
		c := s.recv.Front()
		if c == nil {
			break
		}
		data := payload(c)
		k := copy(p[n:], data[s.recvOff:])
		n += k
		if s.recvOff += k; s.recvOff == len(data) {
			used.Push(s.recv.Pop())
			s.recvOff = 0
		}
	}
	if n == 0 {
		if s.rcvdEOF {
			return 0, io.EOF
		}
		return 0, s.endErr
	}
	s.in.consumed += int64(n)
	s.read += int64(n)
	granted = s.grantLocked()
	return n, nil
}

// payload returns the payload of the DATA message that c's body starts with.
func payload(c *cell.Cell) []byte {
	b := c.Body()
	n := int(b[3])<<8 | int(b[4])
	return b[cell.MessageHeaderSize : cell.MessageHeaderSize+n]
}

// Write implements net.Conn. It returns when all of p is queued on the link or
// written.
func (s *Stream) Write(p []byte) (n int, err error) {
	if err := acquire(s.writeLock, &s.writeDL); err != nil {
		return 0, err
	}
	defer func() {
		s.mux.leave(s)
		<-s.writeLock
	}()
	for {
		if s.writeDL.passed() {
			return n, os.ErrDeadlineExceeded
		}
		k, err := s.tryWrite(p[n:])
		if k > 0 {
			s.mux.cfg.Carrier.Kick()
		}
		n += k
		if n == len(p) || err != nil {
			return n, err
		}
		if k > 0 {
			continue
		}
		select {
		case <-s.writable:
		case <-s.writeDL.done():
		}
	}
}

// tryWrite sends what credit and window allow. 0 and nil: wait.
func (s *Stream) tryWrite(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return 0, net.ErrClosed
	case s.endErr != nil && s.endErr != io.EOF:
		return 0, s.endErr
	case s.sentFinal || s.rcvdFinal:
		return 0, cell.EndClosed
	case s.sentEOF:
		return 0, ErrWriteClosed
	case !s.acceptedLocked():
		return 0, errNotAccepted
	}
	if int64(len(p)) > s.sendCredit {
		p = p[:s.sendCredit]
	}
	if len(p) == 0 {
		return 0, nil
	}
	if p = p[:s.mux.turn(s, len(p))]; len(p) == 0 {
		return 0, nil
	}
	n, err := s.mux.cfg.Carrier.SendData(s.id, p)
	if n == 0 && err == nil {
		// Put ourselves on the list first and look again, so that a window
		// that opens in between is not missed.
		s.mux.join(s)
		n, err = s.mux.cfg.Carrier.SendData(s.id, p)
	}
	if n > 0 {
		s.mux.leave(s) // whoever waits is next, also before us again
	}
	s.sendCredit -= int64(n)
	s.written += int64(n)
	return n, err
}

// CloseWrite sends EOF: the peer reads to the end, and may go on sending.
func (s *Stream) CloseWrite() error {
	err := s.closeWrite()
	s.mux.cfg.Carrier.Kick()
	return err
}

func (s *Stream) closeWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.sentEOF || s.sentFinal {
		return nil
	}
	if !s.acceptedLocked() {
		return errNotAccepted
	}
	s.sentEOF = true
	wake(s.writable)
	if s.rcvdEOF {
		return s.sendFinalLocked(cell.EndDone)
	}
	return s.mux.cfg.Carrier.Send(cell.End, s.id, []byte{byte(cell.EndEOF)})
}

// Close ends both directions. What was written before is still delivered; what
// was not read is dropped.
func (s *Stream) Close() error { return s.close(cell.EndClosed) }

// Abort ends both directions at once and tells the peer why. A reason other
// than EndDone and EndClosed makes the peer's Read fail after what was
// delivered, so that a cut transfer never looks complete.
func (s *Stream) Abort(why cell.EndReason) error {
	if why == cell.EndEOF {
		why = cell.EndInternal
	}
	return s.close(why)
}

// Reset ends both directions at once; the peer's Read fails.
func (s *Stream) Reset() { s.Abort(cell.EndReset) }

func (s *Stream) close(why cell.EndReason) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var dropped cell.List
	dropped.Append(&s.recv)
	s.recvOff = 0
	var err error
	if !s.sentFinal {
		err = s.sendFinalLocked(why)
	}
	s.openedLocked()
	s.mu.Unlock()
	s.mux.cfg.Carrier.Kick()
	s.mux.cfg.Pool.PutList(&dropped)
	s.readDL.stop()
	s.writeDL.stop()
	wake(s.readable)
	wake(s.writable)
	return err
}

func (s *Stream) sendFinalLocked(why cell.EndReason) error {
	s.sentEOF, s.sentFinal = true, true
	err := s.mux.cfg.Carrier.Send(cell.End, s.id, []byte{byte(why)})
	if s.rcvdFinal {
		s.mux.remove(s)
	} else {
		s.mux.weEnded(s)
	}
	return err
}

// lost ends the stream because its circuit is gone.
func (s *Stream) lost(err error) {
	s.mu.Lock()
	if s.endErr == nil {
		s.endErr = err
	}
	s.sentFinal, s.rcvdFinal = true, true
	s.openedLocked()
	s.mu.Unlock()
	wake(s.readable)
	wake(s.writable)
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return addrOr(s.mux.cfg.Local) }

// RemoteAddr implements net.Conn.
func (s *Stream) RemoteAddr() net.Addr { return addrOr(s.mux.cfg.Remote) }

func addrOr(a net.Addr) net.Addr {
	if a == nil {
		return Addr("circuit")
	}
	return a
}

// Addr is the address of a stream's end: the word that it is made of.
type Addr string

// Network implements net.Addr.
func (Addr) Network() string { return "cepa" }

// String implements net.Addr.
func (a Addr) String() string { return string(a) }
