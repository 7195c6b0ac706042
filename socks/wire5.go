package socks

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// The formats of SOCKS5, without any conversation. Each is read exactly, nothing beyond it, into at most 255 bytes a field.

// Numbers of RFC 1928 and RFC 1929.
const (
	version5 = 5
	version4 = 4

	methodNone         = 0x00 // no authentication
	methodPassword     = 0x02 // user name and password
	methodUnacceptable = 0xFF

	passwordVersion   = 1
	passwordSucceeded = 0
	passwordFailed    = 1

	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4
)

// errAddressType is about an address whose length, and so the message's, is unknown.
var errAddressType = fmt.Errorf("address type not supported: %w", errMalformed)

// maxField is the most that a field with a length of one byte holds, in bytes.
const maxField = 255

// readGreeting reads a client's first message and returns the methods that it offers, at least one.
//
//	version (1) = 5 | count (1) | methods (count)
func readGreeting(r io.Reader) (methods []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if head[0] != version5 {
		return nil, fmt.Errorf("greeting of version %d, want %d: %w", head[0], version5, errMalformed)
	}
	if head[1] == 0 {
		return nil, fmt.Errorf("greeting without methods: %w", errMalformed)
	}
	methods = make([]byte, head[1])
	_, err = io.ReadFull(r, methods)
	return methods, unexpected(err)
}

func appendGreeting(b, methods []byte) []byte {
	b = append(b, version5, byte(len(methods)))
	return append(b, methods...)
}

// readCredentials reads user name and password. RFC 1929 wants at least one byte in each, but programs do send empty ones.
//
//	version (1) = 1 | length (1) | user name | length (1) | password
func readCredentials(r io.Reader) (username, password string, err error) {
	var version [1]byte
	if _, err := io.ReadFull(r, version[:]); err != nil {
		return "", "", err
	}
	if version[0] != passwordVersion {
		return "", "", fmt.Errorf("user name and password of version %d, want %d: %w", version[0], passwordVersion, errMalformed)
	}
	if username, err = readField(r); err != nil {
		return "", "", err
	}
	if password, err = readField(r); err != nil {
		return "", "", err
	}
	return username, password, nil
}

func appendCredentials(b []byte, username, password string) []byte {
	b = append(b, passwordVersion, byte(len(username)))
	b = append(b, username...)
	b = append(b, byte(len(password)))
	return append(b, password...)
}

// endpoint is a host (see [Request]) and a port.
type endpoint struct {
	host   string
	isName bool
	port   uint16
}

// readRequest reads what the client wants. An error that the client should be told is an *Error.
//
//	version (1) = 5 | command (1) | reserved (1) = 0 | endpoint
func readRequest(r io.Reader) (Command, endpoint, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, endpoint{}, err
	}
	if head[0] != version5 || head[2] != 0 {
		err := fmt.Errorf("request of version %d with reserved byte %d, want %d and 0: %w", head[0], head[2], version5, errMalformed)
		return 0, endpoint{}, &Error{Reply: ReplyGeneralFailure, Err: err}
	}
	e, err := readEndpoint(r)
	return Command(head[1]), e, err
}

func appendRequest(b []byte, c Command, e endpoint) []byte {
	return appendEndpoint(append(b, version5, byte(c), 0), e)
}

// readReply reads the server's answer to a request, whose endpoint says nothing to us.
//
//	version (1) = 5 | reply (1) | reserved (1) = 0 | endpoint
func readReply(r io.Reader) (Reply, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	if head[0] != version5 || head[2] != 0 {
		return 0, fmt.Errorf("reply of version %d with reserved byte %d, want %d and 0: %w", head[0], head[2], version5, errMalformed)
	}
	if _, _, err := readAddress(r); err != nil {
		return 0, err
	}
	return Reply(head[1]), nil
}

// unspecified is the host in replies that have none to tell, with port 0: where a stream leaves the network is not ours to
// know, and no client needs it.
const unspecified = "0.0.0.0"

// appendReply appends the answer to a request. e is what RESOLVE and RESOLVE_PTR found, and otherwise unspecified.
func appendReply(b []byte, r Reply, e endpoint) []byte {
	return appendEndpoint(append(b, version5, byte(r), 0), e)
}

// readEndpoint reads an endpoint and checks its host.
//
//	type (1) | IPv4 (4), or length (1) and name, or IPv6 (16) | port (2)
func readEndpoint(r io.Reader) (endpoint, error) {
	host, port, err := readAddress(r)
	if errors.Is(err, errAddressType) {
		return endpoint{}, &Error{Reply: ReplyAddressTypeNotSupported, Err: err}
	}
	if err != nil {
		return endpoint{}, err
	}
	host, isName, err := parseHost(host)
	if err != nil {
		return endpoint{}, &Error{Reply: ReplyGeneralFailure, Err: err}
	}
	return endpoint{host, isName, port}, nil
}

// readAddress reads the fields of an endpoint as they are.
func readAddress(r io.Reader) (host string, port uint16, err error) {
	var kind [1]byte
	if _, err := io.ReadFull(r, kind[:]); err != nil {
		return "", 0, unexpected(err)
	}
	switch kind[0] {
	case typeIPv4:
		var a [4]byte
		_, err = io.ReadFull(r, a[:])
		host = netip.AddrFrom4(a).String()
	case typeIPv6:
		var a [16]byte
		_, err = io.ReadFull(r, a[:])
		host = netip.AddrFrom16(a).String()
	case typeName:
		host, err = readField(r)
	default:
		return "", 0, fmt.Errorf("address type %d: %w", kind[0], errAddressType)
	}
	if err != nil {
		return "", 0, unexpected(err)
	}
	var p [2]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		return "", 0, unexpected(err)
	}
	return host, uint16(p[0])<<8 | uint16(p[1]), nil
}

func appendEndpoint(b []byte, e endpoint) []byte {
	if a, err := netip.ParseAddr(e.host); err == nil && !e.isName {
		kind := byte(typeIPv6)
		if a.Is4() {
			kind = typeIPv4
		}
		b = append(append(b, kind), a.AsSlice()...)
	} else {
		b = append(append(b, typeName, byte(len(e.host))), e.host...)
	}
	return append(b, byte(e.port>>8), byte(e.port))
}

// readField reads a length of one byte and as many bytes.
func readField(r io.Reader) (string, error) {
	var length [1]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return "", unexpected(err)
	}
	b := make([]byte, length[0])
	_, err := io.ReadFull(r, b)
	return string(b), unexpected(err)
}

// readPair reads one of the answers of two bytes: version, and a method or a status.
func readPair(r io.Reader) (version, value byte, err error) {
	var b [2]byte
	_, err = io.ReadFull(r, b[:])
	return b[0], b[1], unexpected(err)
}

// unexpected turns the end of the data within a message into io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
