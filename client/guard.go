package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"syscall"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
)

// Limits of guards; ours but where said.
const (
	guardsFile    = "guards.json"
	guardsVersion = 1
	maxGuardsFile = 64 << 10
	// guardRetry is how long a guard that did not answer is passed over.
	guardRetry = time.Minute
	// fewGuards may be tried in any network, and one after the other at once.
	fewGuards = 3
	// guardShare is which part of all guards may be tried, ever: one in five.
	guardShare = 5
	// maxSample bounds that in large networks.
	maxSample = 20
	// guardPause is the least time between new guards beyond the first few. When
	// so many do not answer, the fault is more likely on the way to all of them.
	guardPause = time.Hour
	// maxPathless bounds how many guards are looked at that leave no path to an
	// exit, before one is chosen.
	maxPathless = 32
)

// guards is the ordered list of relays that this client has ever used as its
// first hop. The first one that works is used; a new one is added only when
// all fail, and never beyond maxTried: whoever can block guards must not be
// able to push the client to one of his own.
type guards struct {
	files Files
	rand  io.Reader

	// lock guards what follows. It is a channel, because the file is written
	// under it, so that what is on disk is what is in use.
	lock   chan struct{}
	list   []identity.ID
	added  time.Time // the last one
	failed map[identity.ID]time.Time
}

// guardsState is what the file holds.
type guardsState struct {
	Guards []identity.ID `json:"guards"`
}

func loadGuards(files Files, rand io.Reader) (*guards, error) {
	g := &guards{files: files, rand: rand, lock: make(chan struct{}, 1), failed: map[identity.ID]time.Time{}}
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
	for i, id := range st.Guards {
		if id.IsZero() || slices.Contains(st.Guards[:i], id) {
			return nil, fmt.Errorf("client: guards: %s has no relay or one twice at place %d: restore it from a backup, or move it away to choose new guards",
				guardsFile, i+1)
		}
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
	return min(max(fewGuards, n/guardShare), maxSample)
}

// next returns the guard to try after those in tried: the first of the list that
// did not fail lately; else a new one, if there may be one; else one that did
// fail. It returns nil when all were tried.
func (g *guards) next(ch *path.Chooser, cons *directory.Consensus, tried map[identity.ID]bool) (*directory.Relay, error) {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	now := time.Now()
	var stale *directory.Relay
	listed := false
	for _, id := range g.list {
		r, ok := cons.Lookup(id)
		if !ok || !r.Flags.Has(directory.FlagGuard) {
			continue
		}
		listed = true
		if tried[id] {
			continue
		}
		if t, bad := g.failed[id]; !bad || now.Sub(t) >= guardRetry {
			return r, nil
		}
		if stale == nil {
			stale = r
		}
	}
	if len(g.list) < fewGuards || len(g.list) < maxTried(cons) && now.Sub(g.added) >= guardPause {
		r, err := g.addLocked(ch, now)
		if err == nil || !listed {
			return r, err
		}
	}
	if !listed {
		return nil, fmt.Errorf("none of the %d guards that this client may use is in the consensus: wait until one is back, or move %s away to choose new ones",
			len(g.list), guardsFile)
	}
	return stale, nil
}

// addLocked chooses one more guard, from which there is a path to an exit, and
// puts it on the list, on disk first.
func (g *guards) addLocked(ch *path.Chooser, now time.Time) (*directory.Relay, error) {
	out := slices.Clone(g.list)
	var pathless error
	for range maxPathless {
		r, err := ch.PickGuard(g.rand, func(r *directory.Relay) bool { return slices.Contains(out, r.Identity) })
		if err != nil {
			return nil, cmp.Or(pathless, err)
		}
		if _, err = ch.Pick(g.rand, path.Request{Guard: r, Exit: true, Length: hops}); errors.Is(err, path.ErrNoPath) {
			pathless = err
			out = append(out, r.Identity)
			continue
		}
		if err != nil {
			return nil, err
		}
		list := append(slices.Clone(g.list), r.Identity)
		if g.files != nil {
			if err := g.files.WriteJSON(guardsFile, guardsVersion, guardsState{list}); err != nil {
				return nil, fmt.Errorf("a new guard could not be stored: %w", err)
			}
		}
		g.list, g.added = list, now
		return r, nil
	}
	return nil, pathless
}

// note remembers whether a guard does its work: it answers and takes circuits.
func (g *guards) note(id identity.ID, worked bool) {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	if worked {
		delete(g.failed, id)
	} else {
		g.failed[id] = time.Now()
	}
}

// guardLink returns a link to the first guard that answers.
func (c *Client) guardLink(ctx context.Context, ch *path.Chooser, cons *directory.Consensus) (*directory.Relay, *link.Link, error) {
	tried := map[identity.ID]bool{}
	var last error
	for {
		r, err := c.guards.next(ch, cons, tried)
		if err != nil {
			return nil, nil, fmt.Errorf("client: guard: %w", cmp.Or(last, err))
		}
		if r == nil {
			return nil, nil, last
		}
		tried[r.Identity] = true
		linkCtx, cancel := context.WithTimeout(ctx, linkTimeout)
		l, err := c.links.Get(linkCtx, r.Identity, r.Addresses)
		cancel()
		switch {
		case err == nil:
			return r, l, nil
		case errors.Is(err, link.ErrPoolClosed):
			return nil, nil, ErrClosed
		case c.ctx.Err() != nil:
			return nil, nil, c.ctx.Err()
		}
		last = &guardError{r, err}
		if offline(err) {
			return nil, nil, last // no guard is to blame, and none would do better
		}
		c.guards.note(r.Identity, false)
		c.mu.Lock()
		c.problem = last // which is told before all have been tried
		c.mu.Unlock()
		if ctx.Err() != nil {
			return nil, nil, last
		}
	}
}

// guardError says which guard could not be connected to, and why.
type guardError struct {
	relay *directory.Relay
	err   error
}

// Error implements error. It names the relay, and no address.
func (e *guardError) Error() string {
	why := e.err
	var op *net.OpError
	if errors.As(why, &op) {
		why = op.Err
	}
	if offline(e.err) {
		return fmt.Sprintf("client: this machine is not connected to the internet: %v", why)
	}
	return fmt.Sprintf("client: guard %s (%s) does not answer: %v", e.relay.Nickname, e.relay.Identity.Short(), why)
}

// Unwrap returns the cause.
func (e *guardError) Unwrap() error { return e.err }

// offline reports whether a connection failed because this machine has no
// network, at all addresses that were tried.
func offline(err error) bool {
	for _, remote := range []error{
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ETIMEDOUT,
		context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF,
	} {
		if errors.Is(err, remote) {
			return false
		}
	}
	var hs *link.HandshakeError
	return !errors.As(err, &hs) && (errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ENETDOWN))
}
