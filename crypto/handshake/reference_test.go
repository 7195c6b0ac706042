package handshake_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"cepa/crypto/handshake"
)

// This file is a second implementation of both handshakes, written from the Noise specification (revision 34) and
// doc/spec.md with the standard library alone: no flynn/noise, no circl. It plays both sides at once, checks
// that they agree, and yields the whole transcript. The vectors are made with it.

// symmetric is Noise's SymmetricState with the CipherState inside (sections 5.1 and 5.2).
type symmetric struct {
	h, ck, k []byte
	n        uint64
}

func newSymmetric(name, prologue string) *symmetric {
	h := make([]byte, 32)
	if len(name) > len(h) {
		sum := sha256.Sum256([]byte(name))
		h = sum[:]
	} else {
		copy(h, name)
	}
	s := &symmetric{h: h, ck: h}
	s.mixHash([]byte(prologue))
	return s
}

func (s *symmetric) mixHash(data []byte) {
	sum := sha256.Sum256(append(bytes.Clone(s.h), data...))
	s.h = sum[:]
}

// expand is Noise's HKDF (section 4.3) with two outputs: RFC 5869 with the chaining key as salt.
func (s *symmetric) expand(ikm []byte) (a, b []byte) {
	out := must(hkdf.Key(sha256.New, ikm, s.ck, "", 64))
	return out[:32], out[32:]
}

func (s *symmetric) mixKey(ikm []byte) { s.ck, s.k = s.expand(ikm); s.n = 0 }

func (s *symmetric) aead() (cipher.AEAD, []byte) {
	nonce := binary.BigEndian.AppendUint64(make([]byte, 4), s.n)
	s.n++
	return must(cipher.NewGCM(must(aes.NewCipher(s.k)))), nonce
}

func (s *symmetric) encryptAndHash(plaintext []byte) []byte {
	out := plaintext
	if s.k != nil {
		aead, nonce := s.aead()
		out = aead.Seal(nil, nonce, plaintext, s.h)
	}
	s.mixHash(out)
	return out
}

