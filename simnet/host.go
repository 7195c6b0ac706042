package simnet

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

const (
	// firstEphemeral is the first of the ports that are given to dialling ends and to listeners on port 0; the last
	// is 65535. As on Linux.
	firstEphemeral = 32768
	// connectTimeout is how long a dial without a deadline waits for an answer: Linux's, with six retries.
	connectTimeout = 127 * time.Second
)

// Host is a machine with one address. Loopback addresses mean the host itself and nobody else reaches them.
type Host struct {
	n    *Network
	name string
	addr netip.Addr

	// Guarded by n.mu.
	up, down  station
	isolated  bool
	listeners map[netip.AddrPort]*listener // by address; the zero Addr stands for all of the host's
	ports     map[uint16]struct{}          // of dialling ends
	nextPort  uint16
}

// Name returns the name given to Network.Host.
func (h *Host) Name() string { return h.name }

// Addr returns the host's address.
func (h *Host) Addr() netip.Addr { return h.addr }

// String returns the name and the address.
func (h *Host) String() string { return fmt.Sprintf("%s (%v)", h.name, h.addr) }

// SetBandwidth limits what the host sends to and receives from all others together, in bytes per second. 0 is
// unlimited, as at the beginning; it panics if one is negative.
func (h *Host) SetBandwidth(up, down int64) {
	if up < 0 || down < 0 {
		panic(fmt.Sprintf("simnet: host %q: negative bandwidth", h.name))
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.up.setRate(up)
	h.down.setRate(down)
	h.n.refresh()
}

// Listen opens a listener. network is "tcp", "tcp4" or "tcp6"; address is a literal address of this host or loopback,
// or empty or unspecified for both, and a port, 0 for any. Errors are *net.OpError and wrap EADDRINUSE,
// EADDRNOTAVAIL, net.ErrClosed (the network's), or *net.AddrError.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	l, err := h.listen(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: textAddr{network, address}, Err: err}
	}
	return l, nil
}

func (h *Host) listen(network, address string) (*listener, error) {
	key, err := parseAddr(network, address)
	if err != nil {
		return nil, err
	}
	a := key.Addr()
	switch {
	case !a.IsValid() || a.IsUnspecified():
		key = netip.AddrPortFrom(netip.Addr{}, key.Port())
	case a != h.addr && !a.IsLoopback():
		return nil, os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)
	}
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, net.ErrClosed
	}
	if key.Port() == 0 {
		port, ok := h.freePort()
		if !ok {
			return nil, os.NewSyscallError("bind", syscall.EADDRINUSE)
		}
		key = netip.AddrPortFrom(key.Addr(), port)
	} else if h.listens(key) {
		return nil, os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	shown := key.Addr()
	if !shown.IsValid() {
		shown = h.addr
	}
	l := newListener(h, key, netip.AddrPortFrom(shown, key.Port()))
	h.listeners[key] = l
	return l, nil
}

// listens reports whether a new listener at key would collide with one that is there. The caller holds n.mu.
func (h *Host) listens(key netip.AddrPort) bool {
	for have := range h.listeners {
		if have.Port() == key.Port() && (have.Addr() == key.Addr() || !have.Addr().IsValid() || !key.Addr().IsValid()) {
			return true
		}
	}
	return false
}

// listenerAt finds who listens at to. The caller holds n.mu.
func (h *Host) listenerAt(to netip.AddrPort) *listener {
	if l := h.listeners[to]; l != nil {
		return l
	}
	return h.listeners[netip.AddrPortFrom(netip.Addr{}, to.Port())]
}

// freePort picks a port that nobody uses. The caller holds n.mu.
func (h *Host) freePort() (uint16, bool) {
	for range 1<<16 - firstEphemeral {
		port := h.nextPort
		if h.nextPort++; h.nextPort < firstEphemeral {
			h.nextPort = firstEphemeral
		}
		_, dialling := h.ports[port]
		if !dialling && !h.listens(netip.AddrPortFrom(netip.Addr{}, port)) {
			return port, true
		}
	}
	return 0, false
}

// closeListeners closes all of them. The caller holds n.mu.
func (h *Host) closeListeners() {
	for _, l := range h.listeners {
		l.shut()
	}
}

// Crash ends everything on the host: listeners and connections are closed, dials fail, and the peers see ECONNRESET
// one latency later. The host can be used again at once, as after a restart.
func (h *Host) Crash() {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	h.closeListeners()
	t := n.now()
	for _, c := range n.sortedConns() {
		for _, end := range []*Conn{c, c.peer} {
			if end.host == h {
				n.reset(end, t) // also one that is closed and drains
			}
		}
	}
}

