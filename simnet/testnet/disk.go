package testnet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"cepa/crypto/identity"
	"cepa/directory"
)

// NetworkFile is the name of the network's description in the data directory:
// with it further processes join.
const NetworkFile = "network.toml"

// maxNetworkFile bounds it, in bytes.
const maxNetworkFile = 256 << 10

// oldPorts returns the authorities' ports of the last run, so that a
// description that was copied keeps working where they are still free.
func (n *Net) oldPorts() map[identity.ID]uint16 {
	ports := map[identity.ID]uint16{}
	if n.cfg.Dir == nil {
		return ports
	}
	b, err := n.cfg.Dir.Read(NetworkFile, maxNetworkFile)
	if err != nil {
		return ports
	}
	old, err := directory.ParseNetwork(b)
	if err != nil {
		return ports
	}
	for _, a := range old.Authorities {
		if ap, err := netip.ParseAddrPort(a.Address); err == nil {
			ports[a.Identity] = ap.Port()
		}
	}
	return ports
}

// writeNetworkFile writes the description. One that is there and cannot be
// read, or that is of another network, is not overwritten.
func (n *Net) writeNetworkFile() error {
	if n.cfg.Dir == nil {
		return nil
	}
	b, err := n.Network.MarshalText()
	if err != nil {
		return err
	}
	old, err := n.cfg.Dir.Read(NetworkFile, maxNetworkFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if bytes.Equal(old, b) {
			return nil
		}
		before, err := directory.ParseNetwork(old)
		if err != nil {
			return fmt.Errorf("%s: %w: correct it, or move it away to have a new one written", n.cfg.Dir.Path(NetworkFile), err)
		}
		if before.Name != n.Network.Name {
			return fmt.Errorf("%s describes the network %q: choose another data directory", n.cfg.Dir.Path(NetworkFile), before.Name)
		}
	}
	return n.cfg.Dir.Write(NetworkFile, b)
}
