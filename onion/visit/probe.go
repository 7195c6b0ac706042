package visit

import (
	"context"
	"errors"
	"fmt"

	"cepa/cell"
	"cepa/onion"
)

// This file is what those who run services need of a Visitor.

// probeKey and frontKey are keys of isolation that no user has: they do not begin like this.
const (
	probeKey = "\x00probe"
	frontKey = "\x00front"
)

// begin makes Close wait until the returned function is called, and ctx end with the Visitor.
func (v *Visitor) begin(ctx context.Context) (context.Context, func(), error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, nil, ErrClosed
	}
	v.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(v.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		v.wg.Done()
	}, nil
}

// Descriptor fetches the newest descriptor of a service. Errors are those of Dial.
func (v *Visitor) Descriptor(ctx context.Context, a onion.Address) (*onion.Descriptor, error) {
	ctx, end, err := v.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	st, err := v.enter(siteKey{frontKey, a})
	if err != nil {
		return nil, err
	}
	defer v.leave(st)
	k, err := v.descriptor(ctx, st, true)
	if err != nil {
		return nil, err
	}
	return k.descriptor, nil
}

// Reach visits a service by everything that it takes, anew, and opens no stream: nil says that the service answered. auth, unless
// nil, lets the visitor in where only clients with names are. One service is reached once at a time. Errors are those of Dial.
func (v *Visitor) Reach(ctx context.Context, a onion.Address, auth *onion.ClientSecret) error {
	ctx, end, err := v.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	st, err := v.enter(siteKey{probeKey, a})
	if err != nil {
		return err
	}
	v.mu.Lock()
	busy := st.users > 1 || st.meeting != nil
	if !busy && auth != nil {
		st.auth = []*onion.ClientSecret{auth}
	}
	v.mu.Unlock()
	defer func() {
		v.leave(st)
		v.mu.Lock()
		defer v.mu.Unlock()
		if st.users == 0 && st.meeting == nil {
			v.retireLocked(st)
			delete(v.sites, st.siteKey)
		}
	}()
	if busy {
		return fmt.Errorf("%w: the service is being visited already", ErrBusy)
	}
	s, err := v.meet(ctx, st)
	if err != nil {
		return err
	}
	// Services have no directory, and say so.
	str, err := s.mux.OpenDir()
	if err != nil {
		return &Error{Reason: RendezvousFailed, cause: err}
	}
	defer str.Close()
	switch err := str.Connected(ctx); {
	case errors.Is(err, cell.EndNoDirectory):
		return nil
	case err == nil:
		return &Error{Reason: RendezvousFailed, Detail: "what answered is not a service"}
	default:
		return &Error{Reason: RendezvousFailed, cause: err}
	}
}
