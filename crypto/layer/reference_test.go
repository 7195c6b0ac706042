package layer_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"cepa/crypto/layer"

	"golang.org/x/crypto/chacha20poly1305"
)

// This file says doc/spec.md sections 3 and 4 a second time, without state: any cell or record from its place alone. The
// vectors are made with it.

var suites = []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// stream returns n bytes that depend on the label alone.
func stream(label string, n int) []byte {
	var out []byte
	for i := 0; len(out) < n; i++ {
		out = append(out, must(hkdf.Expand(sha256.New, []byte("cepa layer test randomness, fixed"), fmt.Sprint(label, i), 8000))...)
	}
	return out[:n]
}

func newKey(label string) [32]byte { return [32]byte(stream(label, 32)) }

// referenceRatchet is HKDF-Expand for one block, spelt out: HMAC(key, info || 1).
func referenceRatchet(key [32]byte, steps int) [32]byte {
	for range steps {
		mac := hmac.New(sha256.New, key[:])
		mac.Write([]byte("cepa/1 ratchet\x01"))
		key = [32]byte(mac.Sum(nil))
	}
	return key
}

func referenceAEAD(s layer.Suite, key [32]byte) cipher.AEAD {
	if s == layer.ChaCha20Poly1305 {
		return must(chacha20poly1305.New(key[:]))
	}
	return must(cipher.NewGCM(must(aes.NewCipher(key[:]))))
}

func referenceNonce(n int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 4), uint64(n)) }

// referenceCell seals the cell with the given index under a first key.
func referenceCell(s layer.Suite, key [32]byte, index int, plaintext []byte) []byte {
	return referenceAEAD(s, referenceRatchet(key, index/1024)).Seal(nil, referenceNonce(index%1024), plaintext, nil)
}

// referenceRecord seals the record with the given index under the key after so many rekeyings.
func referenceRecord(key [32]byte, rekeyings, index int, plaintext []byte) []byte {
	length := binary.BigEndian.AppendUint16(nil, uint16(len(plaintext)+16))
	return referenceAEAD(layer.AES256GCM, referenceRatchet(key, rekeyings)).Seal(bytes.Clone(length), referenceNonce(index), plaintext, length)
}

// seal and record call the room under test with buffers of their own.
func seal(s *layer.State, plaintext []byte) []byte {
	dst := make([]byte, len(plaintext)+layer.TagSize)
	s.Seal(dst, plaintext)
	return dst
}

func open(s *layer.State, sealed []byte) ([]byte, error) {
	dst := make([]byte, max(0, len(sealed)-layer.TagSize))
	err := s.Open(dst, sealed)
	return dst, err
}

func record(r *layer.Records, plaintext []byte) []byte {
	buf := make([]byte, layer.RecordHeader, len(plaintext)+layer.RecordOverhead)
	return r.Seal(append(buf, plaintext...))
}

func openRecord(r *layer.Records, record []byte) ([]byte, error) { return r.Open(slices.Clone(record)) }

// at returns a State that has sealed so many cells.
func at(s layer.Suite, key [32]byte, cells int) *layer.State {
	st := must(layer.New(s, key))
	var buf [layer.TagSize]byte
	for range cells {
		st.Seal(buf[:], nil)
	}
	return st
}

// changed returns a copy of b in which the bits of mask are flipped at offset.
func changed(b []byte, offset int, mask byte) []byte {
	c := bytes.Clone(b)
	c[offset] ^= mask
	return c
}
