package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
	"cepa/path"
)

// Limits of guards; those of their choice are in room path.
const (
	guardsFile    = "guards.json"
	guardsVersion = 2
	maxGuardsFile = 64 << 10
	// countsEvery is how often the counts of circuits, which change with each, are written down.
	countsEvery = 30 * time.Minute
)

// errUnreachable says that no guard can be connected to from here.
var errUnreachable = errors.New("no guard can be reached from this machine: it is not connected to the internet, or only ports are allowed at which none listens")

// guards keeps the client's path.Guards, on disk and in use.
type guards struct {
	files Files
	rand  io.Reader
	home  string
	fits  func(*directory.Relay) bool // can be reached from this machine

	// lock guards what follows. It is a channel, because the file is written
	// under it, so that what is on disk is what is in use.
	lock   chan struct{}
	all    *path.Guards
	counts bool // have changed since they were written
	wrote  time.Time
}

// guardsV1 is what the file held before it had a version 2: guards that were tried, in order.
type guardsV1 struct {
	Guards []identity.ID `json:"guards"`
}

// loadGuards reads the file, if there is one. moved says that it was written for another directory than cfg.Home.
func loadGuards(cfg Config) (g *guards, moved bool, err error) {
	g = &guards{files: cfg.Files, rand: cfg.Rand, home: cfg.Home, lock: make(chan struct{}, 1), wrote: time.Now()}
	g.fits = func(r *directory.Relay) bool { return len(reachable(cfg.Reachable, r)) > 0 }
	var st path.GuardState
	if g.files != nil {
		var home string
		if st, home, err = readGuards(g.files, path.DayOf(cfg.Now())); err != nil {
			return nil, false, fmt.Errorf("client: guards: %w", err)
		}
		moved = home != "" && g.home != "" && home != g.home
	}
	if g.all, err = path.NewGuards(st, time.Now()); err != nil {
		return nil, false, fmt.Errorf("client: guards: %w", damaged(g.files, guardsFile, err))
	}
	return g, moved, nil
}

// readGuards reads the file in either version; there being none gives an empty state.
func readGuards(files Files, today path.Day) (path.GuardState, string, error) {
	st, home, err := readSealed[path.GuardState](files, guardsFile, guardsVersion, maxGuardsFile)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return st, home, nil
	}
	var old guardsV1
	if files.ReadJSON(guardsFile, 1, maxGuardsFile, &old) != nil {
		return st, "", err
	}
	for _, id := range old.Guards {
		st.Guards = append(st.Guards, path.GuardRecord{
			Relay: id, Sampled: today, Tried: today, Life: path.LifeMin + int(id[0])%(path.LifeMax-path.LifeMin+1),
		})
	}
	return st, "", nil
}

// reachable returns the addresses of a relay that the machine can reach.
func reachable(can func(netip.AddrPort) bool, r *directory.Relay) []netip.AddrPort {
	if can == nil {
		return r.Addresses
	}
	return slices.DeleteFunc(slices.Clone(r.Addresses), func(a netip.AddrPort) bool { return !can(a) })
}

// next returns the guard to try after those in tried, nil when all were tried. What it returns is stored.
func (g *guards) next(ch *path.Chooser, today path.Day, tried map[identity.ID]bool) (*directory.Relay, error) {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	changed, err := g.all.Update(ch, g.rand, today, g.fits)
	if none := (*path.NoPathError)(nil); errors.As(err, &none) && none.Position == path.PositionGuard && none.Excluded > 0 {
		return nil, errUnreachable // the only guards that are left out in a first sample
	}
	if err != nil {
		return nil, err
	}
	if changed {
		_ = g.storeLocked() // what it says anew has no effect before a guard is started
	}
	unfit := false
	r, err := g.all.Next(time.Now(), func(r *directory.Relay) bool {
		fits := g.fits(r)
		unfit = unfit || !fits
		return fits && !tried[r.Identity]
	})
	switch {
	case errors.Is(err, path.ErrNoGuard):
		return nil, fmt.Errorf("%w: wait until one is back, or move %s away to choose new ones", err, guardsFile)
	case err != nil:
		return nil, err
	case r == nil && unfit && len(tried) == 0:
		return nil, errUnreachable
	case r == nil || g.all.Tried(r.Identity):
		return r, nil
	}
	undo, err := g.all.Start(g.rand, r.Identity, time.Now())
	if err != nil {
		return nil, err
	}
	if err := g.storeLocked(); err != nil {
		undo()
		// Those that were tried serve on.
		if old, _ := g.all.Next(time.Now(), func(r *directory.Relay) bool {
			return g.all.Tried(r.Identity) && !tried[r.Identity] && g.fits(r)
		}); old != nil {
			return old, nil
		}
		if len(tried) > 0 {
			return nil, nil
		}
		return nil, fmt.Errorf("a new guard could not be stored: %w", err)
	}
	return r, nil
}

