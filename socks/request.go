package socks

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Command is what a client asks for (RFC 1928 section 4).
type Command uint8

// The commands of RFC 1928, of which CommandConnect is served and the others are refused as not supported, and those that Tor
// added (its socks-extensions.txt, section 2), with which programs look names up where the connection would end. HTTP requests
// are all CommandConnect.
const (
	CommandConnect      Command = 1
	CommandBind         Command = 2
	CommandUDPAssociate Command = 3
	CommandResolve      Command = 0xF0 // the address of a name
	CommandResolvePTR   Command = 0xF1 // the name of an address
)

// String returns the name of the command.
func (c Command) String() string {
	switch c {
	case CommandConnect:
		return "CONNECT"
	case CommandBind:
		return "BIND"
	case CommandUDPAssociate:
		return "UDP ASSOCIATE"
	case CommandResolve:
		return "RESOLVE"
	case CommandResolvePTR:
		return "RESOLVE_PTR"
	default:
		return fmt.Sprintf("command %#02x", uint8(c))
	}
}

// maxHost is the longest name, in bytes: its length is one byte (RFC 1928 section 5).
const maxHost = 255

// Request is what a client asks for, and who asks.
type Request struct {
	Command Command

	// Host is a name as the client wrote it, or an address in its canonical form without brackets (IPv4 in IPv6 is IPv4). A
	// name has 1..255 bytes of printable UTF-8, without spaces, colons and square brackets; it is not checked further, and a
	// trailing dot is left in its place. A literal address that the client sent as a name counts as an address.
	Host string
	// Port is the port, of which 0 is not excluded. It means nothing to CommandResolve and CommandResolvePTR.
	Port uint16
	// IsName says that Host is a name.
	IsName bool

	// Auth says that the client sent user name and password (each 0..255 bytes of anything): by SOCKS5, as the user of SOCKS4
	// (without a password, and not empty), or as Basic credentials for the HTTP proxy. They are a label for isolation: an
	// empty one differs from none.
	Auth               bool
	Username, Password string

	// Client and Local are the two ends of the client's connection. Both may be part of an isolation key.
	Client, Local net.Addr
}

// parseHost checks s and finds out whether it is a name; addresses are returned in their canonical form.
func parseHost(s string) (host string, isName bool, err error) {
	literal, bracketed := s, false
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		literal, bracketed = s[1:len(s)-1], true
	}
	if a, err := netip.ParseAddr(literal); err == nil {
		switch {
		case a.Zone() != "":
			return "", false, fmt.Errorf("address with a zone, which means nothing on another machine: %w", errMalformed)
		case bracketed && !a.Is6():
			return "", false, fmt.Errorf("brackets around an address that is not IPv6: %w", errMalformed)
		}
		return a.Unmap().String(), false, nil
	}
	if len(s) == 0 || len(s) > maxHost {
		return "", false, fmt.Errorf("host name of %d bytes, want 1..%d: %w", len(s), maxHost, errMalformed)
	}
	if !utf8.ValidString(s) {
		return "", false, fmt.Errorf("host name is not UTF-8: %w", errMalformed)
	}
	for _, r := range s {
		// IsPrint excludes control characters, invisible ones and all spaces but ' '. Colons and brackets would make
		// "host:port" ambiguous.
		if !unicode.IsPrint(r) || strings.ContainsRune(" :[]", r) {
			return "", false, fmt.Errorf("host name with a character that no name has: %w", errMalformed)
		}
	}
	return s, true, nil
}
