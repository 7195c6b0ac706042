package stream

import (
	"encoding/binary"
	"fmt"
	"io"

	"cepa/cell"
)

// The methods of this file take one message each, on the reader of a link.
// What is lawful in which state is the table of doc/spec.md section 5, which
// cell holds as data; after our own final END, what was under way is dropped
// within its bounds.

// stateLocked is the stream's state in the words of that table.
func (s *Stream) stateLocked() cell.StreamState {
	return cell.StateOf(s.origin, s.answered, s.rcvdEOF, s.sentFinal)
}

func (s *Stream) handleConnected(p []byte) error {
	c, err := cell.ParseConnected(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnlawful, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stateLocked().Takes(cell.Connected) == cell.Unlawful {
		return unlawful(cell.Connected, "not expected")
	}
	s.answered = true
	s.remote = c
	s.openedLocked()
	return nil
}

func (s *Stream) handleData(p []byte, c *cell.Cell) (kept bool, err error) {
	if len(p) == 0 {
		return false, unlawful(cell.Data, "empty")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stateLocked().Takes(cell.Data) == cell.Unlawful:
		return false, unlawful(cell.Data, "before CONNECTED or after EOF")
	case int64(len(p)) > s.in.credit:
		return false, unlawful(cell.Data, "more than was granted")
	}
	s.in.credit -= int64(len(p))
	if s.sentFinal || s.closed {
		return false, nil // late: ours is ended
	}
	if c == nil {
		return false, fmt.Errorf("%w: DATA from a hop that carries no streams", ErrUnlawful)
	}
	kept = !s.joinLocked(p)
	if kept {
		s.recv.Push(c)
	}
	wake(s.readable)
	return kept, nil
}

// joinLocked adds p to the last unread cell when it fits there. Credit counts
// bytes and memory counts cells: without this, half a megabyte of one-byte
// messages would hold 700 MB. With it any two neighbours fill a cell.
func (s *Stream) joinLocked(p []byte) bool {
	c := s.recv.Back()
	if c == nil {
		return false
	}
	n := len(payload(c))
	rest := c.Body()[cell.MessageHeaderSize+n:]
	if len(p) > len(rest) {
		return false
	}
	copy(rest, p)
	binary.BigEndian.PutUint16(c.Body()[3:], uint16(n+len(p)))
	return true
}

func (s *Stream) handleCredit(p []byte) error {
	n, err := cell.ParseCredit(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnlawful, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stateLocked().Takes(cell.Credit) == cell.Unlawful {
		return unlawful(cell.Credit, "before CONNECTED")
	}
	if s.sendCredit+int64(n) > maxCredit {
		return unlawful(cell.Credit, "more than can be outstanding")
	}
	s.sendCredit += int64(n)
	wake(s.writable)
	return nil
}

func (s *Stream) handleEnd(p []byte) error {
	why, err := cell.ParseEnd(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnlawful, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stateLocked().TakesEnd(why) == cell.Unlawful {
		return unlawful(cell.End, "EOF before CONNECTED or after EOF")
	}
	if why == cell.EndEOF {
		s.rcvdEOF = true
		wake(s.readable)
		if s.sentEOF && !s.sentFinal {
			s.sendFinalLocked(cell.EndDone)
		}
		return nil
	}
	s.rcvdFinal = true
	if s.endErr == nil {
		switch {
		case !s.answered && s.origin:
			s.endErr = why // refused: never io.EOF
		case why == cell.EndDone || why == cell.EndClosed:
			s.endErr = io.EOF
		default:
			s.endErr = why
		}
	}
	if s.sentFinal {
		s.mux.remove(s)
	} else {
		s.sendFinalLocked(cell.EndDone)
	}
	s.openedLocked()
	wake(s.readable)
	wake(s.writable)
	return nil
}
