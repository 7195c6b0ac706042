package authority

import (
	"context"
	"time"

	"cepa/clock"
)

// clockTick is how often the clock is compared with the time that has passed.
const clockTick = 5 * time.Second

// clockStep is by how much both may differ before it counts as a jump: stages of a round are shorter in networks with short intervals.
func (a *Authority) clockStep() time.Duration { return min(a.lead()/8, 30*time.Second) }

// watchClock says in the log when the clock is set, and makes the schedule look at it anew.
func (a *Authority) watchClock(ctx context.Context) {
	clock.Watch(ctx, clockTick, a.clockStep(), a.now, func(j clock.Jump) {
		a.log.Warn("the clock has jumped: all authorities must agree on the time; check it, and how it is set", "by", j.By.Round(time.Millisecond), "now", j.After.UTC())
		a.mu.Lock()
		defer a.mu.Unlock()
		a.jumps++
		// Rounds that a clock ahead of its time has made are forgotten. The files still say what was voted and signed.
		a.lastRound = min(a.lastRound, a.cfg.Network.Period(j.After))
		a.notify()
	})
}
