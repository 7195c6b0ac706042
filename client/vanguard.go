package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/path"
)

// The file of vanguards; ours.
const (
	vanguardsFile    = "vanguards.json"
	vanguardsVersion = 1
	maxVanguardsFile = 64 << 10
)

// vanguards keeps the client's path.Vanguards, on disk and in use.
type vanguards struct {
	files Files
	rand  io.Reader
	home  string

	lock   chan struct{} // guards what follows, and the file
	all    *path.Vanguards
	unsafe bool // what is in use is not on disk
}

func loadVanguards(cfg Config) (*vanguards, error) {
	v := &vanguards{files: cfg.Files, rand: cfg.Rand, home: cfg.Home, lock: make(chan struct{}, 1)}
	var st path.VanguardState
	var err error
	if v.files != nil {
		st, _, err = readSealed[path.VanguardState](v.files, vanguardsFile, vanguardsVersion, maxVanguardsFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("client: vanguards: %w", err)
		}
	}
	if v.all, err = path.NewVanguards(st); err != nil {
		return nil, fmt.Errorf("client: vanguards: %w", damaged(v.files, vanguardsFile, err))
	}
	return v, nil
}

// VanguardPath chooses the hops of a circuit that somebody else can make this client build, such as one to a rendezvous: its
// guard, then relays that it stays with for weeks and for hours, which it keeps on disk before they are used. last is the last
// hop, nil for a circuit that ends at the third; foreign says that somebody else chose it. The guard answers when this returns.
// Errors are those of building a circuit; path.ErrNoPath when the network is too small.
func (c *Client) VanguardPath(ctx context.Context, last *identity.ID, foreign bool) ([]*directory.Relay, error) {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	ch, cons, err := c.paths(ctx)
	if err != nil {
		return nil, err
	}
	r := path.VanguardRequest{Foreign: foreign}
	if last != nil {
		var ok bool
		if r.Last, ok = cons.Lookup(*last); !ok {
			return nil, fmt.Errorf("client: relay %s is not in the consensus", last.Short())
		}
	}
	if r.Guard, _, err = c.guardLink(ctx, ch); err != nil {
		return nil, err
	}
	v := c.vanguards
	v.lock <- struct{}{}
	defer func() { <-v.lock }()
	changed, err := v.all.Update(ch, v.rand, c.cfg.Now())
	v.unsafe = v.unsafe || changed
	if err != nil {
		return nil, fmt.Errorf("client: vanguards: %w", err)
	}
	if v.unsafe && v.files != nil {
		if err := writeSealed(v.files, vanguardsFile, vanguardsVersion, v.home, v.all.State()); err != nil {
			return nil, fmt.Errorf("client: vanguards could not be stored: %w", err)
		}
	}
	v.unsafe = false
	hops, err := v.all.Path(v.rand, r)
	if err != nil {
		return nil, fmt.Errorf("client: vanguards: %w", err)
	}
	return hops, nil
}
