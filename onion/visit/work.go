package visit

import (
	"context"
	"errors"
	"sync"

	"cepa/cell"
	"cepa/onion"
	"cepa/onion/work"
)

// Limits of proof of work; ours.
const (
	// maxProofs is how many proofs one introduction point may ask for, one after the other.
	maxProofs = 3
	// proofTime bounds one proof: luck may be bad, and it takes work.ClientTime on average at most.
	proofTime = 4 * work.ClientTime
	// measurePuzzles is on how many puzzles the speed of this machine is measured: a fraction of a second.
	measurePuzzles = 20
)

// pow knows how fast this machine is.
type pow struct {
	mu   sync.Mutex
	rate work.Rate // 0: not measured yet
}

// measure returns the rate, which is measured when it is first needed.
func (p *pow) measure(ctx context.Context, workers int) (work.Rate, error) {
	p.mu.Lock()
	rate := p.rate
	p.mu.Unlock()
	if rate > 0 {
		return rate, nil
	}
	rate, err := work.Measure(ctx, measurePuzzles, workers)
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = rate
	return rate, nil
}

// errOldSeed says that an introduction point wants no more work than was done, and so work for another seed: the service publishes
// it, and no other proof for the descriptor at hand is any better.
var errOldSeed = errors.New("visit: the seed of the descriptor is too old")

// prove returns the proof for an introduction for which so much effort is asked, in its so-manieth attempt, and its effort.
func (v *Visitor) prove(ctx context.Context, p *onion.Point, sealed []byte, asked uint32, attempt int) (proof [cell.WorkSize]byte, effort uint32, err error) {
	if asked == 0 {
		return proof, 0, nil // zeros: none
	}
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	rate, err := v.pow.measure(ctx, v.cfg.Workers)
	if err != nil {
		return proof, 0, &Error{Reason: IntroductionFailed, Detail: "it wants proof of work", cause: err}
	}
	// The first proof is for what the descriptor asks, if it asks for any; the next for what the point asks now.
	effort, ok := rate.Choose(asked, max(attempt-1, 0))
	if !ok {
		return proof, 0, &Error{Reason: IntroductionFailed, Detail: "it is overloaded, and wants more work than this machine can do in " + work.ClientTime.String()}
	}
	done, err := work.Solve(ctx, work.Challenge{Seed: p.Seed, Key: p.Key, Sealed: work.SealedSum(sealed)}, effort, v.cfg.Rand, v.cfg.Workers)
	if err != nil {
		return proof, 0, &Error{Reason: IntroductionFailed, Detail: "it wants more work than was done in time", cause: err}
	}
	copy(proof[:], done.AppendTo(nil))
	return proof, effort, nil
}
