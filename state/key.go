package state

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"cepa/crypto/identity"
)

// keyAdvice is what to do about a key file that cannot be used. Nothing makes a
// new key in its place: that would silently make a node somebody else.
const keyAdvice = "put back a good copy of it; if there is none, move it away, and a new key will be made, which to others is a new node"

// LoadOrCreateKey returns the secret in a key file of a kind of
// identity.EncodeKeyFile (identity.KindOnion, say). Only when there is no such
// file, and not when it cannot be read, it makes one of 32 bytes of random, or of
// crypto/rand when random is nil; created tells which. The secret is the seed of
// an Ed25519 key or the scalar of an X25519 key; it belongs to the caller.
// Concurrent calls for one file agree on one key. Errors: those of Read and
// Write; *CorruptError, around identity.ErrKeyFile or an *identity.KindError;
// *PermissionError when others can read the file.
func (d *Dir) LoadOrCreateKey(name, kind string, random io.Reader) (secret [identity.SecretSize]byte, created bool, err error) {
	// A channel and not a mutex, because the holder waits for the disk.
	d.making <- struct{}{}
	defer func() { <-d.making }()
	secret, err = d.loadKey(name, kind)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, false, err
	}
	if random == nil {
		random = rand.Reader
	}
	var fresh [identity.SecretSize]byte
	if _, err := io.ReadFull(random, fresh[:]); err != nil {
		return secret, false, fmt.Errorf("state: making the key %s: reading random bytes: %w", d.Path(name), err)
	}
	file, err := identity.EncodeKeyFile(kind, fresh)
	if err != nil {
		return secret, false, fmt.Errorf("state: making the key %s: %w", d.Path(name), err)
	}
	if err := d.Write(name, file); err != nil {
		return secret, false, err
	}
	return fresh, true, nil
}

func (d *Dir) loadKey(name, kind string) (secret [identity.SecretSize]byte, err error) {
	file, info, err := d.read(name, identity.MaxKeyFileSize)
	var corrupt *CorruptError
	switch {
	case errors.As(err, &corrupt):
		corrupt.Advice = keyAdvice
		return secret, err
	case err != nil:
		return secret, err
	}
	if err := checkPrivate(d.Path(name), info); err != nil {
		return secret, err
	}
	secret, err = identity.ParseKeyFile(file, kind)
	if err != nil {
		return secret, &CorruptError{d.Path(name), err, keyAdvice}
	}
	return secret, nil
}
