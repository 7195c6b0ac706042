package stream

import (
	"testing"
	"time"
)

// consume reads n bytes a step of a stream whose peer always sends what it may,
// for a time, and returns what was granted.
func (r *receiving) consume(now *time.Time, step time.Duration, n int64, rtt, lasts time.Duration) (granted int64) {
	for end := now.Add(lasts); now.Before(end); *now = now.Add(step) {
		k := min(n, r.credit)
		r.credit -= k
		r.consumed += k
		if r.due() {
			granted += r.grant(*now, rtt)
		}
	}
	return granted
}

// TestCreditGrows: where a window lasts for less than a round trip it grows until
// the reader is the limit; where it is enough it stays.
func TestCreditGrows(t *testing.T) {
	const step = 10 * time.Millisecond
	for _, x := range []struct {
		what   string
		rate   int64 // bytes a second that the reader takes and the peer sends
		rtt    time.Duration
		lo, hi int64
	}{
		{"short path", 10_000_000, 10 * time.Millisecond, InitialCredit, InitialCredit},
		{"long path", 12_500_000, 150 * time.Millisecond, 2 * 1_875_000 * 9 / 10, 2 * 1_875_000 * 12 / 10},
		{"slow reader, long path", 100_000, 500 * time.Millisecond, InitialCredit, InitialCredit},
		{"faster than the bound", 1_000_000_000, 150 * time.Millisecond, MaxWindow, MaxWindow},
		{"unknown round trip", 12_500_000, 0, InitialCredit, InitialCredit},
	} {
		r, now := newReceiving(), time.Unix(1, 0)
		r.consume(&now, step, x.rate*int64(step)/int64(time.Second), x.rtt, 10*time.Second)
		if r.window < x.lo || r.window > x.hi {
			t.Errorf("%s: a window of %d bytes, want %d to %d", x.what, r.window, x.lo, x.hi)
		}
		if r.credit < 0 || r.credit+r.consumed > r.window {
			t.Errorf("%s: %d bytes of credit and %d consumed in a window of %d", x.what, r.credit, r.consumed, r.window)
		}
	}
}

// TestCreditPause: a pause, however long, neither counts as a slow reader nor
// makes the window grow by itself.
func TestCreditPause(t *testing.T) {
	const step = 10 * time.Millisecond
	r, now := newReceiving(), time.Unix(1, 0)
	r.consume(&now, step, 125_000, 150*time.Millisecond, 5*time.Second)
	window := r.window
	now = now.Add(time.Hour)
	r.consume(&now, step, 125_000, 150*time.Millisecond, 5*time.Second)
	if r.window < window || r.window > window*12/10 {
		t.Errorf("the window is %d bytes after a pause and was %d", r.window, window)
	}
}
