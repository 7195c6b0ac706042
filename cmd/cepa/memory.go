package main

import (
	"os"
	"runtime/debug"

	"cepa/relay"
)

// maxMemory returns the bytes that --max-memory asks for.
func maxMemory(text string) (int64, error) {
	if text == "" {
		return relay.DefaultMemory(), nil
	}
	n, err := parseSize(text)
	if err != nil {
		return 0, usagef("--max-memory: %w", err)
	}
	if n < relay.MinMemory {
		return 0, usagef("--max-memory %s: want at least 64MiB", text)
	}
	return n, nil
}

// limitHeap has the garbage collector work harder when the process takes more than a
// relay's budget, a quarter of it for what is not collected yet, and 64 MiB for all
// that the budget does not count: the consensus, stacks, the program. GOMEMLIMIT of
// the environment goes before.
func limitHeap(budget int64) {
	if _, set := os.LookupEnv("GOMEMLIMIT"); !set {
		debug.SetMemoryLimit(heapLimit(budget))
	}
}

func heapLimit(budget int64) int64 { return budget + budget/4 + 64<<20 }
