package forward

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

func TestProxyHeader(t *testing.T) {
	// The first is what C Tor sends for a circuit with this number.
	const number = 0x0001_abcd
	if got, want := string(ProxyV1.AppendHeader(nil, number, 80)), "PROXY TCP6 fc00:dead:beef:4dad::1:abcd ::1 43981 80\r\n"; got != want {
		t.Errorf("version 1 is %q, want %q", got, want)
	}
	want := "0d0a0d0a000d0a515549540a" + "21" + "21" + "0024" + "fc00deadbeef4dad000000000001abcd" + "00000000000000000000000000000001" + "abcd" + "0050"
	if got := fmt.Sprintf("%x", ProxyV2.AppendHeader(nil, number, 80)); got != want {
		t.Errorf("version 2 is\n%s, want\n%s", got, want)
	}
	if got := string(ProxyNone.AppendHeader([]byte("x"), number, 80)); got != "x" {
		t.Errorf("none is %q", got)
	}
	if got, want := string(ProxyV1.AppendHeader(nil, 1<<32, 65535)), "PROXY TCP6 fc00:dead:beef:4dad:0:1:: ::1 1 65535\r\n"; got != want {
		t.Errorf("a number without low bits: %q, want %q", got, want)
	}
}

func TestParseProxy(t *testing.T) {
	for text, want := range map[string]Proxy{"": ProxyNone, "none": ProxyNone, "v1": ProxyV1, "v2": ProxyV2} {
		if v, err := ParseProxy(text); err != nil || v != want || text != "" && v.String() != text {
			t.Errorf("%q: %v, error %v", text, v, err)
		}
	}
	for _, text := range []string{"1", "V1", "v3", "haproxy", "v1 ", strings.Repeat("v", 10_000)} {
		if _, err := ParseProxy(text); err == nil || !strings.Contains(err.Error(), "v1, v2 or none") || len(err.Error()) > 200 {
			t.Errorf("%.20q: error %v", text, err)
		}
	}
	if got := Proxy(9).String(); got != "proxy(9)" {
		t.Error(got)
	}
}

// readHeader reads a header as a receiver does that follows the document of the protocol, and returns what follows it. It
// shares nothing with the code that writes them.
func readHeader(b []byte) (source, target netip.AddrPort, rest []byte, err error) {
	if bytes.HasPrefix(b, []byte("\r\n\r\n\x00\r\nQUIT\n")) {
		b = b[12:]
		if len(b) < 4 || b[0] != 0x21 || b[1] != 0x21 {
			return source, target, nil, errors.New("not version 2, PROXY, TCP over IPv6")
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		if b = b[4:]; n != 36 || len(b) < n {
			return source, target, nil, errors.New("length")
		}
		source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])), binary.BigEndian.Uint16(b[32:]))
		target = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[16:32])), binary.BigEndian.Uint16(b[34:]))
		return source, target, b[n:], nil
	}
	line, after, found := strings.Cut(string(b), "\r\n")
	words := strings.Split(line, " ")
	if !found || len(line) > 105 || len(words) != 6 || words[0] != "PROXY" || words[1] != "TCP6" {
		return source, target, nil, errors.New("not a line of version 1 over IPv6")
	}
	var ends [2]netip.AddrPort
	for i := range ends {
		a, errA := netip.ParseAddr(words[2+i])
		port, errP := strconv.ParseUint(words[4+i], 10, 16)
		if err := errors.Join(errA, errP); err != nil {
			return source, target, nil, err
		}
		ends[i] = netip.AddrPortFrom(a, uint16(port))
	}
	return ends[0], ends[1], []byte(after), nil
}

// The number of the circuit and the port come through any header, and what follows it is left alone.
func FuzzProxyHeader(f *testing.F) {
	for _, number := range []uint64{0, 1, 0xffff, 0x10000, 1<<32 - 1, 1 << 32, 1<<64 - 1} {
		f.Add(number, uint16(80), []byte("GET / HTTP/1.1\r\n\r\n"))
	}
	f.Fuzz(func(t *testing.T, circuit uint64, port uint16, data []byte) {
		for _, v := range []Proxy{ProxyV1, ProxyV2} {
			source, target, rest, err := readHeader(append(v.AppendHeader(nil, circuit, port), data...))
			if err != nil {
				t.Fatalf("%v of %d: %v", v, circuit, err)
			}
			a := source.Addr().As16()
			if binary.BigEndian.Uint64(a[8:]) != circuit || !netip.MustParsePrefix("fc00:dead:beef:4dad::/64").Contains(source.Addr()) || source.Port() == 0 {
				t.Fatalf("%v: circuit %d comes as %v", v, circuit, source)
			}
			if target.Port() != port || target.Addr() != netip.IPv6Loopback() || !bytes.Equal(rest, data) {
				t.Fatalf("%v: target %v, %d bytes follow", v, target, len(rest))
			}
		}
	})
}
