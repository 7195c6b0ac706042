package relay

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // the zones of the tests, wherever they run
)

func TestQuotaCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		quota Quota
		want  string // part of the error; none when empty
	}{
		{Quota{}, ""},
		{Quota{Bytes: MinQuota}, ""},
		{Quota{Bytes: 1 << 50, Day: 28}, ""},
		{Quota{Bytes: MinQuota - 1}, "100 MB"},
		{Quota{Bytes: -1}, "100 MB"},
		{Quota{Bytes: MinQuota, Day: 29}, "1 to 28"},
		{Quota{Day: -1}, "1 to 28"},
	} {
		err := c.quota.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.quota, err, c.want)
		}
	}
}

// zones are places with different changes to summer time, one at midnight.
func zones(t *testing.T) []*time.Location {
	t.Helper()
	list := []*time.Location{time.UTC}
	for _, name := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut"} {
		l, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

// TestMonths: months follow each other without a gap, on the day and at midnight (or at
// the first moment after it that exists), through changes of the clock and leap days.
func TestMonths(t *testing.T) {
	t.Parallel()
	for _, zone := range zones(t) {
		for day := 1; day <= maxQuotaDay; day++ {
			start := monthStart(time.Date(2023, 1, day, 12, 0, 0, 0, zone), day)
			for i := range 8 * 12 {
				y, m, d := start.Date()
				if want := time.Month(i%12 + 1); m != want || d != day || y != 2023+i/12 || start.Hour() > 1 {
					t.Fatalf("%v, day %d: month %d begins at %v", zone, day, i, start)
				}
				next := monthAfter(start, day)
				for _, now := range []time.Time{start, start.Add(time.Second), start.Add(14 * 24 * time.Hour), next.Add(-time.Second)} {
					if got := monthStart(now, day); !got.Equal(start) {
						t.Fatalf("%v, day %d: at %v the month began at %v, want %v", zone, day, now, got, start)
					}
				}
				if got := next.Sub(start); got < 28*24*time.Hour-time.Hour || got > 31*24*time.Hour+time.Hour {
					t.Fatalf("%v, day %d: the month of %v has %v", zone, day, start, got)
				}
				start = next
			}
		}
	}
}

// ledger checks from outside what is used in each calendar month.
type ledger struct {
	used map[string]uint64
	all  []string
}

func (l *ledger) add(start time.Time, n uint64) {
	key := start.Format("2006-01-02")
	if _, ok := l.used[key]; !ok {
		l.all = append(l.all, key)
	}
	l.used[key] += n
}

// TestQuotaYears: under a steady load a quota of 1 GB is never exceeded in any month, and
// all but 5 % of it is used when the load is enough, for years.
func TestQuotaYears(t *testing.T) {
	t.Parallel()
	const (
		years   = 5 // with the leap day of 2028
		publish = 18 * time.Hour
		// Each step is what passes between two looks; in use the tally's end
		// makes it as short as it must be.
		step = time.Hour
	)
	quota := Quota{Bytes: 1_000_000_000}
	for _, zone := range zones(t)[:3] {
		for _, rate := range []int64{300, 500, 2000, 20_000, 125_000_000} { // bytes/s, both directions together
			for _, day := range []int{1, 2, 28} {
				t.Run(fmt.Sprint(zone, " ", rate, " day ", day), func(t *testing.T) {
					q := quota
					q.Day = day
					b := &books{quota: q, changed: make(chan struct{})}
					m := newTally()
					l := ledger{used: map[string]uint64{}}
					now := time.Date(2026, 1, day, 0, 0, 0, 0, zone)
					end := now.AddDate(years, 0, 0)
					said := now
					var closing time.Duration
					for now.Before(end) {
						start := monthStart(now, day)
						b.fold(m, now)
						closingFor := closing
						if b.anew {
							b.phase, b.anew, closingFor = awake, false, 0
						}
						b.phase = max(b.phase, q.phase(b.month.Used, closingFor))
						if closing = 0; b.phase == 1 {
							closing = closingFor + step
						}
						b.setEnds(m)
						// What links would move in this step, in pieces.
						left := uint64(rate) * uint64(step/time.Second)
						for left > 0 && b.phase != asleep {
							piece := min(left, 1<<20)
							held, ok := m.hold(int(piece), &m.trafficEnd)
							if !ok {
								break
							}
							m.count(&m.read, int(piece), held)
							l.add(start, piece)
							left -= piece
						}
						// And to the authorities, whatever the phase: 9 descriptors.
						if now.Sub(said) >= publish {
							said = now
							for range 9 {
								if held, ok := m.hold(6000, &m.directoryEnd); ok {
									m.count(&m.written, 6000, held)
									l.add(start, 6000)
								}
							}
						}
						// The step ends when the month does.
						next := now.Add(step)
						if begin := monthAfter(start, day); next.After(begin) {
							next = begin
						}
						now = next
					}
					for i, key := range l.all {
						used := l.used[key]
						if used > uint64(q.Bytes) {
							t.Errorf("the month of %s used %d bytes", key, used)
						}
						full := rate*27*24*3600 > q.Bytes
						if full && i < len(l.all)-1 && used < uint64(q.Bytes)*95/100 {
							t.Errorf("the month of %s used only %d bytes", key, used)
						}
					}
					if len(l.all) < years*12 {
						t.Errorf("%d months in %d years", len(l.all), years)
					}
				})
			}
		}
	}
}

// TestClockBack: whatever a clock does, going back never gives quota back.
func TestClockBack(t *testing.T) {
	t.Parallel()
	at := func(month time.Month, day, hour int) time.Time {
		return time.Date(2026, month, day, hour, 0, 0, 0, time.UTC)
	}
	var m month
	m.turn(at(3, 10, 0), 1)
	m.Used = 700
	for _, back := range []time.Time{at(3, 9, 0), at(2, 1, 0), time.Unix(0, 0).UTC(), at(3, 11, 0)} {
		if m.turn(back, 1) || m.Used != 700 || !m.Start.Equal(at(3, 1, 0)) {
			t.Fatalf("at %v: %+v", back, m)
		}
	}
	// The clock is ahead by a month, and put right: what was used before counts too.
	if !m.turn(at(4, 2, 0), 1) || m.Used != 0 {
		t.Fatalf("in April: %+v", m)
	}
	m.Used = 50
	for range 2 {
		if m.turn(at(3, 12, 0), 1) || m.Used != 750 {
			t.Fatalf("back in March: %+v", m)
		}
	}
	if m.turn(at(4, 1, 0), 1) || m.turn(at(4, 30, 23), 1) || m.Used != 750 {
		t.Fatalf("in April again: %+v", m)
	}
	if !m.turn(at(5, 1, 0), 1) || m.Used != 0 {
		t.Fatalf("in May: %+v", m)
	}
	// A second or so is what clocks are put back by every day.
	m.Used = 5
	m.Last = 900
	if m.turn(at(5, 1, 0).Add(-time.Second), 1) || m.Used != 5 {
		t.Fatalf("a second back: %+v", m)
	}
	// Off for years: one month begins.
	if !m.turn(time.Date(2030, 7, 20, 0, 0, 0, 0, time.UTC), 1) || m.turn(time.Date(2030, 7, 21, 0, 0, 0, 0, time.UTC), 1) ||
		!m.Start.Equal(time.Date(2030, 7, 1, 0, 0, 0, 0, time.UTC)) {
		t.Fatalf("years later: %+v", m)
	}
}

// TestMonthMoved: another day, or another zone, makes a month longer and never two of one.
func TestMonthMoved(t *testing.T) {
	t.Parallel()
	at := func(month time.Month, day int) time.Time { return time.Date(2026, month, day, 0, 0, 0, 0, time.UTC) }
	var m month
	m.turn(at(3, 10), 1)
	if m.turn(at(3, 15), 15) || m.turn(at(4, 14), 15) || !m.turn(at(4, 15), 15) {
		t.Errorf("from day 1 to day 15: %+v", m)
	}
	zone := zones(t)
	berlin, york := zone[1], zone[2]
	m = month{}
	m.turn(time.Date(2026, 5, 1, 0, 0, 0, 0, berlin), 1)
	if m.turn(time.Date(2026, 5, 1, 0, 0, 0, 0, york), 1) || m.turn(time.Date(2026, 5, 31, 23, 0, 0, 0, york), 1) ||
		!m.turn(time.Date(2026, 6, 1, 0, 0, 0, 0, york), 1) || m.turn(time.Date(2026, 6, 1, 12, 0, 0, 0, berlin), 1) {
		t.Errorf("from Berlin to New York: %+v", m)
	}
}

// TestLease: what is promised before it is written covers at most a minute at the full
// rate, and never more than the quota.
func TestLease(t *testing.T) {
	t.Parallel()
	q := Quota{Bytes: 100_000_000_000}
	for _, c := range []struct {
		used uint64
		rate Rate
		want uint64
	}{
		{0, Rate{}, 100_000_000_000 / 64},
		{1000, Rate{BytesPerSecond: 20_000}, 1000 + 2*61*20_000},
		{1000, Rate{BytesPerSecond: 20_000, Burst: 100_000}, 1000 + 2*(60*20_000+100_000)},
		{99_999_999_000, Rate{}, 100_000_000_000},
		{200_000_000_000, Rate{}, 200_000_000_000},
	} {
		if got := q.lease(c.used, c.rate); got != c.want {
			t.Errorf("%d used at %+v: up to %d, want %d", c.used, c.rate, got, c.want)
		}
	}
	if got := (Quota{}).lease(7, Rate{}); got != 7 {
		t.Errorf("without a quota: %d", got)
	}
}

// TestBooksFile: the file comes back as it was, and one that is not as it should be is
// refused whatever is wrong in it.
func TestBooksFile(t *testing.T) {
	t.Parallel()
	b := &books{month: month{Start: time.Unix(1_772_323_200, 0), Used: 123, Last: 9}, days: days{Day: 20_000, Read: 1, Written: 2, Past: []dayUsed{{3, 4}}}}
	for lease, want := range map[uint64]uint64{123: 123, 500: 500} {
		data, err := b.encode(lease)
		if err != nil {
			t.Fatal(err)
		}
		var got books
		killed, err := got.load(data)
		if err != nil || killed != (lease > 123) || got.month.Used != want || got.month.Last != 9 || !got.month.Start.Equal(b.month.Start) ||
			got.days.Day != 20_000 || got.days.Written != 2 || len(got.days.Past) != 1 || got.days.Past[0] != b.days.Past[0] {
			t.Errorf("lease %d: %v, %v, %+v", lease, killed, err, got.month)
		}
	}
	good, _ := b.encode(123)
	for what, change := range map[string][2]string{
		"another version": {`"version": 1`, `"version": 2`}, "unknown field": {`"used"`, `"unused"`}, "negative": {`"used": 123`, `"used": -1`},
		"too much": {`"used": 123`, `"used": 9999999999999999999`}, "far month": {`1772323200`, `999999999999999`}, "day": {`20000`, `0`},
		"cut": {"\n}\n", ""}, "more": {"\n}\n", "\n}{}"}, "no JSON": {"{", "\x00"},
	} {
		bad := strings.Replace(string(good), change[0], change[1], 1)
		if _, err := new(books).load([]byte(bad)); err == nil || bad == string(good) {
			t.Errorf("%s: accepted", what)
		}
	}
}

func FuzzBooksFile(f *testing.F) {
	b := &books{month: month{Start: time.Unix(1_772_323_200, 0), Used: 123}, days: days{Day: 20_000, Past: []dayUsed{{3, 4}}}}
	good, _ := b.encode(200)
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var b books
		if _, err := b.load(data); err != nil {
			return
		}
		again, err := b.encode(b.month.Used)
		if err != nil {
			t.Fatal(err)
		}
		var c books
		if _, err := c.load(again); err != nil || c.month.Used != b.month.Used || !c.month.Start.Equal(b.month.Start) {
			t.Errorf("%s: %v", again, err)
		}
		now := time.Unix(1_800_000_000, 0)
		b.fold(newTally(), now) // does not panic
		if _, h := b.days.history(); len(h) > 7 {
			t.Errorf("%d days", len(h))
		}
	})
}

