package work

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// ClientTime is how much work a client does for one introduction, on average, at most.
const ClientTime = 10 * time.Second

// Rate is how much effort a client does in a second, all its workers together.
type Rate float64

// Effort returns the effort that takes d on average: 0 if not even 1 can be done.
func (r Rate) Effort(d time.Duration) uint32 {
	effort := float64(r) * d.Seconds()
	switch {
	case !(effort >= 1): // NaN too
		return 0
	case effort >= math.MaxUint32:
		return math.MaxUint32
	}
	return uint32(effort)
}

// Time returns how long an effort takes on average.
func (r Rate) Time(effort uint32) time.Duration {
	seconds := float64(effort) / float64(r)
	if !(seconds < math.MaxInt64/1e9) {
		return math.MaxInt64
	}
	return time.Duration(seconds * 1e9)
}

// Choose returns the effort that a client does for an introduction, in its so-manieth
// attempt (0 is the first), when asked is what the service asks for: 1/8 more, because
// that may rise meanwhile; twice as much with each further attempt; but not more than takes
// ClientTime. false says that this client cannot do what is asked. Nothing asked is
// nothing done, in the first attempt; StartEffort in the second.
func (r Rate) Choose(asked uint32, attempt int) (uint32, bool) {
	most := r.Effort(ClientTime)
	if asked > most {
		return 0, false
	}
	attempt = min(max(attempt, 0), 32)
	effort := uint64(asked) + uint64(asked)/8
	if asked == 0 && attempt > 0 {
		effort = StartEffort
		attempt--
	}
	return uint32(min(effort<<attempt, uint64(most))), true
}

// Measure returns the rate of this machine with so many workers (bounded as in Solve), from the
// time in which each has searched so many puzzles; 100 take a fraction of a second. It returns an
// error if ctx ends before.
func Measure(ctx context.Context, puzzles, workers int) (Rate, error) {
	workers = min(max(workers, 1), MaxWorkers)
	var found atomic.Int64
	var all sync.WaitGroup
	begin := time.Now()
	for i := range workers {
		all.Go(func() {
			t := new(table)
			var root [32]byte
			root[0] = byte(i)
			for n := 0; n < puzzles && ctx.Err() == nil; n++ {
				binary.BigEndian.PutUint64(root[8:], uint64(n))
				t.solve(&root, func(list *[indices]uint16) bool {
					found.Add(1)
					return true
				})
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return 0, fmt.Errorf("work: rate not measured: %w", context.Cause(ctx))
	}
	took := max(time.Since(begin), time.Nanosecond)
	return Rate(float64(found.Load()) / took.Seconds()), nil
}
