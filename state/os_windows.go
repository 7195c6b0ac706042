package state

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// lockOffset is where the locked byte of the lock file is, far beyond its end.
// Windows lets nobody read a locked byte, and the process number at the start
// must stay readable.
const lockOffset = 1 << 30

// tryLock takes an exclusive lock, without waiting, or returns errHeld. Such a
// lock belongs to the handle, so that two Dirs of one process exclude each other
// too.
func tryLock(f *os.File) error {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{Offset: lockOffset})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return errHeld
	}
	return err
}

// syncDir does nothing: Windows cannot flush a directory, and NTFS journals names.
func syncDir(*os.File) error { return nil }

// checkPrivate accepts everything: permission bits mean nothing on Windows, where
// a user's own folders are closed to others by their access lists.
func checkPrivate(string, fs.FileInfo) error { return nil }
