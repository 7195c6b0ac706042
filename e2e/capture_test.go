//go:build e2e && linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Numbers of the protocols in captured packets (IANA registries).
const (
	etherARP  = 0x0806
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd

	protoHopByHop = 0
	protoTCP      = 6
	protoUDP      = 17
	protoICMPv6   = 58
)

// census is what a capture has seen.
type census struct {
	loopback int // packets that do not leave the host
	guard    int // to or from the one address that is allowed
	neighbor int // ARP for that address, and neighbour discovery, which the system does by itself
	dns      int // to or from a name server's port, wherever
	foreign  int // to or from any other address
	examples []string
}

// String is a census in one line.
func (c *census) String() string {
	return fmt.Sprintf("%d packets to or from the guard, %d on loopback, %d of ARP and neighbour discovery, %d of DNS, %d to or from others %v",
		c.guard, c.loopback, c.neighbor, c.dns, c.foreign, c.examples)
}

// capture looks at every packet that a host sends or receives, on all its
// interfaces, until the test or stop ends it.
type capture struct {
	fd      int
	self    netip.Addr
	guard   netip.AddrPort
	stopped atomic.Bool
	done    chan struct{}

	mu   sync.Mutex
	seen census
	err  error
}

// startCapture captures on h, which should talk to guard alone.
func startCapture(t *testing.T, h *host, guard netip.AddrPort) *capture {
	t.Helper()
	c := &capture{self: h.addr, guard: guard, done: make(chan struct{})}
	err := h.in(func() (err error) {
		all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const buffer = 64 << 20 // a few seconds of packets, should the reader have to wait
	timeout := unix.NsecToTimeval(int64(100 * time.Millisecond))
	if err := errors.Join(
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
	); err != nil {
		unix.Close(c.fd)
		t.Fatal(err)
	}
	go c.read()
	t.Cleanup(func() {
		c.stopped.Store(true)
		<-c.done
		unix.Close(c.fd)
	})
	return c
}

// read counts packets until it was stopped and nothing is left.
func (c *capture) read() {
	defer close(c.done)
	buf := make([]byte, 256) // the heads are enough
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case errors.Is(err, syscall.EAGAIN) && c.stopped.Load():
			return
		case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		c.mu.Lock()
		c.count(buf[:n], ok && ll.Hatype == unix.ARPHRD_LOOPBACK)
		c.mu.Unlock()
	}
}

// count puts one frame into the census.
func (c *capture) count(frame []byte, loopback bool) {
	p := parseFrame(frame)
	switch {
	case p.port(53) || p.port(853) || p.port(5353):
		c.seen.dns++
		c.example(p)
	case loopback:
		c.seen.loopback++
	case p.neighbor && (!p.from.Is4() || p.between(c.self, c.guard.Addr())):
		c.seen.neighbor++
	case p.between(c.self, c.guard.Addr()) && p.proto == protoTCP && p.port(c.guard.Port()):
		c.seen.guard++
	default:
		c.seen.foreign++
		c.example(p)
	}
}

func (c *capture) example(p packet) {
	if len(c.seen.examples) < 10 {
		c.seen.examples = append(c.seen.examples, p.String())
	}
}

// take waits until what is on its way has been read, and returns what was seen
// since the last call.
func (c *capture) take(t *testing.T) census {
	t.Helper()
	<-time.After(300 * time.Millisecond) // three of the reader's timeouts
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.seen
	c.seen = census{}
	if c.err != nil {
		t.Fatalf("capture: %v", c.err)
	}
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Drops > 0 {
		t.Errorf("the capture has missed %d packets", stats.Drops)
	}
	return seen
}

// clean wants nothing to have left the host since the last call but to the guard.
func (c *capture) clean(t *testing.T) {
	t.Helper()
	seen := c.take(t)
	if seen.dns > 0 || seen.foreign > 0 {
		t.Errorf("something leaked: %v", &seen)
	}
	if seen.guard == 0 {
		t.Errorf("nothing went to the guard: %v", &seen)
	}
	t.Logf("%v", &seen)
}

// packet is what the census looks at.
type packet struct {
	kind             uint16 // of Ethernet
	proto            byte   // of IP
	from, to         netip.Addr
	fromPort, toPort uint16 // of TCP and UDP
	neighbor         bool
}

// String tells a packet to people.
func (p packet) String() string {
	if !p.from.IsValid() {
		return fmt.Sprintf("ethernet type %#04x", p.kind)
	}
	return fmt.Sprintf("protocol %d from %v to %v", p.proto, netip.AddrPortFrom(p.from, p.fromPort), netip.AddrPortFrom(p.to, p.toPort))
}

// port tells whether the packet is from or to a port.
func (p packet) port(n uint16) bool { return p.fromPort == n || p.toPort == n }

// between tells whether the packet goes from one of two addresses to the other.
func (p packet) between(a, b netip.Addr) bool {
	return p.from == a && p.to == b || p.from == b && p.to == a
}

// parseFrame reads the heads of an Ethernet frame. Where it breaks off, fields
// stay empty, and the packet will be nobody's.
func parseFrame(b []byte) (p packet) {
	if len(b) < 14 {
		return p
	}
	p.kind, b = binary.BigEndian.Uint16(b[12:]), b[14:]
	switch {
	case p.kind == etherARP && len(b) >= 28:
		p.from, p.to = addr4(b[14:18]), addr4(b[24:28])
		p.neighbor = true
		return p
	case p.kind == etherIPv4 && len(b) >= 20 && len(b) >= 4*int(b[0]&15):
		p.proto, p.from, p.to = b[9], addr4(b[12:16]), addr4(b[16:20])
		b = b[4*int(b[0]&15):]
	case p.kind == etherIPv6 && len(b) >= 40:
		p.proto = b[6]
		p.from, _ = netip.AddrFromSlice(b[8:24])
		p.to, _ = netip.AddrFromSlice(b[24:40])
		b = b[40:]
		if p.proto == protoHopByHop && len(b) >= 8 && len(b) >= 8+8*int(b[1]) { // listener reports have it
			p.proto, b = b[0], b[8+8*int(b[1]):]
		}
	}
	switch {
	case (p.proto == protoTCP || p.proto == protoUDP) && len(b) >= 4:
		p.fromPort, p.toPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case p.proto == protoICMPv6 && len(b) >= 1:
		// Listener reports, solicitations and advertisements (RFC 4861, RFC 3810).
		p.neighbor = b[0] >= 130 && b[0] <= 136 || b[0] == 143
	}
	return p
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
