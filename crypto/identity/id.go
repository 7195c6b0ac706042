// Package identity holds what says who a node is: Ed25519 identities, the
// certificates with which an identity vouches for a shorter-lived key, and the
// text form in which private keys are kept. It is pure: bytes in, bytes out, no
// files, no sockets, no clock. Formats are those of doc/spec.md section 6.
package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
)

// IDSize is the length of an ID in bytes (RFC 8032 section 5.1.5).
const IDSize = 32

var (
	// ErrText says that a text is not the text form of an ID.
	ErrText = errors.New("identity: not an identity in text form")
	// ErrWeakKey says that 32 bytes are not a public key that Verify would ever
	// accept: not canonical, or a point of small order.
	ErrWeakKey = errors.New("identity: unacceptable public key")
)

// ID is an Ed25519 public key (RFC 8032) as 32 bytes: the identity of a relay or
// an authority, or a key that an identity has certified. It is comparable and
// may be a map key. Any 32 bytes are an ID; whether they are a usable key is
// decided by Check, and again by each Verify.
type ID [IDSize]byte

// ParseID reads the text form of an ID: exactly 64 lower-case hex digits, so that
// an ID has one text form only. Errors are ErrText; they do not repeat the input.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*IDSize {
		return ID{}, fmt.Errorf("%w: it has %d characters, want %d lower-case hex digits", ErrText, len(s), 2*IDSize)
	}
	if !decodeHex(id[:], []byte(s)) {
		return ID{}, fmt.Errorf("%w: it holds something else than lower-case hex digits", ErrText)
	}
	return id, nil
}

// String returns the text form, 64 lower-case hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 8 hex digits of the text form. It is for logs, where
// it names a relay well enough to look it up; it is too short to decide by.
func (id ID) Short() string { return hex.EncodeToString(id[:4]) }

// IsZero tells whether all bytes are zero, which stands for "no identity". It is
// never a key: the point that the zero bytes encode has order 4.
func (id ID) IsZero() bool { return id == ID{} }

// Compare orders IDs by their bytes and returns -1, 0 or 1, as bytes.Compare.
func (id ID) Compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// MarshalText returns the text form. It implements encoding.TextMarshaler and
// never fails.
func (id ID) MarshalText() ([]byte, error) {
	return hex.AppendEncode(make([]byte, 0, 2*IDSize), id[:]), nil
}

// UnmarshalText reads the text form as ParseID does. After an error the ID is
// as it was.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// Check returns nil when the ID is a public key in canonical form and not of
// small order, and ErrWeakKey otherwise. A nil does not promise that the bytes
// are a point of the curve: half of all byte strings are not, and Verify, which
// finds that out anyway, then returns false.
func (id ID) Check() error {
	switch y := id.y(); {
	case !belowFieldPrime(y):
		return fmt.Errorf("%w: %s… is not in canonical form", ErrWeakKey, id.Short())
	case isSmallOrder(y):
		return fmt.Errorf("%w: %s… is a point of small order", ErrWeakKey, id.Short())
	}
	return nil
}

// decodeHex fills dst from exactly 2*len(dst) lower-case hex digits. Upper case
// is refused so that each value has one text form.
func decodeHex(dst, text []byte) bool {
	if len(text) != 2*len(dst) || bytes.ContainsAny(text, "ABCDEF") {
		return false
	}
	_, err := hex.Decode(dst, text)
	return err == nil
}
