package identity

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/edwards25519"
)

const (
	// blindContext precedes what the factor of a blinded key is hashed from.
	// doc/spec.md section 14.
	blindContext = "cepa/1 blind"
	// blindNonceContext precedes what the nonce prefix of a blinded key is hashed from.
	blindNonceContext = "cepa/1 blind nonce"
)

// ErrTorsion says that a key is an honest key plus a point of small order, or no
// point of the curve at all: keys derived from it would not be bound to one key.
var ErrTorsion = errors.New("identity: the public key is not in the group of prime order")

// CheckGroup returns nil when the ID passes Check and is a point of the group of
// prime order: every key that Generate makes is. Otherwise the error is ErrWeakKey
// or ErrTorsion. It costs about as much as Verify; code that derives keys from an
// ID needs it, Verify does not.
func (id ID) CheckGroup() error {
	_, err := id.groupPoint()
	return err
}

// groupPoint decodes an ID that CheckGroup accepts.
func (id ID) groupPoint() (*edwards25519.Point, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	p, err := new(edwards25519.Point).SetBytes(id[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %s… is not a point of the curve", ErrTorsion, id.Short())
	}
	// The multiple by the group order is the neutral element exactly for points of the
	// group of prime order. The order itself is no scalar: multiply by one less, add once.
	zero := edwards25519.NewScalar()
	last := new(edwards25519.Scalar).Subtract(zero, one())
	sum := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(last, p, zero)
	if sum.Add(sum, p).Equal(edwards25519.NewIdentityPoint()) != 1 {
		return nil, fmt.Errorf("%w: %s… has a part of small order", ErrTorsion, id.Short())
	}
	return p, nil
}

// Blind returns the public key that whoever knows id and context derives from it:
// id times a factor that is a hash of both. Who does not know id learns nothing
// about it from the result, and cannot tell whether two results belong together.
// The private half is Key.Blind's. An id that CheckGroup refuses is an error.
func (id ID) Blind(context []byte) (ID, error) {
	p, err := id.groupPoint()
	if err != nil {
		return ID{}, fmt.Errorf("identity: blinding: %w", err)
	}
	p.ScalarMult(blindFactor(id, context), p)
	return ID(p.Bytes()), nil
}

// BlindedKey is the private half of a blinded key. It signs as a Key does, and
// Verify accepts its signatures under its own ID. It has no seed, and from it
// nothing follows about the key it was made from to who does not know that key's
// ID; who does could compute the key's scalar: it is as secret as the key itself.
// It does not change and may be used by many goroutines at once. Printing it shows
// the public half only.
type BlindedKey struct {
	scalar *edwards25519.Scalar
	prefix [32]byte // of the nonces' hash, as in RFC 8032
	id     ID
}

// Blind returns the private half of k.ID().Blind(context).
func (k *Key) Blind(context []byte) (*BlindedKey, error) {
	id, err := k.id.Blind(context)
	if err != nil {
		return nil, err
	}
	expanded := sha512.Sum512(k.private.Seed()) // RFC 8032 section 5.1.5
	defer clear(expanded[:])
	scalar, err := new(edwards25519.Scalar).SetBytesWithClamping(expanded[:32])
	if err != nil {
		return nil, fmt.Errorf("identity: blinding: %w", err) // not reached: the length is right
	}
	factor := blindFactor(k.id, context)
	b := &BlindedKey{scalar: scalar.Multiply(factor, scalar), id: id}
	// A prefix of its own: with the key's, two keys would share nonces for equal messages,
	// and two equations in the same nonce give the scalar away.
	h := sha512.New()
	h.Write([]byte(blindNonceContext))
	h.Write(expanded[32:])
	h.Write(factor.Bytes())
	copy(b.prefix[:], h.Sum(nil))
	return b, nil
}

// ID returns the public half.
func (b *BlindedKey) ID() ID { return b.id }

// Sign returns the 64-byte signature of msg, deterministic as that of Key.Sign, and
// under the same demand on the message.
func (b *BlindedKey) Sign(msg []byte) []byte {
	h := sha512.New()
	h.Write(b.prefix[:])
	h.Write(msg)
	nonce := uniform(h.Sum(nil))
	point := new(edwards25519.Point).ScalarBaseMult(nonce).Bytes()
	h.Reset()
	h.Write(point)
	h.Write(b.id[:])
	h.Write(msg)
	challenge := uniform(h.Sum(nil))
	return append(point, challenge.MultiplyAdd(challenge, b.scalar, nonce).Bytes()...)
}

// Certify signs a certificate for subject in the name of b, as Key.Certify does.
func (b *BlindedKey) Certify(p Purpose, subject ID, notBefore, notAfter time.Time) (*Certificate, error) {
	return certify(b, p, subject, notBefore, notAfter)
}

// Format implements fmt.Formatter as Key's does.
func (b BlindedKey) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "private blinded key of "+b.id.Short())
}

// blindFactor is a hash of the key, which it binds, and the context, which is last
// and so needs no length.
func blindFactor(id ID, context []byte) *edwards25519.Scalar {
	h := sha512.New()
	h.Write([]byte(blindContext))
	h.Write(id[:])
	h.Write(context)
	return uniform(h.Sum(nil))
}

// uniform reduces 64 bytes to a scalar.
func uniform(wide []byte) *edwards25519.Scalar {
	s, err := new(edwards25519.Scalar).SetUniformBytes(wide)
	if err != nil {
		panic(err) // only for another length than SHA-512's
	}
	return s
}

func one() *edwards25519.Scalar {
	s, err := new(edwards25519.Scalar).SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		panic(err) // 1 is canonical
	}
	return s
}

// signer is what certify needs of a private key.
type signer interface {
	ID() ID
	Sign(msg []byte) []byte
}
