// Package layer encrypts what moves through cepa once its keys are agreed: the layers of cells, one for each hop and
// direction (State, doc/spec.md section 4), and the records of links (Records, section 3). It does no I/O and starts
// nothing.
//
// Both work alike: an AEAD, a nonce that counts and never travels, and a ratchet that replaces the key by a one-way step,
// so that a key that is stolen opens nothing that was sealed before the step. A cell or record that was altered, dropped,
// repeated or moved fails to open, and from then on nothing opens: the caller destroys the circuit or closes the link.
//
// # What is forgotten
//
// Old keys are overwritten where this package holds them. Go does not promise more: the cipher's expanded key is left to
// the garbage collector, and copies that the compiler or the runtime made may stay in memory until it is reused.
package layer

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Sizes in bytes and bounds.
const (
	KeySize = 32 // of every key here
	TagSize = 16 // of both suites
	// Overhead is what a layer costs: the tag and the byte that says whether the body is for this hop. That byte is part
	// of the plaintext and the caller's business.
	Overhead = TagSize + 1
	// RatchetCells is the number of cells that a layer key serves (doc/spec.md section 4).
	RatchetCells = 1024

	nonceSize   = 12
	ratchetInfo = "cepa/1 ratchet"
)

// Sentinels. Each error of this package wraps exactly one of ErrSuite and ErrOpen; ErrRecordLimit wraps ErrOpen.
var (
	// ErrSuite: the suite is none of those that this package knows.
	ErrSuite = errors.New("unknown layer cipher suite")
	// ErrOpen: what was to be opened is not what the peer sealed next, or an earlier one was not.
	ErrOpen = errors.New("does not authenticate")
	// ErrRecordLimit: the peer used one key for more than MaxRecords records.
	ErrRecordLimit = fmt.Errorf("%w: key has served its records, the peer had to replace it", ErrOpen)
)

// Built once, so that a state that is spent refuses hostile input without allocating.
var (
	errSpentState   = fmt.Errorf("layer: cell after one that failed: %w", ErrOpen)
	errSpentRecords = fmt.Errorf("layer: record after one that failed: %w", ErrOpen)
)

// Ratchet is the one-way step of layers and links: HKDF-Expand(key, "cepa/1 ratchet", 32) (RFC 5869 section 2.3).
func Ratchet(key [KeySize]byte) [KeySize]byte {
	next, err := hkdf.Expand(sha256.New, key[:], ratchetInfo, KeySize)
	if err != nil {
		panic(err) // only for more than 255·32 bytes
	}
	defer clear(next)
	return [KeySize]byte(next)
}

// State encrypts one direction of one hop's cells. One end seals with it and the other end opens with its own; a State
// serves one of the two. It is not safe for concurrent use and must not be copied.
//
//	New ── Seal or Open, 1,024 times ──▶ ratchet ── …
//	        Open fails ──▶ spent (every later call fails)
type State struct {
	aead  cipher.AEAD // nil when spent
	key   [KeySize]byte
	nonce [nonceSize]byte // 4 zero bytes and the number of cells under this key
	count uint64          // the same number
	cells uint64          // under all keys
	suite Suite
}

// New returns a State at its first cell, with a copy of key. It fails with ErrSuite.
func New(s Suite, key [KeySize]byte) (*State, error) {
	if !s.Valid() {
		return nil, fmt.Errorf("layer: %w: %v", ErrSuite, s)
	}
	st := &State{key: key, suite: s}
	st.aead = s.newAEAD(&st.key)
	return st, nil
}

// Seal encrypts src into dst, which must have len(src)+16 bytes. Either they start at the same byte (src is
// dst[:len(src)], sealed in place) or they do not overlap. It does not fail: a wrong length, an inexact overlap or a State that
// has failed to open is a mistake of the caller and panics.
func (s *State) Seal(dst, src []byte) {
	if len(dst) != len(src)+TagSize {
		panic("layer: Seal: dst must be 16 bytes longer than src")
	}
	if s.aead == nil {
		panic("layer: Seal with a state that is spent")
	}
	s.aead.Seal(dst[:0], s.nonce[:], src, nil)
	s.advance()
}

// Open decrypts src into dst, which must have len(src)-16 bytes (none if src is shorter than 16). Either they start at
// the same byte (dst is src[:len(src)-16], opened in place) or they do not overlap; anything else panics. If src is not
// the cell that the other end sealed next, Open returns ErrOpen, the contents of dst are not to be used, and the State is spent:
// its key is gone and every later Open fails.
func (s *State) Open(dst, src []byte) error {
	if len(dst) != max(0, len(src)-TagSize) {
		panic("layer: Open: dst must be 16 bytes shorter than src")
	}
	if s.aead == nil {
		return errSpentState
	}
	if len(src) < TagSize {
		return s.spend(fmt.Errorf("layer: cell %d: %w: %d bytes, less than a tag", s.cells, ErrOpen, len(src)))
	}
	if _, err := s.aead.Open(dst[:0], s.nonce[:], src, nil); err != nil {
		return s.spend(fmt.Errorf("layer: cell %d: %w: it was altered, dropped, repeated or moved", s.cells, ErrOpen))
	}
	s.advance()
	return nil
}

// Cells returns how many cells were sealed or opened since New; one that failed does not count.
func (s *State) Cells() uint64 { return s.cells }

// Format writes the suite for every verb, so that the key cannot slip into a log.
func (s *State) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "layer.State("+s.suite.String()+")")
}

// advance moves to the next nonce, and to the next key at once when this one has served its cells: the sooner it is
// gone the less it can open.
func (s *State) advance() {
	s.cells++
	s.count++
	if s.count == RatchetCells {
		s.key = Ratchet(s.key) // overwrites the old one
		s.aead = s.suite.newAEAD(&s.key)
		s.count = 0
	}
	binary.BigEndian.PutUint64(s.nonce[4:], s.count)
}

func (s *State) spend(err error) error {
	s.aead = nil
	clear(s.key[:])
	return err
}
