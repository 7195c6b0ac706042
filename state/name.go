package state

import (
	"fmt"
	"path/filepath"
	"strings"
)

const (
	// MaxName bounds the name of a file or folder, in bytes. Ours: it holds an
	// identity's 64 hex digits and more, and is below the 255 of file systems.
	MaxName = 128

	// lockName is the file that carries the lock.
	lockName = "lock"
	// tempPrefix starts the names of unfinished files; digits follow. No valid name
	// starts with a dot, so they never meet.
	tempPrefix = ".tmp-"

	dirMode  = 0o700 // of directories: nobody else enters
	fileMode = 0o600 // of files: nobody else reads, wherever they are copied
)

// checkName returns ErrName unless the name has 1 to MaxName bytes, all of them
// lower-case letters, digits, '.', '-' or '_', starts with a letter or digit, does
// not end with a dot, is not "lock", and is no device of Windows. Upper case is
// left out since file systems differ in whether it makes another name.
func checkName(name string) error {
	refuse := func(why string) error { return fmt.Errorf("%w: %.40q %s", ErrName, name, why) }
	switch {
	case name == "":
		return refuse("is empty")
	case len(name) > MaxName:
		return refuse(fmt.Sprintf("is longer than %d bytes", MaxName))
	case name == lockName:
		return refuse("belongs to the lock")
	case strings.ContainsFunc(name, func(c rune) bool { return !alphanumeric(c) && c != '.' && c != '-' && c != '_' }):
		return refuse("holds something else than lower-case letters, digits, dots, hyphens and underscores")
	case !alphanumeric(rune(name[0])):
		return refuse("does not start with a letter or digit")
	case strings.HasSuffix(name, "."):
		return refuse("ends with a dot")
	case !filepath.IsLocal(name):
		return refuse("is reserved by this system")
	}
	return nil
}

func alphanumeric(c rune) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// isTemp tells whether a name is one that nextTemp gives.
func isTemp(name string) bool {
	digits, found := strings.CutPrefix(name, tempPrefix)
	return found && digits != "" && strings.Trim(digits, "0123456789") == ""
}
