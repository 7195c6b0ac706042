package onion_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"slices"
)

// What is below follows doc/spec.md and shares nothing with the code under test: the standard library, math/big, and HKDF, HPKE
// and X-Wing written out. Faults are panics: the reference is given what is sound.

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func be(n uint64, size int) []byte { return binary.BigEndian.AppendUint64(nil, n)[8-size:] }

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func hash(parts ...[]byte) []byte {
	s := sha256.Sum256(cat(parts...))
	return s[:]
}

// bytesOf makes n bytes that are the same every time.
func bytesOf(name string, n int) []byte {
	b := make([]byte, n)
	s := sha3.NewSHAKE256()
	_, _ = s.Write([]byte("cepa onion test " + name))
	_, _ = s.Read(b)
	return b
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(cat(parts...))
	return h.Sum(nil)
}

// expand and extract are RFC 5869.
func expand(prk, info []byte, n int) (out []byte) {
	var t []byte
	for i := byte(1); len(out) < n; i++ {
		t = mac(prk, t, info, []byte{i})
		out = append(out, t...)
	}
	return out[:n]
}

func extract(salt, ikm []byte) []byte {
	if len(salt) == 0 {
		salt = make([]byte, 32)
	}
	return mac(salt, ikm)
}

func kdf(ikm, salt []byte, info string, n int) []byte {
	return expand(extract(salt, ikm), []byte(info), n)
}

func gcm(key []byte) cipher.AEAD { return must(cipher.NewGCM(must(aes.NewCipher(key)))) }

func seal(key, plain []byte) []byte { return gcm(key).Seal(nil, make([]byte, 12), plain, nil) }

func x25519(secret, public []byte) []byte {
	return must(must(ecdh.X25519().NewPrivateKey(secret)).ECDH(must(ecdh.X25519().NewPublicKey(public))))
}

func x25519Public(secret []byte) []byte {
	return must(ecdh.X25519().NewPrivateKey(secret)).PublicKey().Bytes()
}

// curve is edwards25519 in affine coordinates.
type point struct{ x, y *big.Int }

var (
	prime    = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	order, _ = new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	curveD   = mod(big.NewInt(-121665), invert(big.NewInt(121666)))
)

func mod(factors ...*big.Int) *big.Int {
	r := big.NewInt(1)
	for _, f := range factors {
		r.Mul(r, f).Mod(r, prime)
	}
	return r
}

func invert(n *big.Int) *big.Int { return new(big.Int).ModInverse(mod(n), prime) }

func add(a, b point) point {
	k := mod(curveD, a.x, b.x, a.y, b.y)
	one := big.NewInt(1)
	return point{
		mod(new(big.Int).Add(mod(a.x, b.y), mod(b.x, a.y)), invert(new(big.Int).Add(one, k))),
		mod(new(big.Int).Add(mod(a.y, b.y), mod(a.x, b.x)), invert(new(big.Int).Sub(one, k))),
	}
}

func times(n *big.Int, a point) point {
	r := point{big.NewInt(0), big.NewInt(1)}
	for i := n.BitLen() - 1; i >= 0; i-- {
		if r = add(r, r); n.Bit(i) == 1 {
			r = add(r, a)
		}
	}
	return r
}

// lift finds the point of y whose x has this lowest bit.
func lift(y *big.Int, bit uint) point {
	y2 := mod(y, y)
	x := new(big.Int).ModSqrt(mod(new(big.Int).Sub(y2, big.NewInt(1)), invert(new(big.Int).Add(mod(curveD, y2), big.NewInt(1)))), prime)
	if x == nil {
		panic("no point of the curve")
	}
	if x.Bit(0) != bit {
		x = mod(new(big.Int).Neg(x))
	}
	return point{x, y}
}

func encode(p point) []byte {
	b := littleEndian(p.y)
	b[31] |= byte(p.x.Bit(0)) << 7
	return b
}

func littleEndian(n *big.Int) []byte {
	b := n.FillBytes(make([]byte, 32))
	slices.Reverse(b)
	return b
}

