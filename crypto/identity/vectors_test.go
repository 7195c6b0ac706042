package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"slices"
	"testing"
	"time"
)

// The file in testdata is made by the functions below, from crypto/ed25519 and the curve of verify_test.go, never by the
// code it tests:
//
//	go test ./crypto/identity -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// hexBytes is written as a hex string.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is testdata/identity.json.
type vectors struct {
	About        string              `json:"about"`
	Certificates []certificateVector `json:"certificates"`
	Failures     []failureVector     `json:"failures"`
	Signatures   []signatureVector   `json:"signatures"`
	Blindings    []blindingVector    `json:"blindings"`
}

// blindingVector is a key, its blinded key in a context, and a signature by that one.
type blindingVector struct {
	Seed      hexBytes `json:"seed"`
	Key       hexBytes `json:"key"`
	Context   hexBytes `json:"context"`
	Factor    hexBytes `json:"factor"` // reduced, little-endian
	Blinded   hexBytes `json:"blinded"`
	Message   hexBytes `json:"message"`
	Signature hexBytes `json:"signature"`
}

// certificateVector is a certificate and all that it is made of. It is valid from NotBefore to NotAfter, both included.
type certificateVector struct {
	Name         string   `json:"name"`
	IdentitySeed hexBytes `json:"identity_seed"` // RFC 8032's private key
	Identity     hexBytes `json:"identity"`
	Fingerprint  string   `json:"fingerprint"`
	SubjectSeed  hexBytes `json:"subject_seed"`
	Subject      hexBytes `json:"subject"`
	Purpose      uint8    `json:"purpose"`
	NotBefore    int64    `json:"not_before"` // Unix seconds
	NotAfter     int64    `json:"not_after"`
	Signed       hexBytes `json:"signed"` // what the signature covers
	Signature    hexBytes `json:"signature"`
	Certificate  hexBytes `json:"certificate"`
}

// failureVector is a certificate that is not accepted for this purpose at this time.
type failureVector struct {
	Name        string   `json:"name"`
	Certificate hexBytes `json:"certificate"`
	Purpose     uint8    `json:"purpose"`
	Now         int64    `json:"now"`
	Error       string   `json:"error"`
}

// signatureVector is a signature that is accepted, or is not.
type signatureVector struct {
	Name      string   `json:"name"`
	Key       hexBytes `json:"key"`
	Message   hexBytes `json:"message"`
	Signature hexBytes `json:"signature"`
	Valid     bool     `json:"valid"`
}

const (
	vectorFrom = 1_700_000_000
	vectorTo   = vectorFrom + 30*24*3600
)

// seedOf returns the seed that a label stands for.
func seedOf(label string) []byte {
	seed := sha256.Sum256([]byte("cepa identity test: " + label))
	return seed[:]
}

