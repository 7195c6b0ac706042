package authority

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// A round makes the consensus of one period:
//
//	            own vote written down, signed, posted to all peers
//	   ┌───────┐ all votes are here, or cut-off  ┌──────────┐ all votes, or time  ┌──────────┐
//	──►│ VOTING ├───────────────────────────────►│ FETCHING ├────────────────────►│ COMPUTED │
//	   └───┬───┘ direct votes are refused        └──────────┘ votes are frozen    └────┬─────┘
//	       │       from here on; what is missing               consensus computed,     │
//	       │       is fetched from whoever has it              digest written down,    │
//	       │                                                   signed, posted          │
//	       │ first round only: a peer                                                  │ publication time,
//	       │ votes for a later period                                                  │ Threshold signatures
//	       ▼                                                                           ▼
//	  SUPERSEDED: the round of that                                              ┌───────────┐
//	  period begins                                                              │ PUBLISHED │
//	                                                                             └───────────┘
//	From COMPUTED, and from FETCHING with fewer than Threshold votes, the round can also end without a consensus. Then the peers are
//	asked for theirs, and the next period has its own round; until then, the last consensus stays.
//
// Votes and signatures of peers may come before the round begins here: they are kept for it. Fetching after the cut-off is what makes
// all authorities compute from the same votes although some may not reach each other: a vote that anybody has at the cut-off
// reaches everybody.
type round struct {
	period     uint64
	votes      map[identity.ID]*directory.Vote
	packed     map[identity.ID][]byte // votes, compressed, where somebody asked
	closed     bool                   // no votes directly from their authors
	sealed     bool                   // no votes at all
	signatures map[identity.ID]*directory.Signature
}

// Errors of adding to a round.
var (
	errNotNow         = errors.New("it is not the time for that period")
	errOtherVote      = errors.New("another vote of that authority for that period is here already")
	errOtherSignature = errors.New("a signature of that authority on another consensus of that period is here already")
)

// plan is when a round does what.
type plan struct {
	period  uint64
	vote    time.Time // begin
	cutoff  time.Time // no direct votes any more
	compute time.Time // at the latest
	publish time.Time // first round: at the latest if Threshold signatures are here; else at the earliest
	end     time.Time // no hope any more
	first   bool
}

// lead is how long before its period a round begins.
func (a *Authority) lead() time.Duration { return min(a.cfg.Network.Interval/4, 10*time.Minute) }

// planned returns the plan of a period on schedule.
func (a *Authority) planned(period uint64) plan {
	start, lead := a.cfg.Network.PeriodStart(period), a.lead()
	return plan{
		period:  period,
		vote:    start.Add(-lead),
		cutoff:  start.Add(-lead / 2),
		compute: start.Add(-lead / 4),
		publish: start,
		end:     start.Add(lead),
	}
}

// plannedNow returns the plan of a first round that begins now.
func (a *Authority) plannedNow(period uint64, now time.Time) plan {
	step := min(a.lead()/2, 10*time.Second)
	return plan{
		period:  period,
		vote:    now,
		cutoff:  now.Add(step),
		compute: now.Add(step + step/2),
		publish: now.Add(2 * step),
		end:     now.Add(4 * step),
		first:   true,
	}
}

// inRound returns the round of a period, which may not have begun yet; nil if the period is not close to now. a.mu is held.
func (a *Authority) inRound(period uint64, now time.Time) *round {
	current := a.cfg.Network.Period(now)
	near := func(p uint64) bool { return p+1 >= current && p <= current+1 }
	if !near(period) {
		return nil
	}
	r := a.rounds[period]
	if r == nil {
		maps.DeleteFunc(a.rounds, func(p uint64, _ *round) bool { return !near(p) })
		r = &round{
			period:     period,
			votes:      make(map[identity.ID]*directory.Vote),
			packed:     make(map[identity.ID][]byte),
			signatures: make(map[identity.ID]*directory.Signature),
		}
		a.rounds[period] = r
	}
	return r
}

