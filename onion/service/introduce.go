package service

import (
	"crypto/sha256"
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/onion/work"
)

const (
	// maxArrived is how many introductions wait to be looked at: some 1.3 KB each. What comes faster than sums are
	// checked is dropped.
	maxArrived = 512
	// checkers look at proofs of work, some 10 µs each.
	checkers = 2
	// replaySize is how much of a hash the replay cache keeps, in bytes.
	replaySize = 16
)

// introduction is one that a point passed on.
type introduction struct {
	point *point
	body  cell.IntroduceBody
	hash  [replaySize]byte
}

// counts are what has happened to introductions.
type counts struct {
	arrived  atomic.Uint64 // passed on by points
	dropped  atomic.Uint64 // too many at once, or of one point
	replayed atomic.Uint64
	bad      atomic.Uint64 // not for this service, or with work that is none
	refused  atomic.Uint64 // to meet where it does not: unknown relays, and those of which there is too much
	failed   atomic.Uint64 // no circuit came about
	met      atomic.Uint64 // RENDEZVOUS was sent
	joined   atomic.Uint64 // and the client came
	streams  atomic.Uint64 // delivered to Accept
	denied   atomic.Uint64 // streams that were refused
}

// take takes what a point passed on. It is called on a link's reader.
func (s *Service) take(p *point, payload []byte) {
	s.counts.arrived.Add(1)
	if !p.flow.AllowN(time.Now(), 1) {
		s.counts.dropped.Add(1)
		return
	}
	body, err := cell.ParseIntroduced(payload)
	if err != nil || body.Key != p.key.ID() {
		s.counts.bad.Add(1)
		return
	}
	select {
	case s.arrived <- &introduction{point: p, body: body}:
	default:
		s.counts.dropped.Add(1)
	}
}

// check looks at what has arrived, until Close: what costs less than opening it, and decides whether and when it is opened.
func (s *Service) check() {
	for {
		select {
		case a := <-s.arrived:
			s.checkOne(a)
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *Service) checkOne(a *introduction) {
	effort, err := s.effort(a)
	if err != nil {
		s.counts.bad.Add(1)
		return
	}
	sum := sha256.Sum256(a.body.Sealed[:])
	a.hash = [replaySize]byte(sum[:])
	s.mu.Lock()
	_, again := a.point.seen[a.hash]
	s.mu.Unlock()
	if again {
		s.counts.replayed.Add(1)
		return
	}
	if !s.queue.Push(time.Now(), effort, a) {
		s.counts.dropped.Add(1)
	}
}

// effort returns what a client has paid. One that has paid less than is asked for now, because it was less when it did, is last.
func (s *Service) effort(a *introduction) (uint32, error) {
	proof, err := work.Parse(a.body.Work[:])
	if err != nil || !s.cfg.Work {
		return 0, err
	}
	ask := *s.ask.Load()
	ask.Effort = 0
	if err := ask.Check(&proof, &a.body.Key, a.body.Sealed[:]); err != nil {
		return 0, err
	}
	return proof.Effort, nil
}

// note enters an introduction that was opened into the replay cache of its point, and reports whether it was new.
func (s *Service) note(a *introduction) bool {
	p := a.point
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := p.seen[a.hash]; again {
		s.counts.replayed.Add(1)
		return false
	}
	if len(p.seen) >= p.uses+pointUsesSlack {
		s.counts.dropped.Add(1)
		return false
	}
	p.seen[a.hash] = struct{}{}
	if len(p.seen) >= p.uses && !p.spent {
		p.spent = true
		wake(s.work)
	}
	return true
}

// tellWork tells a point which work to ask for.
func (s *Service) tellWork(p *point) {
	ask := s.ask.Load()
	if !s.cfg.Work {
		return
	}
	body := cell.IntroWorkBody{Effort: ask.Effort, Seed: ask.Seed, Previous: ask.Previous}
	if err := p.circuit.IntroWork(body.AppendTo(nil)); err != nil {
		p.circuit.Close() // it would let everybody through, or nobody
	}
}

// controlWork decides what clients are asked for, until Close.
func (s *Service) controlWork(control *work.Controller) {
	tick := time.NewTicker(work.Interval)
	defer tick.Stop()
	published, at := control.Ask(), time.Now()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		now := time.Now()
		ask, changed, err := control.Update(now, s.queue.TakeLoad(now), s.cfg.Rand)
		if err != nil {
			s.cfg.Log.Error("no randomness for proofs of work", "err", err)
		}
		s.mu.Lock()
		var points []*point
		if changed {
			s.ask.Store(&ask)
			points = append(points, s.points...)
		}
		if tells(published, ask, now.Sub(at)) {
			published, at = ask, now
			when := calmly
			if ask.Effort > 0 {
				when = soon
			}
			s.republishLocked(when)
		}
		s.mu.Unlock()
		for _, p := range points {
			s.tellWork(p)
		}
	}
}

// tells reports whether clients should learn of a change by the descriptor: of another seed, and of an effort that is another by a
// quarter, at most once a minute. Points tell those who bring too little.
func tells(published, ask work.Ask, since time.Duration) bool {
	if published.Seed != ask.Seed || (published.Effort == 0) != (ask.Effort == 0) {
		return true
	}
	low, high := uint64(min(published.Effort, ask.Effort)), uint64(max(published.Effort, ask.Effort))
	return 4*high >= 5*low && high != low && since >= time.Minute
}
