package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"cepa/circuit"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/link"
)

// Why a test failed, for logs. None of them holds an address.
const (
	reasonPrivate    = "address is not a public one"
	reasonConnection = "no connection"
	reasonIdentity   = "another identity at its address"
	reasonLink       = "no link"
	reasonOnionKey   = "no circuit with its onion key"
	reasonNone       = "no address that this authority can test"
)

// outcome is what a test found.
type outcome struct {
	over4, over6 bool // all addresses of that kind passed, and there is one
	any4, any6   bool // there are addresses of that kind; any6 only if they are tested
	reason       string
}

// passed says whether the relay is reached. An IPv6 address that does not work counts against a relay that has an IPv4 address too, if this authority has
// IPv6: clients would try it, some of them nothing else.
func (o *outcome) passed(ipv6 bool) bool {
	switch {
	case !o.any4:
		return o.over6
	case !o.over4:
		return false
	}
	return !o.any6 || o.over6 || !ipv6
}

// test opens a link and a circuit to each address of a relay, one after the other.
func (p *Prober) test(ctx context.Context, d *directory.Descriptor, use6 bool) outcome {
	o := outcome{over4: true, over6: true, reason: reasonNone}
	for _, a := range d.Addresses {
		is6 := a.Addr().Is6()
		switch {
		case is6 && !use6:
			continue
		case is6:
			o.any6 = true
		default:
			o.any4 = true
		}
		reason := reasonPrivate
		if p.cfg.AllowPrivateAddresses || directory.IsPublic(a.Addr()) {
			reason = p.testAddress(ctx, d, a)
		}
		if reason == "" {
			continue
		}
		o.reason = reason
		if is6 {
			o.over6 = false
		} else {
			o.over4 = false
		}
		break // IPv4 addresses come first, and without them the rest is of no use
	}
	o.over4 = o.over4 && o.any4
	o.over6 = o.over6 && o.any6
	return o
}

// testAddress returns "" when the relay is reached at the address, else the reason.
func (p *Prober) testAddress(ctx context.Context, d *directory.Descriptor, addr netip.AddrPort) string {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	conn, err := p.dial(ctx, addr)
	if err != nil {
		return reasonConnection
	}
	l, err := link.Client(ctx, conn, d.Identity, p.linkConfig())
	var wrong *link.IdentityError
	switch {
	case errors.As(err, &wrong):
		return reasonIdentity
	case err != nil:
		return reasonLink
	}
	defer l.Close()
	o := circuit.NewOrigin(circuit.OriginConfig{Pool: p.cfg.Pool, Rand: p.cfg.Rand})
	out, err := l.Open(o)
	if err != nil {
		return reasonLink
	}
	o.Attach(out)
	defer o.Close()
	spec := circuit.HopSpec{Identity: d.Identity, OnionKey: d.OnionKey, Suite: layer.Suite(d.Suite)}
	if o.Extend(ctx, spec) != nil {
		return reasonOnionKey
	}
	return ""
}

func (p *Prober) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, testTimeout/2)
	defer cancel()
	return p.cfg.Dial(ctx, "tcp", addr.String())
}

// linkConfig is that of a client: relays are not told who tests them.
func (p *Prober) linkConfig() *link.Config {
	return &link.Config{
		Pool: p.cfg.Pool, Buffers: p.cfg.Buffers, QueueCells: circuit.QueueCells,
		Rand: p.cfg.Rand, Now: p.cfg.Now,
	}
}
