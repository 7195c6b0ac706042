package link

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// keepalive is the writer's timer against silence (doc/spec.md section 3). It
// belongs to the writer goroutine.
type keepalive struct {
	timer *time.Timer // nil on links that may be silent, and before the first wait
	since int64       // the last write that the present delay counts from, as writer.lastWrite
	due   time.Time
}

func (k *keepalive) stop() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

// wait waits, on the writer's goroutine, until it holds the writer: for work, or,
// as it tells, because it was silent for so long that something must be written.
// With an error it holds the writer too, and nobody will again.
func (w *writer) wait() (silent bool, err error) {
	l := w.link
	var fired <-chan time.Time
	for {
		if l.keepalive {
			if err := w.arm(); err != nil {
				l.fail(err)
			} else {
				fired = w.keepalive.timer.C
			}
		}
		select {
		case <-l.wake:
			return false, nil
		case <-l.dying:
			if !l.claim() {
				<-l.wake
			}
			return false, ErrClosed
		case <-fired:
		}
		if !l.claim() {
			continue // somebody is writing
		}
		if time.Since(l.began)-time.Duration(l.lastRead.Load()) > silenceTimeout {
			return false, ErrSilent
		}
		if w.lastWrite.Load() == w.keepalive.since {
			return true, nil
		}
		return false, nil // somebody wrote after the timer was set
	}
}

// claim takes hold of the writer if nobody has, whether there is work or not.
func (l *Link) claim() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.free
	l.free = false
	return was
}

// arm sets the timer. The delay is drawn once for each write, so that being
// woken for nothing does not make the silence longer.
func (w *writer) arm() error {
	k := &w.keepalive
	if last := w.lastWrite.Load(); k.timer == nil || k.since != last {
		delay, err := w.delay()
		if err != nil {
			return err
		}
		k.since, k.due = last, w.link.began.Add(time.Duration(last)+delay)
	}
	if left := time.Until(k.due); k.timer == nil {
		k.timer = time.NewTimer(left)
	} else {
		k.timer.Reset(left)
	}
	return nil
}

// delay draws the length of a silence.
func (w *writer) delay() (time.Duration, error) {
	k := w.link.cfg.Keepalive
	shortest, longest := k.Min, k.Max
	if !k.Empty && w.link.spare.Load() {
		shortest, longest = k.ReducedMin, k.ReducedMax
	}
	var b [8]byte
	if _, err := io.ReadFull(w.link.cfg.Rand, b[:]); err != nil {
		return 0, fmt.Errorf("link: drawing the time of the next padding: %w", err)
	}
	// The remainder favours early times by less than 2^-30: nobody can see it.
	return shortest + time.Duration(binary.BigEndian.Uint64(b[:])%uint64(longest-shortest+1)), nil
}

// breakSilence seals what breaks the silence: what has come since, or PADDING, or
// an empty record when PADDING would pass its budget or is not wanted.
func (w *writer) breakSilence() (out []byte, err error) {
	allowed := unlimited
	if w.claim != nil {
		if allowed, err = w.await(recordSize(1), recordSize(1)); err != nil {
			return nil, err
		}
		defer func() { w.refund(allowed - len(out)) }()
	}
	now := time.Now()
	if out, _ := w.fill(now, false, allowed); len(out) > 0 {
		return out, nil
	}
	// A key that is due goes before padding where a record has room for one.
	w.batch.rekey = w.rekeyDue(now)
	if !w.batch.rekey || w.link.cfg.RecordCells > 1 && w.claim == nil {
		k := &w.link.cfg.Keepalive
		w.batch.padding = !k.Empty && !w.link.spare.Load() && (k.Spend == nil || k.Spend(recordSize(1)))
	}
	return w.seal(w.small[:0], now), nil
}
