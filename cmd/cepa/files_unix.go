//go:build unix

package main

import (
	"fmt"
	"io/fs"
	"math"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFiles returns how many file descriptors this process may have; 0 when it
// cannot be told. The runtime has raised the soft limit to the hard one.
func maxFiles() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur > math.MaxInt32 {
		return 0
	}
	return int(l.Cur)
}

// inodeOf identifies a file or directory.
func inodeOf(info fs.FileInfo) (device, inode uint64, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return uint64(st.Dev), st.Ino, true
}

// checkNotShared refuses a directory into which others could put files.
func checkNotShared(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by other users, who could put files there: chmod go-w it", path)
	}
	return nil
}
