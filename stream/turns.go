package stream

import (
	"slices"

	"cepa/cell"
)

// The window is given out in turns. A stream that finds it closed, or others
// waiting, joins the end of blocked; the first of blocked is woken, sends what
// it may, leaves, and with that wakes the next. Who stops waiting for another
// reason leaves too, so that the first is always one that acts.

// turnBytes is how much a stream sends before others that wait for the
// window get their turn: half of what one ACK makes room for, so that the
// turns of all are about equal.
const turnBytes = 16 * (cell.BodySize - cell.LayerOverhead - cell.MessageHeaderSize)

// WindowOpened wakes the stream whose turn it is to use the circuit's window.
// The circuit calls it without holding its lock.
func (m *Mux) WindowOpened() {
	m.mu.Lock()
	m.wakeNextLocked()
	m.mu.Unlock()
}

// turn returns how many of n bytes s may send now. When that is 0 it has joined
// those who wait, once, however often it is woken by something else, such as
// credit that a peer grants byte by byte.
func (m *Mux) turn(s *Stream, n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case len(m.blocked) == 0 || len(m.blocked) == 1 && s.waiting:
		return n
	case m.blocked[0] == s:
		return min(n, turnBytes)
	}
	m.joinLocked(s)
	return 0
}

// join notes that s waits for the window.
func (m *Mux) join(s *Stream) {
	m.mu.Lock()
	m.joinLocked(s)
	m.mu.Unlock()
}

func (m *Mux) joinLocked(s *Stream) {
	if !s.waiting {
		s.waiting = true
		m.blocked = append(m.blocked, s)
	}
}

// leave takes s from those who wait, if it is there, and lets the next try.
func (m *Mux) leave(s *Stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !s.waiting {
		return
	}
	s.waiting = false
	if i := slices.Index(m.blocked, s); i >= 0 {
		m.blocked = slices.Delete(m.blocked, i, i+1)
	}
	m.wakeNextLocked()
}

func (m *Mux) wakeNextLocked() {
	if len(m.blocked) > 0 {
		wake(m.blocked[0].writable)
	}
}
