package link

import (
	"fmt"
	"sync/atomic"

	"cepa/cell"
	"cepa/pace"
)

// state is where a circuit stands on its link; doc.go draws the transitions.
type state uint32

const (
	fresh     state = iota // opened by us, CREATE not yet given to Send
	creating               // CREATE is queued; the circuit has no ID yet
	pending                // CREATE has left, CREATED has not come
	offered                // the peer's CREATE came, our CREATED is not yet given to Send
	open                   // CREATED has passed; RELAY may go both ways
	destroyed              // by us
	closed                 // by the peer, or with the link
)

// Receiver takes what arrives on a circuit. Its methods are called on the
// link's reader goroutine (Closed may also come from Close), one at a time. None may block,
// and none may call Link.Close; Send, Destroy and Link.Abort are fine.
type Receiver interface {
	// Receive takes one cell, CREATED or RELAY. Body is BodySize bytes of the
	// link's: valid only during the call, may be changed in place. After a
	// Destroy of ours has returned, no new call starts.
	Receive(cmd cell.Command, body []byte)
	// Flush follows the last Receive of a batch of at most 46 cells of the link.
	// Each batch with a Receive ends with exactly one Flush, and that before
	// Closed, even when the circuit was destroyed in between. What it sends
	// needs no Kick of its own.
	Flush()
	// Kick follows the last Flush of a batch: time to Kick the circuits of other
	// links that Receive and Flush have sent on. This link kicks itself. There
	// is none after Closed.
	Kick()
	// Closed is called exactly once when the peer destroyed the circuit or the
	// link ended (cell.ReasonLinkLost), and never when we destroyed it before.
	// The circuit's queue is gone; nothing may be sent any more.
	Closed(reason cell.Reason)
}

// Circuit is one circuit on one link. Its methods are safe for concurrent use,
// never block, and may be called from a Receiver.
type Circuit struct {
	link  *Link
	own   bool          // we sent, or will send, its CREATE
	id    atomic.Uint32 // 0 until CREATE leaves; written under link.mu
	state atomic.Uint32 // written under link.mu, read by the reader without

	// receiver is set under link.mu before state lets the reader call it.
	receiver Receiver

	// Guarded by link.mu, and the scheduler's.
	queue cell.List
	share *pace.Share
	tag   uint64 // in the scheduler's virtual time
	fresh bool   // it was quiet and has not been served yet: goes first among equal tags
	order uint64 // decides then
	place int    // in the scheduler's heap, while there are cells

	// touched is the reader's: Receive was called and Flush not yet.
	touched bool
}

func (c *Circuit) get() state  { return state(c.state.Load()) }
func (c *Circuit) set(s state) { c.state.Store(uint32(s)) }
func (c *Circuit) ended() bool { return c.get() >= destroyed }

// Link returns the link that the circuit is on.
func (c *Circuit) Link() *Link { return c.link }

// ID returns the circuit ID, unique on this link, or 0 as long as the CREATE of
// a circuit of ours has not left: IDs must count up in the order in which
// CREATEs leave.
func (c *Circuit) ID() uint32 { return c.id.Load() }

// Queued returns the number of cells that wait to be sent.
func (c *Circuit) Queued() int {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.queue.Len()
}

// Held returns how many cells wait to be sent, and when the oldest of them was taken
// from the pool (cell.Cell.Taken).
func (c *Circuit) Held() (oldest uint64, cells int) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if x := c.queue.Front(); x != nil {
		oldest = x.Taken()
	}
	return oldest, c.queue.Len()
}

// Ended tells whether the circuit was destroyed, by us or the peer, or ended with
// the link.
func (c *Circuit) Ended() bool { return c.ended() }

// SetReceiver says who takes the cells of a circuit that the peer created; it
// must precede the Send of CREATED, and is called once. It fails with ErrClosed
// when the circuit has ended, and then Closed will not be called, and with ErrState.
func (c *Circuit) SetReceiver(r Receiver) error {
	l := c.link
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.ended():
		return ErrClosed
	case r == nil || c.receiver != nil || c.get() != offered:
		return fmt.Errorf("%w: SetReceiver is for a circuit of the peer, once, before CREATED", ErrState)
	}
	c.receiver = r
	return nil
}

// Send queues cells in their order; Kick must follow. It takes ownership of
// all of them whatever it returns, leaves the list empty, and sets their
// circuit IDs; the commands are the caller's. The first list of a circuit of
// ours is one CREATE, nothing follows before CREATED came; the first cell of a circuit of the peer is CREATED.
// Errors are ErrQueueFull (then none was queued; destroy the circuit),
// ErrClosed and ErrState.
func (c *Circuit) Send(cells *cell.List) error {
	if cells.Len() == 0 {
		return nil
	}
	l := c.link
	l.mu.Lock()
	err := ErrClosed
	if !l.closed {
		err = c.admit(cells)
	}
	if err != nil {
		l.mu.Unlock()
		l.counters.dropped.Add(uint64(cells.Len()))
		l.cfg.Pool.PutList(cells)
		return err
	}
	l.sched.add(c, cells)
	l.mu.Unlock()
	return nil
}

// Kick has what was sent on the link's circuits written. Where the connection
// takes it at once, that is done before Kick returns, which spares waking
// another goroutine: so call it without locks, once for many a Send. It never waits.
func (c *Circuit) Kick() { c.link.kick() }

// admit checks cells against the state and the bound, and advances the state.
func (c *Circuit) admit(cells *cell.List) error {
	cmd := cells.Front().Command()
	switch c.get() {
	case open:
		if cmd != cell.Relay {
			return fmt.Errorf("%w: %v on an open circuit", ErrState, cmd)
		}
	case fresh:
		if cmd != cell.Create || cells.Len() != 1 {
			return fmt.Errorf("%w: %d cells from %v on, want one CREATE", ErrState, cells.Len(), cmd)
		}
		c.set(creating)
	case offered:
		if cmd != cell.Created || c.receiver == nil {
			return fmt.Errorf("%w: %v, want SetReceiver and CREATED", ErrState, cmd)
		}
		if cells.Len() > c.link.cfg.QueueCells {
			return ErrQueueFull
		}
		c.set(open)
		return nil
	case creating, pending:
		return fmt.Errorf("%w: %v before the peer's CREATED", ErrState, cmd)
	default:
		return ErrClosed
	}
	if c.queue.Len()+cells.Len() > c.link.cfg.QueueCells {
		return ErrQueueFull
	}
	return nil
}

// Destroy ends the circuit: queued cells go back to the pool, and DESTROY goes
// out ahead of all data, unless the peer never heard of the circuit. What still
// arrives is dropped and counted. After the first call, and after Closed, it
// does nothing.
func (c *Circuit) Destroy(reason cell.Reason) {
	l := c.link
	var unsent cell.List
	l.mu.Lock()
	if c.ended() {
		l.mu.Unlock()
		return
	}
	known := c.id.Load() != 0
	l.release(c, destroyed, &unsent)
	var err error
	if known {
		l.destroying[c.id.Load()] = notSent
		if len(l.destroying) > l.cfg.MaxCircuits+destroyedSlack {
			err = ErrDestroyUnanswered
		} else {
			err = l.pushDestroy(c.id.Load(), reason)
		}
	}
	l.unlockAndWake()
	l.discard(&unsent)
	if err != nil {
		l.fail(err)
	}
}
