package testnet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/state"
)

// NetworkFile is the name of the network's description in the data directory:
// with it further processes join.
const NetworkFile = "network.toml"

const (
	// portFile keeps a relay's port, so that after a restart the consensus of
	// before still leads to it.
	portFile = "port.json"
	// Names of key files in a node's folder.
	identityFile = "identity.key"
	onionFile    = "onion.key"
)

type portState struct {
	Port uint16 `json:"port"`
}

// sub returns a node's folder, or nil when nothing is kept.
func (n *Net) sub(name string) (*state.Dir, error) {
	if n.cfg.Dir == nil {
		return nil, nil
	}
	return n.cfg.Dir.Sub(name)
}

// identity returns the identity in dir, made when there is none.
func (n *Net) identity(dir *state.Dir) (*identity.Key, error) {
	if dir == nil {
		return identity.Generate(n.cfg.Rand)
	}
	secret, _, err := dir.LoadOrCreateKey(identityFile, identity.KindIdentity, n.cfg.Rand)
	if err != nil {
		return nil, err
	}
	return identity.FromSeed(secret[:])
}

func (n *Net) onionKey(dir *state.Dir) (*handshake.OnionKey, error) {
	if dir == nil {
		return handshake.GenerateOnionKey(n.cfg.Rand)
	}
	secret, _, err := dir.LoadOrCreateKey(onionFile, identity.KindOnion, n.cfg.Rand)
	if err != nil {
		return nil, err
	}
	return handshake.OnionKeyFromSecret(secret)
}

// oldNetwork returns the description in the data directory, nil when there is
// none. One that cannot be read, or that is of another network, is an error that
// names the file: it is never overwritten.
func (n *Net) oldNetwork() (*directory.Network, error) {
	if n.cfg.Dir == nil {
		return nil, nil
	}
	b, err := n.cfg.Dir.Read(NetworkFile, directory.MaxNetworkFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	old, err := directory.ParseNetwork(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: correct it, or move it away to have a new one written", n.cfg.Dir.Path(NetworkFile), err)
	}
	if old.Name != networkName {
		return nil, fmt.Errorf("%s describes the network %q: choose another data directory", n.cfg.Dir.Path(NetworkFile), old.Name)
	}
	return old, nil
}

// oldPorts returns the authorities' ports of the last run, so that a
// description that was copied keeps working where they are still free.
func (n *Net) oldPorts() (map[identity.ID]uint16, error) {
	ports := map[identity.ID]uint16{}
	old, err := n.oldNetwork()
	if err != nil || old == nil {
		return ports, err
	}
	for _, a := range old.Authorities {
		if ap, err := netip.ParseAddrPort(a.Address); err == nil {
			ports[a.Identity] = ap.Port()
		}
	}
	return ports, nil
}

// writeNetworkFile writes the description, where oldNetwork found nothing
// against it.
func (n *Net) writeNetworkFile() error {
	if n.cfg.Dir == nil {
		return nil
	}
	b, err := n.Network.MarshalText()
	if err != nil {
		return err
	}
	if old, err := n.cfg.Dir.Read(NetworkFile, directory.MaxNetworkFile); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return n.cfg.Dir.Write(NetworkFile, b)
}
