package onion

import "encoding/binary"

// reader takes fields of fixed size from the front of b. Once b is too short it is short for good, and gives zeros: the caller
// looks at short before it believes what it read.
type reader struct {
	b     []byte
	short bool
}

// take returns the next n bytes, which are b's own.
func (r *reader) take(n int) []byte {
	if r.short || len(r.b) < n {
		r.short = true
		return make([]byte, n)
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) uint8() uint8      { return r.take(1)[0] }
func (r *reader) uint16() uint16    { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) uint32() uint32    { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64    { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) array32() [32]byte { return [32]byte(r.take(32)) }
