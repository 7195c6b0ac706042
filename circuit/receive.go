package circuit

import (
	"fmt"

	"cepa/cell"
)

// This file is the receiving half of an Origin. All of it runs on the reader of the link.

func (o *Origin) created(body []byte) error {
	reply, err := cell.ParseCreated(body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if o.Len() != 0 {
		return fmt.Errorf("%w: CREATED twice", ErrProtocol)
	}
	return o.deliverReply(reply)
}

// deliverReply hands a copy of the handshake's other half to Extend.
func (o *Origin) deliverReply(reply []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.pending
	if p == nil || p.answered || p.want != cell.Extended {
		return fmt.Errorf("%w: a handshake reply that was not asked for", ErrProtocol)
	}
	p.answered = true
	p.reply <- append([]byte(nil), reply...)
	return nil
}

// open peels layers until one says that its content is a message. All but the
// last are opened in place; the last goes straight into a cell that a stream
// can keep.
func (o *Origin) open(body []byte) error {
	hops := *o.hops.Load()
	for i, h := range hops {
		k, dst, last := h.index, body, i == len(hops)-1
		var tag [cell.TagSize]byte
		copy(tag[:], body[sealedSize(k)-cell.TagSize:])
		var c *cell.Cell
		if last {
			c = o.cfg.Pool.Get()
			dst = c.Body()
		}
		kind, err := openLayer(h.back, k, dst, body)
		kept := false
		switch {
		case err != nil:
		case kind != kindForward:
			kept, err = o.message(h, dst[:innerSize(k)], kind == kindAsking, tag, c)
		case last:
			err = o.beyond(dst[:innerSize(k)])
		}
		if c != nil && !kept {
			o.cfg.Pool.Put(c)
		}
		if err != nil || kind != kindForward || last {
			return err
		}
		// The sealed body of the next hop, and zeros where this layer's
		// overhead was.
		clear(body[innerSize(k):sealedSize(k)])
	}
	return fmt.Errorf("%w: content before the first hop", ErrProtocol)
}

// message takes one message from hop h, which may ask for an ACK. kept says that
// c was taken over.
func (o *Origin) message(h *hop, inner []byte, asks bool, tag [cell.TagSize]byte, c *cell.Cell) (kept bool, err error) {
	m, err := cell.ParseMessage(inner)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if asks {
		if !m.Command.Rule().Counts {
			return false, fmt.Errorf("%w: %s asks for an ACK", ErrProtocol, m.Command)
		}
		if err := h.ack(tag); err != nil {
			return false, err
		}
	}
	if !o.takes(h, m.Command) {
		return false, fmt.Errorf("%w: %s from hop %d", ErrProtocol, m.Command, h.pos)
	}
	switch m.Command {
	case cell.Ack:
		return false, h.acked(m.Payload)
	case cell.Extended:
		reply, err := cell.ParseExtended(m.Payload)
		if err != nil {
			return false, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		return false, o.deliverReply(reply)
	case cell.ExtendFailed:
		return false, o.extendFailed(m.Payload)
	case cell.Drop:
		return false, o.dropped(m.Payload)
	case cell.IntroEstablished, cell.IntroduceAck, cell.RendezvousEstablished:
		return false, o.answer(m)
	case cell.Introduced:
		return false, o.introduce(m.Payload)
	case cell.Joined:
		return false, o.joinedReply(m.Payload)
	default:
		kept, err := h.mux.Handle(m, c)
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		return kept, err
	}
}

func (o *Origin) extendFailed(p []byte) error {
	why, err := cell.ParseExtendFailed(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	pending := o.pending
	if pending == nil || pending.answered || pending.want != cell.Extended {
		return fmt.Errorf("%w: EXTEND_FAILED that was not asked for", ErrProtocol)
	}
	o.pending = nil
	pending.fail <- why
	return nil
}
