package service

import (
	"context"
	"errors"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/onion"
)

// Publication. A generation is what the descriptor says at a time: points, effort, clients. Each relay that should hold a
// descriptor is served by itself: at a random time, over a circuit of its own, with a descriptor made for it, so that relays that
// compare do not learn from the times that two descriptors are of one service.
const (
	// maxUploads is how many uploads run at once.
	maxUploads = 12
	// uploadTimeout is how long one may take, its circuit included.
	uploadTimeout = 90 * time.Second
	// uploadRetryMin and uploadRetryMax bound the pause after failures in a row; the first is tried again at once, and the next few soon.
	uploadRetryMin = 2 * time.Second
	uploadRetryMax = 20 * time.Minute
	// maxAhead is by how much revisions may be ahead of the clock, in lengths of a period, when relays hold newer ones.
	maxAhead = 2
)

// spread is when a generation is published: no earlier than after, and then within a random part of within.
type spread struct{ after, within time.Duration }

var (
	// soon is for what clients wait for.
	soon = spread{0, 3 * time.Second}
	// afterLoss leaves time for a replacement.
	afterLoss = spread{gather, 5 * time.Second}
	// calmly is for what is of use to clients and not urgent.
	calmly = spread{0, time.Minute}
)

// publication is a period's descriptor.
type publication struct {
	key      *onion.PeriodKey
	targets  map[identity.ID]*target
	revision uint64        // of the newest descriptor that was made
	ahead    time.Duration // by how much revisions are ahead of the clock
	order    []identity.ID // of the targets, for people
}

// target is a relay that should hold a descriptor.
type target struct {
	generation uint64    // which it holds; 0: none
	at         time.Time // since when
	due        time.Time // when to upload next
	busy       bool
	retry      backoff
	err        error // of the last attempt
}

// aimLocked sets the targets of a period by the present view. s.mu is held.
func (s *Service) aimLocked(period uint64, k *onion.PeriodKey, first bool, now time.Time) {
	p := s.periods[period]
	if p == nil {
		p = &publication{key: k}
		s.periods[period] = p
	}
	when := calmly
	switch {
	case first:
		when = spread{}
	case p.targets == nil:
		// The period has begun for everybody: whoever finds none asks for the one before.
		when = spread{0, s.net.lifetime() / 8}
	}
	p.order = s.net.targets(p.key.Blinded, period)
	old := p.targets
	p.targets = make(map[identity.ID]*target, len(p.order))
	for _, id := range p.order {
		t := old[id]
		if t == nil {
			t = &target{due: now.Add(when.after + s.within(when.within))}
		}
		p.targets[id] = t
	}
}

// republishLocked begins a new generation, which every target gets. s.mu is held.
func (s *Service) republishLocked(when spread) {
	s.generation++
	now := time.Now()
	for _, p := range s.periods {
		for _, t := range p.targets {
			if due := now.Add(when.after + s.within(when.within)); due.Before(t.due) {
				t.due = due
			}
		}
	}
	wake(s.upload)
}

// outLocked reports whether every target that answers has this generation, or a later one. s.mu is held.
func (s *Service) outLocked(generation uint64) bool {
	for _, p := range s.periods {
		for _, t := range p.targets {
			if t.generation < generation && (t.err == nil || t.generation > 0 && t.retry.failures < 3) {
				return false
			}
		}
	}
	return true
}

// keepPublished uploads what is due until Close.
func (s *Service) keepPublished() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	running := make(chan struct{}, maxUploads)
	for s.ctx.Err() == nil {
		next := time.Minute
		for _, u := range s.due(time.Now(), &next) {
			select {
			case running <- struct{}{}:
			case <-s.ctx.Done():
				return
			}
			s.wg.Add(1) // above zero: this one runs
			go func() {
				defer s.wg.Done()
				s.publish(u)
				<-running
			}()
		}
		timer.Reset(next)
		select {
		case <-s.upload:
		case <-timer.C:
		case <-s.ctx.Done():
		}
	}
}

// upload is one that is due.
type upload struct {
	period uint64
	relay  identity.ID
	target *target
}

// due returns what is due, in random order, and sets when to look again.
func (s *Service) due(now time.Time, next *time.Duration) (all []upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.net == nil || len(s.listedLocked()) == 0 {
		return nil
	}
	if wait := s.gather.Sub(now); wait > 0 && !s.completeLocked() {
		*next = min(*next, wait)
		return nil
	}
	for period, p := range s.periods {
		for _, id := range p.order {
			switch t := p.targets[id]; {
			case t.busy:
			case t.due.After(now):
				*next = min(*next, t.due.Sub(now))
			default:
				t.busy = true
				all = append(all, upload{period, id, t})
			}
		}
	}
	// In random order: that of the map of periods is, and that of the relays of one is drawn.
	for i := len(all) - 1; i > 0; i-- {
		j, err := draw(s.cfg.Rand, uint64(i+1))
		if err != nil {
			break
		}
		all[i], all[j] = all[j], all[i]
	}
	return all
}

