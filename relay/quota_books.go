package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"cepa/directory"
)

// books are what a relay knows about its use, and what it does about it.
type books struct {
	mu      sync.Mutex // guards what follows; never held while waiting
	quota   Quota
	month   month
	days    days
	counted struct{ read, written uint64 } // of the tally's, those that month and days have
	saved   uint64                         // what the file says that was used this month
	lease   uint64                         // and what it says that may be
	phase   phase
	since   time.Time     // when phase began
	changed chan struct{} // closed, and replaced, when phase changes
	anew    bool          // phase is to be found anew: month or quota have changed
	fresh   bool          // the file says less than it should
}

// fold adds what the tally has counted, and turns month and day.
func (b *books) fold(m *tally, now time.Time) {
	read, written := m.read.Load(), m.written.Load()
	r, w := read-b.counted.read, written-b.counted.written
	b.counted.read, b.counted.written = read, written
	b.month.Used += r + w
	b.days.Read += r
	b.days.Written += w
	if b.month.turn(now, b.quota.Day) {
		b.anew = true
	}
	if b.days.turn(now) {
		b.fresh = true
	}
}

// usageFile is where use lies in the store, and usageFormat the version of its form.
const (
	usageFile    = "usage"
	usageFormat  = 1
	maxUsageFile = 4096
)

// storedUsage is the form of the file.
type storedUsage struct {
	Version int    `json:"version"`
	Month   int64  `json:"month_start"` // Unix seconds
	Used    uint64 `json:"used"`        // bytes
	Lease   uint64 `json:"lease"`       // bytes; used, when the relay has ended in order
	Last    uint64 `json:"last_month"`  // bytes
	Asleep  int64  `json:"asleep"`      // the quota that is used up, in bytes; 0: none
	Days    days   `json:"days"`
}

// maxUsage bounds what a file may say that was used, in bytes: 2^60 is a year at
// 36 GB/s.
const maxUsage = 1 << 60

// load takes what the store holds. It reports whether the relay before did not end in
// order: then all of the lease counts as used.
func (b *books) load(data []byte) (killed bool, err error) {
	var s storedUsage
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return false, fmt.Errorf("it is not as expected: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return false, errors.New("something follows its end")
	}
	d := &s.Days
	switch {
	case s.Version != usageFormat:
		return false, fmt.Errorf("it has version %d, and this program knows version %d", s.Version, usageFormat)
	case s.Month < 0 || s.Month > 1<<38 || d.Day < 0 || d.Day > 1<<21 || len(d.Past) > directory.MaxHistory || int64(len(d.Past)) > d.Day:
		return false, errors.New("a time in it is out of range")
	case max(s.Used, s.Lease, s.Last, d.Read, d.Written) > maxUsage || s.Asleep < 0:
		return false, errors.New("a number of bytes in it is out of range")
	}
	for _, p := range d.Past {
		if max(p.Read, p.Written) > maxUsage {
			return false, errors.New("a number of bytes in it is out of range")
		}
	}
	b.month = month{Start: time.Unix(s.Month, 0), Used: max(s.Used, s.Lease), Last: s.Last}
	b.days = *d
	if s.Asleep > 0 && s.Asleep == b.quota.Bytes {
		b.phase, b.anew = asleep, false
	}
	return s.Lease > s.Used, nil
}

// encode returns the file, which promises that no more than lease will be used before
// the next.
func (b *books) encode(lease uint64) ([]byte, error) {
	s := storedUsage{usageFormat, b.month.Start.Unix(), b.month.Used, lease, b.month.Last, 0, b.days}
	if b.phase == asleep {
		s.Asleep = b.quota.Bytes
	}
	data, err := json.MarshalIndent(s, "", "  ")
	return append(data, '\n'), err
}

