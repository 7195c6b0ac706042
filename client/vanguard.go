package client

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

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

// use has f choose from layers that are up to date with a consensus, and on disk.
func (v *vanguards) use(ch *path.Chooser, now time.Time, f func(*path.Vanguards) error) error {
	v.lock <- struct{}{}
	defer func() { <-v.lock }()
	changed, err := v.all.Update(ch, v.rand, now)
	v.unsafe = v.unsafe || changed
	if err != nil {
		return fmt.Errorf("client: vanguards: %w", err)
	}
	if v.unsafe && v.files != nil {
		if err := writeSealed(v.files, vanguardsFile, vanguardsVersion, v.home, v.all.State()); err != nil {
			return fmt.Errorf("client: vanguards could not be stored: %w", err)
		}
	}
	v.unsafe = false
	if err := f(v.all); err != nil {
		return fmt.Errorf("client: vanguards: %w", err)
	}
	return nil
}

// path chooses hops.
func (v *vanguards) path(ch *path.Chooser, now time.Time, r path.VanguardRequest) (relays []*directory.Relay, err error) {
	err = v.use(ch, now, func(all *path.Vanguards) error {
		relays, err = all.Path(v.rand, r)
		return err
	})
	return relays, err
}

// proceed says how a stub goes on, if it does.
func (v *vanguards) proceed(ch *path.Chooser, now time.Time, stub []*directory.Relay, r path.VanguardRequest) (more []*directory.Relay, ok bool, err error) {
	err = v.use(ch, now, func(all *path.Vanguards) error {
		more, ok, err = all.Continue(v.rand, stub, r)
		return err
	})
	return more, ok, err
}

// setAside has paths go around a vanguard that was just seen dead, and reports whether it was seen so lately already.
func (v *vanguards) setAside(r *directory.Relay, now time.Time) (again bool) {
	v.lock <- struct{}{}
	defer func() { <-v.lock }()
	return v.all.SetAside(r.Identity, now)
}
