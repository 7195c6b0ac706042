package handshake

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/cloudflare/circl/dh/x25519"
)

// OnionKey is a relay's X25519 key, to which origins run the hop handshake. Its public half is in the relay's
// descriptor. Who steals it can pose as the relay, but cannot read circuits of before: every handshake also has
// ephemeral keys. It does not change after it was made and is safe for concurrent use. The zero value is refused.
type OnionKey struct {
	secret, public x25519.Key
	id             [KeyIDSize]byte
}

// GenerateOnionKey makes a key from 32 bytes of random (crypto/rand.Reader when nil). It fails with ErrRandom.
func GenerateOnionKey(random io.Reader) (*OnionKey, error) {
	secret, err := newSecret(orDefault(random))
	if err != nil {
		return nil, fmt.Errorf("handshake: generate onion key: %w", err)
	}
	return OnionKeyFromSecret(*secret)
}

// OnionKeyFromSecret restores the key whose Secret was kept. Every secret is lawful but 32 zeros (ErrParams), which can
// only be a key that was never filled in.
func OnionKeyFromSecret(secret [32]byte) (*OnionKey, error) {
	if secret == [32]byte{} {
		return nil, fmt.Errorf("handshake: onion key: %w: the secret is all zeros", ErrParams)
	}
	k := &OnionKey{secret: secret}
	x25519.KeyGen(&k.public, &k.secret)
	k.id = KeyID(k.public)
	return k, nil
}

// Secret returns a copy of the private half, for a file that only the relay can read.
func (k *OnionKey) Secret() [32]byte { return k.secret }

// Public returns the key of the relay's descriptor.
func (k *OnionKey) Public() [32]byte { return k.public }

// ID returns KeyID(k.Public()).
func (k *OnionKey) ID() [8]byte { return k.id }

// Format writes the key's ID for every verb, so that the secret cannot slip into a log.
func (k OnionKey) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "handshake.OnionKey(%x)", k.id[:])
}

// KeyID returns the ID by which CREATE and EXTEND name an onion key: the first 8 bytes of its SHA-256 (doc/spec.md
// section 2). It tells a relay which of its keys to use and is no proof of anything.
func KeyID(public [32]byte) [8]byte {
	sum := sha256.Sum256(public[:])
	return [KeyIDSize]byte(sum[:KeyIDSize])
}
