//go:build !unix

package main

import "io/fs"

// maxFiles returns 0: this system sets no bound that can be asked for.
func maxFiles() int { return 0 }

// inodeOf tells nothing: what a directory is cannot be asked here.
func inodeOf(fs.FileInfo) (device, inode uint64, ok bool) { return 0, 0, false }

// checkNotShared tells nothing: who may write to a directory cannot be asked here.
func checkNotShared(string, fs.FileInfo) error { return nil }
