package mirror

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"cepa/directory"
)

// ErrSlow says that a source was given up because it brought next to nothing for too long.
var ErrSlow = errors.New("mirror: the answer does not come, or too slowly")

// ErrStale is told to a source that had nothing newer when another had.
var ErrStale = errors.New("mirror: another source has a newer consensus")

// Stage is how far an attempt to fetch a consensus has come.
type Stage int

// The stages, in order.
const (
	StageIdle Stage = iota
	StageConnecting
	StageFetching
	StageVerifying
)

// Progress is what the attempt that has come furthest has done so far.
type Progress struct {
	Stage Stage
	// Received bytes of Total; 0 when that is not known.
	Received, Total int64
}

// attempt is one try to fetch a newer consensus from one source.
type attempt struct {
	mirror *Mirror
	source Source
	born   time.Time
	cancel context.CancelFunc

	stage           atomic.Int64
	received, total atomic.Int64
	slow            atomic.Bool

	// Of the goroutine that fetches, until the attempt is handed back.
	outcome outcome
	byDiff  bool // a difference was applied
	err     error

	// Of the search.
	seen  int64 // bytes
	still int
}

// progress returns the speed since the last call, in bytes a second. An attempt whose document is here, and is being verified, is fast.
func (a *attempt) progress() int64 {
	n := a.received.Load()
	speed := (n - a.seen) / int64(lookEvery/time.Second)
	a.seen = n
	if Stage(a.stage.Load()) == StageVerifying {
		return briskSpeed
	}
	return speed
}

func (a *attempt) reached(s Stage) {
	a.stage.Store(int64(s))
	a.report()
}

func (a *attempt) report() {
	if f := a.mirror.cfg.OnProgress; f != nil {
		f(Progress{Stage(a.stage.Load()), a.received.Load(), a.total.Load()})
	}
}

// fetch asks the source: for the difference from the consensus at hand, if there is a valid one, and else, or if it has none, for the whole.
func (a *attempt) fetch(ctx context.Context) error {
	m := a.mirror
	client := NewHTTPClient(a.source.Dial)
	defer client.CloseIdleConnections()
	a.reached(StageConnecting)
	etag := ""
	if doc := m.document(); doc != nil {
		etag = doc.ETag()
		base := doc.consensus
		if base.CheckTime(m.cfg.Now()) == nil && !m.wholeOnly.Load() {
			digest := base.Digest()
			b, err := a.get(ctx, client, PathDifference+hex.EncodeToString(digest[:]), "", directory.MaxDiffSize)
			if err == nil {
				return a.takeDiff(base, b)
			}
			// Who does not have it may have the whole.
			var refused *StatusError
			if !errors.As(err, &refused) {
				return err
			}
		}
	}
	b, err := a.get(ctx, client, PathConsensus, etag, directory.MaxConsensusSize)
	if err != nil {
		return err
	}
	a.reached(StageVerifying)
	return m.Add(b)
}

// takeDiff applies a difference. After one that is not good, whoever is to blame, whole documents are fetched until the next consensus.
func (a *attempt) takeDiff(base *directory.Consensus, b []byte) error {
	a.byDiff = true
	a.reached(StageVerifying)
	c, err := directory.ApplyDiff(base, b, a.mirror.cfg.Network, a.mirror.cfg.Now())
	if err != nil {
		a.mirror.wholeOnly.Store(true)
		return err
	}
	return a.mirror.accept(c)
}

func (a *attempt) get(ctx context.Context, client *http.Client, path, etag string, limit int) ([]byte, error) {
	b, _, err := get(ctx, client, a.source.Address, path, etag, limit, func(resp *http.Response) error {
		if resp.StatusCode == http.StatusOK {
			if err := a.mirror.checkHead(resp.Header, &a.outcome); err != nil {
				return err
			}
			a.total.Store(max(resp.ContentLength, 0))
			a.reached(StageFetching)
			resp.Body = &countedBody{resp.Body, a}
		} else {
			_ = a.mirror.checkHead(http.Header{"Date": resp.Header["Date"]}, &a.outcome)
		}
		return nil
	})
	return b, err
}

// countedBody counts what arrives.
type countedBody struct {
	io.ReadCloser
	attempt *attempt
}

// Read implements io.Reader.
func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		c.attempt.received.Add(int64(n))
		c.attempt.report()
	}
	return n, err
}
