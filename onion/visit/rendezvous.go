package visit

import (
	"context"
	"io"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/onion"
)

// rendezvousTime is how long one circuit to a rendezvous point, and its answer, may take.
const rendezvousTime = 30 * time.Second

// rendezvous is a circuit to a relay at which the client waits for the service. It is made ahead, beside the fetch of the
// descriptor and the circuit to the introduction point.
type rendezvous struct {
	stop context.CancelFunc
	done chan struct{} // closed when it is ready or failed; what follows does not change then
	err  error

	relay  identity.ID
	cookie [onion.CookieSize]byte
	circ   circ
	joined <-chan []byte

	taken bool // the circuit is a session's: abandon lets it be
}

// rendezvous begins to make one. When the network allows none, failed ends all that waits for it.
func (m *meeting) rendezvous(ctx context.Context, failed context.CancelCauseFunc) *rendezvous {
	ctx, cancel := context.WithCancel(ctx)
	r := &rendezvous{stop: cancel, done: make(chan struct{})}
	m.visitor.start(func() {
		defer close(r.done)
		for range maxRendezvous {
			if r.err = m.visitor.establish(ctx, r); r.err == nil || ctx.Err() != nil {
				return
			}
		}
		failed(r.err)
	})
	return r
}

// establish makes one attempt.
func (v *Visitor) establish(ctx context.Context, r *rendezvous) (err error) {
	ctx, cancel := context.WithTimeout(ctx, rendezvousTime)
	defer cancel()
	if r.relay, err = v.cfg.Network.PickMiddle(ctx); err != nil {
		return err
	}
	if _, err := io.ReadFull(v.cfg.Rand, r.cookie[:]); err != nil {
		return err
	}
	c, err := v.open(ctx, r.relay, false)
	if err == nil {
		if r.joined, err = c.EstablishRendezvous(ctx, r.cookie[:]); err == nil {
			r.circ = c
			return nil
		}
		c.Close()
	}
	return &Error{Reason: RendezvousFailed, Detail: "no rendezvous point was reached", cause: err}
}

// wait waits until the relay knows the client.
func (r *rendezvous) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// meet waits for the service's reply, which may come before the answer of the introduction point, or for an answer that says that
// the service will not come. passed is called when it was told.
func (r *rendezvous) meet(ctx context.Context, asked <-chan outcome[cell.IntroduceAckBody], passed func()) (reply []byte, ack cell.IntroduceAckBody, err error) {
	var late <-chan time.Time
	for {
		select {
		case reply := <-r.joined:
			return reply, ack, nil
		case a := <-asked:
			if a.err != nil || a.value.Status != cell.IntroducePassed {
				return nil, a.value, a.err
			}
			asked = nil
			passed()
			t := time.NewTimer(joinTime)
			defer t.Stop()
			late = t.C
		case <-late:
			return nil, ack, &Error{Reason: RendezvousFailed, Detail: "it was told, and did not come in time"}
		case <-r.circ.Done():
			select {
			case reply := <-r.joined: // and then the circuit ended: join will say so
				return reply, ack, nil
			default:
			}
			return nil, ack, &Error{Reason: RendezvousFailed, Detail: "the circuit to the rendezvous point broke", cause: r.circ.Err()}
		case <-ctx.Done():
			return nil, ack, context.Cause(ctx)
		}
	}
}

// lost reports whether none came about.
func (r *rendezvous) lost() bool {
	select {
	case <-r.done:
		return r.err != nil
	default:
		return false
	}
}

// abandon ends a rendezvous that is not needed.
func (r *rendezvous) abandon() {
	r.stop()
	<-r.done
	if r.circ != nil && !r.taken {
		r.circ.Close()
	}
}