// newBooks returns the books that the store holds, or new ones.
func (r *Relay) newBooks() (*books, error) {
	b := &books{quota: r.cfg.Quota, changed: make(chan struct{}), anew: true}
	if r.cfg.Store == nil {
		return b, nil
	}
	data, err := r.cfg.Store.Read(usageFile, maxUsageFile)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what was used of the monthly quota: %w", err)
	}
	killed, err := b.load(data)
	if err != nil {
		return nil, fmt.Errorf("stored file %q, with what was used of the monthly quota: %w; move it away to start without it: the month then counts from 0", usageFile, err)
	}
	if killed && r.cfg.Quota.Bytes > 0 {
		r.cfg.Log.Info("the relay did not end in order; what it may have used unnoticed counts as used", "bytes", b.month.Used)
	}
	if b.month.Start.After(r.cfg.Now().Add(clockStep)) {
		r.cfg.Log.Warn("the month of the quota begins in the future: check the clock; if it was ahead before, move the file usage in the data directory away",
			"until", b.month.Start.Format(time.RFC3339))
	}
	return b, nil
}

// save writes use down: within a minute, before the lease ends, and at the end, when
// nothing more is promised.
func (r *Relay) save(last bool) error {
	b := r.books
	b.mu.Lock()
	b.fold(r.tally, r.cfg.Now())
	used := b.month.Used
	lease := used
	if !last {
		lease = b.quota.lease(used, r.Rate())
	}
	data, err := b.encode(lease)
	b.fresh = false
	b.mu.Unlock()
	if err != nil || r.cfg.Store == nil {
		return err
	}
	if err := r.cfg.Store.Write(usageFile, data); err != nil {
		return fmt.Errorf("what was used of the monthly quota could not be stored, and would be lost in a restart: %w", err)
	}
	b.mu.Lock()
	b.saved, b.lease = used, lease
	b.setAlarm(r.tally)
	b.mu.Unlock()
	return nil
}

// Quota returns the quota that the relay keeps now.
func (r *Relay) Quota() Quota {
	r.books.mu.Lock()
	defer r.books.mu.Unlock()
	return r.books.quota
}

// SetQuota changes the quota of a running relay; what was used this month counts. A
// relay that hibernates and has some left again wakes up. Its errors are those of
// Quota.Check; then nothing has changed.
func (r *Relay) SetQuota(q Quota) error {
	if err := q.Check(); err != nil {
		return err
	}
	b := r.books
	b.mu.Lock()
	if b.quota != q {
		b.quota, b.anew = q, true
	}
	b.mu.Unlock()
	r.tally.wake()
	return nil
}

// Usage is what a relay has used, and what it could not do.
type Usage struct {
	State        string    `json:"state"`               // "awake", "closing" or "hibernating"
	TodayRead    uint64    `json:"today_bytes_read"`    // since midnight UTC
	TodayWritten uint64    `json:"today_bytes_written"` // of all sockets, links, streams and directory
	Month        uint64    `json:"month_bytes"`         // read and written since MonthStart
	MonthStart   time.Time `json:"month_start"`
	MonthEnd     time.Time `json:"month_end"`         // when the quota starts anew
	Quota        int64     `json:"quota_bytes"`       // 0: no limit
	QuotaLeft    int64     `json:"quota_bytes_left"`  // 0 without a quota
	RefusedLinks uint64    `json:"refused_links"`     // since the start: no room, or too many of one address
	RefusedNew   uint64    `json:"refused_circuits"`  // the same of CREATEs
	Overloaded   bool      `json:"overloaded"`        // a CREATE was dropped for lack of capacity in the last 24 h
	RateLimited  float64   `json:"rate_limited_time"` // share of the time, 0…1, in which the rate held something back
}

// usage returns a snapshot.
func (r *Relay) usage() Usage {
	now := r.cfg.Now()
	b := r.books
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fold(r.tally, now)
	return Usage{
		State: b.phase.String(), TodayRead: b.days.Read, TodayWritten: b.days.Written, Month: b.month.Used,
		MonthStart: b.month.Start, MonthEnd: b.month.next(now, b.quota.Day), Quota: b.quota.Bytes, QuotaLeft: b.quota.left(b.month.Used),
		RefusedLinks: r.load.links.Load(), RefusedNew: r.load.creates.Load(),
		Overloaded: r.load.overloaded(time.Now()), RateLimited: r.load.limitedShare(),
	}
}

// extra returns what the descriptor says about state and past.
func (r *Relay) extra() directory.Extra {
	b := r.books
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fold(r.tally, r.cfg.Now())
	e := directory.Extra{Hibernating: b.phase != awake, Overloaded: r.load.overloaded(time.Now())}
	e.FirstDay, e.History = b.days.history()
	return e
}
