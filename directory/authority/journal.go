package authority

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"cepa/directory"
	"cepa/directory/mirror"
)

// Files of the store besides descriptorsFile. Before a vote or a signature leaves, it is written down, so that after a restart within
// the period the authority repeats what it said instead of saying something else.
const (
	consensusFile = "consensus" // last good one
	voteFile      = "vote"      // own vote of the last round
	signedFile    = "signed"    // period and digest of the last consensus that was signed

	// maxSignedFile is the longest signedFile in bytes: a number of 20 digits, a space, 64 hex digits, a line end.
	maxSignedFile = 86
)

// load reads the store. Files that are damaged are an error: an authority must not forget without anybody noticing.
func (a *Authority) load() error {
	if a.cfg.Store == nil {
		return nil
	}
	if err := a.loadDescriptors(); err != nil {
		return err
	}
	b, err := a.cfg.Store.Read(consensusFile, directory.MaxConsensusSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("authority: consensus: %w", err)
	}
	c, err := directory.VerifyConsensus(b, a.cfg.Network)
	if err != nil {
		return fmt.Errorf("authority: stored file %q: %w; move it away to start without it", consensusFile, err)
	}
	if err := c.CheckTime(a.now()); err != nil {
		a.log.Info("stored consensus is of no use now", "error", err)
		return nil
	}
	a.document = mirror.NewDocument(c)
	a.archive.Add(c)
	return nil
}

// storedVote returns the vote that this authority has signed for the period before, if it has.
func (a *Authority) storedVote(period uint64) (*directory.Vote, error) {
	if a.cfg.Store == nil {
		return nil, nil
	}
	b, err := a.cfg.Store.Read(voteFile, directory.MaxVoteSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := directory.ParseVote(b, a.cfg.Network, a.known)
	if err != nil {
		// It was ours, and writes are atomic: the network file has changed, and nobody will take that vote.
		a.log.Warn("stored vote is of no use", "error", err)
		return nil, nil
	}
	if v.Period != period || v.Authority != a.self.Identity {
		return nil, nil
	}
	return v, nil
}

// permitSigning returns nil if the digest may be signed for the period, after writing down that it is.
func (a *Authority) permitSigning(period uint64, digest [32]byte) error {
	if a.cfg.Store == nil {
		return nil
	}
	b, err := a.cfg.Store.Read(signedFile, maxSignedFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		var last uint64
		var lastDigest string
		if _, err := fmt.Sscanf(string(b), "%d %s\n", &last, &lastDigest); err != nil {
			return fmt.Errorf("stored file %q is damaged: move it away once the clock has passed the end of the period", signedFile)
		}
		if last > period {
			return fmt.Errorf("period %d is over: %d was signed already; is the clock behind?", period, last)
		}
		if last == period && lastDigest != hex.EncodeToString(digest[:]) {
			return fmt.Errorf("another consensus of period %d was signed before", period)
		}
	}
	return a.cfg.Store.Write(signedFile, fmt.Appendf(nil, "%d %x\n", period, digest))
}

// saveLoop writes the descriptors soon after they change, and once more at the end if they have.
func (a *Authority) saveLoop(ctx context.Context) {
	for {
		select {
		case <-a.dirty:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(saveDelay):
		case <-ctx.Done():
		}
		a.saveDescriptors()
	}
}

// publish makes a verified consensus the one that is served, unless there is a newer one, and stores it.
func (a *Authority) publish(c *directory.Consensus) {
	doc := mirror.NewDocument(c)
	a.mu.Lock()
	if a.document != nil && a.document.Consensus().Period >= c.Period {
		a.mu.Unlock()
		return
	}
	a.document = doc
	a.notify()
	a.mu.Unlock()
	a.archive.Add(c)
	if a.cfg.Store == nil {
		return
	}
	if err := a.cfg.Store.Write(consensusFile, c.Raw()); err != nil {
		a.log.Error("consensus could not be stored; it is served nevertheless", "error", err)
	}
}
