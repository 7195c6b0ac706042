package authority

import (
	"context"
	"errors"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// A round makes the consensus of one period. All honest authorities must compute it from the same set of votes, although up to f of them
// (f = n − Threshold, fewer than n/3) are malicious: late, silent to some, or with different votes for different peers. Votes themselves are
// large; what is agreed on are their heads, signatures that prove that somebody made a vote (directory.Head). A head counts here once it is
// endorsed by enough authorities for the stage; from then on this authority endorses it, too:
//
//	            own vote written down, signed, its head posted to all peers; votes are fetched from their authors
//	   ┌────────┐ cut-off   ┌─────────┐ as often as there are   ┌─────────┐ time is up   ┌──────────┐
//	──►│ VOTING ├──────────►│ STAGE 2 ├──────── f ─────────────►│ STAGE k ├─────────────►│  SEALED  │
//	   └───┬────┘ ballot:   └─────────┘ ballot, if there is     └─────────┘ the votes    └────┬─────┘
//	       │      all heads   a head counts with 2 signatures,    with k      are fixed       │ descriptors that are missing
//	       │      that count  votes are fetched from endorsers                                │ are fetched, by digest
//	       │                                                                                  ▼
//	       │ first round only: a peer                                                   ┌──────────┐
//	       │ votes for a later period                                                   │ COMPUTED │ digest written down,
//	       ▼                                                                            └────┬─────┘ signed, posted
//	  SUPERSEDED: the round of that                                                          │ publication time,
//	  period begins                                                                          │ Threshold signatures
//	                                                                                         ▼
//	From SEALED with fewer than Threshold votes, or without a descriptor, and from      ┌───────────┐
//	COMPUTED without enough signatures, the round ends without a consensus. Then the    │ PUBLISHED │
//	peers are asked for theirs. The last one stays, and the next period has its own     └───────────┘
//	round.
//
// Stages are numbered from 1, VOTING, to f + 1, or 2 if that is more. In stage k a head counts if
//
//	(a) it has k signatures of different authorities, its author's among them, and
//	(b) its vote is here, or another head of its author with k signatures is.
//
// Whoever counts a head, endorses it and sends it on with its signatures in the ballot that opens the next stage. Of each author at most
// directory.MaxHeads heads are kept. At the end an author with one head that counts has that vote; one with two is proven to equivocate, and
// has none; one with no head has none.
//
// Why all honest authorities end with the same votes, if a small message, and a vote, get from one to another within a stage (Dolev and Strong
// 1983, with the votes' availability added): Let one of them count head X in stage k. If k is not the last one, its ballot carries X with
// k + 1 signatures to all others before stage k + 1 ends, and they get the vote from it, or with X the other head that made it count without;
// so they count X, or two heads of that author, by then. If k is the last one, X has f + 1 signatures, one of which is of an honest authority
// that has counted X in an earlier stage; the same follows. So an author has no head that counts, one and the same, or two, at all of them.
// An honest author's vote reaches all in stage 1, and it has no second one, so its vote is in the set. The votes of honest authorities are at
// least Threshold, so there is a consensus.
//
// Where messages take longer than that, authorities may compute different consensuses, and there are too few signatures on each: none is
// published, nothing forks, and the next period starts afresh. Two consensuses of one period would need Threshold signatures each, so more
// than n/3 authorities that signed both; an honest one writes down what it signs before it signs, and signs one.
//
// What becomes of a vote that is
//   - late: the head comes in stage k with fewer than k signatures, and is refused ("vote came too late");
//   - missing: no head at the end ("vote is missing"), or a head whose vote nobody hands out ("vote is not counted");
//   - made with a signing key that was replaced: refused from whoever knows of the newer key, unless others have endorsed it (see certificates.go);
//   - malformed: the head is as good as none, its vote is refused ("vote is refused"), and its source asked maxBad times;
//   - one of two: two heads prove it, whether they count or not; the proof is kept ("an authority made two votes").
//
// Heads, ballots and signatures of peers may come before the round begins here: they are kept for it.
type round struct {
	period     uint64
	stage      int
	sealed     bool
	over       chan struct{} // closed when no vote is wanted any more
	authors    map[identity.ID][]*candidate
	unsent     bool // something counts that the last ballot did not have
	signatures map[identity.ID]*directory.Signature
	extra      map[[32]byte]*directory.Descriptor // fetched for this round
}

// candidate is a head and what is known of it.
type candidate struct {
	head     directory.Head
	vote     *directory.Vote // nil until it is here
	counts   bool
	fetching bool
	packed   map[[32]byte][]byte // the vote compressed, where somebody asked: against the document with that SHA-256, or none (zeros)
}

// signed returns how many authorities have signed the head.
func (c *candidate) signed() int { return 1 + len(c.head.Endorsements) }

// Errors of adding to a round.
var (
	errNotNow         = errors.New("it is not the time for that")
	errOtherSignature = errors.New("a signature of that authority on another consensus of that period is here already")
)

// inRound returns the round of a period, which may not have begun yet; nil if the period is not close to now. a.mu is held.
func (a *Authority) inRound(period uint64, now time.Time) *round {
	current := a.cfg.Network.Period(now)
	near := func(p uint64) bool { return p+1 >= current && p <= current+1 }
	if !near(period) {
		return nil
	}
	r := a.rounds[period]
	if r == nil {
		for p, old := range a.rounds {
			if !near(p) {
				old.seal()
				delete(a.rounds, p)
			}
		}
		r = &round{
			period:     period,
			stage:      1,
			over:       make(chan struct{}),
			authors:    make(map[identity.ID][]*candidate),
			signatures: make(map[identity.ID]*directory.Signature),
			extra:      make(map[[32]byte]*directory.Descriptor),
		}
		a.rounds[period] = r
	}
	return r
}

// seal fixes the votes. a.mu is held.
func (r *round) seal() {
	if !r.sealed {
		r.sealed = true
		close(r.over)
	}
}

// addBallot takes the heads of a verified ballot and fetches the votes that it tells of.
func (a *Authority) addBallot(b *directory.Ballot) error {
	heads, err := a.withoutReplaced(b.Heads)
	if err != nil && len(heads) == 0 {
		return err
	}
	a.mu.Lock()
	r := a.inRound(b.Period, a.now())
	if r == nil {
		a.mu.Unlock()
		return errNotNow
	}
	var fetch []*candidate
	late := 0
	for _, h := range heads {
		c := a.take(r, h)
		if c == nil {
			late++
		} else if c.vote == nil && !c.fetching && !r.sealed {
			c.fetching = true
			fetch = append(fetch, c)
		}
	}
	a.notify()
	a.mu.Unlock()
	for _, c := range fetch {
		if !a.begin() {
			break
		}
		go func() {
			defer a.wg.Done()
			a.fetchVote(r, c)
		}()
	}
	if late > 0 && late == len(heads) {
		return errNotNow
	}
	return nil
}

// take adds a head to the round, or what is new of one that is there. It returns nil for a head that comes too late or is one too many.
// a.mu is held.
func (a *Authority) take(r *round, h directory.Head) *candidate {
	list := r.authors[h.Authority]
	for _, c := range list {
		if c.head.Digest != h.Digest {
			continue
		}
		for _, e := range h.Endorsements {
			if !slices.ContainsFunc(c.head.Endorsements, func(x directory.Endorsement) bool { return x.Authority == e.Authority }) {
				c.head.Endorsements = append(c.head.Endorsements, e)
			}
		}
		a.count(r, h.Authority)
		return c
	}
	if len(list) > 0 {
		a.keepEvidence(directory.VoteEvidence(a.cfg.Network.Name, r.period, list[0].head, h))
	}
	c := &candidate{head: h}
	if r.sealed || c.signed() < r.stage {
		if len(list) == 0 {
			a.log.Warn("vote came too late", "peer", a.nickname(h.Authority), "period", r.period)
		}
		return nil
	}
	// What has fallen behind makes room: it can only come back with more signatures.
	list = slices.DeleteFunc(list, func(c *candidate) bool { return !c.counts && c.signed() < r.stage })
	if len(list) < directory.MaxHeads {
		list = append(list, c)
	} else {
		c = nil
	}
	r.authors[h.Authority] = list
	a.count(r, h.Authority)
	return c
}

// count makes those heads of an author count that now can, and endorses them. a.mu is held.
func (a *Authority) count(r *round, author identity.ID) {
	if r.sealed {
		return
	}
	list := r.authors[author]
	strong := 0 // heads that have their signatures
	for _, c := range list {
		if c.counts || c.signed() >= r.stage {
			strong++
		}
	}
	for _, c := range list {
		if c.counts || c.signed() < r.stage || c.vote == nil && strong < 2 {
			continue
		}
		c.counts, r.unsent = true, true
		if author != a.self.Identity && !slices.ContainsFunc(c.head.Endorsements, func(e directory.Endorsement) bool { return e.Authority == a.self.Identity }) {
			k := a.signing.Load()
			c.head.Endorsements = append(c.head.Endorsements, c.head.Endorse(a.cfg.Network.Name, r.period, k.Key, k.Certificate))
		}
	}
}

// setVote keeps the vote of a head, which is verified and has its digest.
func (a *Authority) setVote(r *round, c *candidate, v *directory.Vote) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.vote == nil {
		c.vote = v
		a.count(r, v.Authority)
		a.notify()
	}
}

