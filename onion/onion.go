// Package onion holds the formats and the cryptography of onion services: addresses, the keys of a period, the ring by
// which relays are responsible for descriptors, the descriptor, and the handshake between a client and a service (doc/spec.md
// section 14). It is pure: bytes in, bytes out, no files, no sockets, no clock.
//
// "Onion" alone means onion service here; a relay's onion key, of the hop handshake, is another thing.
//
// All randomness comes from the reader that the caller gives, in a fixed order, and from crypto/rand.Reader where it is nil.
// Equal bytes give equal keys: never give the same twice.
package onion

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// DirectoryPath is the HTTP resource at which relays take descriptors (POST), and, followed by "/" and the blinded key in
	// lower-case hexadecimal, give them (GET). Source: doc/spec.md section 9.
	DirectoryPath = "/cepa/v1/onion"
	// Host is what BEGIN names on a joined circuit: the service is at its other end, and which of its names was asked for is
	// between it and the program.
	Host = "service"
)

// MaxNetworkName is the longest name of a network in bytes, as in the network file (doc/spec.md section 11).
const MaxNetworkName = 32

var (
	// ErrNetworkName says that a name is none of a network.
	ErrNetworkName = errors.New("not a name of a network: want 1 to 32 lower-case letters, digits and hyphens")
	// ErrRandom says that the source of randomness failed. Nothing was made.
	ErrRandom = errors.New("reading random bytes")
)

// checkNetwork holds a name to the rule of the network file.
func checkNetwork(name string) error {
	if name == "" || len(name) > MaxNetworkName {
		return ErrNetworkName
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return ErrNetworkName
		}
	}
	return nil
}

// appendNetwork appends a name with its length before it: 1 to 33 bytes.
func appendNetwork(b []byte, name string) []byte {
	return append(append(b, byte(len(name))), name...)
}

// appendPeriod appends "network || period", with which everything of one period of one network is bound to both.
func appendPeriod(b []byte, network string, period uint64) []byte {
	return binary.BigEndian.AppendUint64(appendNetwork(b, network), period)
}

// derive is HKDF-SHA256 (RFC 5869).
func derive(secret, salt []byte, info string, size int) []byte {
	out, err := hkdf.Key(sha256.New, secret, salt, info, size)
	if err != nil {
		panic(err) // only for more than 255·32 bytes
	}
	return out
}

// sum is SHA-256 over the parts one after the other. Whoever calls it sees to it that they can be told apart.
func sum(parts ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// tag is the first 16 bytes of HMAC-SHA256.
func tag(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)[:macSize]
}

// readRandom fills b or fails: a short read never leaves zeros in a key.
func readRandom(random io.Reader, b []byte) error {
	if _, err := io.ReadFull(random, b); err != nil {
		return fmt.Errorf("%w: %w", ErrRandom, err)
	}
	return nil
}

func orDefault(random io.Reader) io.Reader {
	if random == nil {
		return rand.Reader
	}
	return random
}

func allZero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}
