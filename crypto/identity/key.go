package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
)

// SeedSize is the length of a private key's seed in bytes (RFC 8032 section
// 5.1.5). Everything else about a key follows from its seed.
const SeedSize = 32

// Key is a private Ed25519 key: an identity, or a signing key that an identity
// has certified. It does not change after it was made and may be used by many
// goroutines at once. Printing it, with any verb, shows the public half only.
type Key struct {
	private ed25519.PrivateKey
	id      ID
}

// Generate makes a new key from 32 bytes of random, or of crypto/rand when
// random is nil. The bytes are used as the seed as they come, so the same stream
// gives the same key.
func Generate(random io.Reader) (*Key, error) {
	if random == nil {
		random = rand.Reader
	}
	var seed [SeedSize]byte
	if _, err := io.ReadFull(random, seed[:]); err != nil {
		return nil, fmt.Errorf("identity: generating a key: reading random bytes: %w", err)
	}
	return FromSeed(seed[:])
}

// FromSeed makes the key of a seed of SeedSize bytes. The seed is copied.
func FromSeed(seed []byte) (*Key, error) {
	if len(seed) != SeedSize {
		return nil, fmt.Errorf("identity: the seed of a key has %d bytes, want %d", len(seed), SeedSize)
	}
	k := &Key{private: ed25519.NewKeyFromSeed(seed)}
	copy(k.id[:], k.private[SeedSize:])
	return k, nil
}

// Seed returns a copy of the secret seed: SeedSize bytes that belong to the
// caller, who keeps them as secret as the key.
func (k *Key) Seed() []byte { return k.private.Seed() }

// ID returns the public half.
func (k *Key) ID() ID { return k.id }

// Sign returns the 64-byte signature of msg (RFC 8032 Ed25519, deterministic, no
// prehash, no context). The message must start with a string that says what it
// is, as all messages of doc/spec.md do: nothing else keeps a signature made for
// one purpose from serving another.
func (k *Key) Sign(msg []byte) []byte { return ed25519.Sign(k.private, msg) }

// Format implements fmt.Formatter so that no verb, not even %d or %#v, prints
// the secret by mistake. Its receiver is a value for the same reason: it also
// covers a Key that was dereferenced.
func (k Key) Format(f fmt.State, _ rune) {
	// The writer is fmt's own buffer, which does not fail.
	_, _ = io.WriteString(f, "private key of "+k.id.Short())
}
