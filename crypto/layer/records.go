package layer

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"
)

// Sizes and bounds of link records (doc/spec.md section 3).
const (
	// RecordHeader is the length field before the sealed bytes, in bytes.
	RecordHeader = 2
	// RecordOverhead is the length field and the tag: what a record is longer than the cells in it, in bytes.
	RecordOverhead = RecordHeader + TagSize
	// MaxRecords is how many records a key may serve: sealing more panics, opening more closes the link.
	MaxRecords = 1 << 16

	maxRecordPlaintext = 1<<16 - 1 - TagSize // what the length field can say
)

// Records encrypts one direction of a link with AES-256-GCM, the length bytes as additional data. Which lengths are
// lawful (whole cells, at most 46) is the link's business: it reads the length before the rest. One end seals with it and
// the other opens with its own; a Records serves one of the two. It is not safe for concurrent use and must not be copied.
//
//	NewRecords ── Seal or Open, at most 65,536 times ──▶ Rekey ── …
//	               Open fails ──▶ spent (every later call fails)
type Records struct {
	aead  cipher.AEAD // nil when spent
	key   [KeySize]byte
	nonce [nonceSize]byte // 4 zero bytes and the number of records under this key
	count uint64          // the same number
}

// NewRecords returns a Records at its first record, with a copy of key.
func NewRecords(key [KeySize]byte) *Records {
	r := &Records{key: key}
	r.aead = AES256GCM.newAEAD(&r.key)
	return r
}

// Seal makes a record of buf in place: 2 bytes that Seal fills in, the plaintext after them (none to 65,519 bytes), and
// at least 16 spare bytes of capacity. It returns the record, which is buf and 16 bytes more. Whoever seals must call
// Rekey before Count exceeds MaxRecords. Sealing one more would be refused by the peer, so it panics, as do a buf that
// is too short, too long or without room, and a Records that has failed to open: all are mistakes of the caller.
func (r *Records) Seal(buf []byte) []byte {
	n := len(buf) - RecordHeader
	if n < 0 || n > maxRecordPlaintext || cap(buf)-len(buf) < TagSize {
		panic("layer: Seal: record needs 2 bytes of header, at most 65,519 of plaintext and 16 spare")
	}
	if r.aead == nil {
		panic("layer: Seal with records that are spent")
	}
	if r.count >= MaxRecords {
		panic("layer: Seal: key has served its records, call Rekey")
	}
	binary.BigEndian.PutUint16(buf, uint16(n+TagSize))
	r.aead.Seal(buf[RecordHeader:RecordHeader], r.nonce[:], buf[RecordHeader:], buf[:RecordHeader])
	r.advance()
	return buf[:len(buf)+TagSize]
}

// Open decrypts record (length || sealed) in place and returns the plaintext, which lies inside it. If record is not what
// the other end sealed next, or its length field does not say how long it is, Open returns ErrOpen; if the key has served MaxRecords
// records, ErrRecordLimit. After an error, the contents of record are not to be used and the Records is spent: its key is
// gone and every later Open fails.
func (r *Records) Open(record []byte) (plaintext []byte, err error) {
	if r.aead == nil {
		return nil, errSpentRecords
	}
	if r.count >= MaxRecords {
		return nil, r.spend(fmt.Errorf("layer: record %d: %w", r.count, ErrRecordLimit))
	}
	if len(record) < RecordOverhead || int(binary.BigEndian.Uint16(record)) != len(record)-RecordHeader {
		return nil, r.spend(fmt.Errorf("layer: record %d: %w: %d bytes do not agree with its length field", r.count, ErrOpen, len(record)))
	}
	plaintext, err = r.aead.Open(record[RecordHeader:RecordHeader], r.nonce[:], record[RecordHeader:], record[:RecordHeader])
	if err != nil {
		return nil, r.spend(fmt.Errorf("layer: record %d: %w: it was altered, dropped, repeated or moved", r.count, ErrOpen))
	}
	r.advance()
	return plaintext, nil
}

// Rekey replaces the key by Ratchet of it and starts counting anew. The sealing end calls it after the record whose last
// cell is REKEY, the opening end after it has opened that record. A Records that is spent stays so.
func (r *Records) Rekey() {
	if r.aead == nil {
		return
	}
	r.key = Ratchet(r.key) // overwrites the old one
	r.aead = AES256GCM.newAEAD(&r.key)
	r.count = 0
	clear(r.nonce[:])
}

// Count returns how many records were sealed or opened under the present key, 0 to MaxRecords.
func (r *Records) Count() uint64 { return r.count }

// Format writes the count for every verb, so that the key cannot slip into a log.
func (r *Records) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, fmt.Sprintf("layer.Records(%d)", r.count))
}

func (r *Records) advance() {
	r.count++
	binary.BigEndian.PutUint64(r.nonce[4:], r.count)
}

func (r *Records) spend(err error) error {
	r.aead = nil
	clear(r.key[:])
	return err
}
