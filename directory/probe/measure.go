package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"cepa/crypto/identity"
	"cepa/directory"
)

// Defaults and bounds of measuring. All are ours.
const (
	// DefaultMeasureEvery is from one measurement of a relay to the next.
	DefaultMeasureEvery = 24 * time.Hour
	// DefaultMeasureBytes is the most that one measurement draws.
	DefaultMeasureBytes = 128_000_000
	// LeastMeasureBytes is what the slowest relays need.
	LeastMeasureBytes = 1_000_000
	// DefaultMeasureRate is the most that all measurements draw together, in bytes per second: 100 Mbit/s. A relay that is faster is measured as this.
	DefaultMeasureRate = 12_500_000
	// LeastMeasureRate is the least that makes sense, in bytes per second.
	LeastMeasureRate = 100_000
	// keepMeasured is for how many times Measure.Every a measurement counts when there is no newer one.
	keepMeasured = 4
	// manyRelays is from how many relays in the consensus on two are measured at once: in a smaller network they would be in each other's way.
	manyRelays = 100
	// measureTime is about how long a measurement takes, to plan with.
	measureTime = 20 * time.Second
	// turnTime is how long an authority has its turn in a network that is small enough to take turns.
	turnTime = 2 * time.Minute
	// turnEnd is before the end of a turn when nothing is begun any more.
	turnEnd = 30 * time.Second
	// measurePoll is how often the measurer looks for what is due.
	measurePoll = 5 * time.Second
)

// Measure says how relays are measured. What is 0 has its default.
type Measure struct {
	// Every is from one measurement of a relay to the next.
	Every time.Duration
	// Bytes is the most that one measurement draws, LeastMeasureBytes or more.
	Bytes int64
	// Rate is the most that all of them draw together, in bytes per second, LeastMeasureRate or more.
	Rate int64
}

// measured is the last measurement of a relay.
type measured struct {
	kbps     uint64 // 0: none
	when     int64  // Unix time of it
	next     time.Time
	failures int
	busy     bool
}

// measurer measures relays.
//
// Authorities keep out of each other's way, by the clock. In a small network each has its turn of two minutes, one after the other. Where there are too
// many relays for that, they are shared out anew twelve times while all are measured once: then no two authorities measure the same relay at once.
type measurer struct {
	p       *Prober
	cfg     Measure
	limiter *rate.Limiter
	index   int // of this authority among all
}

func newMeasurer(p *Prober, cfg Measure) (*measurer, error) {
	if cfg.Every == 0 {
		cfg.Every = DefaultMeasureEvery
	}
	if cfg.Bytes == 0 {
		cfg.Bytes = DefaultMeasureBytes
	}
	if cfg.Rate == 0 {
		cfg.Rate = DefaultMeasureRate
	}
	switch {
	case cfg.Every < time.Minute:
		return nil, fmt.Errorf("probe: measuring each relay every %v is too often: a minute is the least", cfg.Every)
	case cfg.Bytes < LeastMeasureBytes:
		return nil, fmt.Errorf("probe: a measurement of at most %d bytes tells nothing: %d are the least", cfg.Bytes, LeastMeasureBytes)
	case cfg.Rate < LeastMeasureRate:
		return nil, fmt.Errorf("probe: measuring with %d bytes a second tells nothing: %d are the least", cfg.Rate, LeastMeasureRate)
	}
	index := slices.IndexFunc(p.cfg.Network.Authorities, func(a directory.Authority) bool { return a.Identity == p.cfg.Self })
	if index < 0 {
		return nil, errors.New("probe: only an authority of the network measures: Config.Self is none")
	}
	burst := max(int(cfg.Rate/10), readSize)
	return &measurer{p: p, cfg: cfg, limiter: rate.NewLimiter(rate.Limit(cfg.Rate), burst), index: index}, nil
}

// measuredLocked returns what counts of the measurement of r. p.mu is held.
func (p *Prober) measuredLocked(r *relay) uint64 {
	if p.measure == nil || p.cfg.Now().Unix()-r.measured.when > int64(keepMeasured*p.measure.cfg.Every/time.Second) {
		return 0
	}
	return r.measured.kbps
}

