package relay

import (
	"context"
	"fmt"
	"time"
)

// sampleEvery is how often a relay with a rate looks whether it holds back.
const sampleEvery = 5 * time.Second

// state returns the phase and a channel that is closed when it changes.
func (b *books) state() (phase, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.phase, b.changed
}

// takes reports whether the relay takes links and circuits.
func (r *Relay) takes() bool {
	p, _ := r.books.state()
	return p == awake
}

// balance counts, finds out what is to be done about it, and sets the tally's ends. It
// reports the phase before and after, whether use is to be written down now, and for
// how long all can stay as it is.
func (b *books) balance(m *tally, now time.Time) (before, after phase, save bool, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fold(m, now)
	before = b.phase
	least := before // there is no way back before the month ends
	if b.anew {
		least = awake
		m.full.Store(false)
	}
	var closingFor time.Duration
	if least == closing {
		closingFor = time.Since(b.since)
	}
	after = max(least, b.quota.phase(b.month.Used, closingFor))
	if m.full.Swap(false) && b.quota.Bytes > 0 {
		after = asleep
	}
	if after != before {
		b.phase, b.since = after, time.Now()
		close(b.changed)
		b.changed = make(chan struct{})
	}
	save = b.anew || b.fresh || after != before || b.quota.Bytes > 0 && b.month.Used >= b.saveAt()
	b.anew = false
	b.setEnds(m)
	b.setAlarm(m)
	wait = min(saveEvery, b.month.next(now, b.quota.Day).Sub(now))
	if after == closing {
		wait = min(wait, closingTime-time.Since(b.since))
	}
	return before, after, save, wait
}

// saveAt is the use at which it is written down before its time: half of what was
// promised to be the most is gone. mu is held.
func (b *books) saveAt() uint64 { return b.saved + (b.lease-b.saved)/2 }

// setEnds tells the tally how far it may go. mu is held.
func (b *books) setEnds(m *tally) {
	if b.quota.Bytes == 0 {
		m.trafficEnd.Store(noEnd)
		m.directoryEnd.Store(noEnd)
		return
	}
	now, left := b.counted.read+b.counted.written, b.quota.left(b.month.Used)
	m.directoryEnd.Store(now + uint64(left))
	if b.phase == asleep {
		m.trafficEnd.Store(0)
		return
	}
	m.trafficEnd.Store(now + uint64(max(left-b.quota.reserve(), 0)))
}

// setAlarm has the tally tell when the next thing is to be done. mu is held.
func (b *books) setAlarm(m *tally) {
	next := uint64(noEnd)
	if b.quota.Bytes > 0 {
		for _, at := range [...]uint64{b.saveAt(), uint64(b.quota.Bytes - 2*b.quota.reserve()), uint64(b.quota.Bytes - b.quota.reserve())} {
			if at > b.month.Used {
				next = min(next, b.counted.read+b.counted.written+at-b.month.Used)
			}
		}
	}
	m.alarm.Store(next)
}

// openBooks is the first look, before anything moves.
func (r *Relay) openBooks() error {
	_, after, _, _ := r.books.balance(r.tally, r.cfg.Now())
	r.told(awake, after)
	if err := r.save(false); err != nil {
		if r.Quota().Bytes > 0 {
			return fmt.Errorf("relay: %w", err)
		}
		r.cfg.Log.Warn("use cannot be stored", "err", err)
	}
	return nil
}

// keepBooks does what use, time and the quota ask for until ctx ends.
func (r *Relay) keepBooks(ctx context.Context) {
	var failures sparse
	lastSave := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.tally.poke:
		case <-timer.C:
			if r.Rate().BytesPerSecond > 0 {
				r.load.sample(r.limiter.exhausted())
			}
		}
		before, after, save, wait := r.books.balance(r.tally, r.cfg.Now())
		r.told(before, after)
		if after == asleep {
			r.closeLinks() // later ones too, whose handshake was under way
		}
		if save || time.Since(lastSave) >= saveEvery {
			lastSave = time.Now()
			if err := r.save(false); err != nil {
				if n := failures.due(time.Now()); n > 0 {
					r.cfg.Log.Error("use is not stored; check the disk and the data directory", "err", err, "count", n)
				}
			}
		}
		if r.Rate().BytesPerSecond > 0 {
			wait = min(wait, sampleEvery)
		}
		timer.Reset(max(wait, 10*time.Millisecond))
	}
}

// told passes a new phase on: to the log and, with the next descriptor, to the
// authorities.
func (r *Relay) told(before, after phase) {
	if before == after {
		return
	}
	u := r.usage()
	switch until := u.MonthEnd.Format(time.RFC3339); after {
	case closing:
		r.cfg.Log.Info("the monthly quota is nearly used up, taking no new circuits", "bytes", u.Month, "until", until)
	case asleep:
		r.cfg.Log.Info("the monthly quota is used up, hibernating", "bytes", u.Month, "until", until)
	default:
		r.cfg.Log.Info("awake again, there is quota left", "bytes", u.QuotaLeft, "until", until)
	}
	r.republishNow()
}

// republishNow makes the next descriptor come at once.
func (r *Relay) republishNow() {
	select {
	case r.republish <- struct{}{}:
	default:
	}
}

// mirrorLoop keeps the consensus new, except while the relay hibernates: then nobody
// asks for it.
func (r *Relay) mirrorLoop(ctx context.Context) {
	for ctx.Err() == nil {
		p, changed := r.books.state()
		if p == asleep {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		run, cancel := context.WithCancel(ctx)
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for p != asleep && run.Err() == nil {
				select {
				case <-changed:
				case <-run.Done():
				}
				p, changed = r.books.state()
			}
			cancel()
		}()
		r.mirror.Run(run)
		cancel()
		<-watched
	}
}
