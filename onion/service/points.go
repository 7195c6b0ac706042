package service

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
)

// A point goes through
//
//	building ──▶ fresh (in the descriptor) ──(old, used up)──▶ spent ──(a new one is in its place)──▶ retired ──(published)──▶ closed
//	                  └──(its circuit ends)──▶ gone, and another is built at once
//
// A spent one stays in the descriptor until there is another, and a retired one answers until the descriptor without it is out.
const (
	// pointLifeMin and pointLifeMax bound how long a point serves, drawn for each: so nobody can foretell when the next comes.
	pointLifeMin = 18 * time.Hour
	pointLifeMax = 24 * time.Hour
	// pointUsesMin and pointUsesMax bound how many introductions it passes on, drawn for each. It bounds what the replay cache holds.
	pointUsesMin = 16384
	pointUsesMax = 32768
	// pointUsesSlack is how many more it may pass on while it is replaced; then it is not listened to.
	pointUsesSlack = 4096
	// establishTimeout is how long a circuit and the answer of the point may take.
	establishTimeout = 60 * time.Second
	// pointRetryMin and pointRetryMax bound the pause after failures in a row; the first is tried again at once, and the next few
	// soon, each at another relay: when many are down, some of those that are drawn are down too.
	pointRetryMin = time.Second
	pointRetryMax = 5 * time.Minute
	// pointRetryNone bounds it while there is no point at all: nobody reaches the service then.
	pointRetryNone = 30 * time.Second
	// pointYoung is how long a point must have stood for its end not to count as a failure to build one.
	pointYoung = time.Minute
	// pointAvoid is how long a relay that failed as a point is passed over, and maxAvoided for how many that is kept in mind.
	pointAvoid = 30 * time.Minute
	maxAvoided = 64
	// retiredMost is how long a retired point waits for the new descriptor.
	retiredMost = 10 * time.Minute
	// gather is how long a first publication waits for the points that are still missing, and one after a loss for the replacement.
	gather = 5 * time.Second
	// floodFactor is by how much a point may exceed the rate that it was asked to keep before what it passes on is dropped unseen.
	floodFactor = 2
)

// point is one introduction point that stands.
type point struct {
	relay   identity.ID
	key     *identity.Key
	seal    *onion.SealKey
	circuit Circuit
	born    time.Time
	life    time.Duration
	uses    int           // after which it is replaced
	flow    *rate.Limiter // what it passes on beyond that is dropped unseen

	// Guarded by Service.mu.
	seen      map[[replaySize]byte]struct{} // introductions that it passed on and that were opened
	spent     bool
	retired   uint64 // from which generation of the descriptor on it is not in it; 0: it is
	retiredAt time.Time
}

// keepPoints keeps the points until Close.
func (s *Service) keepPoints() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for s.ctx.Err() == nil {
		now := time.Now()
		next, missing, old := s.workOnPoints(now)
		for _, p := range old {
			p.circuit.Close()
		}
		if missing > 0 {
			if err := s.build(missing, now); err != nil {
				s.fail(err)
				next = min(next, pointRetryMax/10)
			}
		}
		timer.Reset(next)
		select {
		case <-s.work:
		case <-timer.C:
		case <-s.ctx.Done():
		}
	}
}

// workOnPoints does what is due, and returns in what time to look again, how many points to build, and which to close.
func (s *Service) workOnPoints(now time.Time) (next time.Duration, missing int, old []*point) {
	next = time.Minute
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.net == nil {
		return next, 0, nil
	}
	fresh := 0
	for _, p := range s.points {
		if age := now.Sub(p.born); age >= p.life {
			p.spent = true
		} else {
			next = min(next, p.life-age)
		}
		if !p.spent {
			fresh++
		}
	}
	if fresh >= s.cfg.Points {
		changed := false
		for _, p := range s.points {
			if p.spent && p.retired == 0 {
				p.retired, p.retiredAt, changed = s.generation+1, now, true
			}
		}
		if changed {
			s.republishLocked(soon)
		}
	}
	s.points = slices.DeleteFunc(s.points, func(p *point) bool {
		if p.retired == 0 || !s.outLocked(p.retired) && now.Sub(p.retiredAt) < retiredMost {
			return false
		}
		old = append(old, p)
		return true
	})
	missing = s.cfg.Points - fresh - len(s.building)
	if none := now.Add(pointRetryNone); len(s.points) == 0 && s.retry.until.After(none) {
		s.retry.until = none
	}
	if wait := s.retry.until.Sub(now); missing > 0 && wait > 0 {
		return min(next, wait), 0, old
	}
	return next, missing, old
}

