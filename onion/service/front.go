package service

import (
	"context"
	"fmt"
	"slices"
	"time"

	"cepa/onion"
)

const (
	// fetchTimeout is how long fetching one backend's descriptor may take.
	fetchTimeout = 2 * time.Minute
	// fetchRetryMin and fetchRetryMax bound the pause after failures in a row.
	fetchRetryMin = 5 * time.Second
	fetchRetryMax = 5 * time.Minute
	// fetchEvery is how often descriptors are fetched anew: some of the points in them may have been replaced.
	fetchEvery = 10 * time.Minute
)

// fetched is what a front knows of a backend. Guarded by Service.mu.
type fetched struct {
	points []onion.Point
	until  time.Time // after which they are of no use
	at     time.Time
	err    error
}

// keepMerged keeps what a front publishes, until Close.
func (s *Service) keepMerged() {
	for _, a := range s.cfg.Backends {
		s.spawn(func() { s.follow(a) })
	}
	<-s.ctx.Done()
}

// follow fetches the descriptor of one backend again and again.
func (s *Service) follow(a onion.Address) {
	var retry backoff
	for s.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(s.ctx, fetchTimeout)
		d, err := s.cfg.Fetch(ctx, a)
		cancel()
		if err == nil {
			err = s.fits(d)
		}
		now := time.Now()
		pause := fetchEvery
		s.mu.Lock()
		f := s.fetched[a]
		if f == nil {
			f = new(fetched)
			s.fetched[a] = f
		}
		if f.err = err; err == nil {
			life := d.Lifetime
			if life == 0 || s.net != nil && life > s.net.lifetime() {
				life = maxLifetime
			}
			f.points, f.at, f.until = d.Points, now, now.Add(life)
			pause = min(pause, max(life/4, time.Second))
			retry = backoff{}
		} else {
			retry.failed(now, fetchRetryMin, fetchRetryMax)
			pause = max(retry.until.Sub(now), fetchRetryMin)
			if s.ctx.Err() == nil && !now.Before(f.until) {
				s.problem = fmt.Errorf("service: the descriptor of a backend: %w", err)
			}
		}
		s.mergeLocked(now)
		s.mu.Unlock()
		if !sleep(s.ctx, pause-s.within(pause/4)) {
			return
		}
	}
}

// fits says what keeps a backend's descriptor from being merged.
func (s *Service) fits(d *onion.Descriptor) error {
	switch {
	case d.Suite != uint8(s.cfg.Suite):
		return fmt.Errorf("the backend's layer has suite %d, and the front's %d: they must be the same", d.Suite, uint8(s.cfg.Suite))
	case d.SingleHop != s.cfg.SingleHop:
		return fmt.Errorf("one of front and backend is not anonymous (single hop): both must be, or neither")
	}
	return nil
}

// mergeLocked takes points from all backends in turn, so that each gets as many clients. s.mu is held.
func (s *Service) mergeLocked(now time.Time) {
	var merged []onion.Point
	for i, more := 0, true; more && len(merged) < onion.MaxPoints; i++ {
		more = false
		for _, a := range s.cfg.Backends {
			f := s.fetched[a]
			if f == nil || !now.Before(f.until) || i >= len(f.points) || len(merged) == onion.MaxPoints {
				continue
			}
			more = true
			if !slices.ContainsFunc(merged, func(p onion.Point) bool { return p.Key == f.points[i].Key }) {
				merged = append(merged, f.points[i])
			}
		}
	}
	if slices.Equal(merged, s.merged) {
		wake(s.upload) // all backends may have been heard of now
		return
	}
	if len(s.merged) == 0 {
		s.gather = now.Add(gather)
	}
	s.merged, s.mergedAt = merged, now
	s.republishLocked(soon)
}
