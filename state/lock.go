package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// errHeld is what tryLock returns when somebody else has the lock.
var errHeld = errors.New("the lock is held")

// maxPID bounds the text of a process number in a lock file, in bytes: 10 digits
// and a newline.
const maxPID = 11

// takeLock opens the lock file, locks it, and writes into it whose it is. The
// lock is the system's and ends with the process, however that ends; what the
// file says is only there for the error message of the next one.
func takeLock(root *os.Root, dir string) (*os.File, error) {
	f, err := root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("state: opening the lock of %s: %w", dir, err)
	}
	switch err = tryLock(f); {
	case err == nil:
		// Best effort: a full disk must not keep a node from its keys.
		_ = writePID(f, os.Getpid())
		return f, nil
	case errors.Is(err, errHeld):
		err = &LockedError{Path: dir, PID: readPID(f)}
	default:
		err = fmt.Errorf("state: locking %s: %w; the file system may not support locks, use a directory on a local disk", dir, err)
	}
	_ = f.Close() // the error to tell is the one above
	return nil, err
}

func writePID(f *os.File, pid int) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(pid)+"\n"), 0)
	return err
}

// readPID returns the process number that a lock file names, or 0.
func readPID(r io.ReaderAt) int {
	b := make([]byte, maxPID+1)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	return parsePID(string(b[:n]))
}

// parsePID returns the number that a lock file holds, or 0 when it holds anything
// but a line with a process number: a holder that just starts has not written it.
func parsePID(s string) int {
	digits, whole := strings.CutSuffix(s, "\n")
	if !whole || len(s) > maxPID {
		return 0
	}
	pid, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || strconv.FormatUint(pid, 10) != digits {
		return 0
	}
	return int(pid)
}
