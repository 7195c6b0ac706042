package main

import (
	"runtime/debug"
	"testing"

	"cepa/relay"
)

func TestMaxMemory(t *testing.T) {
	for text, want := range map[string]int64{
		"": relay.DefaultMemory(), "64MiB": 64 << 20, "2GiB": 2 << 30, "63MiB": 0, "1KB": 0, "much": 0, "-1GiB": 0,
	} {
		if got, err := maxMemory(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// TestLimitHeap: the collector is told, unless the environment tells it.
func TestLimitHeap(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	limitHeap(1 << 30)
	if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("%d although GOMEMLIMIT is set, want %d as before", got, before)
	}
	if got := heapLimit(1 << 30); got <= 1<<30 || got > 3<<29 {
		t.Errorf("%d for a budget of 1 GiB, want somewhat more than that", got)
	}
}