// build starts to build so many points. Only keepPoints calls it.
func (s *Service) build(count int, now time.Time) error {
	for range count {
		r, err := s.pick(now)
		if err != nil {
			return fmt.Errorf("service: choosing an introduction point: %w", err)
		}
		s.mu.Lock()
		s.building[r.Identity] = true
		s.mu.Unlock()
		s.wg.Add(1) // above zero: keepPoints runs
		go func() {
			defer s.wg.Done()
			s.addPoint(r.Identity)
		}()
	}
	return nil
}

// pick chooses a relay: by weight, one that is no point, has not just failed as one, and is fit for circuits that last, if
// there is any.
func (s *Service) pick(now time.Time) (*directory.Relay, error) {
	taken, failed := map[identity.ID]bool{}, map[identity.ID]bool{}
	s.mu.Lock()
	for _, p := range s.points {
		taken[p.relay] = true
	}
	for id := range s.building {
		taken[id] = true
	}
	for id, until := range s.failed {
		failed[id] = now.Before(until)
	}
	s.mu.Unlock()
	usable := func(r *directory.Relay) bool { return !taken[r.Identity] && !r.Flags.Has(directory.FlagMiddleOnly) }
	var err error
	for _, fits := range []func(r *directory.Relay) bool{
		func(r *directory.Relay) bool {
			return usable(r) && !failed[r.Identity] && r.Flags.Has(directory.FlagStable)
		},
		func(r *directory.Relay) bool { return usable(r) && !failed[r.Identity] },
		usable,
	} {
		var r *directory.Relay
		r, err = s.cfg.Network.PickPoint(s.cfg.Rand, func(r *directory.Relay) bool { return !fits(r) })
		if err == nil {
			return r, nil
		}
	}
	return nil, err
}

// addPoint makes a relay a point.
func (s *Service) addPoint(relay identity.ID) {
	p, err := s.establish(relay)
	now := time.Now()
	s.mu.Lock()
	delete(s.building, relay)
	closed := s.closed
	switch {
	case closed:
	case err != nil:
		s.problem = err
		s.passOverLocked(relay, now)
		s.retry.failed(now, pointRetryMin, pointRetryMax)
	default:
		if len(s.points) == 0 {
			s.gather = now.Add(gather)
		}
		s.points = append(s.points, p)
		s.republishLocked(soon)
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			s.watch(p)
		}()
	}
	s.mu.Unlock()
	if err == nil && closed {
		p.circuit.Close()
	}
	if err != nil && !closed {
		s.cfg.Log.Debug("an introduction point could not be established", "relay", relay.Short(), "err", err)
	}
	if err == nil && !closed {
		// What was asked for may have changed since the point heard of it.
		s.tellWork(p)
	}
	wake(s.work)
}

// passOverLocked remembers that a relay failed. s.mu is held.
func (s *Service) passOverLocked(relay identity.ID, now time.Time) {
	for id, until := range s.failed {
		if !now.Before(until) {
			delete(s.failed, id)
		}
	}
	if len(s.failed) < maxAvoided {
		s.failed[relay] = now.Add(pointAvoid)
	}
}