// TestDays: days are counted in UTC and told without a gap, rounded up.
func TestDays(t *testing.T) {
	t.Parallel()
	var d days
	day := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	d.turn(day)
	d.Read, d.Written = 1, 0
	if first, h := d.history(); first != 0 || h != nil {
		t.Errorf("the first day is told: %d %v", first, h)
	}
	d.turn(day.AddDate(0, 0, 1))
	d.Read, d.Written = 256<<20, 256<<20+1
	d.turn(day) // back: goes on
	d.turn(day.AddDate(0, 0, 4))
	first, h := d.history()
	if want := "[{1 0} {1 2} {0 0} {0 0}]"; fmt.Sprint(h) != want || int64(first) != day.Unix()/86400 {
		t.Errorf("first %d, %v, want %s", first, h, want)
	}
	for i := range 20 {
		d.turn(day.AddDate(0, 0, 5+i))
	}
	if first, h = d.history(); len(h) != 7 || int64(first) != day.Unix()/86400+24-7 {
		t.Errorf("after 24 days: first %d, %v", first, h)
	}
	d.turn(day.AddDate(10, 0, 0))
	d.turn(day.AddDate(1, 0, 0)) // ten years were a mistake
	if first, h = d.history(); first != 0 || h != nil {
		t.Errorf("after a clock that was ahead: %d %v", first, h)
	}
}

