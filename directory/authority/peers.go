package authority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

const (
	// postPause is the pause before a post is tried again; it doubles each time, up to maxPostPause.
	postPause    = 250 * time.Millisecond
	maxPostPause = 10 * time.Second
	// catchUpTime is how long peers may take to hand over their consensus.
	catchUpTime = 5 * time.Second
	// minFetchTime is the least time that a peer gets to hand over a vote.
	minFetchTime = 100 * time.Millisecond
)

// peers returns the other authorities.
func (a *Authority) peers() []directory.Authority {
	var list []directory.Authority
	for _, peer := range a.cfg.Network.Authorities {
		if peer.Identity != a.self.Identity {
			list = append(list, peer)
		}
	}
	return list
}

// postAll sends a document to all peers in the background, and again where it fails, until the time comes.
func (a *Authority) postAll(ctx context.Context, path string, body []byte, packed bool, until time.Time) {
	for _, peer := range a.peers() {
		if !a.begin() {
			return
		}
		go func() {
			defer a.wg.Done()
			ctx, cancel := context.WithTimeout(ctx, until.Sub(a.now()))
			defer cancel()
			a.post(ctx, peer, path, body, packed)
		}()
	}
}

func (a *Authority) post(ctx context.Context, peer directory.Authority, path string, body []byte, packed bool) {
	pause := postPause
	for {
		err := mirror.Post(ctx, a.client, peer.Address, path, body, packed)
		if err == nil {
			return
		}
		var refused *mirror.StatusError
		if errors.As(err, &refused) && refused.Code < http.StatusInternalServerError {
			a.log.Warn("peer refuses", "peer", peer.Nickname, "path", path, "error", err)
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				a.log.Warn("peer was not reached in time", "peer", peer.Nickname, "path", path, "error", err)
			}
			return
		}
		pause = min(2*pause, maxPostPause)
	}
}

// fetchVotes asks everybody for the missing votes, their authors last, until they are here or the time comes.
func (a *Authority) fetchVotes(ctx context.Context, r *round, missing []identity.ID, until time.Time) {
	ctx, cancel := context.WithTimeout(ctx, until.Sub(a.now()))
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range missing {
		if id == a.self.Identity {
			continue // it has not been made, and nobody else has it
		}
		wg.Go(func() { a.fetchVote(ctx, r, id, until) })
	}
	wg.Wait()
}

func (a *Authority) fetchVote(ctx context.Context, r *round, id identity.ID, until time.Time) {
	var sources []directory.Authority
	for _, peer := range a.peers() {
		if peer.Identity != id {
			sources = append(sources, peer)
		}
	}
	author, _ := a.cfg.Network.Authority(id)
	sources = append(sources, *author)
	path := fmt.Sprintf("%s/%d/%v", pathVote, r.period, id)
	pause := max(until.Sub(a.now())/8, minFetchTime)
	for {
		for _, source := range sources {
			// Nobody may use up all the time.
			limit := max(until.Sub(a.now())/3, minFetchTime)
			if err := a.fetchVoteFrom(ctx, source, path, r.period, id, limit); err == nil {
				return
			} else if ctx.Err() == nil {
				a.log.Debug("vote not fetched", "of", a.nickname(id), "from", source.Nickname, "error", err)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			a.log.Warn("vote is missing", "of", a.nickname(id), "period", r.period)
			return
		}
	}
}

func (a *Authority) fetchVoteFrom(ctx context.Context, source directory.Authority, path string, period uint64, id identity.ID, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b, _, err := mirror.Get(ctx, a.client, source.Address, path, "", directory.MaxVoteSize)
	if err != nil {
		return err
	}
	v, err := directory.ParseVote(b, a.cfg.Network, a.known)
	if err != nil {
		return err
	}
	if v.Period != period || v.Authority != id {
		return fmt.Errorf("the vote of %s for period %d came instead", a.nickname(v.Authority), v.Period)
	}
	return a.addVote(v, false)
}

// catchUp asks the peers for a consensus newer than the one at hand.
func (a *Authority) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, min(catchUpTime, a.lead()))
	defer cancel()
	var wg sync.WaitGroup
	for _, peer := range a.peers() {
		wg.Go(func() {
			b, _, err := mirror.Get(ctx, a.client, peer.Address, mirror.PathConsensus, "", directory.MaxConsensusSize)
			if err != nil {
				return // it is not up, or has none: its own log tells
			}
			c, err := directory.ParseConsensus(b, a.cfg.Network, a.now())
			if err != nil {
				a.log.Warn("consensus of a peer is refused", "peer", peer.Nickname, "error", err)
				return
			}
			a.publish(c)
		})
	}
	wg.Wait()
}

// finish puts the consensus and its signatures together and publishes it.
func (a *Authority) finish(c *directory.Consensus, r *round, log *slog.Logger) outcome {
	a.mu.Lock()
	signatures := r.signaturesOn(c.Digest())
	a.mu.Unlock()
	b, err := directory.AssembleConsensus(c, signatures, a.cfg.Network)
	if err == nil {
		c, err = directory.VerifyConsensus(b, a.cfg.Network)
	}
	if err != nil {
		log.Error("consensus is not published", "error", err)
		return failed
	}
	a.publish(c)
	log.Info("published", "relays", len(c.Relays), "signatures", len(c.Signers), "valid_until", c.ValidUntil)
	return published
}
