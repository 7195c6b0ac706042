package relay

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
)

// extendTimeout is how long the next relay may take, from dialling to CREATED: a
// link handshake over the slowest path that a circuit is of use on. Ours.
const extendTimeout = 10 * time.Second

// known returns the entry of a relay in the consensuses of the last 24 h. A relay
// that could not get a consensus for so long knows none.
func (r *Relay) known(id identity.ID) (*directory.Relay, bool) {
	if c := r.mirror.Current(); c == nil || c.CheckTime(r.cfg.Now()) != nil {
		return nil, false
	}
	return r.mirror.Lookup(id)
}

// listed reports whether the peer of a link proved to be a relay of the consensus.
// An identity alone anybody can make.
func (r *Relay) listed(l *link.Link) bool {
	id, proved := l.Peer()
	if !proved {
		return false
	}
	_, ok := r.known(id)
	return ok
}

// isRelay reports whether the peer of a link may speak as a relay. Before its first
// consensus a relay cannot tell who is one and takes the peer's word; it opens no
// streams and extends to nobody then.
func (r *Relay) isRelay(l *link.Link) bool {
	if _, proved := l.Peer(); proved && r.mirror.Current() == nil {
		return true
	}
	return r.listed(l)
}

// Extend implements circuit.Handler. There is one at a time for a circuit: the
// Transit sees to that.
func (h *circuitHandler) Extend(t *circuit.Transit, e cell.ExtendBody) {
	r := h.relay
	if !h.near.extending.enter(forClient(r.isRelay(h.prev), r.limits.clientExtending, r.limits.extending)) {
		t.ExtendFailed(cell.ExtendConnect)
		return
	}
	if !r.extending.enter(r.limits.extending) {
		h.near.extending.leave()
		t.ExtendFailed(cell.ExtendConnect)
		return
	}
	done := func() {
		r.extending.leave()
		h.near.extending.leave()
	}
	started := r.spawn(func() {
		defer done()
		ctx, cancel := context.WithTimeout(h.ctx, extendTimeout)
		defer cancel()
		if why := h.extend(ctx, t, e); why != 0 {
			t.ExtendFailed(why)
		}
	})
	if !started {
		done()
		t.ExtendFailed(cell.ExtendConnect)
	}
}

// extend opens a circuit to the relay that e names, and waits until that relay
// has answered, which the Transit then has passed on. Where the relay is, this
// one looks up itself: a client cannot make it connect to an address of its own
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
	next, ok := r.known(id)
	if !ok {
		return cell.ExtendUnknownRelay
	}
	a := &attempt{Receiver: t.Next(), answered: make(chan struct{})}
	out, why := r.openCircuit(ctx, next, a)
	if why != 0 {
		return why
	}
	out.SetShare(h.share)
	if err := t.Connect(out, e); err != nil {
		out.Destroy(cell.ReasonFinished)
		return cell.ExtendConnect
	}
	select {
	case <-a.answered:
		if a.lost {
			return cell.ExtendConnect
		}
		return 0
	case <-ctx.Done():
		// Too late, or the circuit has ended, and then nobody hears it.
		return cell.ExtendTimeout
	}
}

// openCircuit makes a circuit on a link to a relay.
func (r *Relay) openCircuit(ctx context.Context, next *directory.Relay, rcv link.Receiver) (*link.Circuit, cell.ExtendError) {
	// A link may end at any time, also between Get and Open: then a new one
	// is worth an attempt.
	for again := true; ; again = false {
		l, err := r.pool.Get(ctx, next.Identity, next.Addresses)
		if err != nil {
			var wrong *link.IdentityError
			switch {
			case errors.As(err, &wrong):
				return nil, cell.ExtendIdentity
			case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
				return nil, cell.ExtendTimeout
			default:
				return nil, cell.ExtendConnect
			}
		}
		r.track(l)
		out, err := l.Open(rcv)
		switch {
		case err == nil:
			return out, 0
		case !again || !errors.Is(err, link.ErrClosed):
			return nil, cell.ExtendConnect
		}
	}
}

// attempt is the far side of a circuit during and after one EXTEND. It notes the
// first answer, so that whoever waits for it goes on to the end.
type attempt struct {
	circuit.Receiver
	settled  atomic.Bool
	answered chan struct{} // closed with the first answer, before it has an effect
	lost     bool          // the link was lost before that; set before answered is closed
}

// Receive implements link.Receiver. Once the attempt is settled, it costs one load.
func (a *attempt) Receive(cmd cell.Command, body []byte) {
	a.settle()
	a.Receiver.Receive(cmd, body)
}

// Closed implements link.Receiver. That the link was lost says nothing about the
// next relay's will: whoever waits answers for that.
func (a *attempt) Closed(reason cell.Reason) {
	if reason == cell.ReasonLinkLost && !a.settled.Swap(true) {
		a.lost = true
		close(a.answered)
		return
	}
	a.settle()
	a.Receiver.Closed(reason)
}

func (a *attempt) settle() {
	if !a.settled.Load() && !a.settled.Swap(true) {
		close(a.answered)
	}
}
