package simnet

import (
	"math"
	"time"
)

// idle is the instant that never comes.
const idle = math.MaxInt64

type eventKind uint8

const (
	evServed  eventKind = iota // a station has sent a segment
	evData                     // the rest arrive at the far end of a link: size bytes,
	evSyn                      // a request to open,
	evSynAck                   // its acceptance,
	evAck                      // the dialler's confirmation,
	evRefused                  // or the refusal of the request,
	evFin                      // the end of a stream,
	evReset                    // the end of a connection
)

// event is something that happens at an instant: to a station, or to a half.
type event struct {
	at   int64
	seq  uint64 // orders events of one instant as they were made
	sent int64  // when it was put on the link
	kind eventKind
	size int
	half *half
	st   *station
}

// eventHeap is a binary heap, earliest first. (container/heap would allocate for every event.)
type eventHeap []event

func (q eventHeap) less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

func (q *eventHeap) push(ev event) {
	*q = append(*q, ev)
	s := *q
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.less(i, up) {
			return
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

func (q *eventHeap) pop() event {
	s := *q
	top, last := s[0], len(s)-1
	s[0], s[last] = s[last], event{}
	s = s[:last]
	*q = s
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if s.less(c, least) {
				least = c
			}
		}
		if least == i {
			return top
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
}

// schedule makes an event happen at ev.at. The caller holds n.mu.
func (n *Network) schedule(ev event) {
	n.lastSeq++
	ev.seq = n.lastSeq
	n.events.push(ev)
	n.arm()
}

// arm sets the one timer of the network to its first event. The caller holds n.mu.
func (n *Network) arm() {
	if len(n.events) == 0 || n.events[0].at >= n.armed {
		return
	}
	n.armed = n.events[0].at
	wait := time.Duration(n.armed - n.now())
	switch {
	case n.timer == nil:
		n.wg.Add(1)
		n.timer = time.AfterFunc(wait, n.fire)
	default:
		if !n.timer.Stop() {
			n.wg.Add(1)
		}
		n.timer.Reset(wait)
	}
}

// disarm stops the timer. The caller holds n.mu.
func (n *Network) disarm() {
	if n.timer != nil && n.timer.Stop() {
		n.wg.Done()
	}
	n.armed = idle
}

// fire is what the timer calls. What follows from an event counts from when the event was due, not from when it was
// seen to: in real time a late timer delays what it should, and slows nothing down.
func (n *Network) fire() {
	defer n.wg.Done()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.armed = idle
	if n.closed {
		return
	}
	for now := n.now(); len(n.events) > 0 && n.events[0].at <= now; now = n.now() {
		ev := n.events.pop()
		if ev.kind == evServed {
			n.served(ev.st, ev.at)
		} else {
			n.arrive(ev)
		}
	}
	n.arm()
}
