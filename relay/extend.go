package relay

import (
	"context"
	"errors"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/link"
)

// extendTimeout is how long the next relay may take from dialling to CREATED;
// a client gives up at about the same time.
const extendTimeout = 10 * time.Second

// Extend implements circuit.Handler.
func (h *circuitHandler) Extend(t *circuit.Transit, e cell.ExtendBody) {
	h.relay.spawn(func() {
		ctx, cancel := context.WithTimeout(h.ctx, extendTimeout)
		defer cancel()
		if why := h.extend(ctx, t, e); why != 0 {
			t.ExtendFailed(why)
			return
		}
		// CREATE is on its way; whatever comes of it comes as an event.
		// ExtendFailed does nothing once it has.
		timer := time.AfterFunc(extendTimeout, func() { t.ExtendFailed(cell.ExtendTimeout) })
		context.AfterFunc(h.ctx, func() { timer.Stop() })
	})
}

// extend opens a circuit to the relay that e names. Where that is, this relay
// looks up itself: a client cannot make it connect to an address of its own
// choosing.
func (h *circuitHandler) extend(ctx context.Context, t *circuit.Transit, e cell.ExtendBody) cell.ExtendError {
	r := h.relay
	id := identity.ID(e.Identity)
	if id == r.Identity() {
		return cell.ExtendNotAllowed
	}
	if prev, isRelay := h.prev.Peer(); isRelay && prev == id {
		return cell.ExtendNotAllowed
	}
	next, ok := r.mirror.Lookup(id)
	if !ok {
		return cell.ExtendUnknownRelay
	}
	l, err := r.pool.Get(ctx, id, next.Addresses)
	if err != nil {
		var wrong *link.IdentityError
		switch {
		case errors.As(err, &wrong):
			return cell.ExtendIdentity
		case ctx.Err() != nil:
			return cell.ExtendTimeout
		default:
			return cell.ExtendConnect
		}
	}
	r.track(l)
	out, err := l.Open(t.Next())
	if err != nil {
		return cell.ExtendConnect
	}
	if err := t.Connect(out, e); err != nil {
		out.Destroy(cell.ReasonFinished)
		return cell.ExtendConnect
	}
	return 0
}
