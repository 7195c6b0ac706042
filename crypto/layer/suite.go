package layer

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// Suite is the AEAD of a hop's layers: the relay's choice, from its descriptor (doc/spec.md section 2). The zero value
// is no suite.
type Suite uint8

// The suites, with the numbers that travel in CREATE and EXTEND.
const (
	AES256GCM        Suite = 1 // for machines with AES instructions (NIST SP 800-38D)
	ChaCha20Poly1305 Suite = 2 // for machines without (RFC 8439)
)

// Valid reports whether s is one of the suites above.
func (s Suite) Valid() bool { return s == AES256GCM || s == ChaCha20Poly1305 }

// String returns the name of the suite.
func (s Suite) String() string {
	switch s {
	case AES256GCM:
		return "AES-256-GCM"
	case ChaCha20Poly1305:
		return "ChaCha20-Poly1305"
	}
	return fmt.Sprintf("suite %d", uint8(s))
}

// newAEAD makes the cipher of a valid suite. Both have 12-byte nonces and 16-byte tags.
func (s Suite) newAEAD(key *[KeySize]byte) cipher.AEAD {
	var aead cipher.AEAD
	var err error
	switch s {
	case AES256GCM:
		var block cipher.Block
		if block, err = aes.NewCipher(key[:]); err == nil {
			aead, err = cipher.NewGCM(block)
		}
	case ChaCha20Poly1305:
		aead, err = chacha20poly1305.New(key[:])
	default:
		panic("layer: cipher of an invalid suite")
	}
	if err != nil {
		panic(err) // only for keys of another length
	}
	return aead
}
