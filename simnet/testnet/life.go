package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"

	"cepa/simnet"
	"cepa/state"
)

var errRuns = errors.New("testnet: the node runs already")

// life is the part of a node that starts, stops and starts again:
//
//	stopped -- start --> running -- stop, or the node fails --> stopped
type life struct {
	net  *Net
	name string

	wanted atomic.Bool // its end is no failure

	mu     sync.Mutex // guards what follows
	cancel context.CancelFunc
	done   chan struct{} // of the present run; nil before the first
}

// failedToStart says which node it was, and where its files are.
func (l *life) failedToStart(dir *state.Dir, err error) error {
	if dir == nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	return fmt.Errorf("%s, with the files in %s: %w", l.name, filepath.Dir(dir.Path(identityFile)), err)
}

// start runs f, which ends with its context, until stop. It owns ln, which f
// may close earlier.
func (l *life) start(ln net.Listener, f func(ctx context.Context) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running() {
		ln.Close()
		return errRuns
	}
	if err := l.net.begin(); err != nil {
		ln.Close()
		return err
	}
	ctx, cancel := context.WithCancel(l.net.ctx)
	done := make(chan struct{})
	l.cancel, l.done = cancel, done
	l.wanted.Store(false)
	go func() {
		defer l.net.wg.Done()
		defer close(done)
		defer cancel()
		err := f(ctx)
		ln.Close() // of a node that never listened
		if err != nil && ctx.Err() == nil && !l.wanted.Load() {
			l.net.failed(l.name, err)
		}
	}()
	return nil
}

// running reports whether a run has not ended. l.mu is held.
func (l *life) running() bool {
	if l.done == nil {
		return false
	}
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// Running reports whether the node runs.
func (l *life) Running() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running()
}

// stop ends the run and waits for it. The machine, when not nil, crashes first.
func (l *life) stop(crash *simnet.Host) {
	l.mu.Lock()
	done, cancel := l.done, l.cancel
	l.mu.Unlock()
	if done == nil {
		return
	}
	l.wanted.Store(true)
	if crash != nil {
		crash.Crash()
	}
	cancel()
	<-done
}
