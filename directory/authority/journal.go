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

// setAside keeps a copy of a damaged file for people, says so, and lets the authority go on without it: its peers have what was in it. It
// returns an error if there is no room for the copy: nothing is thrown away that nobody has seen.
func (a *Authority) setAside(name string, b []byte, reason error) error {
	if err := a.cfg.Store.Write(name+".damaged", b); err != nil {
		return fmt.Errorf("authority: stored file %q: %w; it is damaged, and cannot be set aside (%w): move it away to start without it", name, reason, err)
	}
	a.log.Error("a stored file is damaged; the authority starts without it and keeps a copy", "file", name, "copy", name+".damaged", "error", reason)
	return nil
}

// load reads the store. Files that are damaged are set aside.
func (a *Authority) load() error {
	if a.cfg.Store == nil {
		return nil
	}
	for _, load := range []func() error{a.loadDescriptors, a.loadEvidence, a.loadRandom} {
		if err := load(); err != nil {
			return err
		}
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
		return a.setAside(consensusFile, b, err)
	}
	if err := c.CheckTime(a.now()); err != nil {
		a.log.Info("stored consensus is of no use now", "error", err)
		return nil
	}
	a.document = mirror.NewDocument(c)
	a.archive.Add(c)
	return nil
}

// storedVote returns the vote that this authority has signed for the period before, if it has. A damaged file could have been that: then it is
// an error, and there is no vote for as long as it could be so.
func (a *Authority) storedVote(period uint64) (*directory.Vote, error) {
	if a.cfg.Store == nil {
		return nil, nil
	}
	if period <= a.noVote {
		return nil, fmt.Errorf("stored file %q was damaged, and may have been of this period; the next vote is for period %d", voteFile, a.noVote+1)
	}
	b, err := a.cfg.Store.Read(voteFile, directory.MaxVoteSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := directory.ParseVote(b, a.cfg.Network, a.known)
	if errors.Is(err, directory.ErrWrongNetwork) || errors.Is(err, directory.ErrUnknownSigner) {
		// It was ours: the network file has changed, and nobody will take that vote.
		a.log.Warn("stored vote is of no use", "error", err)
		return nil, nil
	}
	if err != nil {
		if a.noVote == 0 {
			if err := a.setAside(voteFile, b, err); err != nil {
				return nil, err
			}
			a.noVote = max(period, a.cfg.Network.Period(a.now())+1)
			return a.storedVote(period)
		}
		return nil, nil // it lies there until the next vote replaces it
	}
	if v.Authority != a.self.Identity {
		return nil, nil
	}
	a.mu.Lock()
	if a.bases[v.Authority] == nil && v.Period < period {
		a.bases[v.Authority] = v.Raw()
	}
	a.mu.Unlock()
	switch {
	case v.Period == period:
		return v, nil
	case v.Period > period:
		return nil, fmt.Errorf("there is a vote of period %d already; is the clock behind?", v.Period)
	}
	return nil, nil
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
		_, err := fmt.Sscanf(string(b), "%d %s\n", &last, &lastDigest)
		switch {
		case err != nil && a.noSign == 0:
			// Nothing was signed for a period that is later than the next one.
			if err := a.setAside(signedFile, b, err); err != nil {
				return err
			}
			a.noSign = max(period, a.cfg.Network.Period(a.now())+1)
			fallthrough
		case err != nil && period <= a.noSign:
			return fmt.Errorf("stored file %q is damaged, and may have been of this period; the next signature is for period %d", signedFile, a.noSign+1)
		case err != nil:
		case last > period:
			return fmt.Errorf("period %d is over: %d was signed already; is the clock behind?", period, last)
		case last == period && lastDigest != hex.EncodeToString(digest[:]):
			return fmt.Errorf("another consensus of period %d was signed before", period)
		}
	}
	return a.cfg.Store.Write(signedFile, fmt.Appendf(nil, "%d %x\n", period, digest))
}

// saveLoop writes descriptors and evidence soon after they change, and once more at the end if they have.
func (a *Authority) saveLoop(ctx context.Context) {
	for {
		select {
		case <-a.dirty:
		case <-a.dirtyEvidence:
			a.saveEvidence()
			continue
		case <-ctx.Done():
			select {
			case <-a.dirtyEvidence:
				a.saveEvidence()
			default:
			}
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
	a.learnCertificates(c.Raw())
	a.archive.Add(c)
	if a.cfg.Store == nil {
		return
	}
	if err := a.cfg.Store.Write(consensusFile, c.Raw()); err != nil {
		a.log.Error("consensus could not be stored; it is served nevertheless", "error", err)
	}
}
