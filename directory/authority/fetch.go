package authority

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

const (
	// maxBad is how many votes that are none a source may hand out for one head before it is asked no more.
	maxBad = 3
	// maxLearned is how many descriptors an authority takes over from its peers' votes in a period, beyond those that the consensus needs.
	maxLearned = 4 * directory.MaxBatch
)

// pullBallots asks all peers what they know of a round.
func (a *Authority) pullBallots(ctx context.Context, r *round) {
	ctx, cancel := context.WithTimeout(ctx, min(catchUpTime, a.lead()/16))
	defer cancel()
	var wg sync.WaitGroup
	for _, peer := range a.peers() {
		wg.Go(func() {
			b, _, err := mirror.Get(ctx, a.client, peer.Address, fmt.Sprintf("%s/%d", pathBallot, r.period), "", a.cfg.Network.MaxBallotSize())
			if err != nil {
				return // it is not up, or has none
			}
			ballot, err := a.verified.ParseBallot(b, a.cfg.Network)
			if err == nil && ballot.Period == r.period {
				err = a.addBallot(ballot)
			}
			if err != nil {
				a.log.Warn("ballot is refused", "peer", peer.Nickname, "error", err)
			}
		})
	}
	wg.Wait()
}

// source is one of those who may have a vote.
type source struct {
	*directory.Authority
	asked, bad int
	busy       bool
}

// fetchVote gets the vote of a head from its author, then also from those who endorse it, until it is here or no longer wanted. Who does not
// answer does not hold up the others.
func (a *Authority) fetchVote(r *round, c *candidate) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	type result struct {
		from *source
		err  error
	}
	results := make(chan result, len(a.cfg.Network.Authorities))
	sources := make(map[identity.ID]*source)
	patience := a.lead() / time.Duration(16*(a.stages()-1)) // a quarter of a stage: then the next one is asked too
	for pause := postPause; ; {
		from, done := a.nextSource(r, c, sources)
		if done {
			return
		}
		if from != nil {
			from.busy = true
			from.asked++
			wg.Go(func() { results <- result{from, a.fetchVoteFrom(ctx, from.Authority, r, c)} })
		}
		wait := time.NewTimer(patience)
		select {
		case res := <-results:
			wait.Stop()
			if res.err == nil {
				return
			}
			res.from.busy = false
			var bad *directory.Error
			if errors.As(res.err, &bad) || errors.Is(res.err, directory.ErrMalformed) || errors.Is(res.err, directory.ErrTooLarge) {
				if res.from.bad++; res.from.bad == 1 {
					a.log.Warn("vote is refused", "of", a.nickname(c.head.Authority), "from", res.from.Nickname, "error", res.err)
				}
			} else {
				a.log.Debug("vote not fetched", "of", a.nickname(c.head.Authority), "from", res.from.Nickname, "error", res.err)
			}
			select {
			case <-time.After(min(pause, patience)):
			case <-r.over:
				return
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, maxPostPause)
		case <-wait.C:
		case <-r.over:
			wait.Stop()
			return
		case <-ctx.Done():
			wait.Stop()
			return
		}
	}
}

// nextSource returns whom to ask next for the vote of a head, nil if there is nobody else at present. done says that it is not wanted any more.
func (a *Authority) nextSource(r *round, c *candidate, sources map[identity.ID]*source) (next *source, done bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.sealed || c.vote != nil || !slices.Contains(r.authors[c.head.Authority], c) {
		c.fetching = false
		return nil, true
	}
	ids := []identity.ID{c.head.Authority}
	for _, e := range c.head.Endorsements {
		ids = append(ids, e.Authority)
	}
	for _, id := range ids {
		peer, ok := a.cfg.Network.Authority(id)
		if !ok || id == a.self.Identity {
			continue
		}
		s := sources[id]
		if s == nil {
			s = &source{Authority: peer}
			sources[id] = s
		}
		if !s.busy && s.bad < maxBad && (next == nil || s.asked < next.asked) {
			next = s
		}
	}
	return next, false
}

// fetchVoteFrom gets the vote of a head from one authority and keeps it.
func (a *Authority) fetchVoteFrom(ctx context.Context, peer *directory.Authority, r *round, c *candidate) error {
	ctx, cancel := context.WithTimeout(ctx, max(a.lead()/2, minFetchTime))
	defer cancel()
	a.mu.Lock()
	base := a.bases[c.head.Authority]
	a.mu.Unlock()
	b, err := a.getDelta(ctx, peer.Address, fmt.Sprintf("%s/%d/%x", pathVote, r.period, c.head.Digest), base, directory.MaxVoteSize)
	if err != nil {
		return err
	}
	v, err := directory.ParseVote(b, a.cfg.Network, a.known)
	if err != nil {
		return err
	}
	if v.Period != r.period || v.Digest() != c.head.Digest {
		return fmt.Errorf("another vote, of %s for period %d, came instead: %w", a.nickname(v.Authority), v.Period, directory.ErrMalformed)
	}
	a.setVote(r, c, v)
	return nil
}

