package circuit

import (
	"crypto/subtle"
	"fmt"

	"cepa/cell"
)

// window is the sending half of one hop's flow: how many counted messages are
// unacknowledged, and the tags that acknowledgements must carry. It is guarded
// by the lock of the side that it sends on. Congestion control will take its
// size over; everything else stays.
type window struct {
	unacked int
	partial int                  // counted since the last remembered tag
	tags    [][cell.TagSize]byte // ring: tags of every AckEvery-th message, oldest first
	first   int                  // index of the oldest
	n       int                  // how many
	blocked bool                 // someone was told that the window is closed
}

// room returns how many DATA messages may go now.
func (w *window) room() int { return max(0, Window-w.unacked) }

// sent notes a counted message and its tag.
func (w *window) sent(tag []byte) error {
	w.unacked++
	if w.unacked > maxUnacked {
		return fmt.Errorf("%w: no acknowledgements", ErrProtocol)
	}
	if w.partial++; w.partial < AckEvery {
		return nil
	}
	w.partial = 0
	if w.n == len(w.tags) {
		// Grow by doubling; bounded by maxUnacked / AckEvery.
		bigger := make([][cell.TagSize]byte, max(Window/AckEvery+1, 2*len(w.tags)))
		for i := range w.n {
			bigger[i] = w.tags[(w.first+i)%len(w.tags)]
		}
		w.tags, w.first = bigger, 0
	}
	copy(w.tags[(w.first+w.n)%len(w.tags)][:], tag)
	w.n++
	return nil
}

// acked takes an ACK. reopened says that someone waits and may go on.
func (w *window) acked(tag [cell.TagSize]byte) (reopened bool, err error) {
	if w.n == 0 || subtle.ConstantTimeCompare(w.tags[w.first][:], tag[:]) != 1 {
		return false, fmt.Errorf("%w: ACK of what was not sent", ErrProtocol)
	}
	w.first = (w.first + 1) % len(w.tags)
	w.n--
	w.unacked -= AckEvery
	if w.blocked && w.room() > 0 {
		w.blocked = false
		return true, nil
	}
	return false, nil
}

// receipts is the receiving half: it says when an ACK is due. It belongs to
// the reader that opens the hop's layer.
type receipts struct{ n int }

// due counts a received message and reports whether to acknowledge it.
func (r *receipts) due(cmd cell.MessageCommand) bool {
	if !cmd.Rule().Counts {
		return false
	}
	if r.n++; r.n < AckEvery {
		return false
	}
	r.n = 0
	return true
}
