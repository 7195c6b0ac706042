package authority

import (
	"context"
	"errors"
	"time"

	"cepa/directory"
)

// outcome is how a round ended.
type outcome uint8

const (
	failed     outcome = iota // without a consensus of its period here
	published                 // with one
	superseded                // a peer votes for a later period in its first round
)

// schedule runs one round after the other until ctx ends.
func (a *Authority) schedule(ctx context.Context) {
	if c := a.Consensus(); c == nil || !c.Fresh(a.now()) {
		a.catchUp(ctx)
	}
	if a.cfg.FirstRound.Relays > 0 && a.Consensus() == nil {
		a.firstRound(ctx)
	}
	for ctx.Err() == nil {
		a.mu.Lock()
		jumps := a.jumps
		a.mu.Unlock()
		jumped := func() bool { return a.jumps != jumps }
		p := a.nextPlan()
		a.keepUp(ctx, p, jumped)
		if a.wait(ctx, p.vote, jumped); ctx.Err() != nil {
			return
		}
		if a.now().Before(p.vote) {
			continue // the clock has jumped
		}
		a.runRound(ctx, p)
	}
}

// keepUp asks the peers for the consensus of the period before that of the plan, if it is not here although it should be out: this authority
// may have missed its round, or most of it.
func (a *Authority) keepUp(ctx context.Context, p plan, jumped func() bool) {
	out := a.cfg.Network.PeriodStart(p.period - 1).Add(a.lead() / 8)
	if out.After(p.vote) {
		return
	}
	here := func() bool { return a.document != nil && a.document.Consensus().Period+1 >= p.period }
	if !a.wait(ctx, out, func() bool { return here() || jumped() }) && ctx.Err() == nil {
		a.catchUp(ctx)
	}
}

// nextPlan returns the plan of the next period whose consensus can still be computed in time. An authority that starts too late to
// vote still fetches, computes and signs.
func (a *Authority) nextPlan() plan {
	now := a.now()
	a.mu.Lock()
	period := a.lastRound + 1
	a.mu.Unlock()
	period = max(period, a.cfg.Network.Period(now))
	for {
		if p := a.planned(period); p.compute.After(now) {
			return p
		}
		period++
	}
}

// firstPatience is how long an authority at most waits for more relays once a peer has begun the first round: a descriptor may have reached the
// others and not it, and they wait no longer than 10 s for its vote.
const firstPatience = 2 * time.Second

// firstRound holds rounds outside the schedule until one has an outcome. It begins when enough relays have published, or the deadline
// passes, or a peer votes; it gives up after one to two periods, when the schedule has a round of its own.
func (a *Authority) firstRound(ctx context.Context) {
	start := a.now()
	scheduled := a.planned(a.cfg.Network.Period(start.Add(a.ahead())) + 2).vote
	limit := scheduled
	if d := a.cfg.FirstRound.Deadline; d > 0 && start.Add(d).Before(limit) {
		limit = start.Add(d)
	}
	enough := func() bool { return a.runningRelays() >= a.cfg.FirstRound.Relays }
	a.wait(ctx, limit, func() bool { return enough() || a.voted() > 0 })
	// A peer has enough, or has waited long enough: ours may be under way.
	a.wait(ctx, minTime(limit, a.now().Add(min(a.lead()/4, firstPatience))), enough)
	for ctx.Err() == nil {
		now := a.now()
		a.mu.Lock()
		period := max(a.cfg.Network.Period(now.Add(a.ahead())), a.voted())
		over := period <= a.lastRound || a.document != nil
		a.mu.Unlock()
		if over || !now.Before(scheduled) {
			return
		}
		if a.runRound(ctx, a.plannedNow(period, now)) != superseded {
			return
		}
	}
}

// ahead is how long before a period first rounds are for it already: no longer than others accept a consensus that is not valid yet.
func (a *Authority) ahead() time.Duration { return min(a.lead(), directory.MaxClockSkew) }

// voted returns the latest period that there is a vote for, 0 if none. a.mu is held.
func (a *Authority) voted() uint64 {
	var latest uint64
	for period, r := range a.rounds {
		if len(r.authors) > 0 {
			latest = max(latest, period)
		}
	}
	return latest
}

