package testnet_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"slices"

	"cepa/crypto/handshake"
)

// This file is an attacker who has recorded handshakes and later gets hold of
// secrets. It follows the Noise specification and doc/spec.md with the standard
// library alone, and shares no code with what it attacks.

// recorded is one handshake as it was seen: Noise NN when the static key is nil,
// else NK to it.
type recorded struct {
	prologue   []byte
	name       string // of the Noise protocol
	info       string // of the final HKDF
	static     []byte // the responder's public key
	msg1, msg2 []byte
}

func recordedLink(msg1, msg2 []byte) *recorded {
	return &recorded{[]byte("cepa/1 link"), "Noise_NN_25519_AESGCM_SHA256", "cepa/1 link keys", nil, msg1, msg2}
}

func recordedHop(identity, static [32]byte, index, suite uint8, msg1, msg2 []byte) *recorded {
	prologue := append([]byte("cepa/1 hop"), identity[:]...)
	return &recorded{append(prologue, index, suite), "Noise_NK_25519_AESGCM_SHA256", "cepa/1 hop keys", static[:], msg1, msg2}
}

// loot is what the attacker has stolen.
type loot struct {
	scalars [][32]byte // X25519 secrets, or what might serve as such
	seeds   [][64]byte // ML-KEM-768 seeds
}

// spoils is how far it came.
type spoils struct {
	opened1 bool              // message 1's payload was encrypted, and opened
	opened2 bool              // message 2's payload was opened
	keys    []*handshake.Keys // candidates for the final keys, all wrong ones included
}

// symmetric is Noise's SymmetricState (revision 34, section 5.2).
type symmetric struct {
	ck, h [32]byte
	key   []byte
}

func (s *symmetric) mixHash(b []byte) { s.h = sha256.Sum256(append(s.h[:], b...)) }

func (s *symmetric) mixKey(secret []byte) {
	prk, _ := hkdf.Extract(sha256.New, secret, s.ck[:]) // they fail for no length that occurs here
	out, _ := hkdf.Expand(sha256.New, prk, "", 64)
	copy(s.ck[:], out)
	s.key = out[32:]
}

// decrypt opens a payload that is the first one under its key.
func (s *symmetric) decrypt(b []byte) ([]byte, bool) {
	if s.key == nil {
		s.mixHash(b)
		return b, true
	}
	plain, err := gcm(s.key).Open(nil, make([]byte, 12), b, s.h[:])
	s.mixHash(b)
	return plain, err == nil
}

func gcm(key []byte) cipher.AEAD {
	block, _ := aes.NewCipher(key) // 32 bytes
	a, _ := cipher.NewGCM(block)
	return a
}

// dh is X25519, all zeros where it is refused.
func dh(scalar [32]byte, public []byte) []byte {
	k, err := ecdh.X25519().NewPrivateKey(scalar[:])
	if err != nil {
		return make([]byte, 32)
	}
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return make([]byte, 32)
	}
	secret, err := k.ECDH(p)
	if err != nil {
		return make([]byte, 32)
	}
	return secret
}

// attack tries every stolen secret in every place of the handshake.
func (r *recorded) attack(l *loot) (s spoils) {
	e, re := r.msg1[:32], r.msg2[:32]
	// With NK, message 1 is under es: that is for a holder of either secret.
	starts := [][]byte{nil}
	if r.static != nil {
		starts = nil
		for _, x := range l.scalars {
			starts = append(starts, dh(x, e), dh(x, r.static))
		}
	}
	// What ee might be: a stolen secret as either ephemeral, or nothing at all.
	ees := [][]byte{make([]byte, 32)}
	for _, x := range l.scalars {
		ees = append(ees, dh(x, e), dh(x, re))
	}
	for _, es := range starts {
		var base symmetric
		copy(base.h[:], r.name)
		base.ck = base.h
		base.mixHash(r.prologue)
		if r.static != nil {
			base.mixHash(r.static)
		}
		base.mixHash(e)
		if es != nil {
			base.mixKey(es)
		}
		_, ok := base.decrypt(r.msg1[32:])
		if es != nil && !ok {
			continue
		}
		s.opened1 = s.opened1 || es != nil
		base.mixHash(re)
		for _, ee := range ees {
			state := base
			state.mixKey(ee)
			ciphertext, ok := state.decrypt(r.msg2[32:])
			s.opened2 = s.opened2 || ok
			s.derive(&state, r, l, ciphertext, ok)
		}
	}
	return s
}

// derive adds the final keys for each guess of the ML-KEM secret.
func (s *spoils) derive(state *symmetric, r *recorded, l *loot, ciphertext []byte, opened bool) {
	prk, _ := hkdf.Extract(sha256.New, nil, state.ck[:])
	split, _ := hkdf.Expand(sha256.New, prk, "", 64)
	secrets := [][]byte{make([]byte, 32), nil}
	if opened {
		for _, seed := range l.seeds {
			k, err := mlkem.NewDecapsulationKey768(seed[:])
			if err != nil {
				continue
			}
			if secret, err := k.Decapsulate(ciphertext); err == nil {
				secrets = append(secrets, secret)
			}
		}
	}
	for _, secret := range secrets {
		out, _ := hkdf.Key(sha256.New, slices.Concat(split, secret), state.h[:], r.info, 128)
		k := new(handshake.Keys)
		copy(k.Forward[:], out[:32])
		copy(k.Backward[:], out[32:64])
		copy(k.Exporter[:], out[64:96])
		copy(k.Confirm[:], out[96:])
		s.keys = append(s.keys, k)
	}
}

// records splits a stream of link records; what is cut off at its end is left out.
func records(b []byte) (list [][]byte) {
	for len(b) >= 2 {
		n := 2 + int(binary.BigEndian.Uint16(b))
		if n > len(b) {
			break
		}
		list = append(list, b[:n])
		b = b[n:]
	}
	return list
}

// openRecords opens records under key, the n-th with nonce n; it stops at the
// first that does not open.
func openRecords(key [32]byte, list [][]byte) (plain [][]byte) {
	a := gcm(key[:])
	for i, rec := range list {
		p, err := a.Open(nil, counter(uint64(i)), rec[2:], rec[:2])
		if err != nil {
			break
		}
		plain = append(plain, p)
	}
	return plain
}

// counter is the nonce of links and layers.
func counter(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 4), n) }

// opensAny reports whether one of the keys opens one of the first records, or of
// all with the first nonces: a counter is easily guessed.
func opensAny(keys []*handshake.Keys, list [][]byte) bool {
	for _, k := range keys {
		for _, key := range [][32]byte{k.Forward, k.Backward, k.Exporter, k.Confirm} {
			a := gcm(key[:])
			for i, rec := range list[:min(len(list), 3)] {
				if _, err := a.Open(nil, counter(uint64(i)), rec[2:], rec[:2]); err == nil {
					return true
				}
			}
		}
	}
	return false
}

// asScalars returns what might serve as an X25519 secret of an Ed25519 seed: the
// scalar that it expands to (RFC 8032 section 5.1.5), and itself.
func asScalars(seed []byte) [][32]byte {
	h := sha512.Sum512(seed)
	return [][32]byte{[32]byte(h[:32]), [32]byte(seed)}
}
