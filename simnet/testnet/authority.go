package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/authority"
	"cepa/directory/probe"
	"cepa/simnet"
)

// Authority is one authority of a Net, as Relay is one relay.
type Authority struct {
	Nickname string
	Identity identity.ID
	Addr     netip.AddrPort
	// Key is its long-term secret, for tests that play a thief.
	Key *identity.Key
	// Host is its machine; nil on loopback.
	Host *simnet.Host

	life
	machine host
	first   net.Listener // for the first Start
	node    atomic.Pointer[authority.Authority]
	prober  atomic.Pointer[probe.Prober]
}

// makeAuthorities makes the authorities' keys and listeners, and from them the
// network's description.
func (n *Net) makeAuthorities() error {
	old, err := n.oldPorts()
	if err != nil {
		return err
	}
	n.Network = &directory.Network{Name: networkName, Interval: n.cfg.Interval}
	for i := range n.cfg.Authorities {
		a := &Authority{Nickname: fmt.Sprintf("auth%d", i+1)}
		a.life.net, a.life.name = n, a.Nickname
		dir, err := n.sub(a.Nickname)
		if err != nil {
			return err
		}
		if a.Key, err = n.identity(dir); err != nil {
			return err
		}
		a.Identity = a.Key.ID()
		addr := n.authorityAddr(i)
		a.machine, a.Host = n.machine(a.Nickname, addr)
		if a.first, a.Addr, err = listen(a.machine, addr, old[a.Identity]); err != nil {
			return err
		}
		n.Authorities = append(n.Authorities, a) // from here on, Close closes the listener
		n.Network.Authorities = append(n.Network.Authorities,
			directory.Authority{Nickname: a.Nickname, Identity: a.Identity, Address: a.Addr.String()})
	}
	if err := n.Network.Validate(); err != nil {
		return err
	}
	return n.writeNetworkFile()
}

// Start runs the authority again after Stop or Crash, with the same key at the
// same address. Without Config.Dir it has forgotten what it signed.
func (a *Authority) Start() error {
	if a.Running() {
		return fmt.Errorf("%s: %w", a.Nickname, errRuns)
	}
	n := a.net
	cfg := authority.Config{
		Network: n.Network, Key: a.Key, Dial: a.machine.Dial,
		FirstRound:   authority.FirstRound{Relays: n.cfg.Relays, Deadline: firstRound},
		TestingFlags: true, AllowPrivateAddresses: true,
		Rand: n.cfg.Rand, Now: n.cfg.Now, Log: n.cfg.Log,
	}
	dir, err := n.sub(a.Nickname)
	if err != nil {
		return err
	}
	probing := probe.Config{
		Network: n.Network, Self: a.Identity, Dial: a.machine.Dial, AllowPrivateAddresses: true, Gap: probeGap, Measure: n.cfg.Measure,
		Pool: n.Pool, Buffers: n.buffers, Rand: n.cfg.Rand, Now: n.cfg.Now, Log: n.cfg.Log.With("authority", a.Nickname),
	}
	if dir != nil {
		cfg.Store, probing.Store = dir, dir
	}
	prober, err := probe.New(probing)
	if err != nil {
		return a.failedToStart(dir, err)
	}
	cfg.Prober = prober
	node, err := authority.New(cfg)
	if err != nil {
		return a.failedToStart(dir, err)
	}
	ln := a.first
	if a.node.Load() != nil {
		if ln, err = a.machine.Listen("tcp", a.Addr.String()); err != nil {
			return fmt.Errorf("%s: listening again: %w", a.Nickname, err)
		}
	}
	a.node.Store(node)
	a.prober.Store(prober)
	return a.start(ln, func(ctx context.Context) error { return runAuthority(ctx, node, ln) })
}

// runAuthority serves and keeps the schedule until ctx ends.
func runAuthority(ctx context.Context, node *authority.Authority, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = node.Close() }) // always nil
	defer stop()
	scheduled := make(chan error, 1)
	go func() { scheduled <- node.Run(ctx) }()
	err := node.Serve(ln)
	_ = node.Close() // it ends Run too
	if runErr := <-scheduled; err == nil {
		err = runErr
	}
	return err
}

// Stop ends the authority and waits for it.
func (a *Authority) Stop() { a.stop(nil) }

// Crash ends the authority as a crash of its machine does. On loopback it is Stop.
func (a *Authority) Crash() { a.stop(a.Host) }

// Prober returns what tests the relays, in the present or the last run.
func (a *Authority) Prober() *probe.Prober { return a.prober.Load() }

// Consensus returns the newest consensus of the present or the last run, nil
// before the first.
func (a *Authority) Consensus() *directory.Consensus {
	if node := a.node.Load(); node != nil {
		return node.Consensus()
	}
	return nil
}
