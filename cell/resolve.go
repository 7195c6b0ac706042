package cell

import (
	"encoding/binary"
	"net/netip"
)

// MaxAnswers bounds the answers of one RESOLVED.
const MaxAnswers = 16

// ResolveBody is the payload of RESOLVE: look a name up, or, when Name is an
// address in text form, the name that belongs to it.
type ResolveBody struct {
	Flags BeginFlags
	Name  string // 1…MaxHost bytes
}

// ParseResolve reads the payload of RESOLVE.
func ParseResolve(p []byte) (m ResolveBody, err error) {
	if len(p) < 2 || len(p) > 1+MaxHost {
		return m, &FormatError{"RESOLVE", "length"}
	}
	if m.Flags = BeginFlags(p[0]); m.Flags&^beginFlags != 0 {
		return m, &FormatError{"RESOLVE", "flags"}
	}
	if !hostBytes(p[1:]) {
		return m, &FormatError{"RESOLVE", "name"}
	}
	m.Name = string(p[1:])
	return m, nil
}

// AppendTo appends the payload.
func (m *ResolveBody) AppendTo(b []byte) []byte {
	return append(append(b, byte(m.Flags)), m.Name...)
}

// ResolvedBody is the payload of RESOLVED.
type ResolvedBody struct {
	Status EndReason    // 0 (EndEOF) when found, else why not
	TTL    uint32       // seconds
	Addrs  []netip.Addr // answers to a name, IPv4 and IPv6
	Names  []string     // answers to an address
}

// ParseResolved reads the payload of RESOLVED.
func ParseResolved(p []byte) (m ResolvedBody, err error) {
	if len(p) < 6 {
		return m, &FormatError{"RESOLVED", "length"}
	}
	if p[0] > byte(EndNoDirectory) || p[0] == byte(EndDone) {
		return m, &FormatError{"RESOLVED", "status"}
	}
	m.Status, m.TTL = EndReason(p[0]), binary.BigEndian.Uint32(p[1:])
	n := int(p[5])
	if n > MaxAnswers || (m.Status == 0) != (n > 0) {
		return m, &FormatError{"RESOLVED", "count"}
	}
	p = p[6:]
	for range n {
		if len(p) < 2 || len(p) < 2+int(p[1]) {
			return m, &FormatError{"RESOLVED", "answer"}
		}
		v := p[2 : 2+int(p[1])]
		switch {
		case p[0] == 4 && len(v) == 4, p[0] == 6 && len(v) == 16:
			a, _ := netip.AddrFromSlice(v)
			m.Addrs = append(m.Addrs, a)
		case p[0] == 0 && len(v) > 0 && hostBytes(v):
			m.Names = append(m.Names, string(v))
		default:
			return m, &FormatError{"RESOLVED", "answer"}
		}
		p = p[2+len(v):]
	}
	if len(p) != 0 {
		return m, &FormatError{"RESOLVED", "length"}
	}
	return m, nil
}

// AppendTo appends the payload. Answers beyond MaxAnswers, those that would
// not fit the smallest room of a message, and those that cannot be said (what a
// hostile name server makes of a name) are left out; when none is left of what
// was found, the payload says EndNotFound.
func (m *ResolvedBody) AppendTo(b []byte) []byte {
	start := len(b)
	b = append(b, byte(m.Status))
	b = binary.BigEndian.AppendUint32(b, m.TTL)
	b = append(b, 0)
	count := start + 5
	room := BodySize - LayerOverhead*MaxHops - MessageHeaderSize
	add := func(kind byte, v []byte) {
		if b[count] == MaxAnswers || len(b)-start+2+len(v) > room {
			return
		}
		b = append(append(b, kind, byte(len(v))), v...)
		b[count]++
	}
	if m.Status != 0 {
		return b
	}
	for _, a := range m.Addrs {
		if a.IsValid() {
			add(addrType(a), a.AsSlice())
		}
	}
	for _, n := range m.Names {
		if ValidHost(n) {
			add(0, []byte(n))
		}
	}
	if b[count] == 0 {
		b[start] = byte(EndNotFound)
	}
	return b
}
