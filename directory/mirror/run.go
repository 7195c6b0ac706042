package mirror

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"cepa/directory"
)

// The pause after a fetch that brought nothing new starts at minPause and grows by half each time, so that a dead network sees about 14
// attempts in the first 30 seconds; it ends at maxPause, or a quarter of the interval if that is less. Each pause is spread by ±25 %.
const (
	minPause = 100 * time.Millisecond
	maxPause = 10 * time.Minute
	// hurriedPause is the pause that Hurry leaves, so that many in a hurry are no flood.
	hurriedPause = 2 * time.Second
	// clockPause is the least pause while the clock here seems to be wrong: until somebody sets it, nothing helps.
	clockPause = 5 * time.Second
)

// Attempts side by side: who has no valid consensus does not wait for one slow source.
const (
	// maxAttempts is how many are under way at once.
	maxAttempts = 4
	// lookEvery is how often their progress is looked at, and youngFor how old an attempt is before that says anything about it.
	lookEvery = 2 * time.Second
	youngFor  = 4 * time.Second
	// movingSpeed and briskSpeed, in bytes a second: below the first an attempt does not move; with one that has the second, or two that
	// move, no other is begun. The lowest rate of a relay is 20 KB/s.
	movingSpeed = 2_000
	briskSpeed  = 20_000
	// maxStill is how often in a row an attempt may be found not to move before it is given up, and maxStillCalm with a valid consensus, when there is no
	// hurry and circuits are built first.
	maxStill     = 4
	maxStillCalm = 16
)

// Run fetches the consensus, and then each new one, until ctx ends. Only one Run may be active.
func (m *Mirror) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if until := m.due(); until > 0 {
			m.doze(ctx, until)
			continue
		}
		m.search(ctx)
	}
}

// search tries sources until there is a newer consensus or ctx ends.
func (m *Mirror) search(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	changed := m.Changed()
	s := &searching{
		Mirror: m, ctx: ctx, before: m.Current(), results: make(chan *attempt), good: make(chan Source, maxAttempts),
		outcomes: make(map[string]outcome), pause: minPause,
	}
	defer s.forgive()
	defer s.wg.Wait()
	defer cancel()
	next := time.NewTimer(0)
	defer next.Stop()
	rested, due := time.Now(), time.Now()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			s.succeeded()
			return
		case a := <-s.results:
			s.failed(a)
			d := m.spread(s.pause)
			rested, due = time.Now(), time.Now().Add(d)
			next.Reset(d)
			s.pause = min(s.pause+s.pause/2, maxPause, max(m.cfg.Network.Interval/4, minPause))
		case <-m.hurry:
			if soon := rested.Add(hurriedPause); len(s.running) == 0 && soon.Before(due) {
				next.Reset(time.Until(soon))
			}
		case <-next.C:
			if len(s.running) == 0 || s.short {
				s.launch()
			}
		case <-look.C:
			if s.look(); s.short {
				s.launch()
			}
		}
	}
}

// searching is one search. It belongs to Run's goroutine.
type searching struct {
	*Mirror
	ctx     context.Context
	wg      sync.WaitGroup
	before  *directory.Consensus
	results chan *attempt // that have failed
	good    chan Source   // that had a newer consensus; room for all attempts

	queue    []Source
	running  []*attempt
	short    bool               // those that are running do not suffice
	outcomes map[string]outcome // of each source, the last
	last     error
	stale    []Source // that said that they have nothing newer
	pause    time.Duration
}