func publicOf(seed []byte) []byte {
	return ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// referenceCertificate lays a certificate out field by field and signs it with the seed, whatever it says.
func referenceCertificate(version, purpose uint8, from, to uint64, subject, identity, seed []byte) (signed, certificate []byte) {
	b := []byte{version, purpose}
	b = binary.BigEndian.AppendUint64(b, from)
	b = binary.BigEndian.AppendUint64(b, to)
	b = append(append(b, subject...), identity...)
	signed = append([]byte("cepa/1 certificate"), b...)
	return signed, append(b, ed25519.Sign(ed25519.NewKeyFromSeed(seed), signed)...)
}

func makeCertificates() (list []certificateVector) {
	for _, c := range []struct {
		name     string
		purpose  uint8
		from, to int64
	}{
		{"link", 1, vectorFrom, vectorTo},
		{"descriptor", 2, vectorFrom, vectorTo},
		{"consensus", 3, vectorFrom, vectorTo},
		{"family", 4, vectorFrom, vectorTo},
		{"onion descriptor", 5, vectorFrom, vectorTo},
		{"one second, from the first", 1, 0, 1},
		{"for ever", 3, 0, 253402300799},
	} {
		id, sub := seedOf(c.name+", identity"), seedOf(c.name+", subject")
		signed, cert := referenceCertificate(1, c.purpose, uint64(c.from), uint64(c.to), publicOf(sub), publicOf(id), id)
		list = append(list, certificateVector{
			Name: c.name, IdentitySeed: id, Identity: publicOf(id), Fingerprint: hex.EncodeToString(publicOf(id)[:4]),
			SubjectSeed: sub, Subject: publicOf(sub), Purpose: c.purpose, NotBefore: c.from, NotAfter: c.to,
			Signed: signed, Signature: cert[82:], Certificate: cert,
		})
	}
	return list
}

func makeFailures() (list []failureVector) {
	add := func(name string, cert []byte, purpose uint8, now int64, err string) {
		list = append(list, failureVector{name, cert, purpose, now, err})
	}
	id, sub := seedOf("link, identity"), seedOf("link, subject")
	identity, subject := publicOf(id), publicOf(sub)
	const from, to = vectorFrom, vectorTo
	_, good := referenceCertificate(1, 1, from, to, subject, identity, id)
	malformed := func(name string, version, purpose uint8, from, to uint64, subject, identity []byte, err string) {
		_, c := referenceCertificate(version, purpose, from, to, subject, identity, id)
		add(name, c, purpose, int64(from), err)
	}
	weak := func(offset int, low, high byte) []byte {
		key := bytes.Repeat([]byte{low}, 32)
		key[0], key[31] = byte(offset), high
		return key
	}
	add("empty", nil, 1, from, "ErrMalformed")
	add("one byte short", good[:145], 1, from, "ErrMalformed")
	add("one byte long", append(bytes.Clone(good), 0), 1, from, "ErrMalformed")
	malformed("version 0", 0, 1, from, to, subject, identity, "ErrMalformed")
	malformed("version 2", 2, 1, from, to, subject, identity, "ErrMalformed")
	malformed("purpose 0", 1, 0, from, to, subject, identity, "ErrMalformed")
	malformed("purpose 6", 1, 6, from, to, subject, identity, "ErrMalformed")
	malformed("ends when it begins", 1, 1, from, from, subject, identity, "ErrMalformed")
	malformed("ends before it begins", 1, 1, from, from-1, subject, identity, "ErrMalformed")
	malformed("ends after the year 9999", 1, 1, from, 253402300800, subject, identity, "ErrMalformed")
	malformed("ends at 2^63", 1, 1, from, 1<<63, subject, identity, "ErrMalformed")
	malformed("subject of zeros (order 4)", 1, 1, from, to, weak(0, 0, 0), identity, "ErrWeakKey")
	malformed("subject that is the neutral element", 1, 1, from, to, weak(1, 0, 0), identity, "ErrWeakKey")
	malformed("subject with y = p + 2", 1, 1, from, to, weak(0xef, 0xff, 0x7f), identity, "ErrWeakKey")
	malformed("identity of order 2", 1, 1, from, to, subject, weak(0xec, 0xff, 0x7f), "ErrWeakKey")
	malformed("identity with y = p + 2 and the sign of x", 1, 1, from, to, subject, weak(0xef, 0xff, 0xff), "ErrWeakKey")
	add("used for descriptors", good, 2, from, "ErrPurpose")
	add("used for the consensus", good, 3, from, "ErrPurpose")
	for _, c := range []struct {
		name   string
		offset int
	}{{"purpose", 1}, {"first time", 9}, {"second time", 17}, {"subject", 20}, {"identity", 60}, {"point of the signature", 82}, {"scalar of the signature", 120}} {
		b := bytes.Clone(good)
		b[c.offset] ^= 2
		purpose := b[1]
		add(c.name+" changed", b, purpose, from+10, "ErrSignature")
	}
	_, bySubject := referenceCertificate(1, 1, from, to, subject, identity, sub)
	add("signed by its subject", bySubject, 1, from, "ErrSignature")
	bare := append(bytes.Clone(good[:82]), ed25519.Sign(ed25519.NewKeyFromSeed(id), good[:82])...)
	add("signed without the text before it", bare, 1, from, "ErrSignature")
	add("a second too early", good, 1, from-1, "ErrNotYetValid")
	add("a second too late", good, 1, to+1, "ErrExpired")
	return list
}

// encodePoint is RFC 8032 section 5.1.2.
func encodePoint(p point) ID {
	id := littleEndian(p.y)
	id[31] |= byte(p.x.Bit(0)) << 7
	return id
}

// times returns n times a.
func (c curve) times(n *big.Int, a point) point {
	sum := point{big.NewInt(0), big.NewInt(1)}
	for i := n.BitLen() - 1; i >= 0; i-- {
		sum = c.add(sum, sum)
		if n.Bit(i) == 1 {
			sum = c.add(sum, a)
		}
	}
	return sum
}

// makeSignatures has what RFC 8032 leaves open, or verifiers get wrong: each that is not valid is accepted by some.
func makeSignatures() (list []signatureVector) {
	c := newCurve()
	add := func(name string, key, message, signature []byte, valid bool) {
		list = append(list, signatureVector{name, key, message, signature, valid})
	}
	base, _ := c.decode(c.mul(big.NewInt(4), new(big.Int).ModInverse(big.NewInt(5), c.p)))
	fromHex := func(s string) []byte { b, _ := hex.DecodeString(s); return b }
	eighth, _ := c.decode(fromLittleEndian(fromHex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")))
	seed := seedOf("signatures")
	digest := sha512.Sum512(seed)
	digest[0] &= 248
	digest[31] = digest[31]&63 | 64
	a := fromLittleEndian(digest[:32])
	key, message := publicOf(seed), []byte("cepa/1 test")
	good := ed25519.Sign(ed25519.NewKeyFromSeed(seed), message)
	hash := func(r, key ID, message []byte) *big.Int {
		h := sha512.Sum512(slices.Concat(r[:], key[:], message))
		return fromLittleEndian(h[:])
	}
	// sign gives the signature with nonce n whose point and key are encoded as said.
	sign := func(n *big.Int, r, key ID, message []byte) []byte {
		s := new(big.Int).Mul(hash(r, key, message), a)
		scalar := littleEndian(s.Add(s, n).Mod(s, c.order))
		return append(r[:], scalar[:]...)
	}

	rfc := fromHex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
	add("RFC 8032 section 7.1, test 1", publicOf(rfc), nil, ed25519.Sign(ed25519.NewKeyFromSeed(rfc), nil), true)
	add("ours", key, message, good, true)
	n := fromLittleEndian(seedOf("nonce"))
	r := c.times(n, base)
	add("ours, with another nonce", key, message, sign(n, encodePoint(r), ID(key), message), true)
	add("another message", key, []byte("cepa/1 tesu"), good, false)
	add("one byte short", key, message, good[:63], false)
	add("one byte long", key, message, append(bytes.Clone(good), 0), false)
	second := littleEndian(new(big.Int).Add(fromLittleEndian(good[32:]), c.order))
	add("scalar with the group order added", key, message, slices.Concat(good[:32], second[:]), false)
	neutral, small := ID{1}, encodePoint(eighth)
	zero := big.NewInt(0)
	add("point that is the neutral element", key, message, sign(zero, neutral, ID(key), message), false)
	again := littleEndian(new(big.Int).Add(c.p, big.NewInt(1))) // the neutral element, with y = p + 1
	add("point that is the neutral element, not canonical", key, message, sign(zero, again, ID(key), message), false)
	mixed := encodePoint(c.add(r, eighth))
	add("point with one of order 8 added: good with the cofactor only", key, message, sign(n, mixed, ID(key), message), false)
	// Under a key of small order, the signature n B, n fits every message, or every eighth.
	for _, k := range []struct {
		name string
		key  ID
	}{
		{"neutral element", neutral},
		{"neutral element with the sign of x", ID{1, 31: 0x80}},
		{"neutral element with y = p + 1", again},
		{"order 8", small},
	} {
		m := message
		for i := 0; new(big.Int).Mod(hash(encodePoint(r), k.key, m), c.order).TrailingZeroBits() < 3; i++ {
			m = fmt.Append(nil, "cepa/1 test ", i)
		}
		scalar, point := littleEndian(new(big.Int).Mod(n, c.order)), encodePoint(r)
		add("key of small order: "+k.name, k.key[:], m, append(point[:], scalar[:]...), false)
	}
	// Its own owner may add a point of order 8 to a key: one in eight of its signatures is good then, without the cofactor.
	spoiledKey, ok := c.decode(fromLittleEndian(clearTop(key)))
	if !ok {
		panic("reference: the key is no point")
	}
	if byte(spoiledKey.x.Bit(0)) != key[31]>>7 {
		spoiledKey.x.Sub(c.p, spoiledKey.x)
	}
	spoiled := encodePoint(c.add(spoiledKey, eighth))
	// It is the hash modulo the group order that must be a multiple of 8, not the hash of 512 bits.
	for _, k := range []struct {
		name           string
		whole, reduced bool
	}{
		{"no multiple of 8", false, false},
		{"a multiple of 8 only before it is reduced", true, false},
		{"a multiple of 8 only after it is reduced", false, true},
	} {
		var m []byte
		for i, found := 0, false; !found; i++ {
			m = fmt.Append(nil, "cepa/1 test ", i)
			h := hash(encodePoint(r), spoiled, m)
			whole := h.TrailingZeroBits() >= 3
			found = whole == k.whole && (h.Mod(h, c.order).TrailingZeroBits() >= 3) == k.reduced
		}
		add("key with a point of order 8 added: hash "+k.name, spoiled[:], m, sign(n, encodePoint(r), spoiled, m), k.reduced)
	}
	return list
}

func clearTop(key []byte) []byte {
	b := bytes.Clone(key)
	b[31] &= 0x7f
	return b
}

func TestVectors(t *testing.T) {
	const path = "testdata/identity.json"
	made, err := json.MarshalIndent(vectors{
		About:        "Certificates, signatures and blinded keys, doc/spec.md sections 6 and 14.",
		Certificates: makeCertificates(), Failures: makeFailures(), Signatures: makeSignatures(), Blindings: makeBlindings(),
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, made) {
		t.Errorf("%s is not what the reference makes", path)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var v vectors
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Certificates) < 5 || len(v.Failures) < 20 || len(v.Signatures) < 10 || len(v.Blindings) < 3 {
		t.Fatalf("only %d certificates, %d failures, %d signatures", len(v.Certificates), len(v.Failures), len(v.Signatures))
	}
	for _, c := range v.Certificates {
		t.Run("certificate/"+c.Name, func(t *testing.T) { c.check(t) })
	}
	for _, f := range v.Failures {
		t.Run("failure/"+f.Name, func(t *testing.T) {
			want := map[string]error{
				"ErrMalformed": ErrMalformed, "ErrWeakKey": ErrWeakKey, "ErrPurpose": ErrPurpose,
				"ErrSignature": ErrSignature, "ErrNotYetValid": ErrNotYetValid, "ErrExpired": ErrExpired,
			}[f.Error]
			c, err := ParseCertificate(f.Certificate)
			if err == nil {
				err = c.Verify(time.Unix(f.Now, 0), Purpose(f.Purpose))
			}
			if want == nil || !errors.Is(err, want) {
				t.Errorf("got %v, want %s", err, f.Error)
			}
		})
	}
	for i, b := range v.Blindings {
		t.Run(fmt.Sprintf("blinding/%d", i), func(t *testing.T) { b.check(t) })
	}
	for _, s := range v.Signatures {
		t.Run("signature/"+s.Name, func(t *testing.T) {
			if got := Verify(ID(s.Key), s.Message, s.Signature); got != s.Valid {
				t.Errorf("valid: %v, want %v", got, s.Valid)
			}
		})
	}
}

// check makes the certificate anew from its seeds, and reads and verifies the one in the file.
func (v *certificateVector) check(t *testing.T) {
	key, err := FromSeed(v.IdentitySeed)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := FromSeed(v.SubjectSeed)
	if err != nil {
		t.Fatal(err)
	}
	id := key.ID()
	if text := hex.EncodeToString(v.Identity); id.String() != text || id.Short() != v.Fingerprint || subject.ID() != ID(v.Subject) {
		t.Errorf("keys are %v (%s) and %v", id, id.Short(), subject.ID())
	}
	made, err := key.Certify(Purpose(v.Purpose), subject.ID(), time.Unix(v.NotBefore, 0), time.Unix(v.NotAfter, 0))
	if err != nil {
		t.Fatal(err)
	}
	if got := made.AppendTo(nil); !bytes.Equal(got, v.Certificate) {
		t.Errorf("made as %x", got)
	}
	if !Verify(id, v.Signed, v.Signature) || !bytes.Equal(v.Certificate, slices.Concat(v.Signed[len(certificateContext):], v.Signature)) {
		t.Error("the parts do not make the certificate")
	}
	c, err := ParseCertificate(v.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if *c != *made {
		t.Errorf("read as %+v, want %+v", c, made)
	}
	for _, now := range []int64{v.NotBefore, v.NotAfter} {
		if err := c.Verify(time.Unix(now, 0), Purpose(v.Purpose)); err != nil {
			t.Error(err)
		}
	}
}
