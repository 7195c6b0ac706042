//go:build unix

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// tryLock takes an exclusive flock, without waiting, or returns errHeld. Such a
// lock belongs to the open file, so that two Dirs of one process exclude each
// other too.
func tryLock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return errHeld
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// syncDir makes the names in an open directory durable. Some file systems cannot
// and say so; there is nothing better to do on them.
func syncDir(dir *os.File) error {
	err := dir.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// checkPrivate returns a *PermissionError unless the directory or key file
// belongs to the user of this process and gives nobody else anything.
func checkPrivate(path string, info fs.FileInfo) error {
	e := &PermissionError{Path: path, Mode: info.Mode()}
	want := fs.FileMode(fileMode)
	if info.IsDir() {
		want = dirMode
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int64(st.Uid) != int64(os.Geteuid()) {
		e.Problem = fmt.Sprintf("belongs to user %d, and this process runs as user %d", st.Uid, os.Geteuid())
		e.Fix = fmt.Sprintf("chown -R %d %s (or start as the user that it belongs to)", os.Geteuid(), quote(path))
		return e
	}
	e.Fix = fmt.Sprintf("chmod %o %s", want, quote(path))
	switch mode := info.Mode().Perm(); {
	case mode&0o077 != 0 && info.IsDir():
		e.Problem = "can be entered, read or written by other users"
	case mode&0o077 != 0:
		e.Problem = "can be read or written by other users"
	case info.IsDir() && mode&dirMode != dirMode:
		e.Problem = "cannot be used by its owner"
	default:
		return nil
	}
	return e
}
