package stream

import (
	"net"
	"os"
	"sync"
	"time"
)

// deadline turns a point in time into a channel that is closed when it has
// passed, as net.Conn's SetDeadline asks for. The zero value never passes.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{} // nil until first asked for
}

// done returns the channel that is closed once the deadline has passed.
func (d *deadline) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	return d.ch
}

// passed reports whether the deadline has passed.
func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch != nil && isClosed(d.ch)
}

// set moves the deadline; the zero time takes it away.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopLocked()
	if d.ch == nil || isClosed(d.ch) {
		d.ch = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	ch := d.ch
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { d.expire(ch) })
	} else {
		close(ch)
	}
}

// expire closes ch unless set has replaced it or it is closed already.
func (d *deadline) expire(ch chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ch == ch && !isClosed(ch) {
		close(ch)
	}
}

// stop ends the timer, so that nothing outlives the stream.
func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopLocked()
}

func (d *deadline) stopLocked() {
	if d.timer != nil {
		// When Stop comes too late, expire may still run; set replaces ch
		// only when it is closed, so a late expire could end a newer
		// deadline. A fresh channel prevents that.
		if !d.timer.Stop() && d.ch != nil && !isClosed(d.ch) {
			old := d.ch
			d.ch = make(chan struct{})
			close(old) // wakes waiters; they look at the deadline again
		}
		d.timer = nil
	}
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadline(&s.readDL, t) }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(&s.writeDL, t) }

func (s *Stream) setDeadline(d *deadline, t time.Time) error {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	d.set(t)
	return nil
}

// acquire takes a lock that is held while waiting, unless d passes first.
func acquire(lock chan struct{}, d *deadline) error {
	select {
	case lock <- struct{}{}:
		return nil
	default:
	}
	for {
		select {
		case lock <- struct{}{}:
			return nil
		case <-d.done():
			if d.passed() {
				return os.ErrDeadlineExceeded
			}
		}
	}
}
