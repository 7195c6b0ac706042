package stream

import (
	"context"
	"fmt"
	"net"

	"cepa/cell"
)

// Resolve looks a name up at the far end, or the name of an address given in
// text form. A result with a Status other than 0 is returned as that error.
func (m *Mux) Resolve(ctx context.Context, b cell.ResolveBody) (cell.ResolvedBody, error) {
	if !cell.ValidHost(b.Name) {
		return cell.ResolvedBody{}, fmt.Errorf("stream: name is not valid")
	}
	m.mu.Lock()
	id, err := m.nextIDLocked()
	l := &Lookup{mux: m, id: id, done: make(chan struct{})}
	if err == nil {
		if err = m.cfg.Carrier.Send(cell.Resolve, id, b.AppendTo(nil)); err == nil {
			m.enterLookupLocked(l)
		}
	}
	m.mu.Unlock()
	if err != nil {
		return cell.ResolvedBody{}, err
	}
	m.cfg.Carrier.Kick()
	select {
	case <-l.done:
		if l.err == nil && l.answer.Status != 0 {
			l.err = l.answer.Status
		}
		return l.answer, l.err
	case <-ctx.Done():
		// The entry stays until RESOLVED comes, which is lawful.
		return cell.ResolvedBody{}, ctx.Err()
	}
}

// Lookup is one RESOLVE that waits for its answer.
type Lookup struct {
	mux    *Mux
	id     uint16
	done   chan struct{} // at the origin: closed once answer or err is set
	answer cell.ResolvedBody
	err    error
}

// Answer sends the result, at the relay. Only the first call counts.
func (l *Lookup) Answer(r cell.ResolvedBody) error {
	err := l.answerOnce(r)
	l.mux.cfg.Carrier.Kick()
	return err
}

func (l *Lookup) answerOnce(r cell.ResolvedBody) error {
	m := l.mux
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lookups[l.id] != l {
		return net.ErrClosed
	}
	delete(m.lookups, l.id)
	return m.cfg.Carrier.Send(cell.Resolved, l.id, r.AppendTo(nil))
}

func (m *Mux) handleResolved(msg cell.Message) error {
	m.mu.Lock()
	l := m.lookups[msg.Stream]
	if l == nil || l.done == nil {
		closed := m.err != nil
		m.mu.Unlock()
		if closed {
			return nil
		}
		return unlawful(msg.Command, "nothing was asked")
	}
	delete(m.lookups, msg.Stream)
	m.mu.Unlock()
	r, err := cell.ParseResolved(msg.Payload)
	if err != nil {
		l.err = err
		close(l.done)
		return fmt.Errorf("%w: %w", ErrUnlawful, err)
	}
	l.answer = r
	close(l.done)
	return nil
}
