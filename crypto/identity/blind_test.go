package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// reference computes the blinded key and a signature with it over math/big.
func (c curve) blind(seed []byte, context string, message []byte) (factor, key, signature []byte) {
	base, _ := c.decode(c.mul(big.NewInt(4), new(big.Int).ModInverse(big.NewInt(5), c.p)))
	expanded := sha512.Sum512(seed)
	expanded[0] &= 248
	expanded[31] = expanded[31]&63 | 64
	a := fromLittleEndian(expanded[:32])
	public := encodePoint(c.times(a, base))
	hash := func(parts ...[]byte) *big.Int {
		sum := sha512.Sum512(bytes.Join(parts, nil))
		return fromLittleEndian(sum[:])
	}
	h := new(big.Int).Mod(hash([]byte("cepa/1 blind"), public[:], []byte(context)), c.order)
	f := littleEndian(h)
	blinded := new(big.Int).Mod(new(big.Int).Mul(a, h), c.order)
	id := encodePoint(c.times(blinded, base))
	prefix := sha512.Sum512(bytes.Join([][]byte{[]byte("cepa/1 blind nonce"), expanded[32:], f[:]}, nil))
	r := new(big.Int).Mod(hash(prefix[:32], message), c.order)
	point := encodePoint(c.times(r, base))
	s := new(big.Int).Mul(hash(point[:], id[:], message), blinded)
	scalar := littleEndian(s.Add(s, r).Mod(s, c.order))
	return f[:], id[:], append(point[:], scalar[:]...)
}

func makeBlindings() (list []blindingVector) {
	c := newCurve()
	for i, context := range []string{"", "cepa/1 test", strings.Repeat("x", 200)} {
		seed, message := seedOf(fmt.Sprint("blinding ", i)), []byte(fmt.Sprint("cepa/1 test message ", i))
		f, key, signature := c.blind(seed, context, message)
		list = append(list, blindingVector{seed, publicOf(seed), hexBytes(context), f, key, message, signature})
	}
	return list
}

func (v *blindingVector) check(t *testing.T) {
	k, err := FromSeed(v.Seed)
	if err != nil {
		t.Fatal(err)
	}
	private, err := k.Blind(v.Context)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ID(v.Key).Blind(v.Context)
	if err != nil {
		t.Fatal(err)
	}
	if public != ID(v.Blinded) || private.ID() != public {
		t.Errorf("blinded as %v and %v, want %x", public, private.ID(), v.Blinded)
	}
	if got := private.Sign(v.Message); !bytes.Equal(got, v.Signature) {
		t.Errorf("signed as %x, want %x", got, v.Signature)
	}
	if !Verify(public, v.Message, v.Signature) || Verify(k.ID(), v.Message, v.Signature) {
		t.Error("the signature is not that of the blinded key alone")
	}
}

