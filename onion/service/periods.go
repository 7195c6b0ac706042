package service

import (
	"fmt"
	"io"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
)

// Periods of onion services are runs of shared randomness: directory.RandomPeriods intervals of the consensus. A service goes by
// the period of its consensus and not by its clock, and publishes for it and for the one before, because there are clients with
// an older consensus.

const (
	// maxLifetime is how long a client may use a descriptor; shorter in networks with short periods.
	maxLifetime = 3 * time.Hour
	// lifetimeShare is which part of a period that is at most.
	lifetimeShare = 8
	// bundleWarning is how many periods before the end of prepared keys it is warned of it, once in each.
	bundleWarning = 7
)

// PeriodLength returns how long periods are where a consensus is made each interval.
func PeriodLength(interval time.Duration) time.Duration { return directory.RandomPeriods * interval }

// PeriodStart returns when a period starts.
func PeriodStart(interval time.Duration, period uint64) time.Time {
	return time.Unix(int64(period)*int64(PeriodLength(interval)/time.Second), 0).UTC()
}

// PeriodOf returns the period in which t lies.
func PeriodOf(interval time.Duration, t time.Time) uint64 {
	return uint64(max(t.Unix(), 0)) / uint64(PeriodLength(interval)/time.Second)
}

// KeyTimes returns between which times the certificate of a period's key is valid: one period before it, for clocks that are
// ahead of ours, to three after its start, as descriptors of the period before are still used, by clients with an old consensus.
// They are the same for all services, and tell nothing about one.
func KeyTimes(interval time.Duration, period uint64) (notBefore, notAfter time.Time) {
	start, length := PeriodStart(interval, period), PeriodLength(interval)
	if notBefore = start.Add(-length); notBefore.Unix() < 0 {
		notBefore = time.Unix(0, 0).UTC()
	}
	return notBefore, start.Add(3 * length)
}

// Prepare makes the keys of count periods from first on, for a service whose identity stays offline.
func Prepare(id *identity.Key, network *directory.Network, first uint64, count int, random io.Reader) (*onion.KeyBundle, error) {
	if count < 1 || count > onion.MaxBundleKeys {
		return nil, fmt.Errorf("service: keys of %d periods: 1 to %d are possible", count, onion.MaxBundleKeys)
	}
	b := &onion.KeyBundle{Network: network.Name, Address: onion.AddressOf(id.ID())}
	for period := first; period < first+uint64(count); period++ {
		from, to := KeyTimes(network.Interval, period)
		k, err := onion.NewPeriodKey(id, network.Name, period, from, to, random)
		if err != nil {
			return nil, fmt.Errorf("service: %w", err)
		}
		b.Keys = append(b.Keys, k)
	}
	return b, nil
}

// lifetime is that of descriptors.
func (v *view) lifetime() time.Duration {
	return max(min(maxLifetime, v.length/lifetimeShare).Truncate(time.Second), time.Second)
}

// newView returns what a service needs of c.
func newView(c *directory.Consensus) *view {
	run, _ := directory.RandomRun(c.Period)
	v := &view{consensus: c, run: run, length: PeriodLength(c.Interval)}
	for i := range c.Relays {
		r := &c.Relays[i]
		if !r.Flags.Has(directory.FlagRunning | directory.FlagValid) {
			continue
		}
		v.weight += r.Weight
		if r.Flags.Has(directory.FlagHSDir) {
			v.dirs = append(v.dirs, r.Identity)
		}
	}
	return v
}

// targets returns the relays that should hold the descriptor of a blinded key in a period.
func (v *view) targets(blinded identity.ID, period uint64) []identity.ID {
	random := v.consensus.Random.Current
	if period != v.run {
		random = v.consensus.Random.Previous
	}
	p := v.consensus.Params
	ring := onion.NewRing(v.dirs, v.consensus.Network, period, random)
	return ring.Responsible(blinded, int(p.Get(directory.ParamOnionReplicas)), int(p.Get(directory.ParamOnionStore)))
}

// name returns how a relay is told to people.
func (v *view) name(id identity.ID) string {
	if v != nil {
		if r, ok := v.consensus.Lookup(id); ok {
			return r.Nickname + " (" + id.Short() + ")"
		}
	}
	return id.Short()
}

// followConsensus keeps the view until Close.
func (s *Service) followConsensus() {
	for s.ctx.Err() == nil {
		changed := s.cfg.Network.Changed()
		if c := s.cfg.Network.Current(); c != nil {
			s.see(c)
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
		}
	}
}

