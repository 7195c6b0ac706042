package forward

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Proxy is a version of the PROXY protocol (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt): a header before what
// a client sends, that tells the target who it is. Of a client of an onion service nothing is known but which circuit its
// streams come over, and that is what the header says: two streams of one circuit are of one client, and nothing else can be
// told. A circuit has a number that is never used again in this process.
//
// As C Tor does with HiddenServiceExportCircuitID, the number is the last 64 bits of the source address, in fc00:dead:beef:4dad::/64,
// which is nobody's on the internet. The source port is the last 16 bits of the number, or 1 where those are 0; the destination
// is [::1] and the port that the client asked for.
type Proxy uint8

// The versions.
const (
	ProxyNone Proxy = 0 // no header
	ProxyV1   Proxy = 1 // a line of text
	ProxyV2   Proxy = 2 // 52 bytes
)

// proxyPrefix is the network of the source addresses: that of C Tor, so that programs that know it need no change.
const proxyPrefix = 0xfc00_dead_beef_4dad

// Parts of the header of version 2.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21            // version 2, PROXY
	proxyFamily    = 0x21            // TCP over IPv6
	proxyAddresses = 16 + 16 + 2 + 2 // source, destination, their ports
)

// ParseProxy reads how a version is written on the command line and in files.
func ParseProxy(text string) (Proxy, error) {
	switch text {
	case "", "none":
		return ProxyNone, nil
	case "v1":
		return ProxyV1, nil
	case "v2":
		return ProxyV2, nil
	}
	return ProxyNone, fmt.Errorf("%.80q is no version of the PROXY protocol: v1, v2 or none", text)
}

// String is the text that ParseProxy reads.
func (v Proxy) String() string {
	switch v {
	case ProxyNone:
		return "none"
	case ProxyV1:
		return "v1"
	case ProxyV2:
		return "v2"
	}
	return fmt.Sprintf("proxy(%d)", uint8(v))
}

// AppendHeader appends the header for a stream to port over the circuit with a number; nothing for ProxyNone.
func (v Proxy) AppendHeader(b []byte, circuit uint64, port uint16) []byte {
	source := proxySource(circuit)
	target := netip.AddrPortFrom(netip.IPv6Loopback(), port)
	switch v {
	case ProxyV1:
		return fmt.Appendf(b, "PROXY TCP6 %s %s %d %d\r\n", source.Addr(), target.Addr(), source.Port(), target.Port())
	case ProxyV2:
		b = append(b, proxySignature...)
		b = append(b, proxyCommand, proxyFamily)
		b = binary.BigEndian.AppendUint16(b, proxyAddresses)
		b = append(b, source.Addr().AsSlice()...)
		b = append(b, target.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, source.Port())
		b = binary.BigEndian.AppendUint16(b, target.Port())
	}
	return b
}

// proxySource is the address by which a target knows a circuit.
func proxySource(circuit uint64) netip.AddrPort {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], proxyPrefix)
	binary.BigEndian.PutUint64(a[8:], circuit)
	return netip.AddrPortFrom(netip.AddrFrom16(a), max(uint16(circuit), 1))
}
