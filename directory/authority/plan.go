package authority

import "time"

// plan is when a round does what.
type plan struct {
	period  uint64
	vote    time.Time // begin
	cutoff  time.Time // no votes directly from their authors any more
	compute time.Time // the votes are fixed
	publish time.Time // first round: at the latest if Threshold signatures are here; else at the earliest
	end     time.Time // no hope any more
	first   bool
}

// lead is how long before its period a round begins.
func (a *Authority) lead() time.Duration { return min(a.cfg.Network.Interval/4, 10*time.Minute) }

// stages is how many stages a round has.
func (a *Authority) stages() int {
	return max(len(a.cfg.Network.Authorities)-a.cfg.Network.Threshold(), 1) + 1
}

// stageEnd returns when a stage ends.
func (a *Authority) stageEnd(p plan, stage int) time.Time {
	return p.cutoff.Add(p.compute.Sub(p.cutoff) * time.Duration(stage-1) / time.Duration(a.stages()-1))
}

// planned returns the plan of a period on schedule.
func (a *Authority) planned(period uint64) plan {
	start, lead := a.cfg.Network.PeriodStart(period), a.lead()
	return plan{
		period:  period,
		vote:    start.Add(-lead),
		cutoff:  start.Add(-lead / 2),
		compute: start.Add(-lead / 4),
		publish: start,
		end:     start.Add(lead),
	}
}

// plannedNow returns the plan of a first round that begins now.
func (a *Authority) plannedNow(period uint64, now time.Time) plan {
	step := min(a.lead()/2, 10*time.Second)
	return plan{
		period:  period,
		vote:    now,
		cutoff:  now.Add(step),
		compute: now.Add(step + step/2),
		publish: now.Add(2 * step),
		end:     now.Add(4 * step),
		first:   true,
	}
}
