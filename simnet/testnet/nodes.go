package testnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/relay"
	"cepa/simnet"
	"cepa/state"
)

// Relay is one relay of a Net: its keys and its place, for as long as the Net
// lives, and the node that runs there now.
type Relay struct {
	Nickname string
	Addr     netip.AddrPort
	Exit     bool
	// Key and OnionKey are its long-term secrets, for tests that play a thief.
	Key      *identity.Key
	OnionKey *handshake.OnionKey
	// Host is its machine; nil on loopback.
	Host *simnet.Host

	life
	cfg     relay.Config
	dir     *state.Dir // nil when nothing is kept
	machine host
	first   net.Listener                // for the first Start
	node    atomic.Pointer[relay.Relay] // the present or the last one
}

// makeRelay prepares the i-th relay: keys, address, configuration.
func (n *Net) makeRelay(i int) error {
	r := &Relay{Nickname: fmt.Sprintf("relay%d", i+1), Exit: i >= n.cfg.Relays-n.cfg.Exits}
	r.life.net, r.life.name = n, r.Nickname
	dir, err := n.sub(r.Nickname)
	if err != nil {
		return err
	}
	r.dir = dir
	if r.Key, err = n.identity(dir); err != nil {
		return err
	}
	if r.OnionKey, err = n.onionKey(dir); err != nil {
		return err
	}
	addr := n.relayAddr(i)
	r.machine, r.Host = n.machine(r.Nickname, addr)
	if r.first, r.Addr, err = relayListener(r.machine, addr, dir); err != nil {
		return err
	}
	n.Relays = append(n.Relays, r) // from here on, Close closes the listener
	r.cfg = relay.Config{
		Network: n.Network, Identity: r.Key, OnionKey: r.OnionKey, Nickname: r.Nickname, Addresses: []netip.AddrPort{r.Addr},
		Rate: n.cfg.Rate, Dial: r.machine.Dial, Pool: n.Pool, Buffers: n.buffers,
		Rand: n.cfg.Rand, Now: n.cfg.Now, Log: n.cfg.Log.With("relay", r.Nickname),
	}
	if r.Exit {
		r.cfg.Exit = &relay.Exit{
			Policy: directory.AllPorts(), Resolver: n.Sites, Dial: r.machine.Dial,
			Allow: []netip.Prefix{netip.MustParsePrefix(siteRange), netip.MustParsePrefix(siteRange6)},
		}
		if n.cfg.Sim == nil {
			r.cfg.Exit.Dial = n.Sites.dialer(r.machine.Dial)
			r.cfg.Exit.Allow = append(r.cfg.Exit.Allow, netip.MustParsePrefix("127.0.0.0/8"))
		}
	}
	if dir != nil {
		r.cfg.Store = dir
	}
	n.cfg.Tune(i, &r.cfg)
	return nil
}

// Start runs the relay again after Stop or Crash, with the same keys at the same
// address. It does not wait until clients know: AwaitConsensus does.
func (r *Relay) Start() error {
	if r.Running() {
		return fmt.Errorf("%s: %w", r.Nickname, errRuns)
	}
	node, err := relay.New(r.cfg)
	if err != nil {
		return r.failedToStart(r.dir, err)
	}
	ln := r.first
	if r.node.Load() != nil {
		if ln, err = r.machine.Listen("tcp", r.Addr.String()); err != nil {
			return fmt.Errorf("%s: listening again: %w", r.Nickname, err)
		}
	}
	r.node.Store(node)
	return r.start(ln, func(ctx context.Context) error { return node.Serve(ctx, ln) })
}

// Stop ends the relay, as its volunteer would, and waits for it.
func (r *Relay) Stop() { r.stop(nil) }

// Crash ends the relay as a crash of its machine does: its peers see connections
// reset, with nothing said before. On loopback it is Stop.
func (r *Relay) Crash() { r.stop(r.Host) }

// Identity returns the relay's identity.
func (r *Relay) Identity() identity.ID { return r.Key.ID() }

// Directory returns the copy of the consensus of the present or the last run.
func (r *Relay) Directory() *mirror.Mirror { return r.node.Load().Directory() }

// Status returns what the relay tells about its present or its last run.
func (r *Relay) Status() relay.Status { return r.node.Load().Status() }

// relayListener listens on the port of the last run, as kept in dir, when it is
// free, so that a consensus of before still leads to the relay.
func relayListener(h host, addr netip.Addr, dir *state.Dir) (net.Listener, netip.AddrPort, error) {
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

// AwaitConsensus waits until every relay that runs holds a valid consensus that
// lists all of those where they are now. Errors are those of a node that failed
// meanwhile, or wrap ctx's and tell how far each node had come.
func (n *Net) AwaitConsensus(ctx context.Context) error {
	for _, r := range n.Relays {
		if !r.Running() {
			continue
		}
		m := r.Directory()
		for {
			changed := m.Changed()
			if c := m.Current(); c != nil && n.missing(c) == "" {
				break
			}
			select {
			case <-changed:
			case err := <-n.errs:
				return err
			case <-ctx.Done():
				return fmt.Errorf("testnet: no consensus with all relays: %w (%s)", context.Cause(ctx), n.diagnosis())
			}
		}
	}
	return nil
}

// missing says why c will not do, in a few words; "" when it will.
func (n *Net) missing(c *directory.Consensus) string {
	if err := c.CheckTime(n.cfg.Now()); err != nil {
		return "one that is not valid now"
	}
	for _, r := range n.Relays {
		entry, ok := c.Lookup(r.Identity())
		if r.Running() && (!ok || len(entry.Addresses) == 0 || entry.Addresses[0] != r.Addr) {
			return fmt.Sprintf("one without %s", r.Nickname)
		}
	}
	return ""
}

// diagnosis tells how far the nodes are, one phrase each.
func (n *Net) diagnosis() string {
	say := func(c *directory.Consensus) string {
		if c == nil {
			return "no consensus"
		}
		if why := n.missing(c); why != "" {
			return why
		}
		return "a good one"
	}
	var parts []string
	for _, a := range n.Authorities {
		parts = append(parts, a.Nickname+" has "+say(a.Consensus()))
	}
	for _, r := range n.Relays {
		if !r.Running() {
			parts = append(parts, r.Nickname+" is stopped")
			continue
		}
		part := r.Nickname + " has " + say(r.Directory().Current())
		if err := r.Directory().Problem(); err != nil {
			part += fmt.Sprintf(", its last fetch: %v", err)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}
