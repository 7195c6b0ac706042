package mirror

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
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
)

// Run fetches the consensus, and then each new one, until ctx ends. Only one Run may be active.
func (m *Mirror) Run(ctx context.Context) {
	var queue []Source
	pause := minPause
	for ctx.Err() == nil {
		if until := m.due(); until > 0 {
			m.doze(ctx, until)
			continue
		}
		if len(queue) == 0 {
			queue = m.sources()
		}
		source := queue[0]
		queue = queue[1:]
		before := m.Current()
		err := m.fetch(ctx, source)
		if m.Current() != before {
			pause, queue = minPause, nil
			m.setProblem(nil)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrNotModified) {
			err = nil
		}
		if m.setProblem(err); err != nil {
			m.logFailure(source, err)
		}
		m.rest(ctx, m.spread(pause))
		pause = min(pause+pause/2, maxPause, max(m.cfg.Network.Interval/4, minPause))
	}
}

// rest waits between two attempts, for d, or only for hurriedPause when somebody is in a hurry.
func (m *Mirror) rest(ctx context.Context, d time.Duration) {
	began := time.Now()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-m.hurry:
		m.sleep(ctx, min(d, hurriedPause)-time.Since(began))
	case <-ctx.Done():
	}
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

// sources returns whom to ask, in random order; at least one.
func (m *Mirror) sources() []Source {
	var list []Source
	if m.cfg.Sources != nil {
		list = append(list, m.cfg.Sources(m.Current())...)
	}
	if len(list) == 0 {
		for _, a := range m.cfg.Network.Authorities {
			list = append(list, Source{Name: a.Nickname, Address: a.Address, Dial: m.cfg.Dial})
		}
	}
	for i := len(list) - 1; i > 0; i-- {
		j := int(m.random() % uint64(i+1))
		list[i], list[j] = list[j], list[i]
	}
	return list
}

// fetch asks one source.
func (m *Mirror) fetch(ctx context.Context, s Source) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	client := NewHTTPClient(s.Dial)
	defer client.CloseIdleConnections()
	etag := ""
	if doc := m.document(); doc != nil {
		etag = doc.ETag()
	}
	b, _, err := Get(ctx, client, s.Address, PathConsensus, etag, directory.MaxConsensusSize)
	if err != nil {
		return err
	}
	return m.Add(b)
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

// sleep waits for d or until ctx ends.
func (m *Mirror) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
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
