package circuit

import (
	"errors"
	"fmt"
	"time"

	"cepa/cell"
)

// This file is the sending half of an Origin, and what it shares with that of a
// Transit.

// sendLocked seals one message for hop h under all layers up to it and queues
// it.
func (o *Origin) sendLocked(h *hop, cmd cell.MessageCommand, id uint16, payload []byte) error {
	if o.err != nil {
		return o.err
	}
	c := o.cfg.Pool.Get()
	if err := o.sealLocked(h, c, cmd, id, payload); err != nil {
		o.cfg.Pool.Put(c)
		return err
	}
	o.sending.Push(c)
	return o.out.Send(&o.sending)
}

func (o *Origin) sealLocked(h *hop, c *cell.Cell, cmd cell.MessageCommand, id uint16, payload []byte) error {
	if h.fwd == nil {
		return errors.New("circuit: a service sends before its client has")
	}
	c.SetCommand(cell.Relay)
	body := c.Body()
	cell.PutMessage(body[:innerSize(h.index)], cmd, id, payload)
	counts := cmd.Rule().Counts
	asks := counts && h.win.asks()
	sealLayer(h.fwd, h.index, messageKind(asks), body, body)
	n := sealedSize(h.index)
	if counts {
		if err := h.win.sent(body[n-cell.TagSize:n], asks); err != nil {
			return err
		}
	}
	o.wrapLocked(h.pos-1, body, n)
	return nil
}

// wrapLocked seals the first n bytes of a body as content for what is behind hop
// pos, for that hop and all before it. What is behind them becomes zero.
func (o *Origin) wrapLocked(pos int, body []byte, n int) {
	hops := *o.hops.Load()
	for ; pos >= 1; pos-- {
		h := hops[pos-1]
		clear(body[n:innerSize(h.index)])
		sealLayer(h.fwd, h.index, kindForward, body, body)
		n = sealedSize(h.index)
	}
}

// failed destroys the circuit after a send that failed: its cells are lost,
// and with them the order of nonces. The sender may hold a stream's lock, which
// ending the streams needs: hence the goroutine, which waits for nothing else.
func (o *Origin) failed(err error) {
	if o.err == nil {
		go o.destroy(cell.ReasonResource, fmt.Errorf("%w: %w", ErrDestroyed, err))
	}
}

// Send implements stream.Carrier.
func (h *hop) Send(cmd cell.MessageCommand, id uint16, payload []byte) error {
	o := h.origin
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.sendLocked(h, cmd, id, payload)
	if err != nil {
		o.failed(err)
	}
	return err
}

// SendData implements stream.Carrier.
func (h *hop) SendData(id uint16, p []byte) (int, error) {
	o := h.origin
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return 0, o.err
	}
	n, err := sendData(&h.win, o.cfg.Pool, o.out, &o.sending, cell.Room(h.index), p, func(c *cell.Cell, part []byte) error {
		return o.sealLocked(h, c, cell.Data, id, part)
	})
	if err != nil {
		o.failed(err)
	}
	return n, err
}

// RTT implements stream.Carrier.
func (h *hop) RTT() time.Duration {
	h.origin.mu.Lock()
	defer h.origin.mu.Unlock()
	return h.win.rttMin
}

// Kick implements stream.Carrier.
func (h *hop) Kick() { h.origin.out.Kick() }

// sendData cuts p into DATA messages of room bytes, as many as the window and
// one batch allow, seals each and queues them together, behind what is in list.
// It is called under the side's lock.
func sendData(w *window, pool *cell.Pool, out Outlet, list *cell.List, room int, p []byte, seal func(*cell.Cell, []byte) error) (int, error) {
	n := min((len(p)+room-1)/room, w.room(), batch)
	if n == 0 {
		w.wait()
		return 0, nil
	}
	var fresh cell.List
	pool.GetList(&fresh, n)
	sent := 0
	for c := fresh.Pop(); c != nil; c = fresh.Pop() {
		part := p[sent:min(len(p), sent+room)]
		err := seal(c, part)
		list.Push(c)
		if err != nil {
			list.Append(&fresh)
			pool.PutList(list)
			return 0, err
		}
		sent += len(part)
	}
	if err := out.Send(list); err != nil {
		return 0, err
	}
	return sent, nil
}

func (h *hop) ack(tag [cell.TagSize]byte) error { return h.Send(cell.Ack, 0, tag[:]) }

func (h *hop) acked(p []byte) error {
	tag, err := cell.ParseAck(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	h.origin.mu.Lock()
	reopened, err := h.win.acked(tag)
	h.origin.mu.Unlock()
	if reopened {
		h.mux.WindowOpened()
	}
	return err
}
