package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
)

// Limits of guards; ours.
const (
	guardsFile    = "guards.json"
	guardsVersion = 1
	maxGuardsFile = 64 << 10
	// guardRetry is how long a guard that did not answer is passed over.
	guardRetry = time.Minute
)

// guards is the ordered list of relays that this client has ever used as its
// first hop. The first one that works is used; a new one is added only when
// all fail, and never beyond maxTried: whoever can block guards must not be
// able to push the client to one of his own.
type guards struct {
	files Files
	rand  io.Reader

	mu     sync.Mutex
	list   []identity.ID
	failed map[identity.ID]time.Time
}

// guardsState is what the file holds.
type guardsState struct {
	Guards []identity.ID `json:"guards"`
}

func loadGuards(files Files, rand io.Reader) (*guards, error) {
	g := &guards{files: files, rand: rand, failed: map[identity.ID]time.Time{}}
	if files == nil {
		return g, nil
	}
	var st guardsState
	err := files.ReadJSON(guardsFile, guardsVersion, maxGuardsFile, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return g, nil
	}
	if err != nil {
		return nil, fmt.Errorf("client: guards: %w", err)
	}
	g.list = st.Guards
	return g, nil
}

// maxTried is how many guards may be tried, ever: max(3, 20 %) of those that
// there are.
func maxTried(cons *directory.Consensus) int {
	n := 0
	for i := range cons.Relays {
		if cons.Relays[i].Flags.Has(directory.FlagGuard) {
			n++
		}
	}
	return max(3, n/5)
}

// candidates returns the guards to try, in order, adding one when all of the
// list failed lately.
func (g *guards) candidates(ch *path.Chooser, cons *directory.Consensus) ([]*directory.Relay, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	var fresh, stale []*directory.Relay
	known := map[identity.ID]bool{}
	for _, id := range g.list {
		known[id] = true
		r, ok := cons.Lookup(id)
		if !ok || !r.Flags.Has(directory.FlagGuard) {
			continue
		}
		if t, bad := g.failed[id]; bad && now.Sub(t) < guardRetry {
			stale = append(stale, r)
		} else {
			fresh = append(fresh, r)
		}
	}
	if len(fresh) == 0 && len(g.list) < maxTried(cons) {
		r, err := ch.PickGuard(g.rand, func(r *directory.Relay) bool { return known[r.Identity] })
		if err == nil {
			g.list = append(g.list, r.Identity)
			if err := g.saveLocked(); err != nil {
				return nil, err
			}
			fresh = append(fresh, r)
		} else if len(stale) == 0 {
			return nil, err
		}
	}
	all := append(fresh, stale...)
	if len(all) == 0 {
		return nil, errors.New("none of the guards that may be tried is in the consensus")
	}
	return all, nil
}

func (g *guards) saveLocked() error {
	if g.files == nil {
		return nil
	}
	return g.files.WriteJSON(guardsFile, guardsVersion, guardsState{g.list})
}

func (g *guards) note(id identity.ID, worked bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if worked {
		delete(g.failed, id)
	} else {
		g.failed[id] = time.Now()
	}
}

// guardLink returns a link to the first guard that answers.
func (c *Client) guardLink(ctx context.Context, ch *path.Chooser, cons *directory.Consensus) (*directory.Relay, *link.Link, error) {
	all, err := c.guards.candidates(ch, cons)
	if err != nil {
		return nil, nil, fmt.Errorf("client: guard: %w", err)
	}
	var last error
	for _, r := range all {
		linkCtx, cancel := context.WithTimeout(ctx, linkTimeout)
		l, err := c.links.Get(linkCtx, r.Identity, r.Addresses)
		cancel()
		if err == nil {
			c.guards.note(r.Identity, true)
			return r, l, nil
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		c.guards.note(r.Identity, false)
		last = fmt.Errorf("client: guard %s does not answer: %w", r.Nickname, err)
	}
	return nil, nil, last
}
