package cell

import (
	"encoding/binary"
	"net/netip"
)

// MaxHost is the longest host of BEGIN or name of RESOLVE in bytes (a DNS name
// has at most 253).
const MaxHost = 255

// BeginFlags are wishes of the client about addresses.
type BeginFlags uint8

// The flags of BEGIN and RESOLVE; other bits are malformed.
const (
	// BeginIPv6 allows the exit to use an IPv6 address.
	BeginIPv6 BeginFlags = 1 << 0
	// BeginPreferIPv6 asks for an IPv6 address where both exist.
	BeginPreferIPv6 BeginFlags = 1 << 1
	beginFlags                 = BeginIPv6 | BeginPreferIPv6
)

// BeginBody is the payload of BEGIN: open a stream to a host and port.
type BeginBody struct {
	Flags BeginFlags
	Port  uint16 // 1…65535
	Host  string // a name, or an address in text form, 1…MaxHost bytes
}

// ParseBegin reads the payload of BEGIN.
func ParseBegin(p []byte) (m BeginBody, err error) {
	if len(p) < 4 || len(p) > 3+MaxHost {
		return m, &FormatError{"BEGIN", "length"}
	}
	m.Flags, m.Port = BeginFlags(p[0]), binary.BigEndian.Uint16(p[1:])
	if m.Flags&^beginFlags != 0 {
		return m, &FormatError{"BEGIN", "flags"}
	}
	if m.Port == 0 {
		return m, &FormatError{"BEGIN", "port"}
	}
	if !hostBytes(p[3:]) {
		return m, &FormatError{"BEGIN", "host"}
	}
	m.Host = string(p[3:])
	return m, nil
}

// AppendTo appends the payload.
func (m *BeginBody) AppendTo(b []byte) []byte {
	b = append(b, byte(m.Flags))
	b = binary.BigEndian.AppendUint16(b, m.Port)
	return append(b, m.Host...)
}

// ValidHost reports whether h can stand in BEGIN or RESOLVE: 1…MaxHost
// printable ASCII bytes without spaces.
func ValidHost(h string) bool { return len(h) >= 1 && len(h) <= MaxHost && hostBytes([]byte(h)) }

func hostBytes(h []byte) bool {
	for _, b := range h {
		if b <= ' ' || b >= 0x7f {
			return false
		}
	}
	return true
}

// ConnectedBody is the payload of CONNECTED.
type ConnectedBody struct {
	Addr netip.Addr // where the exit connected to; the zero Addr for BEGIN_DIR
	TTL  uint32     // seconds for which the exit's answer holds
}

// ParseConnected reads the payload of CONNECTED.
func ParseConnected(p []byte) (m ConnectedBody, err error) {
	if len(p) < 1 {
		return m, &FormatError{"CONNECTED", "length"}
	}
	n, ok := map[byte]int{0: 0, 4: 4, 6: 16}[p[0]]
	if !ok || len(p) != 1+n+4 {
		return m, &FormatError{"CONNECTED", "address"}
	}
	if n > 0 {
		m.Addr, _ = netip.AddrFromSlice(p[1 : 1+n])
	}
	m.TTL = binary.BigEndian.Uint32(p[1+n:])
	return m, nil
}

// AppendTo appends the payload.
func (m *ConnectedBody) AppendTo(b []byte) []byte {
	b = append(b, addrType(m.Addr))
	b = append(b, m.Addr.AsSlice()...)
	return binary.BigEndian.AppendUint32(b, m.TTL)
}

func addrType(a netip.Addr) byte {
	switch {
	case !a.IsValid():
		return 0
	case a.Is4():
		return 4
	default:
		return 6
	}
}
