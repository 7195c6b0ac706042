// Package clock notices when the date jumps: a laptop slept, or somebody set its
// clock. Timers do not notice, as they go by a clock that stands still while the
// machine sleeps and that nobody sets; so whoever waits for a date by a timer must
// look again.
package clock

import (
	"context"
	"log/slog"
	"time"
)

// Tolerance is by how much date and timers may differ from one look to the next: clocks
// that are put right by and by differ by milliseconds, and half a minute does no harm
// to anything here. Ours.
const Tolerance = 30 * time.Second

// Jump is a difference between what the date says has passed and what timers say.
type Jump struct {
	By    time.Duration // above 0: forward
	After time.Time     // the date after it
}

// Log says what happened, and what to do where there is something to do.
func (j Jump) Log(log *slog.Logger) {
	if j.By > 0 {
		log.Warn("the date has jumped forward: this machine slept, or its clock was set; if it did not sleep, check the clock",
			"by", j.By.Round(time.Second), "now", j.After.UTC().Truncate(time.Second))
		return
	}
	log.Warn("the date has jumped back: the clock was set; check that it is right now",
		"by", (-j.By).Round(time.Second), "now", j.After.UTC().Truncate(time.Second))
}

// Watch calls f after each jump by more than tolerance until ctx ends. It looks every so
// often, which is how late it may notice after the machine has woken. now is the date;
// time.Now when nil.
func Watch(ctx context.Context, every, tolerance time.Duration, now func() time.Time, f func(Jump)) {
	if now == nil {
		now = time.Now
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	// Without their monotonic readings dates differ as dates do.
	timer, date := time.Now(), now().Round(0)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		passed, next := time.Since(timer), now().Round(0)
		by := next.Sub(date) - passed
		timer, date = timer.Add(passed), next
		if by > tolerance || by < -tolerance {
			f(Jump{by, next})
		}
	}
}
