package stream

import (
	"encoding/binary"
	"time"

	"cepa/cell"
)

// Credit (doc/spec.md section 5): what the peer may send of a stream before more is granted.
const (
	// InitialCredit is what each side may send on a new stream, in bytes.
	InitialCredit = 524288
	// MaxWindow bounds what one stream's reader leaves to the peer to send, and so
	// what a reader that stalls makes us hold: enough for 55 MB/s where a round
	// trip takes 150 ms.
	MaxWindow = 16 * InitialCredit
	// grantShare is the part of a stream's window that its reader consumes before
	// it is worth a cell to grant it again: a quarter, so that credit arrives
	// before it is needed.
	grantShare = 4
	// maxCredit bounds outstanding credit.
	maxCredit = 1<<31 - 1
)

// receiving is the receiving side of a stream's credit. Its window starts with
// InitialCredit and grows while the reader keeps up with a peer that needs more
// than that for a round trip: to twice what comes in one.
type receiving struct {
	window   int64 // what the peer should have to send, with what is not read yet
	credit   int64 // bytes that the peer may still send
	consumed int64 // bytes read and not yet granted again

	since time.Time // when the present measurement began, and
	bytes int64     // what was read since
}

func newReceiving() receiving { return receiving{window: InitialCredit, credit: InitialCredit} }

// due tells whether it is time to grant.
func (r *receiving) due() bool { return r.consumed >= r.window/grantShare }

// grant returns how much to grant, and counts it as granted. rtt is how long a
// round trip takes; 0 when that is not known.
func (r *receiving) grant(now time.Time, rtt time.Duration) int64 {
	n := r.consumed
	r.consumed = 0
	r.bytes += n
	switch elapsed := now.Sub(r.since); {
	case r.since.IsZero() || elapsed > time.Minute:
		r.since, r.bytes = now, 0
	case rtt > 0 && elapsed >= rtt:
		perTrip := int64(float64(r.bytes) * rtt.Seconds() / elapsed.Seconds())
		if grown := min(2*perTrip, 2*r.window, MaxWindow); grown > r.window {
			n += grown - r.window
			r.window = grown
		}
		r.since, r.bytes = now, 0
	}
	r.credit += n
	return n
}

// grantLocked gives the peer back the credit for what was read, in few cells,
// and tells whether it sent one. After the peer's EOF none is needed.
func (s *Stream) grantLocked() bool {
	if !s.in.due() || s.rcvdEOF || s.rcvdFinal || s.sentFinal || !s.acceptedLocked() {
		return false
	}
	n := s.in.grant(time.Now(), s.mux.cfg.Carrier.RTT())
	binary.BigEndian.PutUint32(s.granted[:], uint32(n))
	s.mux.cfg.Carrier.Send(cell.Credit, s.id, s.granted[:])
	return true
}
