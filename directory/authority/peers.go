package authority

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"cepa/directory"
	"cepa/directory/mirror"
)

const (
	// postPause is the pause before a post is tried again; it doubles each time, up to maxPostPause.
	postPause    = 250 * time.Millisecond
	maxPostPause = 10 * time.Second
	// catchUpTime is how long peers may take to hand over their consensus.
	catchUpTime = 5 * time.Second
	// minFetchTime is the least time that a peer gets to hand over something.
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
func (a *Authority) postAll(ctx context.Context, path string, body []byte, until time.Time) {
	for _, peer := range a.peers() {
		if !a.begin() {
			return
		}
		go func() {
			defer a.wg.Done()
			ctx, cancel := context.WithTimeout(ctx, until.Sub(a.now()))
			defer cancel()
			a.post(ctx, peer, path, body)
		}()
	}
}

func (a *Authority) post(ctx context.Context, peer directory.Authority, path string, body []byte) {
	pause := postPause
	for {
		err := mirror.Post(ctx, a.client, peer.Address, path, body, false)
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

// catchUp asks the peers for a consensus newer than the one at hand.
func (a *Authority) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, min(catchUpTime, a.lead()))
	defer cancel()
	etag := ""
	a.mu.Lock()
	if a.document != nil {
		etag = a.document.ETag()
	}
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, peer := range a.peers() {
		wg.Go(func() {
			b, _, err := mirror.Get(ctx, a.client, peer.Address, mirror.PathConsensus, etag, directory.MaxConsensusSize)
			if err != nil {
				return // it is not up, or has none, or the same: its own log tells
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
