package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// The kinds of key that nodes keep in files. Any other word that obeys the rules
// of EncodeKeyFile is a kind as well.
const (
	KindIdentity = "ed25519-identity" // seed of a relay's or an authority's identity
	KindSigning  = "ed25519-signing"  // seed of a key that an identity certifies
	KindFamily   = "ed25519-family"   // seed of the key of a family of relays
	KindOnion    = "x25519-onion"     // a relay's onion key, doc/spec.md section 2
	KindService  = "ed25519-service"  // seed of the identity of an onion service, which its address names
)

const (
	// MaxKeyFileSize bounds a key file, in bytes. Ours: the longest that
	// EncodeKeyFile makes has 152.
	MaxKeyFileSize = 256

	// SecretSize is the length in bytes of the secret in a key file: the seed of an
	// Ed25519 key or the scalar of an X25519 key.
	SecretSize = 32

	// maxKind bounds a kind, in bytes. Ours.
	maxKind = 32
	// checkSize is the length in bytes of the checksum. Ours: it guards against
	// accidents, not against people, who could write a new one.
	checkSize = 8

	keyFileMagic = "cepa private key "
	keyFileHead  = keyFileMagic + "1\n"
	kindLabel    = "kind "
	secretLabel  = "secret "
	checkLabel   = "check "
)

// ErrKeyFile says that bytes are not an undamaged key file.
var ErrKeyFile = errors.New("identity: bad key file")

// KindError says that a key file is in order but holds a key for another use.
type KindError struct {
	Want, Got string // kinds
}

// Error implements error.
func (e *KindError) Error() string {
	return fmt.Sprintf("identity: the key file holds a key of kind %q, want %q: the files were mixed up, put the right one there", e.Got, e.Want)
}

// EncodeKeyFile returns the text in which a private key is kept:
//
//	cepa private key 1
//	kind ed25519-identity
//	secret 64 hex digits
//	check 16 hex digits
//
// The checksum is the first 8 bytes of SHA-256 of the lines before it. A kind has
// 1 to 32 bytes, of lower-case letters, digits and hyphens; anything else is an
// error. The result is as secret as the key.
func EncodeKeyFile(kind string, secret [SecretSize]byte) ([]byte, error) {
	if !validKind(kind) {
		return nil, fmt.Errorf("identity: %q is not a kind of key: want 1 to %d lower-case letters, digits and hyphens", kind, maxKind)
	}
	b := make([]byte, 0, MaxKeyFileSize)
	b = append(b, keyFileHead+kindLabel+kind+"\n"+secretLabel...)
	b = hex.AppendEncode(b, secret[:])
	b = append(b, '\n')
	sum := checksum(b)
	b = append(b, checkLabel...)
	b = hex.AppendEncode(b, sum[:])
	return append(b, '\n'), nil
}

// ParseKeyFile returns the secret of a key file that holds a key of the given
// kind. It accepts only what EncodeKeyFile returns, to the byte. Errors are
// ErrKeyFile when the file is damaged or is none, and *KindError when it is whole
// but of another kind. They never repeat what the file holds, except for the kind
// of a whole file. b is not kept.
func ParseKeyFile(b []byte, kind string) (secret [SecretSize]byte, err error) {
	got, secret, err := parseKeyFile(b)
	if err != nil {
		return [SecretSize]byte{}, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	if got != kind {
		return [SecretSize]byte{}, &KindError{Want: kind, Got: got}
	}
	return secret, nil
}

func parseKeyFile(b []byte) (kind string, secret [SecretSize]byte, err error) {
	fail := func(problem string) (string, [SecretSize]byte, error) {
		return "", [SecretSize]byte{}, errors.New(problem)
	}
	switch {
	case len(b) == 0:
		return fail("it is empty")
	case len(b) > MaxKeyFileSize:
		return fail("it is too long")
	case bytes.ContainsRune(b, '\r'):
		return fail("its line ends were changed: they must be single newlines")
	case !bytes.HasPrefix(b, []byte(keyFileMagic)):
		return fail("it does not start as a key file does")
	case !bytes.HasPrefix(b, []byte(keyFileHead)):
		return fail("its first line is cut off, or is of a version that this program does not know")
	}
	lines := strings.SplitAfter(string(b), "\n")
	if len(lines) < 5 {
		return fail("its end is missing")
	}
	if len(lines) > 5 || lines[4] != "" {
		return fail("something follows its last line")
	}
	// The checksum comes first: only of a file that is whole can it be said what
	// it holds.
	var sum [checkSize]byte
	if !decodeLine(sum[:], lines[3], checkLabel) {
		return fail("its checksum is not readable")
	}
	if sum != checksum([]byte(lines[0]+lines[1]+lines[2])) {
		return fail("its checksum does not fit: it was damaged or changed")
	}
	kind, found := strings.CutPrefix(strings.TrimSuffix(lines[1], "\n"), kindLabel)
	if !found || !validKind(kind) {
		return fail("its second line does not name a kind")
	}
	if !decodeLine(secret[:], lines[2], secretLabel) {
		return fail("its third line is not a secret")
	}
	return kind, secret, nil
}

// decodeLine fills dst from a line that is the label, hex digits and a newline.
func decodeLine(dst []byte, line, label string) bool {
	digits, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), label)
	return found && decodeHex(dst, []byte(digits))
}

func checksum(b []byte) [checkSize]byte {
	sum := sha256.Sum256(b)
	return [checkSize]byte(sum[:])
}

func validKind(kind string) bool {
	if len(kind) == 0 || len(kind) > maxKind {
		return false
	}
	for _, c := range []byte(kind) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
