package stream

import (
	"errors"
	"io"
	"net"

	"cepa/cell"
)

// Held returns how many cells with data that nobody has read yet the streams hold,
// and when the oldest of them was taken from the pool (cell.Cell.Taken).
func (m *Mux) Held() (oldest uint64, cells int) {
	m.mu.Lock()
	streams := make([]*Stream, 0, len(m.streams))
	for _, s := range m.streams {
		streams = append(streams, s)
	}
	m.mu.Unlock()
	for _, s := range streams {
		s.mu.Lock()
		if c := s.recv.Front(); c != nil {
			if cells == 0 || c.Taken() < oldest {
				oldest = c.Taken()
			}
			cells += s.recv.Len()
		}
		s.mu.Unlock()
	}
	return oldest, cells
}

// CloseNow is Close, but what the streams have received is given up: every Read
// returns err from then on.
func (m *Mux) CloseNow(err error) {
	for _, s := range m.close(err) {
		s.giveUp()
	}
}

// close takes all streams and look-ups from the table, ends the look-ups and tells
// the streams that the circuit is gone; it returns them.
func (m *Mux) close(err error) map[uint16]*Stream {
	if err == nil || errors.Is(err, io.EOF) {
		err = net.ErrClosed
	}
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return nil
	}
	m.err = err
	streams, lookups := m.streams, m.lookups
	m.streams, m.lookups, m.blocked, m.closing = nil, nil, nil, 0
	m.mu.Unlock()
	for _, s := range streams {
		s.lost(err)
	}
	for _, l := range lookups {
		if l.done != nil {
			l.err = err
			close(l.done)
		}
	}
	return streams
}

// giveUp drops what a lost stream has received. Its reader must not take what is
// missing for the end of the data, whatever the peer said before.
func (s *Stream) giveUp() {
	var dropped cell.List
	s.mu.Lock()
	if s.recv.Len() > 0 {
		dropped.Append(&s.recv)
		s.recvOff, s.rcvdEOF = 0, false
		if s.endErr == nil || s.endErr == io.EOF {
			s.endErr = cell.EndResource
		}
	}
	s.mu.Unlock()
	s.mux.cfg.Pool.PutList(&dropped)
	wake(s.readable)
}