// addOwn adds this authority's vote.
func (a *Authority) addOwn(r *round, v *directory.Vote) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.take(r, v.Head())
	if c == nil {
		return errNotNow
	}
	c.vote = v
	a.count(r, v.Authority)
	a.notify()
	return nil
}

// ballot returns the heads that count, each with as many signatures as anybody can ask for, and clears unsent. a.mu is held.
func (a *Authority) ballot(r *round) *directory.Ballot {
	r.unsent = false
	b := &directory.Ballot{Period: r.period}
	for _, list := range r.authors {
		for _, c := range list {
			if !c.counts {
				continue
			}
			h := c.head
			// Its own first: that is the one that nobody else passes on.
			slices.SortFunc(c.head.Endorsements, func(x, y directory.Endorsement) int {
				if (x.Authority == a.self.Identity) != (y.Authority == a.self.Identity) {
					if x.Authority == a.self.Identity {
						return -1
					}
					return 1
				}
				return x.Authority.Compare(y.Authority)
			})
			h.Endorsements = slices.Clone(c.head.Endorsements[:min(len(c.head.Endorsements), a.stages())])
			b.Heads = append(b.Heads, h)
		}
	}
	return b
}

// heldVote returns a vote of an authority for a period, if one is here.
func (a *Authority) heldVote(period uint64, id identity.ID) *directory.Vote {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.rounds[period]; r != nil {
		for _, c := range r.authors[id] {
			if c.vote != nil {
				return c.vote
			}
		}
	}
	return nil
}