// addVote keeps a verified vote of an authority for its period. direct says that it came from its author.
func (a *Authority) addVote(v *directory.Vote, direct bool) error {
	a.mu.Lock()
	err := a.addVoteLocked(v, direct)
	a.mu.Unlock()
	if errors.Is(err, errOtherVote) {
		a.log.Error("an authority made two votes for one period; the first is kept", "peer", a.nickname(v.Authority), "period", v.Period)
	}
	if err == nil {
		a.learn(v)
	}
	return err
}

func (a *Authority) addVoteLocked(v *directory.Vote, direct bool) error {
	r := a.inRound(v.Period, a.now())
	if r == nil {
		return errNotNow
	}
	if old := r.votes[v.Authority]; old != nil {
		if old.Digest() == v.Digest() {
			return nil
		}
		return errOtherVote
	}
	if r.sealed || direct && r.closed {
		return errNotNow
	}
	r.votes[v.Authority] = v
	a.notify()
	return nil
}

// heldVote returns the vote of an authority for a period, if it is here.
func (a *Authority) heldVote(period uint64, id identity.ID) *directory.Vote {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.rounds[period]; r != nil {
		return r.votes[id]
	}
	return nil
}

// packedVote returns a vote that is here, compressed.
func (a *Authority) packedVote(v *directory.Vote) []byte {
	a.mu.Lock()
	r := a.rounds[v.Period]
	if r != nil && r.packed[v.Authority] != nil {
		defer a.mu.Unlock()
		return r.packed[v.Authority]
	}
	a.mu.Unlock()
	packed := directory.Compress(v.Raw())
	if r != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		r.packed[v.Authority] = packed
	}
	return packed
}

// addSignature keeps a verified signature of an authority on a consensus of its period.
func (a *Authority) addSignature(s *directory.Signature) error {
	a.mu.Lock()
	r := a.inRound(s.Period, a.now())
	if r == nil {
		a.mu.Unlock()
		return errNotNow
	}
	old := r.signatures[s.Authority]
	if old == nil {
		r.signatures[s.Authority] = s
		a.notify()
	}
	a.mu.Unlock()
	if old != nil && old.Digest != s.Digest {
		a.log.Error("an authority signed two consensuses for one period; the first signature is kept", "peer", a.nickname(s.Authority), "period", s.Period)
		return errOtherSignature
	}
	return nil
}

// closeVoting refuses direct votes from now on and returns whose votes are missing.
func (a *Authority) closeVoting(r *round) []identity.ID {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.closed = true
	var missing []identity.ID
	for _, authority := range a.cfg.Network.Authorities {
		if r.votes[authority.Identity] == nil {
			missing = append(missing, authority.Identity)
		}
	}
	return missing
}

// sealVotes refuses all votes from now on and returns those that are here.
func (a *Authority) sealVotes(r *round) []*directory.Vote {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.closed, r.sealed = true, true
	return slices.Collect(maps.Values(r.votes))
}

// signaturesOn returns the signatures on one consensus. a.mu is held.
func (r *round) signaturesOn(digest [32]byte) []*directory.Signature {
	var list []*directory.Signature
	for _, s := range r.signatures {
		if s.Digest == digest {
			list = append(list, s)
		}
	}
	return list
}

// wait waits until done, which is called with a.mu held, or the time comes or ctx ends; it reports what done says in the end.
func (a *Authority) wait(ctx context.Context, until time.Time, done func() bool) bool {
	timer := time.NewTimer(until.Sub(a.now()))
	defer timer.Stop()
	for {
		a.mu.Lock()
		ok := done()
		changed := a.changed
		a.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			a.mu.Lock()
			defer a.mu.Unlock()
			return done()
		case <-ctx.Done():
			return false
		}
	}
}

// nickname returns that of an authority of the network, for logs.
func (a *Authority) nickname(id identity.ID) string {
	if authority, ok := a.cfg.Network.Authority(id); ok {
		return authority.Nickname
	}
	return id.Short()
}
