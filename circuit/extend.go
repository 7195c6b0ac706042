package circuit

import (
	"fmt"

	"cepa/cell"
)

// This file is the side of a Transit away from the origin: how it comes to be,
// and how cells come back over it.

// extend takes EXTEND.
func (t *Transit) extend(p []byte) error {
	e, err := cell.ParseExtend(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	// Asked before mu is taken: the lock of the Mux comes first in the order.
	// Nobody but this goroutine adds streams.
	busy := t.mux.Len() > 0
	t.mu.Lock()
	if t.err != nil {
		t.mu.Unlock()
		return t.err
	}
	if t.state != alone || busy || t.pad.active {
		t.mu.Unlock()
		return fmt.Errorf("%w: EXTEND of a circuit that is extended, carries streams or is being padded", ErrProtocol)
	}
	if t.k == cell.MaxHops {
		err := t.sendLocked(cell.ExtendFailed, 0, []byte{byte(cell.ExtendNotAllowed)})
		t.mu.Unlock()
		return err
	}
	t.state = asked
	t.mu.Unlock()
	e.Message1 = append([]byte(nil), e.Message1...)
	t.cfg.Handler.Extend(t, e)
	return nil
}

// Next returns the Receiver for a circuit on a link to the next relay: a new
// one for each attempt.
func (t *Transit) Next() Receiver {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.side = &nextSide{t: t}
	return t.side
}

// Connect sends CREATE over out, whose Receiver is what Next returned last.
// The Transit owns out from here on, also after an error.
func (t *Transit) Connect(out Outlet, e cell.ExtendBody) error {
	c := t.cfg.Pool.Get()
	c.SetCommand(cell.Create)
	body := cell.CreateBody{Index: uint8(t.k + 1), KeyID: e.KeyID, Suite: e.Suite, Message1: e.Message1}
	c.SetBody(body.AppendTo(make([]byte, 0, cell.BodySize)))
	var l cell.List
	l.Push(c)

	t.mu.Lock()
	if t.err != nil || t.state != asked {
		err := t.err
		t.mu.Unlock()
		t.cfg.Pool.PutList(&l)
		out.Destroy(cell.ReasonFinished)
		if err == nil {
			err = ErrClosed
		}
		return err
	}
	t.state, t.nextOut = creating, out
	t.mu.Unlock()
	err := out.Send(&l)
	out.Kick()
	return err
}

// ExtendFailed answers a pending EXTEND. It does nothing when the circuit has
// been extended, or has failed, meanwhile.
func (t *Transit) ExtendFailed(why cell.ExtendError) {
	t.mu.Lock()
	out := t.extendFailedLocked(why)
	t.mu.Unlock()
	t.cfg.Prev.Kick()
	if out != nil {
		out.Destroy(cell.ReasonFinished)
	}
}

// extendFailedLocked returns the Outlet that the attempt leaves behind, if any.
func (t *Transit) extendFailedLocked(why cell.ExtendError) Outlet {
	if t.err != nil || t.state != asked && t.state != creating {
		return nil
	}
	out := t.nextOut
	t.state, t.side, t.nextOut = alone, nil, nil
	t.sendLocked(cell.ExtendFailed, 0, []byte{byte(why)})
	return out
}

// nextSide is the side away from the origin, of one attempt.
type nextSide struct{ t *Transit }

// Receive takes a cell on its way to the origin.
func (s *nextSide) Receive(cmd cell.Command, body []byte) {
	t := s.t
	var err error
	switch cmd {
	case cell.Created:
		err = t.created(s, body)
	case cell.Relay:
		err = t.backward(s, body)
	default:
		err = fmt.Errorf("%w: %s from the next side", ErrProtocol, cmd)
	}
	if err != nil {
		t.destroy(cell.ReasonNone, cell.ReasonProtocol, err)
	}
}

// Flush queues what Receive has sealed.
func (s *nextSide) Flush() {
	t := s.t
	t.mu.Lock()
	var err error
	if t.err == nil && t.backList.Len() > 0 {
		err = t.cfg.Prev.Send(&t.backList)
	}
	t.mu.Unlock()
	if err != nil {
		t.destroy(cell.ReasonResource, cell.ReasonNone, fmt.Errorf("%w: previous side: %w", ErrDestroyed, err))
	}
}

// Kick lets go what was sent towards the origin.
func (s *nextSide) Kick() { s.t.cfg.Prev.Kick() }

// Closed ends a pending EXTEND, or, once extended, the circuit.
func (s *nextSide) Closed(reason cell.Reason) {
	t := s.t
	t.mu.Lock()
	lost := t.side == s && t.state == extended
	if t.side == s && !lost {
		t.extendFailedLocked(cell.ExtendRefused) // its Outlet is gone already
	}
	t.mu.Unlock()
	if lost {
		t.destroy(cell.ReasonNone, noTell, fmt.Errorf("%w: next side: %s", ErrDestroyed, reason))
		return
	}
	t.cfg.Prev.Kick()
}

// created passes the other half of the next hop's handshake on to the origin.
func (t *Transit) created(s *nextSide, body []byte) error {
	reply, err := cell.ParseCreated(body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.side != s {
		return nil // of an attempt that was given up
	}
	if t.state != creating {
		return fmt.Errorf("%w: CREATED twice", ErrProtocol)
	}
	t.state = extended
	out := t.nextOut
	t.next.Store(&out)
	t.sendLocked(cell.Extended, 0, reply)
	return nil
}

// backward adds this hop's layer to a cell from the next.
func (t *Transit) backward(s *nextSide, body []byte) error {
	inner := innerSize(t.k)
	if !cell.IsZero(body[inner:]) {
		return fmt.Errorf("%w: bytes behind the layer of hop %d", ErrProtocol, t.k+1)
	}
	c := t.cfg.Pool.Get()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil || t.side != s || t.state != extended {
		t.cfg.Pool.Put(c)
		if t.err == nil && t.side == s {
			return fmt.Errorf("%w: RELAY before CREATED", ErrProtocol)
		}
		return nil
	}
	c.SetCommand(cell.Relay)
	dst := c.Body()
	sealLayer(t.back, t.k, kindForward, dst, body)
	clear(dst[sealedSize(t.k):])
	t.backList.Push(c)
	return nil
}
