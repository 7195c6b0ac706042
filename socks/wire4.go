package socks

import (
	"fmt"
	"io"
	"net/netip"
)

// The formats of SOCKS4, and of SOCKS4a, which puts a name behind an address that cannot be one (both are memos of their
// authors, Ying-Da Lee and others, without a number).

// Codes of the reply. There are two more, about a user name that was looked up at the client's ident server; nobody does.
const (
	granted4  = 0x5A
	rejected4 = 0x5B
)

// readRequest4 reads all that a client says. An error that the client should be told is an *Error.
//
//	version (1) = 4 | command (1) | port (2) | IPv4 (4) | user (0..255) | 0 (1) | name (1..255) | 0 (1)
//
// The name is there if the address is 0.0.0.x, x not 0 (SOCKS4a).
func readRequest4(r io.Reader) (c Command, e endpoint, user string, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, endpoint{}, "", err
	}
	if head[0] != version4 {
		return 0, endpoint{}, "", fmt.Errorf("request of version %d, want %d: %w", head[0], version4, errMalformed)
	}
	if user, err = readTerminated(r); err != nil {
		return 0, endpoint{}, "", err
	}
	c, e.port = Command(head[1]), uint16(head[2])<<8|uint16(head[3])
	address := [4]byte(head[4:])
	if isMark := address[3] != 0 && [3]byte(address[:3]) == [3]byte{}; !isMark {
		e.host = netip.AddrFrom4(address).String()
		return c, e, user, nil
	}
	name, err := readTerminated(r)
	if err != nil {
		return 0, endpoint{}, "", err
	}
	if e.host, e.isName, err = parseHost(name); err != nil {
		return 0, endpoint{}, "", &Error{Reply: ReplyGeneralFailure, Err: err}
	}
	return c, e, user, nil
}

// appendReply4 appends the answer to a request. e is an IPv4 address for RESOLVE, and otherwise 0.0.0.0:0.
//
//	0 (1) | code (1) | port (2) | IPv4 (4)
func appendReply4(b []byte, code byte, e endpoint) []byte {
	b = append(b, 0, code, byte(e.port>>8), byte(e.port))
	if a, err := netip.ParseAddr(e.host); err == nil && a.Is4() {
		return append(b, a.AsSlice()...)
	}
	return append(b, 0, 0, 0, 0)
}

// readTerminated reads up to a zero byte, byte by byte, so that nothing beyond is read, and returns what comes before it.
func readTerminated(r io.Reader) (string, error) {
	var field [maxField + 1]byte
	for n := range field {
		if _, err := io.ReadFull(r, field[n:n+1]); err != nil {
			return "", unexpected(err)
		}
		if field[n] == 0 {
			return string(field[:n]), nil
		}
	}
	return "", &Error{Reply: ReplyGeneralFailure, Err: fmt.Errorf("field of more than %d bytes: %w", maxField, errMalformed)}
}