// run measures until ctx ends.
func (m *measurer) run(ctx context.Context, consensus func() *directory.Consensus) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, 2)
	for ctx.Err() == nil {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c := consensus()
		group := m.next(c)
		if len(group) == 0 {
			<-slots
			pause(ctx, measurePoll)
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			m.group(ctx, c, group)
		})
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// next returns the relay that has waited longest for a measurement, and those that share an address with it, and marks them as busy; nil when there is
// none to be measured now. They are measured together: what they have is one connection.
func (m *measurer) next(c *directory.Consensus) []*directory.Relay {
	p := m.p
	if c == nil || c.CheckTime(p.cfg.Now()) != nil {
		return nil
	}
	if left, _ := p.voting(); left > 0 {
		return nil
	}
	now, date := time.Now(), p.cfg.Now()
	offset := p.random(len(c.Relays)) // among those that were never measured, chance decides
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *directory.Relay
	var bestWhen int64
	busy := false
	for i := range c.Relays {
		entry := &c.Relays[(i+offset)%len(c.Relays)]
		r := p.relays[entry.Identity]
		switch {
		case r == nil || !r.awake():
		case r.measured.busy:
			busy = true
		case r.measured.next.After(now), best != nil && r.measured.when >= bestWhen:
		case m.turn(entry.Identity, len(c.Relays), date):
			best, bestWhen = entry, r.measured.when
		}
	}
	if best == nil || busy && len(c.Relays) < manyRelays {
		return nil
	}
	var group []*directory.Relay
	for i := range c.Relays {
		entry := &c.Relays[i]
		r := p.relays[entry.Identity]
		if r == nil || r.measured.busy || !r.awake() || entry != best && !neighbours(entry, best) {
			continue
		}
		r.measured.busy = true
		group = append(group, entry)
	}
	return group
}

// neighbours reports whether two relays share an address.
func neighbours(a, b *directory.Relay) bool {
	return slices.ContainsFunc(a.Addresses, func(x netip.AddrPort) bool {
		return slices.ContainsFunc(b.Addresses, func(y netip.AddrPort) bool { return door(x.Addr()) == door(y.Addr()) })
	})
}

// turn reports whether this authority may measure a relay now.
func (m *measurer) turn(id identity.ID, relays int, date time.Time) bool {
	n := len(m.p.cfg.Network.Authorities)
	if n == 1 {
		return true
	}
	if time.Duration(relays*n)*measureTime <= m.cfg.Every {
		at := date.Unix() % int64(turnTime/time.Second)
		return int(date.Unix()/int64(turnTime/time.Second)%int64(n)) == m.index && at < int64((turnTime-turnEnd)/time.Second)
	}
	share := binary.BigEndian.Uint64(id[:]) + uint64(date.Unix())/max(1, uint64(m.cfg.Every/time.Second)/12)
	return int(share%uint64(n)) == m.index
}

// group measures relays at once.
func (m *measurer) group(ctx context.Context, c *directory.Consensus, group []*directory.Relay) {
	var wg sync.WaitGroup
	for _, target := range group {
		wg.Go(func() {
			kbps, err := m.draw(ctx, c, target)
			if ctx.Err() != nil {
				return
			}
			m.note(target, kbps, err)
		})
	}
	wg.Wait()
	m.p.mu.Lock()
	for _, target := range group {
		if r := m.p.relays[target.Identity]; r != nil {
			r.measured.busy = false
		}
	}
	m.p.mu.Unlock()
	m.p.notify()
}

// note keeps the outcome of a measurement.
func (m *measurer) note(target *directory.Relay, kbps uint64, err error) {
	p := m.p
	p.mu.Lock()
	r := p.relays[target.Identity]
	if r == nil {
		p.mu.Unlock()
		return
	}
	now := time.Now()
	if err == nil {
		r.measured.kbps, r.measured.when, r.measured.failures = min(kbps, directory.MaxWeight), p.cfg.Now().Unix(), 0
		r.measured.next = now.Add(p.upTo(m.cfg.Every))
	} else {
		again := max(m.cfg.Every/48, time.Minute) << min(r.measured.failures, 10)
		r.measured.failures++
		r.measured.next = now.Add(p.upTo(min(again, m.cfg.Every)))
	}
	p.dirty = true
	p.mu.Unlock()
	if err != nil {
		p.cfg.Log.Debug("relay could not be measured", "nickname", target.Nickname, "relay", target.Identity.Short(), "error", err)
		return
	}
	p.cfg.Log.Debug("relay measured", "nickname", target.Nickname, "relay", target.Identity.Short(), "kbps", kbps)
}

// capacity is what a relay is thought to carry, to choose helpers by.
func (m *measurer) capacity(entry *directory.Relay) (kbps uint64, busy bool) {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	kbps = entry.Weight
	if r := m.p.relays[entry.Identity]; r != nil {
		if x := m.p.measuredLocked(r); x > 0 {
			kbps = x
		}
		busy = r.measured.busy
	}
	return max(kbps, 1), busy
}