// storeLocked writes the file.
func (g *guards) storeLocked() error {
	if g.files == nil {
		return nil
	}
	if err := writeSealed(g.files, guardsFile, guardsVersion, g.home, g.all.State()); err != nil {
		return err
	}
	g.counts, g.wrote = false, time.Now()
	return nil
}

// note remembers whether a guard does its work: it answers and takes circuits.
func (g *guards) note(id identity.ID, worked bool) {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	if g.all.Note(g.rand, id, worked, time.Now()) {
		_ = g.storeLocked() // the next time will do
	}
}

// count takes note of what became of a circuit whose first hop stood, and reports whether the guard was given up for it.
func (g *guards) count(id identity.ID, o path.Outcome) (gaveUp bool) {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	gaveUp = g.all.Count(id, o)
	if g.counts = true; gaveUp || time.Since(g.wrote) >= countsEvery {
		_ = g.storeLocked() // the next time will do
	}
	return gaveUp
}

// flush writes down counts that were not.
func (g *guards) flush() {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	if g.counts {
		_ = g.storeLocked()
	}
}

// due returns the guards that should be looked at again.
func (g *guards) due() []*directory.Relay {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	return g.all.Due(time.Now())
}

// status lists all guards.
func (g *guards) status() []path.GuardStatus {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	return g.all.Status(time.Now())
}

// countCircuit tells the guards what became of a circuit, and the user when one is given up.
func (c *Client) countCircuit(guard *directory.Relay, o path.Outcome) {
	if c.ctx.Err() == nil && c.guards.count(guard.Identity, o) {
		c.cfg.Log.Warn("a guard is given up: too few circuits through it came about; the next one is used from now on, and there is nothing to do",
			"relay", guard.Nickname+" "+guard.Identity.Short())
	}
}

// probeGuards looks at guards that fail and should be looked at again, apart from whoever waits for a circuit: whether they
// answer, and take one.
func (c *Client) probeGuards() {
	for _, r := range c.guards.due() {
		c.spawn(func() {
			ctx, cancel := context.WithTimeout(c.ctx, linkTimeout)
			defer cancel()
			l, err := c.links.Get(ctx, r.Identity, reachable(c.cfg.Reachable, r))
			if err != nil {
				c.judge(r, err)
				return
			}
			if o, err := c.openOrigin(ctx, l, []*directory.Relay{r}, nil); err == nil {
				o.Close()
			} else if l.Err() != nil {
				c.judge(r, err)
			}
		})
	}
}

// guardLink returns a link to the first guard that answers.
func (c *Client) guardLink(ctx context.Context, ch *path.Chooser) (*directory.Relay, *link.Link, error) {
	c.probeGuards()
	tried := map[identity.ID]bool{}
	var last error
	for {
		r, err := c.guards.next(ch, path.DayOf(c.cfg.Now()), tried)
		if err != nil {
			return nil, nil, fmt.Errorf("client: guard: %w", cmp.Or(last, err))
		}
		if r == nil {
			return nil, nil, last
		}
		tried[r.Identity] = true
		linkCtx, cancel := context.WithTimeout(ctx, linkTimeout)
		l, err := c.links.Get(linkCtx, r.Identity, reachable(c.cfg.Reachable, r))
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
