package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/service"
	"cepa/state"
)

// What a service's folder holds.
const (
	// servicesDir holds the folders of services, in the data directory.
	servicesDir = "services"
	// addressFile holds the address, for people and scripts; identityFile is the key that it follows from.
	addressFile = "address"
	// clientsDir holds the public keys of clients that are let in, one file each.
	clientsDir = "clients"
	// maxClientName bounds the name of a client, in bytes.
	maxClientName = 64
)

// serviceFolder is where a service keeps its key when no directory is named.
func serviceFolder(dataDir, name string) string { return filepath.Join(dataDir, servicesDir, name) }

// openService opens the folder of a service: one in the data directory, or a directory of its own, which is then to be closed.
func openService(data *state.Dir, s *serviceSpec) (dir, own *state.Dir, err error) {
	if s.dir != "" {
		dir, err = state.Open(s.dir)
		return dir, dir, err
	}
	services, err := data.Sub(servicesDir)
	if err != nil {
		return nil, nil, err
	}
	dir, err = services.Sub(s.name)
	return dir, nil, err
}

// serviceIdentity returns the key of a service, which is made at the first start.
func serviceIdentity(dir *state.Dir) (*identity.Key, error) {
	secret, _, err := dir.LoadOrCreateKey(identityFile, identity.KindService, nil)
	if err != nil {
		return nil, err
	}
	return identity.FromSeed(secret[:])
}

// readBundle reads prepared keys.
func readBundle(path string) (*onion.KeyBundle, error) {
	b, err := state.ReadPrivate(path, int64(onion.MaxBundleSize))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the file of prepared keys %s does not exist: make it where the identity is, with \"cepa onion keys prepare\", and carry it over", path)
	}
	if err != nil {
		return nil, err
	}
	bundle, err := onion.ParseKeyBundle(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return bundle, nil
}

// noIdentity refuses a folder that holds an identity although prepared keys are to stand in for it.
func noIdentity(dir *state.Dir) error {
	_, err := dir.Read(identityFile, identity.MaxKeyFileSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("there are prepared keys, and there is an identity at %s: with prepared keys it should be offline; move it to a safe place, or leave the prepared keys out", dir.Path(identityFile))
}

// namedClient is a client that is let in.
type namedClient struct {
	name string
	key  onion.ClientKey
}

// checkClientName refuses what is no name of a client: it is the name of a file.
func checkClientName(name string) error {
	ok := name != "" && len(name) <= maxClientName && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	if !ok {
		return usagef("%s is no name of a client: 1 to %d lower-case letters, digits, hyphens and underscores, not a hyphen first", quoted(name), maxClientName)
	}
	return nil
}

// readClients returns the clients in a folder, by name; none when there is no folder. A file that cannot be read, or holds no key,
// is an error: who leaves it out would let in somebody else, or everybody.
func readClients(folder string) ([]namedClient, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("clients that are let in: %w", err)
	}
	var all []namedClient
	for _, e := range entries {
		name, found := strings.CutSuffix(e.Name(), authSuffix)
		if strings.HasPrefix(name, ".") {
			continue // such as a file that is being written
		}
		path := filepath.Join(folder, e.Name())
		if !found || checkClientName(name) != nil {
			return nil, fmt.Errorf("%s does not belong there: the folder holds files NAME%s of clients that are let in, and nothing else", path, authSuffix)
		}
		b, err := state.ReadPrivate(path, maxAuthFile)
		if err != nil {
			return nil, err
		}
		key, err := onion.ParseClientKey(string(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if i := slices.IndexFunc(all, func(c namedClient) bool { return c.key == key }); i >= 0 {
			return nil, fmt.Errorf("%s: it is the key of %s too", path, all[i].name)
		}
		all = append(all, namedClient{name, key})
	}
	if len(all) > service.MaxClients {
		return nil, fmt.Errorf("%s holds %d clients: at most %d can be let in by name", folder, len(all), service.MaxClients)
	}
	return all, nil
}

// clientKeys are the keys of clients in a folder and those of a file of services.
func clientKeys(folder string, more []onion.ClientKey) ([]onion.ClientKey, error) {
	named, err := readClients(folder)
	if err != nil {
		return nil, err
	}
	var keys []onion.ClientKey
	for _, c := range named {
		keys = append(keys, c.key)
	}
	for _, k := range more {
		if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	if len(keys) > service.MaxClients {
		return nil, fmt.Errorf("%d clients: at most %d can be let in by name", len(keys), service.MaxClients)
	}
	return keys, nil
}