// launch begins an attempt with the next source that is not being tried.
func (s *searching) launch() {
	if len(s.running) >= maxAttempts {
		return
	}
	if len(s.queue) == 0 {
		s.queue = s.sources()
	}
	source := s.queue[0]
	s.queue = s.queue[1:]
	for _, a := range s.running {
		if a.source.key() == source.key() {
			return
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, fetchTimeout)
	a := &attempt{mirror: s.Mirror, source: source, born: time.Now(), cancel: cancel}
	s.running = append(s.running, a)
	s.wg.Go(func() {
		defer cancel()
		if a.err = a.fetch(ctx); a.err == nil {
			if s.Current() != s.before { // the search is over
				s.good <- source
				return
			}
			a.err = ErrNotModified
		}
		select {
		case s.results <- a:
		case <-s.ctx.Done():
		}
	})
}

// failed notes an attempt that brought nothing.
func (s *searching) failed(a *attempt) {
	for i, r := range s.running {
		if r == a {
			s.running = append(s.running[:i], s.running[i+1:]...)
			break
		}
	}
	a.cancel()
	if a.slow.Load() && !errors.Is(a.err, ErrNotModified) {
		a.err = ErrSlow
	}
	a.outcome.err = a.err
	s.outcomes[a.source.key()] = a.outcome
	var bad *directory.Error
	switch {
	case errors.Is(a.err, ErrNotModified):
		if len(s.stale) < maxRemembered {
			s.stale = append(s.stale, a.source)
		}
		s.last = nil
	case a.outcome.untimely:
		s.last = a.err
		if s.clockWrong() {
			s.pause = max(s.pause, clockPause)
		} else {
			s.strike(&a.source, 1)
		}
	case errors.As(a.err, &bad) && !a.byDiff:
		s.last = a.err
		s.strike(&a.source, maxStrikes)
	default:
		s.last = a.err
		s.strike(&a.source, 1)
	}
	a.source.done(a.err)
	s.setProblem(diagnosis(s.outcomes, s.last, s.cfg.Now()))
	if s.last != nil {
		s.logFailure(a.source, a.err)
	}
}

// clockWrong reports whether the clock here seems to be wrong.
func (s *searching) clockWrong() bool {
	var clock *ClockError
	return errors.As(diagnosis(s.outcomes, s.last, s.cfg.Now()), &clock)
}

// forgive clears the strikes of who had a newer consensus. All attempts have ended. Those that another overtook count as tries that brought nothing, so that
// nobody gains by being slow.
func (s *searching) forgive() {
	if len(s.good) > 0 {
		for _, a := range s.running {
			s.strike(&a.source, 1)
		}
	}
	for {
		select {
		case source := <-s.good:
			delete(s.strikes, source.key())
			source.done(nil)
		default:
			return
		}
	}
}

// succeeded settles what a newer consensus tells about those who had none.
func (s *searching) succeeded() {
	s.setProblem(nil)
	for i := range s.stale {
		s.strike(&s.stale[i], 1)
		s.stale[i].done(ErrStale)
	}
}

// look ends attempts that do not move, and finds whether others should begin beside those that are under way.
func (s *searching) look() {
	c := s.Current()
	urgent := c == nil || c.CheckTime(s.cfg.Now()) != nil
	most := maxStillCalm
	if urgent {
		most = maxStill
	}
	moving, brisk := 0, false
	for _, a := range s.running {
		speed := a.progress()
		switch {
		case time.Since(a.born) < youngFor:
			brisk = true // for all that is known
		case speed >= movingSpeed:
			moving++
			a.still = 0
			brisk = brisk || speed >= briskSpeed
		case a.still+1 >= most:
			a.slow.Store(true)
			a.cancel()
		default:
			a.still++
		}
	}
	s.short = urgent && !brisk && moving < 2 && len(s.running) > 0
}

// Hurry makes the next attempt come soon, because somebody needs a consensus now: long after the last one, when the pause has
// grown long, that is worth another look. It never waits.
func (m *Mirror) Hurry() {
	select {
	case m.hurry <- struct{}{}:
	default:
	}
}

// due returns how long to wait before the next fetch: not at all without a valid consensus; otherwise until a random time
// after it stops being fresh, drawn anew until it is reached.
func (m *Mirror) due() time.Duration {
	c := m.Current()
	now := m.cfg.Now()
	if c == nil || c.CheckTime(now) != nil || !c.Fresh(now) {
		return 0
	}
	// Those who serve others fetch in the first eighth of the period, the rest in what follows, up to its middle.
	delay := m.fraction(c.Interval / 8)
	if !m.cfg.Early {
		delay = c.Interval/8 + m.fraction(c.Interval*3/8)
	}
	return c.FreshUntil.Sub(now) + delay
}

// logFailure tells what is worth telling: a document that is not good always, an unreachable source once there was a consensus.
func (m *Mirror) logFailure(s Source, err error) {
	var refused *StatusError
	var bad *directory.Error
	switch {
	case errors.As(err, &bad):
		m.cfg.Log.Warn("fetched consensus is refused", "source", s.Name, "error", err)
	case errors.As(err, &refused) && refused.Code == http.StatusNotFound:
		m.cfg.Log.Debug("no consensus yet", "source", s.Name)
	default:
		m.cfg.Log.Info("consensus could not be fetched, trying another source", "source", s.Name, "error", err)
	}
}

// spread returns d, up to 25 % longer or shorter.
func (m *Mirror) spread(d time.Duration) time.Duration { return d - d/4 + m.fraction(d/2) }

// fraction returns a random duration in [0, d].
func (m *Mirror) fraction(d time.Duration) time.Duration {
	return time.Duration(m.random() % uint64(d+1))
}

// random returns 64 random bits. Without randomness the mirror works on, only less evenly.
func (m *Mirror) random() uint64 {
	var b [8]byte
	if _, err := io.ReadFull(m.cfg.Rand, b[:]); err != nil {
		return 0
	}
	return binary.BigEndian.Uint64(b[:])
}