// getDelta fetches a document, perhaps as its difference against base, which may be nil.
func (a *Authority) getDelta(ctx context.Context, addr, path string, base []byte, limit int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "zstd")
	if base != nil {
		digest := sha256.Sum256(base)
		req.Header.Set("Accept-Encoding", "dcz, zstd")
		req.Header.Set("Available-Dictionary", ":"+base64.StdEncoding.EncodeToString(digest[:])+":")
	}
	return a.exchange(req, base, limit)
}

// exchange sends a request and reads the document in its answer.
func (a *Authority) exchange(req *http.Request, base []byte, limit int) ([]byte, error) {
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	most := int64(directory.MaxCompressed(limit)) + 64
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &mirror.StatusError{Code: resp.StatusCode}
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("more than %d bytes: %w", limit, directory.ErrTooLarge)
	}
	switch encoding := resp.Header.Get("Content-Encoding"); {
	case encoding == "zstd":
		return directory.Decompress(b, limit)
	case encoding == "dcz" && base != nil:
		return directory.DecompressDelta(b, base, limit)
	case encoding == "":
		return b, nil
	}
	return nil, fmt.Errorf("unknown content encoding: %w", directory.ErrMalformed)
}

// complement fetches the descriptors without which no consensus can be computed from the votes, and returns the votes with them.
func (a *Authority) complement(ctx context.Context, r *round, votes []*directory.Vote, until time.Time) []*directory.Vote {
	with := func() []*directory.Vote {
		list := make([]*directory.Vote, len(votes))
		for i, v := range votes {
			list[i] = v.With(a.known)
		}
		return list
	}
	full := with()
	missing := directory.Missing(full, a.cfg.Network)
	if len(missing) == 0 {
		return full
	}
	a.log.Info("fetching descriptors that the votes name", "period", r.period, "count", len(missing))
	ctx, cancel := context.WithTimeout(ctx, until.Sub(a.now()))
	defer cancel()
	a.fetchDescriptors(ctx, missing, func(d *directory.Descriptor) {
		a.mu.Lock()
		r.extra[d.Digest()] = d
		a.mu.Unlock()
	})
	return with()
}

// fetchDescriptors asks the peers for descriptors by their digests, one after the other, until all are here or ctx ends. What comes is also
// accepted as if its relay had published it here.
func (a *Authority) fetchDescriptors(ctx context.Context, digests [][32]byte, got func(*directory.Descriptor)) {
	wanted := make(map[[32]byte]bool, len(digests))
	for _, d := range digests {
		wanted[d] = true
	}
	peers := a.peers()
	for pause := postPause; len(wanted) > 0; pause = min(2*pause, maxPostPause) {
		for i := 0; i < len(peers) && len(wanted) > 0; i++ {
			for batch := range slices.Chunk(slices.Collect(maps.Keys(wanted)), directory.MaxBatch) {
				list, err := a.fetchBatch(ctx, peers[i], batch)
				if err != nil && ctx.Err() == nil {
					a.log.Debug("descriptors not fetched", "from", peers[i].Nickname, "error", err)
				}
				for _, d := range list {
					delete(wanted, d.Digest())
					if d.CheckTime(a.now()) == nil {
						_ = a.accept(d) // what is not wanted here stays the peers' opinion
					}
					got(d)
				}
				if err != nil {
					break // on to the next one
				}
			}
		}
		if len(wanted) == 0 {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (a *Authority) fetchBatch(ctx context.Context, peer directory.Authority, digests [][32]byte) ([]*directory.Descriptor, error) {
	limit := max(a.lead()/8, minFetchTime)
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, max(time.Until(deadline)/3, minFetchTime)) // nobody may use up all the time
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+peer.Address+pathDescriptors, bytes.NewReader(directory.EncodeDigests(digests)))
	if err != nil {
		return nil, err
	}
	b, err := a.exchange(req, nil, directory.MaxBatchSize)
	if err != nil {
		return nil, err
	}
	asked := make(map[[32]byte]bool, len(digests))
	for _, d := range digests {
		asked[d] = true
	}
	return directory.ParseDescriptors(b, func(digest [32]byte) bool { return asked[digest] })
}

// learnLater takes over, in the background, descriptors that peers name in their votes and that are not here: a relay that reached one authority has
// in effect reached all.
func (a *Authority) learnLater(r *round, votes []*directory.Vote) {
	a.mu.Lock()
	var digests [][32]byte
	seen := make(map[[32]byte]bool)
	for _, v := range votes {
		for i := range v.Entries {
			e := &v.Entries[i]
			if e.Descriptor != nil || seen[e.Digest] || a.refused[e.Digest] || a.descriptor(e.Digest) != nil || len(digests) == maxLearned {
				continue
			}
			seen[e.Digest] = true
			digests = append(digests, e.Digest)
		}
	}
	a.mu.Unlock()
	if len(digests) == 0 || !a.begin() {
		return
	}
	go func() {
		defer a.wg.Done()
		ctx, cancel := context.WithTimeout(a.ctx, a.lead()/2)
		defer cancel()
		a.fetchDescriptors(ctx, digests, func(*directory.Descriptor) {})
		a.mu.Lock()
		defer a.mu.Unlock()
		// Old ones that somebody clings to, and such that nobody has, are not asked for each time.
		for _, d := range digests {
			if a.byDigest[d] == nil && len(a.refused) < maxLearned {
				a.refused[d] = true
			}
		}
	}()
}