// Dial opens a connection, which takes a round trip. network is "tcp", "tcp4" or "tcp6"; address is a literal address
// and a port. (There are no names on this network: whoever resolves names does it in its own way.) It may be used as
// the DialContext of the standard library. Errors are *net.OpError and wrap:
//
//   - syscall.ECONNREFUSED: nobody listens there, or the listener's queue is full
//   - syscall.EHOSTUNREACH: there is no host with this address
//   - syscall.ETIMEDOUT: no answer in 127 s, because of a partition
//   - syscall.EADDRNOTAVAIL: no port is free on this host
//   - the error of ctx
//   - net.ErrClosed: this host crashed meanwhile, or the network was closed
//   - *net.AddrError, net.UnknownNetworkError: the arguments are wrong
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := h.dial(ctx, network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: textAddr{network, address}, Err: err}
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, network, address string) (*Conn, error) {
	to, err := parseAddr(network, address)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := h.n.open(h, to)
	if err != nil {
		return nil, err
	}
	select {
	case err = <-c.opened: // the usual case on an ideal link needs no timer
		return c, dialError(err)
	default:
	}
	timeout := time.NewTimer(connectTimeout)
	defer timeout.Stop()
	select {
	case err = <-c.opened:
		if err == nil {
			return c, nil
		}
		return nil, dialError(err)
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout.C:
		err = os.NewSyscallError("connect", syscall.ETIMEDOUT)
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	h.n.reset(c, h.n.now())
	return nil, err
}

func dialError(err error) error {
	if errno, ok := err.(syscall.Errno); ok {
		return os.NewSyscallError("connect", errno)
	}
	return err
}

// open makes a connection and sends the request to open it.
func (n *Network) open(from *Host, to netip.AddrPort) (*Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, net.ErrClosed
	}
	source := from.addr
	target := n.hosts[to.Addr()]
	if to.Addr().IsLoopback() {
		source, target = to.Addr(), from
	}
	if target == nil {
		return nil, os.NewSyscallError("connect", syscall.EHOSTUNREACH)
	}
	port, ok := from.freePort()
	if !ok {
		return nil, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
	}
	from.ports[port] = struct{}{}
	n.lastID++
	key := hostPair{from, target}
	n.opened[key]++
	a := &Conn{n: n, id: n.lastID, host: from, local: netip.AddrPortFrom(source, port), opened: make(chan error, 1)}
	b := &Conn{n: n, id: n.lastID, host: target, local: to}
	a.peer, b.peer = b, a
	a.out = n.newHalf(a, b, n.opened[key])
	a.in = n.newHalf(b, a, n.opened[key])
	b.in, b.out = a.out, a.in
	n.conns[a] = struct{}{}
	n.send(a.out, event{kind: evSyn}, n.now())
	n.setDirect(a.out)
	n.setDirect(a.in)
	return a, nil
}

// newHalf makes the direction from src to dst of the count-th connection between their hosts. The caller holds n.mu.
func (n *Network) newHalf(src, dst *Conn, count uint64) *half {
	h := &half{n: n, src: src, dst: dst, wire: n.wire(src.host, dst.host)}
	h.init()
	h.route = [stages]*station{&src.host.up, &h.wire.station, &dst.host.down}
	if src.host == dst.host {
		h.route[stageUp], h.route[stageDown] = &station{}, &station{index: stageDown}
	}
	hash := fnv.New64a()
	fmt.Fprint(hash, src.host.addr, dst.host.addr, src.opened != nil, count)
	h.rng = rand.New(rand.NewPCG(n.cfg.Seed, hash.Sum64()))
	return h
}

// answer is how the host at the end of h answers a request to open. The caller holds n.mu.
func (n *Network) answer(h *half, t int64) {
	c := h.dst
	c.listener = c.host.listenerAt(c.local)
	if c.listener == nil || c.listener.full() {
		n.send(c.out, event{kind: evRefused}, t)
		return
	}
	n.send(c.out, event{kind: evSynAck}, t)
}

// parseAddr reads an address and a port. An empty host gives the zero Addr.
func parseAddr(network, address string) (netip.AddrPort, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return netip.AddrPort{}, net.UnknownNetworkError(network)
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := net.LookupPort("tcp", portText)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "the port is not a number from 0 to 65535", Addr: address}
	}
	if host == "" {
		return netip.AddrPortFrom(netip.Addr{}, uint16(port)), nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "not a literal address; simnet has no names", Addr: address}
	}
	addr = addr.Unmap().WithZone("")
	if network == "tcp4" && !addr.Is4() || network == "tcp6" && !addr.Is6() {
		return netip.AddrPort{}, &net.AddrError{Err: "the address is not of the network " + network, Addr: address}
	}
	return netip.AddrPortFrom(addr, uint16(port)), nil
}

// textAddr is an address as it was given, for errors.
type textAddr struct{ network, text string }

func (a textAddr) Network() string { return a.network }
func (a textAddr) String() string  { return a.text }
