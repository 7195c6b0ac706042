package testnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/authority"
	"cepa/relay"
	"cepa/state"
)

// portFile keeps a relay's port, so that after a restart the consensus of
// before still leads to it.
const portFile = "port.json"

type portState struct {
	Port uint16 `json:"port"`
}

func (n *Net) startAuthority(i int, key *identity.Key, ln net.Listener) error {
	me := n.Network.Authorities[i]
	addr, err := netip.ParseAddrPort(me.Address)
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	cfg := authority.Config{
		Network: n.Network, Key: key, Dial: hostFor(n.cfg.Sim, me.Nickname, addr.Addr()).Dial,
		FirstRound:   authority.FirstRound{Relays: n.cfg.Relays, Deadline: firstRound},
		TestingFlags: true, AllowPrivateAddresses: true,
		Rand: n.cfg.Rand, Now: n.cfg.Now, Log: n.cfg.Log,
	}
	dir, err := n.sub(me.Nickname)
	if err != nil {
		return err
	}
	if dir != nil {
		cfg.Store = dir
	}
	a, err := authority.New(cfg)
	if err != nil {
		return err
	}
	n.Authorities = append(n.Authorities, &Authority{Authority: a, Nickname: me.Nickname, Identity: me.Identity, Addr: addr})
	n.run(me.Nickname, func() error { return a.Serve(ln) })
	n.run(me.Nickname, func() error { return a.Run(n.ctx) })
	return nil
}

func (n *Net) startRelay(i int) error {
	name := fmt.Sprintf("relay%d", i+1)
	dir, err := n.sub(name)
	if err != nil {
		return err
	}
	id, err := n.identity(dir)
	if err != nil {
		return err
	}
	onion, err := n.onionKey(dir)
	if err != nil {
		return err
	}
	addr := relayAddr(i)
	h := hostFor(n.cfg.Sim, name, addr)
	ln, at, err := n.relayListener(h, addr, dir)
	if err != nil {
		return err
	}
	cfg := relay.Config{
		Network: n.Network, Identity: id, OnionKey: onion, Nickname: name, Addresses: []netip.AddrPort{at},
		Rate: n.cfg.Rate, Dial: h.Dial, Pool: n.Pool, Buffers: n.buffers,
		Rand: n.cfg.Rand, Now: n.cfg.Now, Log: n.cfg.Log.With("relay", name),
	}
	exit := i >= n.cfg.Relays-n.cfg.Exits
	if exit {
		cfg.Exit = &relay.Exit{
			Policy: directory.AllPorts(), Resolver: n.Sites, Dial: n.Sites.dialer(h.Dial),
			Allow: []netip.Prefix{netip.MustParsePrefix(siteRange), netip.MustParsePrefix("127.0.0.0/8")},
		}
	}
	if dir != nil {
		cfg.Store = dir
	}
	r, err := relay.New(cfg)
	if err != nil {
		ln.Close()
		return err
	}
	ctx, cancel := context.WithCancel(n.ctx)
	tr := &Relay{Relay: r, Nickname: name, Addr: at, Exit: exit, stop: cancel, done: make(chan struct{})}
	n.Relays = append(n.Relays, tr)
	n.run(name, func() error {
		defer close(tr.done)
		return r.Serve(ctx, ln)
	})
	return nil
}

// relayListener listens on the relay's last port when it is free.
func (n *Net) relayListener(h host, addr netip.Addr, dir *state.Dir) (net.Listener, netip.AddrPort, error) {
	var last portState
	if dir != nil {
		if err := dir.ReadJSON(portFile, 1, 1<<10, &last); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, netip.AddrPort{}, err
		}
	}
	ln, at, err := listen(h, addr, last.Port)
	if err == nil && dir != nil && at.Port() != last.Port {
		if err = dir.WriteJSON(portFile, 1, portState{at.Port()}); err != nil {
			ln.Close()
		}
	}
	return ln, at, err
}

// awaitConsensus waits until every relay holds a consensus that lists all
// relays where they are now.
func (n *Net) awaitConsensus(ctx context.Context) error {
	for _, r := range n.Relays {
		m := r.Directory()
		for {
			changed := m.Changed()
			if c := m.Current(); c != nil && n.lists(c) {
				break
			}
			select {
			case <-changed:
			case err := <-n.errs:
				return err
			case <-ctx.Done():
				return errors.Join(errNoConsensus, ctx.Err())
			}
		}
	}
	n.cfg.Progress(fmt.Sprintf("consensus of %d authorities on %d relays", n.cfg.Authorities, n.cfg.Relays))
	return nil
}

func (n *Net) lists(c *directory.Consensus) bool {
	if c.CheckTime(n.cfg.Now()) != nil {
		return false
	}
	for _, r := range n.Relays {
		entry, ok := c.Lookup(r.Identity())
		if !ok || len(entry.Addresses) == 0 || entry.Addresses[0] != r.Addr {
			return false
		}
	}
	return true
}
