package main

import (
	"errors"
	"fmt"
	"io/fs"

	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/state"
)

// firstOnionKeyFile is where relays of before kept their only onion key. The relay keeps
// its keys, since there are several, in a file of its own, and takes this one over.
const firstOnionKeyFile = "onion.key"

// firstOnionKey returns the key of a relay of before; nil when there is none.
func firstOnionKey(dir *state.Dir) (*handshake.OnionKey, error) {
	if _, err := dir.Read(firstOnionKeyFile, identity.MaxKeyFileSize); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	secret, _, err := dir.LoadOrCreateKey(firstOnionKeyFile, identity.KindOnion, nil)
	if err != nil {
		return nil, err
	}
	return handshake.OnionKeyFromSecret(secret)
}

// readFamilies reads the files of --family, of either kind.
func readFamilies(paths []string) (keys []*identity.Key, memberships []*identity.Certificate, err error) {
	for _, path := range paths {
		b, err := readBounded(path, identity.MaxCertificateFileSize)
		if err != nil {
			return nil, nil, fmt.Errorf("--family: %w", err)
		}
		if identity.IsCertificateFile(b) {
			c, err := identity.ParseCertificateFile(b)
			if err != nil {
				return nil, nil, fmt.Errorf("--family: %s: %w", path, err)
			}
			memberships = append(memberships, c)
			continue
		}
		seed, err := state.ReadKey(path, identity.KindFamily)
		if err != nil {
			return nil, nil, fmt.Errorf("--family: %w", err)
		}
		k, err := identity.FromSeed(seed[:])
		if err != nil {
			return nil, nil, fmt.Errorf("--family: %w", err)
		}
		keys = append(keys, k)
	}
	return keys, memberships, nil
}