// runRound takes a round from the vote to its end (see round).
func (a *Authority) runRound(ctx context.Context, p plan) outcome {
	log := a.log.With("period", p.period)
	a.mu.Lock()
	a.lastRound = max(a.lastRound, p.period)
	r := a.inRound(p.period, a.now())
	a.age()
	a.mu.Unlock()
	if r == nil {
		log.Warn("the clock has jumped: this period is not now; check the clock", "now", a.now())
		return failed
	}
	if a.now().After(p.vote.Add(a.lead() / 16)) {
		// Not from the start, as after a restart: peers do not repeat what they have posted.
		a.pullBallots(ctx, r)
	}
	if a.now().Before(p.cutoff) {
		if err := a.vote(ctx, r, p); err != nil {
			log.Error("no vote in this round", "error", err)
		}
	}
	if a.agree(ctx, r, p) == superseded {
		return superseded
	}
	votes := a.agreed(r)
	if ctx.Err() != nil {
		return failed
	}
	// Not while others wait for what must go fast: what is missing for the consensus alone.
	votes = a.complement(ctx, r, votes, minTime(p.publish.Add(a.lead()/2), p.end))
	c, err := directory.Compute(votes, a.cfg.Network)
	if err != nil {
		log.Warn("no consensus in this period; the last one stays", "votes", len(votes), "error", err)
		return failed
	}
	if err := a.sign(ctx, c, p.end); err != nil {
		log.Error("this consensus is not signed here", "error", err)
	}
	a.learnRandom(p.period, votes)
	a.learnLater(r, votes)

	all := len(a.cfg.Network.Authorities)
	digest := c.Digest()
	signed := func() int { return len(r.signaturesOn(digest)) }
	a.wait(ctx, p.publish, func() bool { return p.first && signed() == all })
	if !a.wait(ctx, p.end, func() bool { return signed() >= a.cfg.Network.Threshold() }) {
		if ctx.Err() == nil {
			a.mu.Lock()
			log.Warn("too few signatures; the last consensus stays", "votes", len(votes), "signatures", signed(),
				"signatures_on_others", len(r.signatures)-signed(), "needed", a.cfg.Network.Threshold())
			a.mu.Unlock()
		}
		return failed
	}
	return a.finish(c, r, log.With("votes", len(votes)))
}

// agree goes through the stages of a round. Only a first round may end them early: there a malicious authority that tells some peers of a
// second vote at the last moment costs the round, and the schedule has the next one; on schedule it costs nothing.
func (a *Authority) agree(ctx context.Context, r *round, p plan) outcome {
	later := func() bool { return p.first && a.voted() > p.period }
	a.wait(ctx, p.cutoff, func() bool { return p.first && a.complete(r) || later() })
	a.mu.Lock()
	jump := later()
	if jump {
		r.seal()
	}
	a.mu.Unlock()
	if jump {
		return superseded
	}
	for stage := 2; stage <= a.stages() && ctx.Err() == nil; stage++ {
		end := a.stageEnd(p, stage)
		if !a.now().Before(end) {
			continue // it starts late
		}
		a.enter(ctx, r, stage, p.compute)
		a.wait(ctx, end, func() bool { return p.first && a.settled(r) })
	}
	return published
}

// enter begins a stage: nothing counts any more with fewer signatures, and what counts is told to all peers.
func (a *Authority) enter(ctx context.Context, r *round, stage int, until time.Time) {
	a.mu.Lock()
	r.stage = stage
	var b *directory.Ballot
	if r.unsent {
		b = a.ballot(r)
	}
	a.mu.Unlock()
	if b != nil {
		a.postAll(ctx, pathBallot, directory.EncodeBallot(a.cfg.Network.Name, b), until)
	}
}

// vote makes this authority's vote for the round and sends its head to the peers. If it has voted for the period before a restart, it is that
// vote.
func (a *Authority) vote(ctx context.Context, r *round, p plan) error {
	v, err := a.storedVote(p.period)
	if err != nil {
		return err
	}
	if v == nil {
		k, err := a.signingKey(p.period)
		if err != nil {
			return err
		}
		opinion := a.makeVote(p.period, a.now())
		a.applyRules(opinion)
		opinion.Versions = a.cfg.Network.Versions
		opinion.Random = a.random(p.period)
		b, err := directory.SignVote(opinion, k.Key, k.Certificate)
		if err != nil {
			return err
		}
		if a.cfg.Store != nil {
			if err := a.cfg.Store.Write(voteFile, b); err != nil {
				return err
			}
		}
		if v, err = directory.ParseVote(b, a.cfg.Network, a.known); err != nil {
			return err
		}
	}
	if err := a.addOwn(r, v); err != nil {
		if errors.Is(err, errNotNow) {
			return errors.New("two others are in this authority's name: does it run twice?")
		}
		return err
	}
	a.log.Info("voted", "period", r.period, "relays", len(v.Entries))
	head := directory.EncodeBallot(a.cfg.Network.Name, &directory.Ballot{Period: r.period, Heads: []directory.Head{v.Head()}})
	a.postAll(ctx, pathBallot, head, p.cutoff)
	return nil
}

// sign signs the consensus, if nothing else was signed for its period, and sends the signature to the peers.
func (a *Authority) sign(ctx context.Context, c *directory.Consensus, until time.Time) error {
	k, err := a.signingKey(c.Period)
	if err != nil {
		return err
	}
	if err := a.permitSigning(c.Period, c.Digest()); err != nil {
		return err
	}
	s, err := directory.SignConsensus(c, k.Key, k.Certificate)
	if err != nil {
		return err
	}
	if err := a.addSignature(s); err != nil {
		return err
	}
	a.postAll(ctx, pathSignature, s.Raw(), until)
	return nil
}

func minTime(x, y time.Time) time.Time {
	if y.Before(x) {
		return y
	}
	return x
}
