package visit

import (
	"context"
	"time"
)

// How relays are asked for a descriptor; ours.
const (
	// hedgeAfter is how long the first may take until another one is asked beside it: longer than an answer takes as a rule, and
	// shorter than a user waits for.
	hedgeAfter = time.Second
	// maxAsked bounds those that are asked at the same time.
	maxAsked = 3
)

// outcome is what came of one of several attempts.
type outcome[T any] struct {
	value T
	err   error
}

// hedge makes attempts 0 to n-1, in this order, until one succeeds or stop says of its error that the others would do no better. It
// begins with one at a time, and has one more under way for each that has failed, and each time that hedgeAfter passes without
// an answer, up to maxAsked. start runs a function in a goroutine. Those that are not needed any more have their ctx end. The
// errors are those of all that failed; when ctx ends, its cause is the last one.
func hedge[T any](ctx context.Context, n int, start func(func()), stop func(error) bool, attempt func(context.Context, int) (T, error)) (value T, failed []error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan outcome[T], n)
	begun, ended, width := 0, 0, 1
	timer := time.NewTimer(hedgeAfter)
	defer timer.Stop()
	for {
		for begun < n && begun-ended < width {
			i := begun
			begun++
			start(func() {
				x, err := attempt(ctx, i)
				results <- outcome[T]{x, err}
			})
		}
		if ended == n {
			return value, failed
		}
		select {
		case r := <-results:
			ended++
			if r.err == nil {
				return r.value, nil
			}
			failed = append(failed, r.err)
			if stop(r.err) {
				return value, failed
			}
			width = min(width+1, maxAsked)
		case <-timer.C:
			width = min(width+1, maxAsked)
			timer.Reset(hedgeAfter)
		case <-ctx.Done():
			return value, append(failed, context.Cause(ctx))
		}
	}
}
