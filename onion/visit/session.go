package visit

import (
	"context"
	"time"
)

// This file keeps sites and the joined circuits that belong to them: which serve, which have to go, and when.

// forgetOneLocked forgets the site, or only the session of the site, that was not used for longest, of those without streams or
// users. v.mu is held; the circuit is closed apart.
func (v *Visitor) forgetOneLocked(session bool) bool {
	var oldest *site
	for _, st := range v.sites {
		idle := st.users == 0 && st.meeting == nil && (st.session == nil || st.session.mux.Len() == 0)
		if idle && (!session || st.session != nil) && (oldest == nil || st.used.Before(oldest.used)) {
			oldest = st
		}
	}
	if oldest == nil {
		return false
	}
	v.retireLocked(oldest)
	if !session {
		delete(v.sites, oldest.siteKey)
	}
	return true
}

// retireLocked takes the session from a site. It ends when it has no streams.
func (v *Visitor) retireLocked(st *site) {
	s := st.session
	if s == nil {
		return
	}
	s.gone, st.session = true, nil
	v.retired[s] = struct{}{}
	if s.mux.Len() == 0 {
		v.spawnLocked(s.circ.Close)
	}
}

// spawnLocked runs f in a goroutine that Close waits for. v.mu is held; after Close it does nothing.
func (v *Visitor) spawnLocked(f func()) {
	if v.closed {
		return
	}
	v.wg.Add(1)
	go func() {
		defer v.wg.Done()
		f()
	}()
}

// usable reports whether a session takes new streams. v.mu is held.
func (s *session) usable() bool {
	return s != nil && !s.gone && s.circ.Err() == nil && !s.mux.Exhausted()
}

// sessionsLocked counts joined circuits and those that are being made.
func (v *Visitor) sessionsLocked() int {
	n := len(v.retired) + v.making
	for _, st := range v.sites {
		if st.session != nil {
			n++
		}
	}
	return n
}

// meet returns the session of a site: the one that there is, or one that is made for all who want it. Making it goes on when
// who asked for it does not wait any more: the next to come will have it.
func (v *Visitor) meet(ctx context.Context, st *site) (*session, error) {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil, ErrClosed
	}
	if st.session.usable() {
		defer v.mu.Unlock()
		return st.session, nil
	}
	v.retireLocked(st)
	m := st.meeting
	if m == nil {
		if err := st.unfound; err != nil && time.Now().Before(st.unfoundTo) {
			v.mu.Unlock()
			return nil, err
		}
		if v.sessionsLocked() >= maxSessions && !v.forgetOneLocked(true) {
			v.mu.Unlock()
			return nil, ErrBusy
		}
		m = &meeting{visitor: v, site: st, done: make(chan struct{})}
		st.meeting = m
		v.making++
		v.spawnLocked(m.run)
	}
	v.mu.Unlock()
	select {
	case <-m.done:
		return m.session, m.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// NewIdentity sees to it that nothing that is known now serves a stream that is opened from now on. Streams that there are, and
// those that are being opened, stay.
func (v *Visitor) NewIdentity() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k, st := range v.sites {
		delete(v.sites, k)
		if st.users == 0 {
			v.retireLocked(st)
			continue
		}
		// Who is opening a stream goes on with the site; Tidy looks after its session.
		if st.session != nil {
			v.retired[st.session] = struct{}{}
		}
	}
}

// Tidy closes joined circuits that have been idle for long, and forgets what is too old. It should be called twice a minute.
func (v *Visitor) Tidy() {
	now := time.Now()
	var idle []circ
	v.mu.Lock()
	for k, st := range v.sites {
		if s := st.session; s != nil && s.mux.Len() > 0 {
			s.used = now
		} else if s != nil && (s.circ.Err() != nil || s.gone || now.Sub(s.used) >= idleTime) {
			st.session = nil
			idle = append(idle, s.circ)
		}
		if st.users == 0 && st.session == nil && st.meeting == nil && now.Sub(st.used) >= maxKnown {
			delete(v.sites, k)
		}
	}
	for s := range v.retired {
		if s.circ.Err() != nil || s.mux.Len() == 0 {
			delete(v.retired, s)
			idle = append(idle, s.circ)
		}
	}
	v.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}
