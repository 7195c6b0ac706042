package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"cepa/simnet"
)

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// host is a machine of the network: one of simnet, or this one.
type host interface {
	Listen(network, address string) (net.Listener, error)
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// loopback is this machine.
type loopback struct{}

func (loopback) Listen(network, address string) (net.Listener, error) {
	return net.Listen(network, address)
}

func (loopback) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
}

// machine makes the machine with that address; the second result is nil on
// loopback.
func (n *Net) machine(name string, addr netip.Addr) (host, *simnet.Host) {
	if n.cfg.Trace != nil {
		n.cfg.Trace.name(addr, name)
	}
	if n.cfg.Sim == nil {
		return loopback{}, nil
	}
	h := n.cfg.Sim.Host(name, addr)
	return h, h
}

// NewHost adds a machine to the simnet: for a client whose links a test wants to
// change, or for an attacker. It panics on loopback, where there are none.
func (n *Net) NewHost(name string) *simnet.Host {
	if n.cfg.Sim == nil {
		panic("testnet: NewHost on a network without a simnet: set Config.Sim")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.newHost(name)
}

// newHost is NewHost with n.mu held.
func (n *Net) newHost(name string) *simnet.Host {
	n.hosts++
	_, h := n.machine(name, netip.AddrFrom4([4]byte{10, 2, byte(n.hosts >> 8), byte(n.hosts)}))
	return h
}

// Addresses of nodes. On a simnet all are in 10.0.0.0/8 and what follows it:
// authorities in 10.1, clients in 10.2, relays from 10.10 on.
const (
	firstRelay = 10  // second byte of the first relay's address
	relayNets  = 200 // /16 networks that relays are spread over before they share some
)

// relayAddr is the address of the i-th relay: each in a /16 of its own, so that
// the subnet rules of paths stay on. On loopback there are relayNets of them.
func (n *Net) relayAddr(i int) netip.Addr {
	second, round := byte(firstRelay+i%relayNets), byte(i/relayNets)
	if n.cfg.Sim == nil {
		return netip.AddrFrom4([4]byte{127, second, round, 1})
	}
	return netip.AddrFrom4([4]byte{10 + round, second, 0, 1})
}

// authorityAddr is the address of the i-th authority.
func (n *Net) authorityAddr(i int) netip.Addr {
	if n.cfg.Sim == nil {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)})
}

// listen listens on the wanted port when it is free, else on any.
func listen(h host, addr netip.Addr, want uint16) (net.Listener, netip.AddrPort, error) {
	ln, err := h.Listen("tcp", netip.AddrPortFrom(addr, want).String())
	if err != nil && want != 0 && errors.Is(err, syscall.EADDRINUSE) {
		ln, err = h.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	}
	if err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("testnet: %w", err)
	}
	got, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		ln.Close()
		return nil, netip.AddrPort{}, fmt.Errorf("testnet: %w", err)
	}
	return ln, got, nil
}
