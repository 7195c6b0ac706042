package client

import (
	"slices"
	"sync"
	"time"
)

// How long a circuit may take; all ours.
const (
	// minBuildTimeout is the least that all hops may take: a relay that answers
	// CREATEs in turn may need 1.75 s for one.
	minBuildTimeout = 2 * time.Second
	// buildHistory is how many circuits are remembered, and fewBuilds how many there
	// have to be before the timeout goes by them; from manyBuilds on it comes close.
	buildHistory = 200
	fewBuilds    = 5
	manyBuilds   = 20
	// buildPercentile of the remembered times is multiplied, by looseBuilds or, with
	// many of them, closeBuilds, for the timeout.
	buildPercentile = 90
	looseBuilds     = 4
	closeBuilds     = 2
)

// buildTimes are how long the last circuits took. They live as long as the process and no
// longer, and not beyond a change of network: they are a mark of the place where the
// machine was, and a new place has others.
type buildTimes struct {
	mu    sync.Mutex
	times []time.Duration // oldest first
}

// add notes how long a circuit took. One that ran into its timeout counts as twice as
// long: more than one in ten of them make the timeout grow until they do not.
func (b *buildTimes) add(took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.times) == buildHistory {
		b.times = slices.Delete(b.times, 0, 1)
	}
	b.times = append(b.times, took)
}

// timeout returns how long the next one may take.
func (b *buildTimes) timeout() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.times) < fewBuilds {
		return buildTimeout
	}
	sorted := slices.Sorted(slices.Values(b.times))
	factor := time.Duration(closeBuilds)
	if len(sorted) < manyBuilds {
		factor = looseBuilds
	}
	d := sorted[(len(sorted)*buildPercentile-1)/100]
	return min(max(factor*d, minBuildTimeout), buildTimeout)
}

// reset forgets all.
func (b *buildTimes) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.times = nil
}