func number(b []byte) *big.Int {
	b = slices.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

func hash512(parts ...[]byte) []byte {
	s := sha512.Sum512(cat(parts...))
	return s[:]
}

func publicOf(seed []byte) []byte { return ed25519.NewKeyFromSeed(seed)[32:] }

// refService is a service in one period.
type refService struct {
	seed, address                  []byte
	network                        string
	period                         uint64
	factor, blinded, subcredential []byte
	scalar                         *big.Int
	prefix                         []byte
}

func newRefService(seed []byte, network string, period uint64) *refService {
	s := &refService{seed: seed, address: publicOf(seed), network: network, period: period}
	expanded := hash512(seed)
	expanded[0] &= 248
	expanded[31] = expanded[31]&63 | 64
	bound := cat([]byte("cepa/1 onion period"), s.bound())
	h := new(big.Int).Mod(number(hash512([]byte("cepa/1 blind"), s.address, bound)), order)
	s.factor = littleEndian(h)
	s.scalar = new(big.Int).Mod(new(big.Int).Mul(number(expanded[:32]), h), order)
	y := number(cat(s.address[:31], []byte{s.address[31] & 0x7f}))
	s.blinded = encode(times(h, lift(y, uint(s.address[31]>>7))))
	s.prefix = hash512([]byte("cepa/1 blind nonce"), expanded[32:], s.factor)[:32]
	s.subcredential = hash([]byte("cepa/1 onion subcredential"), s.address, s.blinded)
	return s
}

func (s *refService) bound() []byte {
	return cat([]byte{byte(len(s.network))}, []byte(s.network), be(s.period, 8))
}

func (s *refService) sign(msg []byte) []byte {
	base := lift(mod(big.NewInt(4), invert(big.NewInt(5))), 0)
	r := new(big.Int).Mod(number(hash512(s.prefix, msg)), order)
	p := encode(times(r, base))
	n := new(big.Int).Mul(number(hash512(p, s.blinded, msg)), s.scalar)
	return cat(p, littleEndian(n.Add(n, r).Mod(n, order)))
}

func (s *refService) certificate(purpose byte, signing []byte, from, to int64) []byte {
	b := cat([]byte{1, purpose}, be(uint64(from), 8), be(uint64(to), 8), signing, s.blinded)
	return cat(b, s.sign(cat([]byte("cepa/1 certificate"), b)))
}

// revision is the sum of secret steps, one after the other.
func (s *refService) revision(steps int) uint64 {
	key := kdf(s.seed, nil, "cepa/1 onion revision"+string(s.bound()), 32)
	block := must(aes.NewCipher(key))
	out, last := make([]byte, 16), -1
	stream := func(at int) byte {
		if at/16 != last {
			last = at / 16
			block.Encrypt(out, cat(make([]byte, 8), be(uint64(last), 8)))
		}
		return out[at%16]
	}
	take := func(at, n int) (v uint64) {
		for i := range n {
			v = v<<8 | uint64(stream(at+i))
		}
		return v
	}
	revision, most := 1+take(0, 8)%(1<<40), 1<<15+take(8, 4)%(1<<15)
	for i := range steps {
		revision += 1 + take(12+2*i, 2)*most>>16
	}
	return revision
}

// base32Text is the number that the bytes are, in base 32.
func base32Text(b []byte) string {
	const digits = "abcdefghijklmnopqrstuvwxyz234567"
	n, text := new(big.Int).SetBytes(b), make([]byte, len(b)*8/5)
	for i := range slices.Backward(text) {
		var d big.Int
		n.DivMod(n, big.NewInt(32), &d)
		text[i] = digits[d.Int64()]
	}
	return string(text)
}

func addressText(key []byte, version byte) string {
	check := hash([]byte("cepa/1 onion address"), key, []byte{version})
	return base32Text(cat(key, check[:2], []byte{version})) + ".cepa.alt"
}

func clientText(prefix string, key []byte) string {
	return prefix + base32Text(cat(key, hash([]byte(prefix), key)[:3]))
}

// refPlaces returns the places of relays, and those of replicas.
func refPlaces(relays [][]byte, bound, random, blinded []byte, replicas int) (of, at [][]byte) {
	for _, r := range relays {
		of = append(of, hash([]byte("cepa/1 onion ring relay"), bound, random, r))
	}
	for i := range replicas {
		at = append(at, hash([]byte("cepa/1 onion ring replica"), bound, blinded, be(uint64(i), 4)))
	}
	return of, at
}

// refResponsible goes round the ring step by step.
func refResponsible(relays, of, at [][]byte, spread int) (list [][]byte) {
	taken := map[string]bool{}
	for _, start := range at {
		for range spread {
			best := -1
			distance := func(i int) *big.Int {
				d := new(big.Int).Sub(new(big.Int).SetBytes(of[i]), new(big.Int).SetBytes(start))
				return d.Mod(d, new(big.Int).Lsh(big.NewInt(1), 256))
			}
			for i, r := range relays {
				if !taken[string(r)] && (best < 0 || distance(i).Cmp(distance(best)) < 0) {
					best = i
				}
			}
			if best >= 0 {
				taken[string(relays[best])] = true
				list = append(list, relays[best])
			}
		}
	}
	return list
}

// refPoint is an introduction point.
type refPoint struct {
	relay, key, sealSeed, sealPublic []byte
	effort                           uint32
	seed, previous                   []byte
}

func newRefPoint(name string, effort uint32) refPoint {
	p := refPoint{
		relay: publicOf(bytesOf(name+" relay", 32)), key: publicOf(bytesOf(name+" key", 32)), sealSeed: bytesOf(name+" seal", 32),
		effort: effort, seed: make([]byte, 32), previous: make([]byte, 32),
	}
	if effort > 0 {
		p.seed, p.previous = bytesOf(name+" seed", 32), bytesOf(name+" previous seed", 32)
	}
	kem, x := xwingSecrets(p.sealSeed)
	p.sealPublic = cat(kem.EncapsulationKey().Bytes(), x25519Public(x))
	return p
}

func refContent(suite, flags byte, lifetime uint32, points []refPoint) []byte {
	b := cat([]byte{suite, flags}, be(uint64(lifetime), 4), []byte{byte(len(points))})
	for _, p := range points {
		b = cat(b, p.relay, p.key, p.sealPublic, be(uint64(p.effort), 4), p.seed, p.previous)
	}
	for len(b)%8192 != 0 {
		b = append(b, 0)
	}
	return b
}

// refDescriptor is a descriptor with the parts that a generator may change before it seals and signs.
type refDescriptor struct {
	service               *refService
	certificate, signing  []byte
	revision              uint64
	salt, ephemeral, fake []byte
	cookie                []byte // zeros without clients
	clients               [][]byte
	content               []byte
	entries               [][]byte
}

func (d *refDescriptor) head() []byte {
	return cat([]byte{1}, be(d.service.period, 8), be(d.revision, 8), d.certificate, d.salt, []byte{byte(len(d.service.network))}, []byte(d.service.network))
}

func (d *refDescriptor) key(info string, cookie []byte) []byte {
	return kdf(cat(d.service.subcredential, cookie), hash(d.head()), info, 32)
}

func (d *refDescriptor) makeEntries(cookie []byte) {
	public := x25519Public(d.ephemeral)
	for _, c := range d.clients {
		out := kdf(cat(d.service.subcredential, x25519(d.ephemeral, c), public, c), hash(d.head()), "cepa/1 onion descriptor client", 40)
		d.entries = append(d.entries, cat(out[:8], seal(out[8:], cookie)))
	}
	for i := 0; len(d.entries) == 0 || len(d.entries)%16 != 0; i++ {
		d.entries = append(d.entries, d.fake[56*i:56*(i+1)])
	}
	slices.SortFunc(d.entries, bytes.Compare)
}

func (d *refDescriptor) outer() []byte {
	b := cat(x25519Public(d.ephemeral), be(uint64(len(d.entries)), 2))
	for _, e := range d.entries {
		b = append(b, e...)
	}
	return cat(b, seal(d.key("cepa/1 onion descriptor inner", d.cookie), d.content))
}

func (d *refDescriptor) finish(outer []byte) []byte {
	b := cat(d.head(), seal(d.key("cepa/1 onion descriptor outer", nil), outer))
	return cat(b, ed25519.Sign(ed25519.NewKeyFromSeed(d.signing), cat([]byte("cepa/1 onion descriptor"), b)))
}

// xwingSecrets expands the seed of an X-Wing key (draft-connolly-cfrg-xwing-kem section 5.2).
func xwingSecrets(seed []byte) (*mlkem.DecapsulationKey768, []byte) {
	b := make([]byte, 96)
	s := sha3.NewSHAKE256()
	_, _ = s.Write(seed)
	_, _ = s.Read(b)
	return must(mlkem.NewDecapsulationKey768(b[:64])), b[64:]
}

func xwingCombine(kem, x, ciphertext, public []byte) []byte {
	s := sha3.Sum256(cat(kem, x, ciphertext, public, must(hex.DecodeString("5c2e2f2f5e5c"))))
	return s[:]
}

// hpkeSeal is RFC 9180's base mode with X-Wing, HKDF-SHA256 and AES-256-GCM, and random of 64 bytes for the KEM.
func hpkeSeal(public, random, info, aad, plain []byte, label string) (sealed, export []byte) {
	to := must(mlkem.NewEncapsulationKey768(public[:1184]))
	kemSecret, ciphertext, err := mlkemtest.Encapsulate768(to, random[:32])
	if err != nil {
		panic(err)
	}
	ephemeral := x25519Public(random[32:])
	shared := xwingCombine(kemSecret, x25519(random[32:], public[1184:]), ephemeral, public[1184:])
	suite := cat([]byte("HPKE"), be(0x647a, 2), be(1, 2), be(2, 2))
	lextract := func(salt []byte, label string, ikm []byte) []byte {
		return extract(salt, cat([]byte("HPKE-v1"), suite, []byte(label), ikm))
	}
	lexpand := func(prk []byte, label string, info []byte, n int) []byte {
		return expand(prk, cat(be(uint64(n), 2), []byte("HPKE-v1"), suite, []byte(label), info), n)
	}
	context := cat([]byte{0}, lextract(nil, "psk_id_hash", nil), lextract(nil, "info_hash", info))
	secret := lextract(shared, "secret", nil)
	key, nonce := lexpand(secret, "key", context, 32), lexpand(secret, "base_nonce", context, 12)
	box := gcm(key).Seal(nil, nonce, plain, aad)
	return cat(ciphertext, ephemeral, box), lexpand(lexpand(secret, "exp", context, 32), "sec", []byte(label), 32)
}

// refHandshake is all of one handshake.
type refHandshake struct {
	info, sealed, export, dh, reply, ciphertext, kemSecret, first []byte
	forward, backward, confirm                                    []byte
}

func newRefHandshake(s *refService, p refPoint, cookie, rendezvous, client, host []byte) *refHandshake {
	// client: X25519 (32), X-Wing (64), ML-KEM (32). host: X25519 (32), ML-KEM (64).
	h := &refHandshake{info: cat([]byte("cepa/1 introduce"), s.blinded, be(s.period, 8), p.key, s.subcredential)}
	clientPublic := x25519Public(client[:32])
	h.sealed, h.export = hpkeSeal(p.sealPublic, client[32:96], h.info, p.key, cat(cookie, rendezvous, clientPublic), "cepa/1 rendezvous")
	h.dh = x25519(host[:32], clientPublic)
	kem := must(mlkem.NewDecapsulationKey768(host[32:96]))
	unsigned := cat(x25519Public(host[:32]), kem.EncapsulationKey().Bytes())
	h.reply = cat(unsigned, mac(h.early(p, unsigned, "cepa/1 rendezvous mac"), []byte("cepa/1 rendezvous"))[:16])
	var err error
	if h.kemSecret, h.ciphertext, err = mlkemtest.Encapsulate768(kem.EncapsulationKey(), client[96:]); err != nil {
		panic(err)
	}
	keys := kdf(cat(h.export, h.dh, h.kemSecret), hash(p.key, h.sealed, h.reply, h.ciphertext), "cepa/1 rendezvous keys", 96)
	h.forward, h.backward = keys[:32], keys[32:64]
	h.confirm = mac(keys[64:], []byte("cepa/1 rendezvous confirm"))[:16]
	h.first = h.makeFirst(p, cat(h.ciphertext, h.confirm, make([]byte, 147)))
	return h
}

func (h *refHandshake) early(p refPoint, unsigned []byte, info string) []byte {
	return kdf(cat(h.export, h.dh), hash(p.key, h.sealed, unsigned), info, 32)
}

func (h *refHandshake) makeFirst(p refPoint, plain []byte) []byte {
	return seal(h.early(p, h.reply[:1216], "cepa/1 rendezvous first"), plain)
}
