package authority

import (
	"context"
	"time"
)

// clockTick is how often the clock is compared with the time that has passed.
const clockTick = 5 * time.Second

// clockStep is by how much both may differ before it counts as a jump: stages of a round are shorter in networks with short intervals.
func (a *Authority) clockStep() time.Duration { return min(a.lead()/8, 30*time.Second) }

// watchClock says in the log when the clock is set, and makes the schedule look at it anew.
func (a *Authority) watchClock(ctx context.Context) {
	began, wall := time.Now(), a.now().Round(0)
	ticker := time.NewTicker(clockTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		now, passed := a.now().Round(0), time.Since(began)
		jump := now.Sub(wall) - passed
		if jump.Abs() < a.clockStep() {
			continue
		}
		a.log.Warn("the clock has jumped: all authorities must agree on the time; check it, and how it is set", "by", jump.Round(time.Millisecond), "now", now.UTC())
		began, wall = time.Now(), now
		a.mu.Lock()
		a.jumps++
		// Rounds that a clock ahead of its time has made are forgotten. The files still say what was voted and signed.
		a.lastRound = min(a.lastRound, a.cfg.Network.Period(now))
		a.notify()
		a.mu.Unlock()
	}
}