func (s *symmetric) decryptAndHash(in []byte) []byte {
	out := in
	if s.k != nil {
		aead, nonce := s.aead()
		out = must(aead.Open(nil, nonce, in, s.h))
	}
	s.mixHash(in)
	return out
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func agree(secret, public []byte) []byte {
	priv := must(ecdh.X25519().NewPrivateKey(secret))
	return must(priv.ECDH(must(ecdh.X25519().NewPublicKey(public))))
}

func publicOf(secret []byte) []byte {
	return must(ecdh.X25519().NewPrivateKey(secret)).PublicKey().Bytes()
}

// inputs is all that goes into a handshake. The onion fields and params are for hops only.
type inputs struct {
	hop         bool
	identity    []byte
	onionSecret []byte
	index       byte
	suite       byte
	initiator   []byte // 96 bytes of randomness
	responder   []byte // 64

	// What a peer that breaks the protocol sends, with everything around it sound; nil for the sound value.
	badKEMKey     []byte
	badCiphertext []byte
}

// transcript is all that comes out.
type transcript struct {
	message1, message2, confirmation, hash, noise1, noise2, kemSecret []byte
	keys                                                              handshake.Keys
}

func (t *transcript) reply() []byte { return append(bytes.Clone(t.message2), t.confirmation...) }

// reference runs a handshake. With a bad ciphertext, keys are what the initiator derives and confirmation is what a
// responder that believes in its own secret sends; otherwise both sides are checked to agree.
func reference(in inputs) *transcript {
	name, prologue, info := "Noise_NN_25519_AESGCM_SHA256", "cepa/1 link", "cepa/1 link keys"
	if in.hop {
		name, info = "Noise_NK_25519_AESGCM_SHA256", "cepa/1 hop keys"
		prologue = "cepa/1 hop" + string(in.identity) + string([]byte{in.index, in.suite})
	}
	dk := must(mlkem.NewDecapsulationKey768(in.initiator[:64]))
	ei, er, m := in.initiator[64:96], in.responder[32:64], in.responder[:32]
	kemKey := dk.EncapsulationKey().Bytes()
	if in.badKEMKey != nil {
		kemKey = in.badKEMKey
	}
	var t transcript
	a, b := newSymmetric(name, prologue), newSymmetric(name, prologue)
	if in.hop {
		a.mixHash(publicOf(in.onionSecret))
		b.mixHash(publicOf(in.onionSecret))
	}

	// Message 1: e, (es), payload.
	a.mixHash(publicOf(ei))
	b.mixHash(publicOf(ei))
	if in.hop {
		a.mixKey(agree(ei, publicOf(in.onionSecret)))
		b.mixKey(agree(in.onionSecret, publicOf(ei)))
	}
	sealed := a.encryptAndHash(kemKey)
	same("payload 1", b.decryptAndHash(sealed), kemKey)
	t.message1 = append(publicOf(ei), sealed...)
	if in.badKEMKey != nil {
		return &t // no lawful responder answers
	}

	// Message 2: e, ee, payload.
	secret, ciphertext, err := mlkemtest.Encapsulate768(dk.EncapsulationKey(), m)
	if err != nil {
		panic(err)
	}
	ownSecret := secret
	if in.badCiphertext != nil {
		ciphertext = in.badCiphertext
	}
	b.mixHash(publicOf(er))
	a.mixHash(publicOf(er))
	b.mixKey(agree(er, publicOf(ei)))
	a.mixKey(agree(ei, publicOf(er)))
	sealed = b.encryptAndHash(ciphertext)
	same("payload 2", a.decryptAndHash(sealed), ciphertext)
	t.message2 = append(publicOf(er), sealed...)
	t.kemSecret = must(dk.Decapsulate(ciphertext))
	same("hash", a.h, b.h)
	t.hash = a.h

	// Split, final keys, confirmation.
	t.noise1, t.noise2 = a.expand(nil)
	t.keys = finalKeys(t.noise1, t.noise2, t.kemSecret, t.hash, info)
	own := finalKeys(t.noise1, t.noise2, ownSecret, t.hash, info)
	if in.badCiphertext == nil && own != t.keys {
		panic("reference: the two sides differ in their keys")
	}
	if in.hop {
		mac := hmac.New(sha256.New, own.Confirm[:])
		mac.Write([]byte("cepa/1 confirm"))
		t.confirmation = mac.Sum(nil)[:16]
	}
	return &t
}

func finalKeys(noise1, noise2, kemSecret, hash []byte, info string) handshake.Keys {
	ikm := slices.Concat(noise1, noise2, kemSecret)
	out := must(hkdf.Key(sha256.New, ikm, hash, info, 128))
	return handshake.Keys{Forward: [32]byte(out), Backward: [32]byte(out[32:]), Exporter: [32]byte(out[64:]), Confirm: [32]byte(out[96:])}
}

func same(what string, a, b []byte) {
	if !bytes.Equal(a, b) {
		panic(fmt.Sprintf("reference: the two sides differ in %s", what))
	}
}

// stream returns n bytes that depend on the label alone.
func stream(label string, n int) []byte {
	return must(hkdf.Expand(sha256.New, []byte("cepa handshake test randomness!!"), label, n))
}

// hopInputs returns a whole set of inputs that depends on the label.
func hopInputs(label string) inputs {
	return inputs{
		hop: true, identity: stream(label+" identity", 32), onionSecret: stream(label+" onion", 32), index: 3, suite: 1,
		initiator: stream(label+" initiator", 96), responder: stream(label+" responder", 64),
	}
}

func linkInputs(label string) inputs {
	return inputs{initiator: stream(label+" initiator", 96), responder: stream(label+" responder", 64)}
}

// onionKey and params give the inputs to the room under test.
func (in inputs) onionKey() *handshake.OnionKey {
	return must(handshake.OnionKeyFromSecret([32]byte(in.onionSecret)))
}

func (in inputs) params() handshake.HopParams {
	return handshake.HopParams{
		Identity: [32]byte(in.identity), OnionKey: in.onionKey().Public(), Index: in.index, Suite: in.suite,
	}
}

// lowOrder holds every encoding of a point of low order on Curve25519 or its twist: RFC 7748 section 6.1 refuses them
// by their zero result. The last four have the bit set that X25519 ignores.
func lowOrder() map[string][]byte {
	le := func(first byte, rest byte, last byte) []byte {
		b := bytes.Repeat([]byte{rest}, 32)
		b[0], b[31] = first, last
		return b
	}
	eight1 := []byte("\xe0\xeb\x7a\x7c\x3b\x41\xb8\xae\x16\x56\xe3\xfa\xf1\x9f\xc4\x6a\xda\x09\x8d\xeb\x9c\x32\xb1\xfd\x86\x62\x05\x16\x5f\x49\xb8\x00")
	eight2 := []byte("\x5f\x9c\x95\xbc\xa3\x50\x8c\x24\xb1\xd0\xb1\x55\x9c\x83\xef\x5b\x04\x44\x5c\xc4\x58\x1c\x8e\x86\xd8\x22\x4e\xdd\xd0\x9f\x11\x57")
	high := func(b []byte) []byte { c := bytes.Clone(b); c[31] |= 0x80; return c }
	return map[string][]byte{
		"0": le(0, 0, 0), "1": le(1, 0, 0), "order 8": eight1, "order 8, other": eight2,
		"p-1": le(0xec, 0xff, 0x7f), "p": le(0xed, 0xff, 0x7f), "p+1": le(0xee, 0xff, 0x7f),
		"0 with high bit": high(le(0, 0, 0)), "1 with high bit": high(le(1, 0, 0)),
		"order 8 with high bit": high(eight1), "order 8, other, with high bit": high(eight2),
		"p-1 with high bit": le(0xec, 0xff, 0xff), "p with high bit": le(0xed, 0xff, 0xff), "p+1 with high bit": le(0xee, 0xff, 0xff),
	}
}

// mlkemPublic returns the encapsulation key that the standard library makes from a seed.
func mlkemPublic(seed []byte) ([]byte, error) {
	dk, err := mlkem.NewDecapsulationKey768(seed)
	if err != nil {
		return nil, err
	}
	return dk.EncapsulationKey().Bytes(), nil
}
