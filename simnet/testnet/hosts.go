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

// hostFor returns the machine with that address.
func hostFor(sim *simnet.Network, name string, addr netip.Addr) host {
	if sim == nil {
		return loopback{}
	}
	return sim.Host(name, addr)
}

// relayAddr is the address of the i-th relay: each in a /16 of its own, so that
// the subnet rules of paths stay on.
func relayAddr(i int) netip.Addr {
	const each = 200 // second bytes used of each first one
	return netip.AddrFrom4([4]byte{byte(127 - i/each), byte(10 + i%each), 0, 1})
}

// authorityAddr is the address of the i-th authority.
func authorityAddr(sim *simnet.Network, i int) netip.Addr {
	if sim == nil {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrFrom4([4]byte{127, 1, 0, byte(i + 1)})
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

func refused() error { return syscall.ECONNREFUSED }