// publish uploads to one relay, and says when it is its turn again.
func (s *Service) publish(u upload) {
	generation, ahead, err := s.tryUpload(u)
	now := time.Now()
	s.mu.Lock()
	t := u.target
	t.busy = false
	t.err = err
	switch {
	case err == nil:
		t.retry = backoff{}
		t.generation, t.at = generation, now
		s.problem = nil
		if generation >= s.generation {
			// When half of its life is over, or somewhat before, for each relay by itself.
			life := s.net.lifetime()
			t.due = now.Add(life/2 - s.within(life/8))
		}
	default:
		t.retry.failed(now, uploadRetryMin, min(uploadRetryMax, s.net.lifetime()/4))
		t.due = t.retry.until
		if s.ctx.Err() == nil {
			s.problem = err
		}
		if errors.Is(err, errNewer) {
			s.aheadLocked(u.period, ahead)
		}
	}
	reachable := s.reachableLocked()
	s.mu.Unlock()
	if err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Debug("an onion descriptor could not be uploaded", "relay", u.relay.Short(), "err", err)
		if errors.Is(err, errNewer) && s.newerOnce(now) {
			s.cfg.Log.Warn("relays hold a newer onion descriptor than this service makes: if the service runs twice, stop one, or make them backends; " +
				"if the clock was set back, it is caught up with by itself")
		}
	}
	if reachable {
		s.told.Do(func() {
			close(s.ready)
			s.cfg.Log.Info("the onion service can be reached")
		})
	}
	wake(s.upload)
	wake(s.work) // points may wait for it
}

// newerOnce reports whether it is time to warn again.
func (s *Service) newerOnce(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.warned.IsZero() && now.Sub(s.warned) < time.Hour {
		return false
	}
	s.warned = now
	return true
}

// aheadLocked makes later revisions higher, when relays hold newer ones than one that was so much ahead: two at least, and a quarter
// of all. One that says so alone is not believed, because revisions that are far ahead keep the service from being published after a
// restart. s.mu is held.
func (s *Service) aheadLocked(period uint64, was time.Duration) {
	p := s.periods[period]
	if p == nil || p.ahead != was {
		return
	}
	newer := 0
	for _, t := range p.targets {
		if errors.Is(t.err, errNewer) {
			newer++
		}
	}
	if newer >= min(2, len(p.targets)) && 4*newer >= len(p.targets) {
		p.ahead = min(max(2*p.ahead, s.net.length/64), maxAhead*s.net.length)
	}
}

// tryUpload makes a descriptor and uploads it. ahead is by how much its revision was ahead of the clock.
func (s *Service) tryUpload(u upload) (generation uint64, ahead time.Duration, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, uploadTimeout)
	defer cancel()
	c, err := s.cfg.Network.Circuit(ctx, Hop{Relay: u.relay})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	conn, err := c.OpenDir(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	// Made when the way stands, so that it is new when it arrives.
	generation, ahead, doc, err := s.document(u)
	if err != nil {
		return 0, 0, err
	}
	return generation, ahead, post(conn, doc)
}

// document makes the descriptor for one upload. Its revision is higher than that of any before.
func (s *Service) document(u upload) (generation uint64, ahead time.Duration, doc []byte, err error) {
	s.mu.Lock()
	p := s.periods[u.period]
	v := s.net
	if p == nil {
		s.mu.Unlock()
		return 0, 0, nil, errors.New("service: the period is over")
	}
	generation, ahead = s.generation, p.ahead
	d := &onion.Descriptor{
		Suite: uint8(s.cfg.Suite), SingleHop: s.cfg.SingleHop, Lifetime: v.lifetime(), Points: s.listedLocked(),
	}
	since := s.cfg.Now().Sub(PeriodStart(v.consensus.Interval, u.period)) + ahead
	p.revision = max(onion.Revision(p.key, since, v.length), p.revision+1)
	d.Revision = p.revision
	key, clients := p.key, slices.Clone(s.clients)
	if len(clients) > 0 {
		clients = append(clients, s.self.Key())
	}
	s.mu.Unlock()
	doc, err = d.Encode(v.consensus.Network, s.address, key, clients, s.cfg.Rand)
	return generation, ahead, doc, err
}

// reachableLocked reports whether clients find the service: all points stand, and half of the targets of the present period have
// a descriptor. s.mu is held.
func (s *Service) reachableLocked() bool {
	if s.net == nil || !s.completeLocked() {
		return false
	}
	p := s.periods[s.net.run]
	if p == nil || len(p.targets) == 0 {
		return false
	}
	have := 0
	for _, t := range p.targets {
		if t.generation > 0 {
			have++
		}
	}
	return 2*have >= len(p.targets)
}
