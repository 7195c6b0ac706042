package relay

import (
	"sync/atomic"
	"time"

	"cepa/directory"
)

// overloadMemory is for how long after it dropped a CREATE for lack of capacity a
// relay calls itself overloaded.
const overloadMemory = 24 * time.Hour

// days counts use by days, UTC.
type days struct {
	Day           int64     // the present one, in days since 1970; 0: none yet
	Read, Written uint64    // bytes of the present day
	Past          []dayUsed // the days before it without a gap, newest last
}

type dayUsed struct {
	Read, Written uint64 // bytes
}

// turn begins a new day when it is time, and reports whether it did. A clock that is
// put back by a day or less goes on with the day at hand; by more, and the days begin
// anew.
func (d *days) turn(now time.Time) bool {
	day := now.Unix() / (24 * 3600)
	switch ahead := day - d.Day; {
	case d.Day == 0 || ahead < -1:
		*d = days{Day: day}
	case ahead <= 0:
		return false
	default:
		d.Past = append(d.Past, dayUsed{d.Read, d.Written})
		for range min(ahead-1, directory.MaxHistory) {
			d.Past = append(d.Past, dayUsed{})
		}
		if over := len(d.Past) - directory.MaxHistory; over > 0 {
			d.Past = append([]dayUsed(nil), d.Past[over:]...)
		}
		d.Day, d.Read, d.Written = day, 0, 0
	}
	return true
}

// history returns the past days as a descriptor tells them: rounded up.
func (d *days) history() (first uint64, list []directory.DayUse) {
	units := func(bytes uint64) uint64 { return (bytes + directory.HistoryUnit - 1) / directory.HistoryUnit }
	for _, p := range d.Past {
		list = append(list, directory.DayUse{Read: units(p.Read), Written: units(p.Written)})
	}
	if len(list) > 0 {
		first = uint64(d.Day - int64(len(list)))
	}
	return first, list
}

// loadStats counts what the relay could not do.
type loadStats struct {
	creates  atomic.Uint64 // CREATEs refused: no room, or too many of one client
	links    atomic.Uint64 // links refused: no room, or too many of one address
	lastDrop atomic.Int64  // when a CREATE was dropped for lack of capacity, Unix nanoseconds; 0: never

	samples, limited atomic.Uint64 // of looks at the rate; those at which it held back
}

// dropped counts a CREATE for which there was no capacity.
func (s *loadStats) dropped(now time.Time) {
	s.creates.Add(1)
	s.lastDrop.Store(now.UnixNano())
}

// overloaded reports whether a CREATE was dropped lately.
func (s *loadStats) overloaded(now time.Time) bool {
	last := s.lastDrop.Load()
	return last != 0 && now.Sub(time.Unix(0, last)) < overloadMemory
}

// sample notes whether the rate holds back just now.
func (s *loadStats) sample(limited bool) {
	s.samples.Add(1)
	if limited {
		s.limited.Add(1)
	}
}

// limitedShare is the share of the time in which the rate held back; 0…1.
func (s *loadStats) limitedShare() float64 {
	n := s.samples.Load()
	if n == 0 {
		return 0
	}
	return float64(s.limited.Load()) / float64(n)
}
