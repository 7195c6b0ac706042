package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

var (
	// ErrName says that a name is none that a file in a state directory can have.
	ErrName = errors.New("state: not a name for a file")
	// ErrCorrupt says that a file is there and not what it should be. Every
	// *CorruptError is one.
	ErrCorrupt = errors.New("state: damaged file")
	// ErrLocked says that a directory is in use. Every *LockedError is one.
	ErrLocked = errors.New("state: directory in use")
	// ErrNotPrivate says that others have access. Every *PermissionError is one.
	ErrNotPrivate = errors.New("state: not private")
)

// CorruptError says which file cannot be used, why, and what its owner can do. The
// file is as it was: no failed read changes or deletes it.
type CorruptError struct {
	Path   string // absolute
	Err    error  // what is wrong with it
	Advice string // what to do, an imperative sentence without its stop
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("state: %s cannot be used: %v; %s", e.Path, e.Err, e.Advice)
}

// Unwrap returns ErrCorrupt and the cause.
func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// LockedError says that a directory is open already.
type LockedError struct {
	Path string // of the directory, absolute
	PID  int    // of the process that has it open; 0 when not known
}

// Error implements error.
func (e *LockedError) Error() string {
	const todo = "stop that one, or use another directory"
	switch e.PID {
	case 0:
		return fmt.Sprintf("state: %s is in use by another process: %s", e.Path, todo)
	case os.Getpid():
		// Or a process of another container, where it has the same number.
		return fmt.Sprintf("state: %s is in use by process %d, the number of this process too: give each node a directory of its own", e.Path, e.PID)
	}
	return fmt.Sprintf("state: %s is in use by process %d: %s", e.Path, e.PID, todo)
}

// Unwrap returns ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// PermissionError says that a directory or key file is not private enough to be
// used.
type PermissionError struct {
	Path    string      // absolute
	Mode    fs.FileMode // what it has
	Problem string      // what is wrong with that
	Fix     string      // the command to run
}

// Error implements error.
func (e *PermissionError) Error() string {
	return fmt.Sprintf("state: %s %s (%s): run: %s", e.Path, e.Problem, e.Mode, e.Fix)
}

// Unwrap returns ErrNotPrivate.
func (e *PermissionError) Unwrap() error { return ErrNotPrivate }

// quote writes a path so that a shell reads it as one word.
func quote(path string) string {
	plain := func(c rune) bool {
		return !alphanumeric(c) && (c < 'A' || c > 'Z') && !strings.ContainsRune("/._-", c)
	}
	if path != "" && !strings.ContainsFunc(path, plain) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
