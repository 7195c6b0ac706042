package mirror

import (
	"context"
	"time"
)

// Wake has the mirror look at the date again, because that has jumped: a timer that was set before would end too late after the machine
// has slept, and for a date that is another one after the clock was set. It never waits.
func (m *Mirror) Wake() {
	select {
	case m.woken <- struct{}{}:
	default: // it will look anyway
	}
	m.Hurry()
}

// doze waits for d, or until Wake, or until ctx ends.
func (m *Mirror) doze(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.woken:
	case <-ctx.Done():
	}
}