// see takes a consensus.
func (s *Service) see(c *directory.Consensus) {
	v := newView(c)
	s.mu.Lock()
	old := s.net
	s.mu.Unlock()
	if old != nil && old.consensus == c {
		return
	}
	keys, keyless := s.keysOf(v)
	s.mu.Lock()
	s.keyless = keyless
	s.mu.Unlock()
	if keyless != nil && s.ctx.Err() == nil {
		s.cfg.Log.Error("the onion service cannot be published", "err", keyless)
	}
	if len(keys) == 0 {
		return // what there is is left as it is
	}
	bindings, err := s.bindingsOf(v)
	if err != nil {
		s.fail(err)
		return
	}
	if old == nil || old.run != v.run {
		s.warnOfEnd(v)
	}
	now := time.Now()
	s.mu.Lock()
	s.net = v
	if old == nil || old.run != v.run {
		s.runSince = now
	}
	s.uses.see(v)
	for period := range s.periods {
		if keys[period] == nil {
			delete(s.periods, period)
		}
	}
	for period, k := range keys {
		s.aimLocked(period, k, old == nil, now)
	}
	s.mu.Unlock()
	s.bindings.Store(&bindings)
	wake(s.work)
	wake(s.upload)
}

// keysOf returns the keys of the periods that are published, by period: those that there are, or new ones. Beside an error there may
// be one of the period before, with which those clients find the service who look there too.
func (s *Service) keysOf(v *view) (map[uint64]*onion.PeriodKey, error) {
	c := v.consensus
	if b := s.cfg.Keys; b != nil && b.Network != c.Network {
		return nil, fmt.Errorf("service: the prepared keys are for the network %q, this is %q", b.Network, c.Network)
	}
	keys := map[uint64]*onion.PeriodKey{}
	for _, period := range []uint64{v.run, v.run - 1} {
		if period > v.run {
			continue // before 1970
		}
		s.mu.Lock()
		p := s.periods[period]
		s.mu.Unlock()
		switch {
		case p != nil:
			keys[period] = p.key
		case s.cfg.Keys != nil:
			if k, ok := s.cfg.Keys.Key(period); ok {
				keys[period] = k
			}
		default:
			from, to := KeyTimes(c.Interval, period)
			k, err := onion.NewPeriodKey(s.cfg.Identity, c.Network, period, from, to, s.cfg.Rand)
			if err != nil {
				return nil, fmt.Errorf("service: %w", err)
			}
			keys[period] = k
		}
	}
	if keys[v.run] == nil {
		first, last := s.cfg.Keys.Keys[0].Period, s.cfg.Keys.Keys[len(s.cfg.Keys.Keys)-1].Period
		return keys, fmt.Errorf("%w: this is period %d, and the prepared keys are for %d to %d (%s to %s): prepare new ones where the identity is (cepa onion keys prepare)",
			ErrNoKey, v.run, first, last, PeriodStart(c.Interval, first).Format(time.RFC3339), PeriodStart(c.Interval, last+1).Format(time.RFC3339))
	}
	return keys, nil
}

// warnOfEnd tells of the end of prepared keys.
func (s *Service) warnOfEnd(v *view) {
	if s.cfg.Keys == nil {
		return
	}
	last := s.cfg.Keys.Keys[len(s.cfg.Keys.Keys)-1].Period
	if last < v.run+bundleWarning {
		s.cfg.Log.Warn("the prepared keys of the onion service end soon, and it with them; prepare new ones where the identity is (cepa onion keys prepare)",
			"until", PeriodStart(v.consensus.Interval, last+1))
	}
}

// bindingsOf returns what introductions may be bound to, the likeliest first: clients ask for the descriptor of the present
// period first, and come to a backend by way of its front. Points are left to be filled in.
func (s *Service) bindingsOf(v *view) ([]onion.Binding, error) {
	var all []onion.Binding
	addresses := []onion.Address{s.address}
	if s.cfg.Front != nil {
		addresses = []onion.Address{*s.cfg.Front, s.address}
	}
	for back := range uint64(3) {
		for _, a := range addresses {
			if back > v.run {
				continue
			}
			blinded, err := onion.Blind(a, v.consensus.Network, v.run-back)
			if err != nil {
				return nil, fmt.Errorf("service: %w", err)
			}
			all = append(all, onion.Binding{Address: a, Blinded: blinded, Period: v.run - back})
		}
	}
	return all, nil
}

// bound returns the bindings that are good now. Those of two periods ago are while clients may hold a descriptor of then.
func (s *Service) bound() []onion.Binding {
	all := s.bindings.Load()
	if all == nil {
		return nil
	}
	s.mu.Lock()
	v, since := s.net, s.runSince
	s.mu.Unlock()
	if time.Since(since) >= v.lifetime() {
		for i, b := range *all {
			if b.Period+1 < v.run {
				return (*all)[:i]
			}
		}
	}
	return *all
}
