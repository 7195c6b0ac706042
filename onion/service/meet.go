package service

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/stream"
)

const (
	// meeters is how many rendezvous are prepared at once: each is a circuit of up to five hops to build.
	meeters = 16
	// meetTimeout is how long a client waits, or somewhat less: circuits for it are not built for longer.
	meetTimeout = 45 * time.Second
	// meetTries is how many circuits are tried for one client.
	meetTries = 2
	// joinTimeout is how long a client may take for its first cell.
	joinTimeout = 60 * time.Second
	// evictAfter is how long a joined circuit must have been without streams to make room for another client, when all are taken.
	evictAfter = 30 * time.Second
	// evictEvery is how often it is looked for one.
	evictEvery = time.Second
	// tidyEvery is how often it is looked for joined circuits without streams.
	tidyEvery = 30 * time.Second
)

// joined is a circuit on which a client is, or is expected.
type joined struct {
	id      uint64
	circuit Circuit
	mux     atomic.Pointer[stream.Mux]
	here    chan struct{} // closed when the client's first cell was good
	since   time.Time
	busy    time.Time // when it was last seen to carry streams; guarded by Service.mu
}

// streams is how many it carries.
func (j *joined) streams() int {
	if m := j.mux.Load(); m != nil {
		return m.Len()
	}
	return 0
}

// meet takes introductions, those with most work first, until Close.
func (s *Service) meet() {
	preparing := make(chan struct{}, meeters)
	for s.ctx.Err() == nil {
		if !s.room() {
			return
		}
		select {
		case preparing <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		a, _, err := s.queue.Pop(s.ctx)
		if err != nil {
			return
		}
		s.wg.Add(1) // above zero: this one runs
		go func() {
			defer s.wg.Done()
			defer func() { <-s.slots }()
			j := s.answer(a)
			<-preparing
			if j != nil {
				s.attend(j)
			}
		}()
	}
}

// room waits for a slot, and sees to it that circuits of no use make room for clients that wait. False: the service was closed.
func (s *Service) room() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
	}
	tick := time.NewTicker(evictEvery)
	defer tick.Stop()
	for {
		select {
		case s.slots <- struct{}{}:
			return true
		case <-tick.C:
			if s.queue.Len() > 0 {
				s.evict(time.Now())
			}
		case <-s.ctx.Done():
			return false
		}
	}
}

// evict closes the circuit that has been without streams for longest, if that is long enough.
func (s *Service) evict(now time.Time) {
	var oldest *joined
	s.mu.Lock()
	for _, j := range s.circuits {
		if j.streams() > 0 {
			j.busy = now
		}
		if now.Sub(j.busy) >= evictAfter && (oldest == nil || j.busy.Before(oldest.busy)) {
			oldest = j
		}
	}
	s.mu.Unlock()
	if oldest != nil {
		oldest.circuit.Close()
	}
}

// answer opens an introduction and meets the client; nil if that does not come about.
func (s *Service) answer(a *introduction) *joined {
	intro := s.open(a)
	if intro == nil {
		s.counts.bad.Add(1)
		return nil
	}
	if !s.note(a) {
		return nil
	}
	if !s.meetsAt(intro.Rendezvous) {
		s.counts.refused.Add(1)
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, meetTimeout)
	defer cancel()
	reply, waiting, err := intro.Reply(s.cfg.Rand)
	if err != nil {
		s.counts.failed.Add(1)
		return nil
	}
	body := cell.RendezvousBody{Cookie: intro.Cookie, Reply: [cell.ReplySize]byte(reply)}
	for range meetTries {
		var j *joined
		if j, err = s.rendezvous(ctx, intro.Rendezvous, body.AppendTo(nil), waiting); err == nil {
			s.counts.met.Add(1)
			return j
		}
		if ctx.Err() != nil {
			break
		}
	}
	s.counts.failed.Add(1)
	if s.ctx.Err() == nil {
		s.cfg.Log.Debug("a client could not be met", "err", err)
	}
	return nil
}

// open opens an introduction; nil if it is not for this service.
func (s *Service) open(a *introduction) *onion.Introduction {
	for _, b := range s.bound() {
		b.Key = a.point.key.ID()
		intro, err := onion.OpenIntroduction(b, a.point.seal, a.body.Sealed[:])
		if err == nil {
			return intro
		}
		var e *onion.Error
		if errors.As(err, &e) && !errors.Is(err, onion.ErrAuthentication) {
			return nil // with no other binding it would be any better
		}
	}
	return nil
}

// rendezvous builds a circuit to where a client waits, and sends RENDEZVOUS.
func (s *Service) rendezvous(ctx context.Context, relay identity.ID, payload []byte, waiting *onion.Waiting) (*joined, error) {
	c, err := s.cfg.Network.Circuit(ctx, Hop{Relay: relay, Foreign: true, Direct: s.cfg.SingleHop})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	j := &joined{circuit: c, here: make(chan struct{}), since: now, busy: now}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.nextID++
		j.id = s.nextID
		s.circuits[j.id] = j
	}
	s.mu.Unlock()
	if closed {
		c.Close()
		return nil, ErrClosed
	}
	most := s.cfg.MaxStreams
	if s.cfg.EndOnStreams {
		most++ // the handler sees the one that is too many
	}
	mux, err := c.Rendezvous(payload, circuit.JoinConfig{
		Suite: s.cfg.Suite, Handler: &host{s, j}, MaxStreams: most, Local: s.Addr(), Remote: Peer{j.id},
	}, func(first []byte) (forward, backward [32]byte, err error) {
		keys, err := waiting.Finish(first)
		if err != nil {
			return forward, backward, err
		}
		close(j.here)
		return keys.Forward, keys.Backward, nil
	})
	if err != nil {
		c.Close()
		s.forget(j)
		return nil, err
	}
	j.mux.Store(mux)
	return j, nil
}

// attend stays with a circuit until it has ended.
func (s *Service) attend(j *joined) {
	defer s.forget(j)
	late := time.NewTimer(joinTimeout)
	defer late.Stop()
	select {
	case <-j.here:
		s.counts.joined.Add(1)
		s.mu.Lock()
		j.busy = time.Now()
		s.mu.Unlock()
		<-j.circuit.Done()
	case <-late.C:
		j.circuit.Close()
	case <-j.circuit.Done():
	}
}

// forget takes a circuit out of the table.
func (s *Service) forget(j *joined) {
	s.mu.Lock()
	delete(s.circuits, j.id)
	s.mu.Unlock()
}

// tidy ends joined circuits that have been without streams for long, until Close.
func (s *Service) tidy() {
	tick := time.NewTicker(min(tidyEvery, s.cfg.Idle))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		now := time.Now()
		var idle []*joined
		s.mu.Lock()
		for _, j := range s.circuits {
			if j.streams() > 0 {
				j.busy = now
			} else if now.Sub(j.busy) >= s.cfg.Idle {
				idle = append(idle, j)
			}
		}
		s.mu.Unlock()
		for _, j := range idle {
			j.circuit.Close()
		}
	}
}