func TestBlindedKeysSign(t *testing.T) {
	seen := map[ID]bool{}
	points := map[string]bool{} // of signatures
	msg := []byte("cepa/1 test")
	for n := range byte(8) {
		k := testKey(t, n)
		for m := range byte(8) {
			private, err := k.Blind([]byte{m})
			if err != nil {
				t.Fatal(err)
			}
			public, err := k.ID().Blind([]byte{m})
			if err != nil || public != private.ID() {
				t.Fatalf("public %v, private %v: %v", public, private.ID(), err)
			}
			sig := private.Sign(msg)
			if !Verify(public, msg, sig) || !ed25519.Verify(public[:], msg, sig) {
				t.Fatal("a signature of a blinded key is not accepted")
			}
			if !bytes.Equal(sig, private.Sign(msg)) {
				t.Error("the same message was signed with two nonces")
			}
			if Verify(public, []byte("cepa/1 tesT"), sig) {
				t.Error("a signature fits another message")
			}
			// With one point for two keys, both their scalars would follow.
			if seen[public] || points[string(sig[:32])] || bytes.Equal(sig[:32], k.Sign(msg)[:32]) {
				t.Error("two keys share a public half or a nonce")
			}
			seen[public], points[string(sig[:32])] = true, true
			if err := public.CheckGroup(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestBlindedKeysCertify(t *testing.T) {
	k, err := testKey(t, 1).Blind([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	from := time.Unix(1000, 0)
	made, err := k.Certify(PurposeOnion, testKey(t, 2).ID(), from, from.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCertificate(made.AppendTo(nil))
	if err != nil || *c != *made || c.Identity != k.ID() {
		t.Fatalf("%+v: %v", c, err)
	}
	if err := c.Verify(from, PurposeOnion); err != nil {
		t.Error(err)
	}
	if err := c.Verify(from, PurposeDescriptor); !errors.Is(err, ErrPurpose) {
		t.Errorf("an onion service's key as a relay's: %v", err)
	}
	if _, err := k.Certify(PurposeOnion, ID{}, from, from.Add(time.Hour)); !errors.Is(err, ErrWeakKey) {
		t.Errorf("certified zeros: %v", err)
	}
}

// An honest key plus each point of small order is another name of one key, with which signatures can be made. Blinding such a key
// must fail.
func TestBlindRefusesTorsion(t *testing.T) {
	c := newCurve()
	id := testKey(t, 3).ID()
	y := id.y()
	honest, _ := c.decode(fromLittleEndian(y[:]))
	if honest.x.Bit(0) != uint(id[31]>>7) {
		honest.x.Sub(c.p, honest.x)
	}
	if encodePoint(honest) != id {
		t.Fatal("the test decodes the key wrongly")
	}
	refused := 0
	for coordinate := range c.torsion(t) {
		small, _ := c.decode(fromLittleEndian(coordinate[:]))
		for _, p := range []point{small, {new(big.Int).Mod(new(big.Int).Neg(small.x), c.p), small.y}} {
			spoilt := encodePoint(c.add(honest, p))
			if spoilt == id {
				continue // the neutral element
			}
			if spoilt.Check() != nil {
				t.Fatal("Check refuses the key already, so this test shows nothing")
			}
			if _, err := spoilt.Blind(nil); !errors.Is(err, ErrTorsion) {
				t.Errorf("%v: %v", spoilt, err)
			}
			if err := encodePoint(p).CheckGroup(); !errors.Is(err, ErrWeakKey) {
				t.Errorf("a point of small order: %v", err)
			}
			refused++
		}
	}
	if refused < 7 {
		t.Fatalf("only %d keys were tried", refused)
	}
	off := 0
	for n := int64(2); n < 40; n++ {
		if _, ok := c.decode(big.NewInt(n)); !ok {
			off++
			if _, err := littleEndian(big.NewInt(n)).Blind(nil); !errors.Is(err, ErrTorsion) {
				t.Errorf("%d is no point of the curve: %v", n, err)
			}
		}
	}
	if off < 10 {
		t.Fatalf("only %d coordinates are none", off)
	}
	if _, err := littleEndian(new(big.Int).Add(c.p, big.NewInt(3))).Blind(nil); !errors.Is(err, ErrWeakKey) {
		t.Errorf("not canonical: %v", err)
	}
	if err := id.CheckGroup(); err != nil {
		t.Error(err)
	}
}

func TestBlindedKeyDoesNotPrint(t *testing.T) {
	k, err := testKey(t, 1).Blind(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "private blinded key of " + k.ID().Short()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		if got := fmt.Sprintf(verb, k) + fmt.Sprintf(verb, *k); got != want+want {
			t.Errorf("%s: %s", verb, got)
		}
	}
}

func FuzzCheckGroup(f *testing.F) {
	id := testKey(f, 1).ID()
	f.Add(id[:])
	f.Add(make([]byte, IDSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != IDSize {
			return
		}
		blinded, err := ID(b).Blind(nil)
		if err != nil {
			return
		}
		if blinded.CheckGroup() != nil {
			t.Fatal("what is blinded cannot be blinded again")
		}
	})
}

func BenchmarkBlind(b *testing.B) {
	id := testKey(b, 1).ID()
	for b.Loop() {
		if _, err := id.Blind(nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckGroup(b *testing.B) {
	id := testKey(b, 1).ID()
	for b.Loop() {
		if err := id.CheckGroup(); err != nil {
			b.Fatal(err)
		}
	}
}
