package probe

import (
	"time"

	"cepa/directory"
)

// history is how a relay has been there, as far as tests tell. The sums are weighted: every half day all that was before counts a
// twentieth less, so that half of the weight is of the last week.
type history struct {
	reached  bool
	lastSeen time.Time // date of the last passed test

	accounted time.Time     // up to when time has been credited
	run       time.Duration // length of the present run; not weighted
	upTime    float64       // seconds in which it was running
	allTime   float64       // seconds since it was first reached
	runs      float64       // that have ended
	runTime   float64       // seconds of those
	age       time.Duration // since the sums were last weighted
}

const (
	weighEvery = 12 * time.Hour
	weighBy    = 0.95
)

// credit counts the time since the last credit as running, or as not. Time before the first passed test does not count.
func (h *history) credit(now time.Time, running bool) {
	d := now.Sub(h.accounted)
	h.accounted = now
	if !h.reached || d <= 0 {
		return
	}
	h.allTime += d.Seconds()
	if running {
		h.upTime += d.Seconds()
		h.run += d
	}
	h.age += d
	for ; h.age >= weighEvery; h.age -= weighEvery {
		h.allTime *= weighBy
		h.upTime *= weighBy
		h.runs *= weighBy
		h.runTime *= weighBy
	}
}

// endRun ends the present run.
func (h *history) endRun() {
	h.runs++
	h.runTime += h.run.Seconds()
	h.run = 0
}

// observed returns the figures, without what the prober adds.
func (h *history) observed() directory.Observed {
	o := directory.Observed{Reached: h.reached, Run: h.run}
	if !h.reached {
		return o
	}
	o.Between = h.run
	if h.runs > 0 {
		o.Between = time.Duration((h.runTime + h.run.Seconds()) / (h.runs + 1) * float64(time.Second))
	}
	o.Uptime = 1
	if h.allTime > 0 {
		o.Uptime = h.upTime / h.allTime
	}
	return o
}