func TestOverloaded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s loadStats
		if s.overloaded(time.Now()) || s.limitedShare() != 0 {
			t.Error("overloaded from the start")
		}
		s.dropped(time.Now())
		time.Sleep(24*time.Hour - time.Second)
		if !s.overloaded(time.Now()) {
			t.Error("not overloaded within a day")
		}
		time.Sleep(time.Second)
		if s.overloaded(time.Now()) {
			t.Error("overloaded after a day")
		}
	})
}

// TestPhase: when a relay closes and when it sleeps.
func TestPhase(t *testing.T) {
	t.Parallel()
	const gb = 1_000_000_000
	for _, c := range []struct {
		quota      int64
		used       uint64
		closingFor time.Duration
		want       phase
	}{
		{0, 1 << 60, time.Hour, awake},
		{gb, 0, 0, awake},
		{gb, 959_999_999, time.Hour, awake},
		{gb, 960_000_000, 0, closing},
		{gb, 960_000_000, 15*time.Minute - 1, closing},
		{gb, 960_000_000, 15 * time.Minute, asleep},
		{gb, 979_999_999, 0, closing},
		{gb, 980_000_000, 0, asleep},
		{gb, 5 * gb, 0, asleep},
		{1000 * gb, 1000*gb - 512_000_001, 0, awake},
		{1000 * gb, 1000*gb - 256_000_000, 0, asleep},
	} {
		if got := (Quota{Bytes: c.quota}).phase(c.used, c.closingFor); got != c.want {
			t.Errorf("%d of %d, closing for %v: %v, want %v", c.used, c.quota, c.closingFor, got, c.want)
		}
	}
}

