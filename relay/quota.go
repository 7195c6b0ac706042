package relay

import (
	"fmt"
	"time"
)

// MinQuota is the lowest monthly quota in bytes: below it the consensus alone, an
// hour for an hour, would use it up.
const MinQuota = 100_000_000

// maxQuotaDay is the last day of the month that every month has.
const maxQuotaDay = 28

// Shares of a quota; all are ours.
const (
	// reserveShare of the quota is kept for what a sleeping relay says to the
	// authorities, and for what is under way when it closes its links.
	reserveShare = 50
	// maxReserve bounds it, in bytes.
	maxReserve = 256_000_000
	// leaseShare of the quota, or minLease bytes if that is more, may be used
	// before the use is written down again.
	leaseShare = 64
	minLease   = 16_000_000
	// saveEvery is how long use may go unwritten.
	saveEvery = time.Minute
	// closingTime is how long a relay that takes no circuits any more keeps
	// those that it has.
	closingTime = 15 * time.Minute
)

// shortestMonth separates the beginning of one month from that of the next: 28 days,
// less what a change to summer time, or of the time zone, may take.
const shortestMonth = 27 * 24 * time.Hour

// Quota is what a relay may move in a month: the bytes that it reads and those that
// it writes together, the same that Rate counts. The zero value means no limit.
type Quota struct {
	// Bytes a month, MinQuota or more; 0: no limit.
	Bytes int64
	// Day of the month, 1 to 28, at whose midnight, in the zone of Config.Now, the
	// month begins; 1 when 0.
	Day int
}

// Check returns an error that names the bounds when the quota is outside them.
func (q Quota) Check() error {
	switch {
	case q.Bytes != 0 && q.Bytes < MinQuota:
		return fmt.Errorf("monthly quota of %d bytes is too low: the minimum is 100 MB (%d bytes)", q.Bytes, MinQuota)
	case q.Day < 0 || q.Day > maxQuotaDay:
		return fmt.Errorf("day %d of the month is out of range: the quota starts anew on a day from 1 to %d, which every month has", q.Day, maxQuotaDay)
	}
	return nil
}

// reserve is what links and streams leave of the quota, in bytes.
func (q Quota) reserve() int64 { return min(q.Bytes/reserveShare, maxReserve) }

// left returns how much of the quota is left; 0 without one.
func (q Quota) left(used uint64) int64 {
	if used >= uint64(q.Bytes) {
		return 0
	}
	return q.Bytes - int64(used)
}

// phase is what a relay does about its quota.
type phase int

const (
	awake   phase = iota
	closing       // takes no links and no circuits, and keeps those that it has
	asleep        // has none
)

// String returns the word for people.
func (p phase) String() string { return [...]string{"awake", "closing", "hibernating"}[p] }

// phase returns what is to be done when so much has been used. closingFor is how
// long the relay has been closing, 0 if it is not.
func (q Quota) phase(used uint64, closingFor time.Duration) phase {
	switch left := q.left(used); {
	case q.Bytes == 0 || left > 2*q.reserve():
		return awake
	case left <= q.reserve(), closingFor >= closingTime:
		return asleep
	default:
		return closing
	}
}

// lease returns up to where use may go before it is written down again. Whoever was
// killed counts all of it as used: more than that was not. It is no more than a
// minute at the full rate.
func (q Quota) lease(used uint64, r Rate) uint64 {
	if q.Bytes == 0 {
		return used
	}
	ahead := max(q.Bytes/leaseShare, minLease)
	if r.BytesPerSecond > 0 {
		ahead = min(ahead, 2*(r.BytesPerSecond*int64(saveEvery/time.Second)+max(r.Burst, r.BytesPerSecond)))
	}
	return used + uint64(min(ahead, q.left(used)))
}

// monthStart returns the last midnight of the day at or before now, in its zone.
func monthStart(now time.Time, day int) time.Time {
	y, m, _ := now.Date()
	start := time.Date(y, m, max(day, 1), 0, 0, 0, 0, now.Location())
	if start.After(now) {
		start = time.Date(y, m-1, max(day, 1), 0, 0, 0, 0, now.Location())
	}
	return start
}

// monthAfter returns when the month after that which began at start begins: a
// midnight of the day, in the zone of start. Where the day or the zone was changed
// meanwhile, months are longer, never shorter.
func monthAfter(start time.Time, day int) time.Time {
	least := start.Add(shortestMonth)
	next := monthStart(least, day)
	if next.Before(least) {
		y, m, _ := next.Date()
		next = time.Date(y, m+1, max(day, 1), 0, 0, 0, 0, start.Location())
	}
	return next
}

// month counts the use of one month.
type month struct {
	Start time.Time // zero: none has begun
	Used  uint64    // bytes, read and written
	// Last is the use of the month before, until it is certain that it is over.
	Last uint64
}

// clockStep is by how much a clock is put back without meaning that it was wrong.
const clockStep = time.Hour

// turn begins a new month when it is time, and reports whether it did. A clock that
// was put back never gives use back: the month stays, and if the clock was wrong
// when the month began, what was used before counts too.
func (m *month) turn(now time.Time, day int) bool {
	switch {
	case m.Start.IsZero():
		m.Start = monthStart(now, day)
		return true
	case !now.Before(monthAfter(m.Start.In(now.Location()), day)):
		*m = month{Start: monthStart(now, day), Last: m.Used}
		return true
	case now.Before(m.Start.Add(-clockStep)):
		m.Used += m.Last
		m.Last = 0
	}
	return false
}

// next returns when the quota starts anew, in the zone of now.
func (m *month) next(now time.Time, day int) time.Time {
	return monthAfter(m.Start.In(now.Location()), day)
}
