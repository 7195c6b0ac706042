package state

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"cepa/crypto/identity"
)

// Replace replaces a file, or creates it, as Dir.Write does, without opening its
// directory as a Dir: for a file that is handed to a node whose process has the
// directory open and locked, and for files that people name. The directory must
// exist. Nothing may replace the same file through a Dir meanwhile.
func Replace(path string, data []byte) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("state: writing %s: %w", path, err)
	}
	if info, err := os.Lstat(abs); err == nil && !info.Mode().IsRegular() {
		return &CorruptError{abs, errors.New("it is not a regular file"), advice}
	}
	// A name that the next Open tidies away after a crash, and that the Dir of
	// another process, which counts up from 1, does not come to.
	var b [8]byte
	if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
		return fmt.Errorf("state: writing %s: %w", abs, err)
	}
	folder := filepath.Dir(abs)
	temp := filepath.Join(folder, tempPrefix+strconv.FormatUint(1<<63|binary.BigEndian.Uint64(b[:]), 10))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return fmt.Errorf("state: writing %s: %w", abs, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temp, abs)
	}
	if err != nil {
		_ = os.Remove(temp) // or else the next Open does
		return fmt.Errorf("state: writing %s: %w", abs, err)
	}
	if err := syncFolder(folder); err != nil {
		return fmt.Errorf("state: %s has its new content, but a power failure may still undo that: %w", abs, err)
	}
	return nil
}

// CreateKey writes a key file of a kind of identity.EncodeKeyFile to a path that
// nothing is at yet, readable by its owner only: an existing file, whatever it is,
// is an error (os.ErrExist) and stays as it is.
func CreateKey(path, kind string, secret [identity.SecretSize]byte) error {
	data, err := identity.EncodeKeyFile(kind, secret)
	if err != nil {
		return fmt.Errorf("state: making the key %s: %w", path, err)
	}
	return Create(path, data)
}

// Create is CreateKey for a file of keys in another form.
func Create(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("state: %s is there already, and a key is never overwritten: choose another name: %w", path, os.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("state: making the key %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path) // it is ours, and is not whole
		return fmt.Errorf("state: making the key %s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

// ReadPrivate returns the content of a file of at most max bytes that nobody but the
// user of this process can read. Errors are those of Dir.Read, and *PermissionError.
func ReadPrivate(path string, max int64) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("state: reading %s: %w", path, err)
	}
	if !info.Mode().IsRegular() { // before it is opened: opening a pipe would wait
		return nil, &CorruptError{path, errors.New("it is not a regular file"), advice}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("state: reading %s: %w", path, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, fmt.Errorf("state: reading %s: %w", path, err)
	}
	if err := checkPrivate(path, info); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("state: reading %s: %w", path, err)
	}
	if int64(len(b)) > max {
		return nil, &CorruptError{path, fmt.Errorf("it has more than the %d bytes that it may have", max), advice}
	}
	return b, nil
}

// ReadKey returns the secret in a key file that CreateKey made. Errors are those of
// ReadPrivate; *CorruptError, around identity.ErrKeyFile or an *identity.KindError.
func ReadKey(path, kind string) (secret [identity.SecretSize]byte, err error) {
	b, err := ReadPrivate(path, identity.MaxKeyFileSize)
	if err != nil {
		return secret, err
	}
	if secret, err = identity.ParseKeyFile(b, kind); err != nil {
		return secret, &CorruptError{path, err, "put back a good copy of it"}
	}
	return secret, nil
}

// syncFolder makes the names in a directory durable.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nil // one may write into a directory and not read it; see makePath
	}
	return errors.Join(syncDir(f), f.Close())
}