// TestEnds: links and streams leave the reserve alone, and the directory stops where it
// ends; the first thing to be done is told in time.
func TestEnds(t *testing.T) {
	t.Parallel()
	b := &books{quota: Quota{Bytes: 1_000_000_000}, changed: make(chan struct{})}
	now := time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC)
	m := newTally()
	b.fold(m, now)
	b.month.Used, b.saved, b.lease = 900_000_000, 900_000_000, 916_000_000
	check := func(traffic, directory, alarm uint64) {
		t.Helper()
		b.balance(m, now)
		if m.trafficEnd.Load() != traffic || m.directoryEnd.Load() != directory || m.alarm.Load() != alarm {
			t.Errorf("ends at %d and %d, alarm at %d; want %d, %d, %d", m.trafficEnd.Load(), m.directoryEnd.Load(), m.alarm.Load(), traffic, directory, alarm)
		}
	}
	check(80_000_000, 100_000_000, 8_000_000)
	m.written.Store(80_000_000)
	check(0, 100_000_000, noEnd)
	if m.spent() {
		t.Error("the reserve is gone before it was used")
	}
	m.read.Store(19_990_000)
	check(0, 100_000_000, noEnd)
	if !m.spent() {
		t.Error("there is room for another descriptor")
	}
	if _, ok := m.hold(10_001, &m.directoryEnd); ok {
		t.Error("the directory may pass the quota")
	}
	b.quota, b.anew = Quota{}, true
	check(noEnd, noEnd, noEnd)
	if b.phase != awake {
		t.Errorf("without a quota it is %v", b.phase)
	}
}