// complete reports whether the vote of every authority counts. a.mu is held.
func (a *Authority) complete(r *round) bool { return a.all(r, func(*candidate) bool { return true }) }

// settled reports whether every authority has endorsed the vote of every authority. a.mu is held.
func (a *Authority) settled(r *round) bool {
	return a.all(r, func(c *candidate) bool { return c.signed() == len(a.cfg.Network.Authorities) })
}

func (a *Authority) all(r *round, ok func(*candidate) bool) bool {
	for _, authority := range a.cfg.Network.Authorities {
		list := r.authors[authority.Identity]
		if len(list) != 1 || !list[0].counts || !ok(list[0]) {
			return false
		}
	}
	return true
}

// agreed seals the round and returns the votes of all authorities that have exactly one head that counts.
func (a *Authority) agreed(r *round) []*directory.Vote {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.seal()
	var votes []*directory.Vote
	for _, authority := range a.cfg.Network.Authorities {
		var counts []*candidate
		for _, c := range r.authors[authority.Identity] {
			if c.counts {
				counts = append(counts, c)
			}
		}
		log := a.log.With("peer", authority.Nickname, "period", r.period)
		switch {
		case len(counts) > 1:
			log.Warn("vote is excluded: its author made two")
		case len(counts) == 1 && counts[0].vote != nil:
			votes = append(votes, counts[0].vote)
		case len(r.authors[authority.Identity]) > 0:
			log.Warn("vote is not counted: it was not to be had in time")
		case authority.Identity != a.self.Identity:
			log.Warn("vote is missing")
		}
	}
	for _, v := range votes {
		a.bases[v.Authority] = v.Raw()
	}
	return votes
}

// addSignature keeps a verified signature of an authority on a consensus of its period.
func (a *Authority) addSignature(s *directory.Signature) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.inRound(s.Period, a.now())
	if r == nil {
		return errNotNow
	}
	old := r.signatures[s.Authority]
	if old == nil {
		r.signatures[s.Authority] = s
		a.notify()
		return nil
	}
	if old.Digest == s.Digest {
		return nil
	}
	a.keepEvidence(directory.ConsensusEvidence(old, s))
	return errOtherSignature
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
	for {
		a.mu.Lock()
		ok := done()
		changed := a.changed
		a.mu.Unlock()
		left := until.Sub(a.now())
		if ok || left <= 0 || ctx.Err() != nil {
			return ok && ctx.Err() == nil
		}
		// The clock may be set meanwhile: look again now and then.
		timer := time.NewTimer(min(left, clockTick))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// nickname returns that of an authority of the network, for logs.
func (a *Authority) nickname(id identity.ID) string {
	if authority, ok := a.cfg.Network.Authority(id); ok {
		return authority.Nickname
	}
	return id.Short()
}
