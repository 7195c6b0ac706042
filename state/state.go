// Package state keeps what a node must not lose or show: keys, guards, documents.
// A Dir is a directory on disk that is private (0700, files 0600), locked by one
// process at a time, and written atomically: after a crash at any moment each
// file is the old one or the new one, whole. What cannot be read is reported, and
// never repaired by throwing it away. The package knows no formats but a version
// around JSON and the key files of crypto/identity, and reads no clock.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
)

// Dir is an open state directory, or a folder inside one (Sub). Its methods may be
// called by many goroutines at once; of two concurrent writes to one file the
// later rename wins, and readers see one or the other. Once the directory is
// closed they all return os.ErrClosed.
type Dir struct {
	*shared
	inside string // slash-separated path below the root; "" for the root itself
}

// shared is what a directory and the folders inside it have in common.
type shared struct {
	path string   // absolute
	root *os.Root // every access goes through it, so no link can lead it elsewhere
	lock *os.File // holds the lock as long as it is open

	temps   atomic.Uint64 // temporary files made so far; the next one's name
	making  chan struct{} // of capacity 1: held while a key is looked for and made
	closing sync.Once
	failed  error // of the one Close that did the work

	mu     sync.Mutex // guards closed, and orders users.Add before users.Wait
	closed bool
	users  sync.WaitGroup // operations in progress
}

// Open opens the directory, creates it (0700, as well as the folders above it)
// when it is not there, and takes its lock, without waiting. Temporary files that
// a crash has left behind are removed. Errors, besides those of the system:
//
//   - *LockedError: another process, or another Dir of this one, has it open;
//   - *PermissionError: others can enter it, or it belongs to another user.
//
// The lock does not serve against whoever deletes the file "lock" under a running
// node, nor on file systems (some network ones) that only pretend to lock.
func Open(path string) (*Dir, error) {
	if path == "" {
		return nil, errors.New("state: no directory was named")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("state: opening %s: %w", path, err)
	}
	if err := makeDir(abs); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("state: opening %s: %w", abs, err)
	}
	d := &Dir{shared: &shared{path: abs, root: root, making: make(chan struct{}, 1)}}
	if err := d.takeOver(); err != nil {
		if d.lock != nil {
			_ = d.lock.Close() // the error to tell is the first one
		}
		_ = root.Close()
		return nil, err
	}
	return d, nil
}

// makeDir creates the directory and its parents, or checks the one that exists.
func makeDir(abs string) error {
	info, err := os.Stat(abs)
	if err == nil {
		if !info.IsDir() {
			return fmt.Errorf("state: %s is not a directory: name another place, or move it away", abs)
		}
		return checkPrivate(abs, info)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state: opening the directory: %w", err)
	}
	if err := makePath(abs); err != nil {
		return fmt.Errorf("state: creating %s: %w", abs, err)
	}
	return nil
}

// makePath is os.MkdirAll with 0700, and it makes what it creates durable.
func makePath(abs string) error {
	err := os.Mkdir(abs, dirMode)
	if parent := filepath.Dir(abs); errors.Is(err, fs.ErrNotExist) && parent != abs {
		if err := makePath(parent); err != nil {
			return err
		}
		err = os.Mkdir(abs, dirMode)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // somebody was faster; what it is, Open sees
	}
	if err != nil {
		return err
	}
	// One may be allowed to write to a parent and not to read it, and then cannot
	// make it durable. That is no reason to refuse it: nothing is inside yet.
	if parent, err := os.Open(filepath.Dir(abs)); err == nil {
		_ = syncDir(parent)
		_ = parent.Close()
	}
	return nil
}

// takeOver checks the directory that was really opened, locks it and tidies up.
func (d *Dir) takeOver() error {
	info, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("state: opening %s: %w", d.path, err)
	}
	if err := checkPrivate(d.path, info); err != nil {
		return err
	}
	if d.lock, err = takeLock(d.root, d.path); err != nil {
		return err
	}
	return d.tidy(".")
}

// tidy removes what writes cut short by a crash have left in a folder and in the
// folders below it. Only the holder of the lock may call it, before any write.
func (d *Dir) tidy(folder string) error {
	entries, err := fs.ReadDir(d.root.FS(), folder)
	if err != nil {
		return fmt.Errorf("state: looking through %s: %w", d.path, err)
	}
	for _, e := range entries {
		name := path.Join(folder, e.Name())
		switch {
		case e.Type().IsRegular() && isTemp(e.Name()):
			if err := d.root.Remove(name); err != nil {
				return fmt.Errorf("state: removing an unfinished file from %s: %w", d.path, err)
			}
		case e.IsDir() && checkName(e.Name()) == nil:
			// Folders with other names (lost+found) are not ours.
			if err := d.tidy(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Path returns the absolute path of a file, for what must be opened by path: a
// socket, a database. It need not exist. A name that Read would refuse is a fault
// of the program, and Path panics.
func (d *Dir) Path(name string) string {
	if err := checkName(name); err != nil {
		panic(err)
	}
	return filepath.Join(d.path, filepath.FromSlash(d.inside), name)
}

// Sub returns a folder inside the directory, and creates it (0700) when it is not
// there. It lives under the lock of the directory and is closed with it: its own
// Close does nothing. Errors are ErrName and those of Open.
func (d *Dir) Sub(name string) (*Dir, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := d.begin(); err != nil {
		return nil, err
	}
	defer d.users.Done()
	sub := &Dir{shared: d.shared, inside: path.Join(d.inside, name)}
	where := d.Path(name)
	err := d.root.Mkdir(sub.inside, dirMode)
	if err == nil {
		err = d.sync()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("state: creating %s: %w", where, err)
	}
	info, err := d.root.Lstat(sub.inside)
	if err != nil {
		return nil, fmt.Errorf("state: opening %s: %w", where, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("state: %s is not a directory: move it away", where)
	}
	if err := checkPrivate(where, info); err != nil {
		return nil, err
	}
	return sub, nil
}

// Close waits for the operations in progress and gives the lock back. The file
// "lock" stays: deleting it would let two processes lock two different files.
// Further calls return what the first did.
func (d *Dir) Close() error {
	if d.inside != "" {
		return nil
	}
	d.closing.Do(func() {
		d.mu.Lock()
		d.closed = true
		d.mu.Unlock()
		d.users.Wait()
		// An empty lock file says that nobody is to be named as its holder.
		d.failed = errors.Join(d.lock.Truncate(0), d.root.Close(), d.lock.Close())
		if d.failed != nil {
			d.failed = fmt.Errorf("state: closing %s: %w", d.path, d.failed)
		}
	})
	return d.failed
}

// begin counts an operation in, so that Close waits for it; users.Done counts it
// out.
func (d *Dir) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("state: %s: %w", d.path, os.ErrClosed)
	}
	d.users.Add(1)
	return nil
}

// sync makes the names in this folder durable.
func (d *Dir) sync() error {
	folder := d.inside
	if folder == "" {
		folder = "."
	}
	f, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(f), f.Close())
}

// nextTemp names a temporary file, relative to the root. As the directory is
// locked and Open has tidied it, a number that this process has not used is free.
func (d *Dir) nextTemp() string {
	return path.Join(d.inside, tempPrefix+strconv.FormatUint(d.temps.Add(1), 10))
}
