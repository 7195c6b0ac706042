package circuit

import (
	"crypto/subtle"
	"fmt"
	"time"

	"cepa/cell"
)

// window is the sending half of one hop's flow: how many counted messages are
// unacknowledged, which of them ask for an acknowledgement, and the tags that
// these must carry. It is guarded by the lock of the side that it sends on.
type window struct {
	congestion
	began   time.Time
	total   uint64 // counted messages, ever
	unacked int
	partial int    // counted since the last that asked
	marks   []mark // ring of messages that ask, oldest first
	first   int    // index of the oldest
	n       int    // how many
	blocked bool   // someone was told that the window is closed
	head    bool   // nothing was sent since the last ACK
}

// mark is a message that asks for an acknowledgement.
type mark struct {
	tag     [cell.TagSize]byte
	sent    time.Duration // when, since window.began
	number  uint64        // of all counted messages
	counts  int           // how many it acknowledges: those since the mark before, and itself
	unacked int           // how many were unacknowledged then
}

func newWindow(f Flow) window {
	return window{congestion: newCongestion(f), began: time.Now(), head: true}
}

// room returns how many DATA messages may go now. When nothing that is under way
// asks for an acknowledgement, which a window that shrank can bring about, one may go that does.
func (w *window) room() int {
	switch n := w.window - w.unacked; {
	case n > 0:
		return n
	case w.n == 0:
		return 1
	}
	return 0
}

// asks tells whether the next counted message is to ask for an acknowledgement:
// twice a window or so. Where the window is used up, what one ACK lets go travels
// as a burst. The first of a burst asks rather than the last, because its time tells
// how long the queues are, and not how long the burst is. The very first message
// asks, since it meets no queue of our own.
func (w *window) asks() bool {
	interval, next := w.ackInterval(), w.partial+1
	switch fills := w.unacked+1 >= w.window; {
	case w.total == 0, w.head && next >= interval/2:
		return true
	case fills:
		return w.n == 0
	default:
		return next >= interval
	}
}

// sent notes a counted message, for which asked is what asks said.
func (w *window) sent(tag []byte, asked bool) error {
	w.head = false
	w.total++
	w.unacked++
	w.partial++
	if w.unacked > maxUnacked {
		return fmt.Errorf("%w: no acknowledgements", ErrProtocol)
	}
	if !asked {
		return nil
	}
	if w.n == len(w.marks) {
		// Grow by doubling; bounded by maxUnacked.
		bigger := make([]mark, max(8, 2*len(w.marks)))
		for i := range w.n {
			bigger[i] = w.marks[(w.first+i)%len(w.marks)]
		}
		w.marks, w.first = bigger, 0
	}
	m := &w.marks[(w.first+w.n)%len(w.marks)]
	*m = mark{tag: [cell.TagSize]byte(tag), sent: time.Since(w.began), number: w.total, counts: w.partial, unacked: w.unacked}
	w.n++
	w.partial = 0
	return nil
}

// wait notes that somebody has to wait for the window.
func (w *window) wait() { w.blocked, w.full = true, true }

// acked takes an ACK. reopened says that someone waits and may go on.
func (w *window) acked(tag [cell.TagSize]byte) (reopened bool, err error) {
	if w.n == 0 || subtle.ConstantTimeCompare(w.marks[w.first].tag[:], tag[:]) != 1 {
		return false, fmt.Errorf("%w: ACK of what was not sent", ErrProtocol)
	}
	m := w.marks[w.first]
	w.first = (w.first + 1) % len(w.marks)
	w.n--
	w.head = true
	w.unacked -= m.counts
	w.congestion.acked(m.counts, sample{time.Since(w.began) - m.sent, m.unacked}, m.number, w.total)
	if w.blocked && w.room() > 0 {
		w.blocked = false
		return true, nil
	}
	return false, nil
}

// FlowStatus is how a hop's window stands.
type FlowStatus struct {
	Window  int           `json:"window"`  // messages that may go without acknowledgement
	Unacked int           `json:"unacked"` // that have gone
	RTT     time.Duration `json:"rtt_ns"`  // of the last round; 0 before the first
	RTTMin  time.Duration `json:"rtt_min_ns"`
	Rate    float64       `json:"messages_per_second"` // in the last round
}

func (w *window) status() FlowStatus {
	return FlowStatus{w.window, w.unacked, w.rtt, w.rttMin, w.rate}
}
