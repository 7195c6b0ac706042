package handshake

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/flynn/noise"
)

// suite is the noise.CipherSuite 25519_AESGCM_SHA256 with X25519 from circl: flynn's own goes through crypto/ecdh, which
// computes each public key a second time and is slower to begin with (BenchmarkHopRespondStock). It has no state.
type suite struct{}

var _ noise.CipherSuite = suite{}

// GenerateKeypair reads exactly 32 bytes.
func (suite) GenerateKeypair(random io.Reader) (noise.DHKey, error) {
	secret, err := newSecret(random)
	if err != nil {
		return noise.DHKey{}, err
	}
	var public x25519.Key
	x25519.KeyGen(&public, secret)
	return noise.DHKey{Private: secret[:], Public: public[:]}, nil
}

// DH refuses points of low order, which Noise section 12.1 leaves to the application.
func (suite) DH(secret, public []byte) ([]byte, error) {
	if len(secret) != x25519.Size || len(public) != x25519.Size {
		return nil, ErrLength // not reached: all callers pass 32 bytes
	}
	var shared x25519.Key
	if !x25519.Shared(&shared, (*x25519.Key)(secret), (*x25519.Key)(public)) {
		return nil, ErrLowOrder
	}
	return shared[:], nil
}

func (suite) DHLen() int                       { return x25519.Size }
func (suite) DHName() string                   { return "25519" }
func (suite) Cipher(key [32]byte) noise.Cipher { return noise.CipherAESGCM.Cipher(key) }
func (suite) CipherName() string               { return "AESGCM" }
func (suite) Hash() hash.Hash                  { return sha256.New() }
func (suite) HashName() string                 { return "SHA256" }
func (suite) Name() []byte                     { return []byte("25519_AESGCM_SHA256") }

func newSecret(random io.Reader) (*x25519.Key, error) {
	var secret x25519.Key
	if err := readRandom(random, secret[:]); err != nil {
		return nil, err
	}
	return &secret, nil
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

// noiseError maps what flynn/noise returns to a sentinel. Lengths are checked before, so that what is not ours can only
// be the AEAD's.
func noiseError(err error) error {
	if errors.Is(err, ErrLowOrder) || errors.Is(err, ErrRandom) || errors.Is(err, ErrLength) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrAuthentication, err)
}
