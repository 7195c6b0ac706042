package link

import (
	"time"

	"cepa/cell"
)

// notSent marks an ID whose DESTROY of ours still waits for the writer.
const notSent time.Duration = -1

// destroyCell is a DESTROY that waits for the writer.
type destroyCell struct {
	id     uint32
	reason cell.Reason
}

// Open makes a circuit of ours; r gets what arrives on it. Send a CREATE on it:
// before that the peer knows nothing of it. The caller ends it with Destroy.
// Errors are ErrClosed, ErrTooManyCircuits and, for a nil r, ErrState.
func (l *Link) Open(r Receiver) (*Circuit, error) {
	if r == nil {
		return nil, ErrState
	}
	c := &Circuit{link: l, own: true, receiver: r}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, ErrClosed
	case l.ownCount >= l.cfg.MaxCircuits || l.opened == maxOwnIDs:
		return nil, ErrTooManyCircuits
	}
	l.opened++
	l.ownCount++
	l.unsent[c] = struct{}{}
	return c, nil
}

// maxOwnIDs is how many IDs a side can choose: 31 bits without the lowest, which
// for the responder would be the link's own 0.
const maxOwnIDs = 1<<31 - 1

// start gives c its ID when its CREATE leaves. Doing it here and not in Open
// keeps IDs in order whatever the scheduler prefers. l.mu is held.
func (l *Link) start(c *Circuit) {
	l.lastOwn++
	c.id.Store(l.lastOwn)
	c.set(pending)
	delete(l.unsent, c)
	l.table[l.lastOwn] = c
}

// release takes a circuit out of the table, gives it its last state and moves
// its queue to unsent. l.mu is held.
func (l *Link) release(c *Circuit, last state, unsent *cell.List) {
	c.set(last)
	l.sched.remove(c, unsent)
	if id := c.id.Load(); id != 0 {
		delete(l.table, id)
	} else {
		delete(l.unsent, c)
	}
	if c.own {
		l.ownCount--
	} else {
		l.peerCount--
	}
	if l.ownCount+l.peerCount == 0 {
		l.idleSince = time.Now()
	}
}

// pushDestroy queues a DESTROY ahead of all data. It fails when the peer lets
// us answer and does not read. l.mu is held.
func (l *Link) pushDestroy(id uint32, reason cell.Reason) error {
	if l.closed {
		return nil
	}
	if len(l.destroys)-l.destroysTaken >= 2*(l.cfg.MaxCircuits+destroyedSlack) {
		return ErrPeerNotReading
	}
	l.destroys = append(l.destroys, destroyCell{id, reason})
	return nil
}

// takeDestroys moves at most n DESTROYs to the end of into. l.mu is held.
func (l *Link) takeDestroys(into []destroyCell, n int) []destroyCell {
	waiting := l.destroys[l.destroysTaken:]
	n = min(n, len(waiting))
	if n == 0 {
		return into
	}
	for _, d := range waiting[:n] {
		if _, ours := l.destroying[d.id]; ours {
			l.destroying[d.id] = time.Since(l.began)
		}
	}
	into = append(into, waiting[:n]...)
	l.destroysTaken += n
	switch {
	case l.destroysTaken == len(l.destroys):
		l.destroys, l.destroysTaken = l.destroys[:0], 0
		if cap(l.destroys) > destroyedSlack { // a burst does not cost memory for ever
			l.destroys = nil
		}
	case l.destroysTaken >= len(l.destroys)/2:
		l.destroys = l.destroys[:copy(l.destroys, l.destroys[l.destroysTaken:])]
		l.destroysTaken = 0
	}
	return into
}

// checkDestroys fails when the peer owes an answer for too long.
func (l *Link) checkDestroys() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Since(l.began)
	for _, sent := range l.destroying {
		if sent != notSent && now-sent > destroyTimeout {
			return ErrDestroyUnanswered
		}
	}
	return nil
}

// accept enters a circuit that the peer created, or refuses it when there are
// too many, and then returns nil.
func (l *Link) accept(id uint32) (*Circuit, error) {
	side := uint32(cell.InitiatorBit)
	if l.initiator {
		side = 0
	}
	c := &Circuit{link: l}
	c.id.Store(id)
	c.set(offered)
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return nil, ErrClosed
	case id&cell.InitiatorBit != side:
		l.mu.Unlock()
		return nil, &ProtocolError{RuleSide, cell.Create, id}
	case uint64(id) < l.nextPeer:
		l.mu.Unlock()
		return nil, &ProtocolError{RuleOrder, cell.Create, id}
	}
	l.nextPeer = uint64(id) + 1
	if l.peerCount < l.cfg.MaxCircuits {
		l.table[id] = c
		l.peerCount++
		l.mu.Unlock()
		return c, nil
	}
	l.counters.refused.Add(1)
	err := ErrDestroyUnanswered
	if len(l.destroying) < l.cfg.MaxCircuits+destroyedSlack {
		l.destroying[id] = notSent
		err = l.pushDestroy(id, cell.ReasonResource)
	}
	l.unlockAndWake()
	return nil, err
}

// find returns the circuit with this ID, or nil and whether we have destroyed
// it and the peer's answer is still to come.
func (l *Link) find(id uint32) (c *Circuit, late bool) {
	l.mu.Lock()
	c = l.table[id]
	if c == nil {
		_, late = l.destroying[id]
	}
	l.mu.Unlock()
	return c, late
}

// created moves a circuit from pending to open, or tells what is wrong.
func (l *Link) created(id uint32) (c *Circuit, late bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c = l.table[id]
	if c == nil {
		if _, late = l.destroying[id]; late {
			return nil, true, nil
		}
		return nil, false, &ProtocolError{RuleUnknown, cell.Created, id}
	}
	if c.get() != pending {
		return nil, false, &ProtocolError{RuleCreated, cell.Created, id}
	}
	c.set(open)
	return c, false, nil
}

// peerDestroyed takes the peer's DESTROY: either the answer to ours, or the end
// of a circuit, which it returns and answers.
func (l *Link) peerDestroyed(id uint32) (*Circuit, error) {
	var unsent cell.List
	l.mu.Lock()
	c := l.table[id]
	if c == nil {
		_, ours := l.destroying[id]
		delete(l.destroying, id)
		l.mu.Unlock()
		if !ours {
			return nil, &ProtocolError{RuleUnknown, cell.Destroy, id}
		}
		return nil, nil
	}
	l.release(c, closed, &unsent)
	err := l.pushDestroy(id, cell.ReasonNone)
	l.unlockAndWake()
	l.discard(&unsent)
	return c, err
}

// discard returns cells that will not be sent. l.mu is not held.
func (l *Link) discard(unsent *cell.List) {
	l.counters.dropped.Add(uint64(unsent.Len()))
	l.cfg.Pool.PutList(unsent)
}
