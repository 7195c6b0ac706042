package relay

import (
	"container/list"
	"context"
	"sync"
	"time"

	"cepa/cell"
	"cepa/circuit"
)

// rendezvousWait is how long a client's circuit waits for the service before it is
// destroyed. Ours: a service that has not come after that will not.
const rendezvousWait = 10 * time.Minute

// meetingTable holds the circuits of clients that wait here for a service, by the
// cookies that both know. A cookie is good for one meeting.
type meetingTable struct {
	relay *Relay
	added chan struct{} // capacity 1: there is a first one to wait for

	mu      sync.Mutex // guards what follows; leaf
	waiting map[[cell.CookieSize]byte]*meeting
	order   list.List // of *meeting, who waits longest first
	joined  int64     // pairs
}

// meeting is one circuit of a client that waits.
type meeting struct {
	cookie  [cell.CookieSize]byte
	handler *circuitHandler
	transit *circuit.Transit
	until   time.Time
	place   *list.Element // in order
}

func newMeetingTable(r *Relay) *meetingTable {
	return &meetingTable{relay: r, added: make(chan struct{}, 1), waiting: map[[cell.CookieSize]byte]*meeting{}}
}

// establish lets a client's circuit wait with its cookie.
func (x *meetingTable) establish(h *circuitHandler, t *circuit.Transit, cookie [cell.CookieSize]byte) {
	if why := x.enter(&meeting{cookie: cookie, handler: h, transit: t, until: time.Now().Add(rendezvousWait)}); why != cell.ReasonNone {
		t.Close(why)
		return
	}
	select {
	case x.added <- struct{}{}:
	default:
	}
	_ = t.Answer(cell.RendezvousEstablished, nil) // an error is the end of the circuit
}

func (x *meetingTable) enter(m *meeting) cell.Reason {
	l := &x.relay.limits
	x.mu.Lock()
	defer x.mu.Unlock()
	h := m.handler
	switch {
	case x.waiting[m.cookie] != nil:
		// Nobody draws the same twice: this is somebody who has seen it, and the
		// one who was first is to keep it.
		return cell.ReasonRefused
	case h.ctx.Err() != nil, int64(len(x.waiting)) >= l.rendezvous, h.near.waiting >= l.nearRendezvous:
		return cell.ReasonResource
	}
	x.waiting[m.cookie] = m
	m.place = x.order.PushBack(m)
	h.near.waiting++
	h.meeting = m
	return cell.ReasonNone
}

// join joins a service's circuit with the one that waits for it, or destroys it.
func (x *meetingTable) join(h *circuitHandler, t *circuit.Transit, b *cell.RendezvousBody) {
	x.mu.Lock()
	m := x.waiting[b.Cookie]
	if m != nil {
		x.remove(m)
		if h.ctx.Err() == nil {
			h.joined = true
			x.joined++
		}
	}
	x.mu.Unlock()
	if m == nil {
		t.Close(cell.ReasonRefused)
		return
	}
	// After an error both are destroyed, or have been before.
	if circuit.Join(m.transit, t, b.Reply[:]) != nil {
		m.transit.Close(cell.ReasonNone)
	}
}

// remove takes a circuit out of those that wait; mu is held.
func (x *meetingTable) remove(m *meeting) {
	delete(x.waiting, m.cookie)
	x.order.Remove(m.place)
	m.handler.near.waiting--
	m.handler.meeting = nil
}

// leave forgets a circuit that has ended: h.ctx has.
func (x *meetingTable) leave(h *circuitHandler) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h.meeting != nil {
		x.remove(h.meeting)
	}
	if h.joined {
		h.joined = false
		x.joined--
	}
}

// run destroys circuits that have waited too long, until ctx ends.
func (x *meetingTable) run(ctx context.Context) {
	for {
		next, any := x.expire(time.Now())
		if any {
			wait(ctx, next)
		} else {
			select {
			case <-x.added:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// expire destroys those whose time is over, and returns in what time the next one's
// is, if there is one.
func (x *meetingTable) expire(now time.Time) (next time.Duration, any bool) {
	for {
		x.mu.Lock()
		first := x.order.Front()
		if first == nil {
			x.mu.Unlock()
			return 0, false
		}
		m := first.Value.(*meeting)
		if left := m.until.Sub(now); left > 0 {
			x.mu.Unlock()
			return left, true
		}
		x.remove(m)
		x.mu.Unlock()
		m.transit.Close(cell.ReasonFinished)
	}
}

func (x *meetingTable) counts() (waiting, joined int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return int64(len(x.waiting)), x.joined
}