// establish builds a circuit to a relay and has it be a point.
func (s *Service) establish(relay identity.ID) (*point, error) {
	ctx, cancel := context.WithTimeout(s.ctx, establishTimeout)
	defer cancel()
	p := &point{relay: relay, seen: map[[replaySize]byte]struct{}{}}
	var err error
	if p.key, err = identity.Generate(s.cfg.Rand); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if p.seal, err = onion.NewSealKey(s.cfg.Rand); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	life, err := draw(s.cfg.Rand, uint64(pointLifeMax-pointLifeMin)+1)
	if err != nil {
		return nil, err
	}
	uses, err := draw(s.cfg.Rand, pointUsesMax-pointUsesMin+1)
	if err != nil {
		return nil, err
	}
	p.life, p.uses = pointLifeMin+time.Duration(life), pointUsesMin+int(uses)
	body := cell.EstablishIntroBody{Key: p.key.ID(), Rate: uint32(max(s.cfg.IntroRate, 0)), Burst: uint32(s.cfg.IntroBurst)}
	p.flow = rate.NewLimiter(rate.Inf, 0)
	if body.Rate > 0 {
		p.flow = rate.NewLimiter(floodFactor*rate.Limit(body.Rate), floodFactor*int(body.Burst))
	}
	if p.circuit, err = s.cfg.Network.Circuit(ctx, Hop{Relay: relay, Direct: s.cfg.SingleHop}); err != nil {
		return nil, fmt.Errorf("service: introduction point: %w", err)
	}
	copy(body.Signature[:], p.key.Sign(onion.EstablishMessage(p.circuit.Exporter(), body.Rate, body.Burst)))
	p.born = time.Now()
	if err = p.circuit.EstablishIntro(ctx, body.AppendTo(nil), func(payload []byte) { s.take(p, payload) }); err != nil {
		p.circuit.Close()
		return nil, fmt.Errorf("service: introduction point: %w", err)
	}
	return p, nil
}

// watch waits for the end of a point.
func (s *Service) watch(p *point) {
	<-p.circuit.Done()
	now := time.Now()
	s.mu.Lock()
	if i := slices.Index(s.points, p); i >= 0 && !s.closed {
		s.points = slices.Delete(s.points, i, i+1)
		if p.retired == 0 {
			s.passOverLocked(p.relay, now)
			if now.Sub(p.born) < pointYoung {
				s.retry.failed(now, pointRetryMin, pointRetryMax)
			} else {
				s.retry = backoff{}
			}
			s.republishLocked(afterLoss)
		}
	}
	s.mu.Unlock()
	wake(s.work)
}

// listedLocked returns the points that belong into the descriptor: those that are fresh, and spent ones in the place of what is
// missing. s.mu is held.
func (s *Service) listedLocked() (listed []onion.Point) {
	if len(s.cfg.Backends) > 0 {
		return s.merged
	}
	ask := s.ask.Load()
	for _, p := range s.points {
		if p.retired == 0 && len(listed) < onion.MaxPoints {
			listed = append(listed, onion.Point{
				Relay: p.relay, Key: p.key.ID(), Seal: p.seal.Public(), Effort: ask.Effort, Seed: ask.Seed, PreviousSeed: ask.Previous,
			})
		}
	}
	return listed
}

// completeLocked reports whether all points stand. s.mu is held.
func (s *Service) completeLocked() bool {
	if len(s.cfg.Backends) > 0 { // those that could not be heard of are not waited for
		return len(s.merged) > 0 && len(s.fetched) == len(s.cfg.Backends)
	}
	fresh := 0
	for _, p := range s.points {
		if !p.spent {
			fresh++
		}
	}
	return fresh >= s.cfg.Points
}

// draw returns a number below n, all equally likely but for what 64 bits leave.
func draw(random io.Reader, n uint64) (uint64, error) {
	var b [8]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return 0, fmt.Errorf("service: cannot read randomness: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]) % n, nil
}

// within returns a random part of d; none when there is no randomness.
func (s *Service) within(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	x, err := draw(s.cfg.Rand, uint64(d))
	if err != nil {
		return 0
	}
	return time.Duration(x)
}
