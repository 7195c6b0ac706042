package identity

import (
	"crypto/ed25519"
	"crypto/sha512"
	"math/big"
	"slices"
	"testing"
)

// curve is edwards25519 in affine coordinates over math/big: slow, and sharing
// nothing with the code under test.
type curve struct{ p, d, order *big.Int }

type point struct{ x, y *big.Int }

func newCurve() curve {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	d := new(big.Int).ModInverse(big.NewInt(121666), p)
	d.Mul(d, big.NewInt(-121665)).Mod(d, p)
	order, _ := new(big.Int).SetString("27742317777372353535851937790883648493", 10)
	order.Add(order, new(big.Int).Lsh(big.NewInt(1), 252))
	return curve{p, d, order}
}

func (c curve) mul(factors ...*big.Int) *big.Int {
	r := big.NewInt(1)
	for _, f := range factors {
		r.Mul(r, f).Mod(r, c.p)
	}
	return r
}

func (c curve) add(a, b point) point {
	// x = (x1 y2 + x2 y1) / (1 + k), y = (y1 y2 + x1 x2) / (1 - k), k = d x1 x2 y1 y2
	one, k := big.NewInt(1), c.mul(c.d, a.x, b.x, a.y, b.y)
	over := func(n, d *big.Int) *big.Int {
		return c.mul(n, new(big.Int).ModInverse(d.Mod(d, c.p), c.p))
	}
	return point{
		over(new(big.Int).Add(c.mul(a.x, b.y), c.mul(b.x, a.y)), new(big.Int).Add(one, k)),
		over(new(big.Int).Add(c.mul(a.y, b.y), c.mul(a.x, b.x)), new(big.Int).Sub(one, k)),
	}
}

// decode finds the point of y with an even x, if there is one.
func (c curve) decode(y *big.Int) (point, bool) {
	y2 := c.mul(y, y)
	n := new(big.Int).Sub(y2, big.NewInt(1))
	m := new(big.Int).Add(c.mul(c.d, y2), big.NewInt(1))
	x := new(big.Int).ModSqrt(c.mul(n, new(big.Int).ModInverse(m, c.p)), c.p)
	if x == nil {
		return point{}, false
	}
	if x.Bit(0) == 1 {
		x.Sub(c.p, x)
	}
	return point{x, y}, true
}

// smallOrder tells by definition: whether eight times the point is neutral.
func (c curve) smallOrder(a point) bool {
	for range 3 {
		a = c.add(a, a)
	}
	return a.x.Sign() == 0 && a.y.Cmp(big.NewInt(1)) == 0
}

func littleEndian(n *big.Int) ID {
	var id ID
	n.FillBytes(id[:])
	slices.Reverse(id[:])
	return id
}

func fromLittleEndian(b []byte) *big.Int {
	b = slices.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

// torsion returns the y coordinates of the eight points of small order, found by
// multiplying points of the curve by the order of its prime subgroup.
func (c curve) torsion(t *testing.T) map[ID]bool {
	found, points := map[ID]bool{}, map[[2]ID]bool{}
	for n := int64(2); len(points) < 8; n++ {
		if n > 500 {
			t.Fatalf("only %d points of small order found", len(points))
		}
		a, ok := c.decode(big.NewInt(n))
		if !ok {
			continue
		}
		sum := point{big.NewInt(0), big.NewInt(1)}
		for i := c.order.BitLen() - 1; i >= 0; i-- {
			sum = c.add(sum, sum)
			if c.order.Bit(i) == 1 {
				sum = c.add(sum, a)
			}
		}
		// And with it the other sign of x.
		negative := new(big.Int).Mod(new(big.Int).Neg(sum.x), c.p)
		found[littleEndian(sum.y)] = true
		points[[2]ID{littleEndian(sum.x), littleEndian(sum.y)}] = true
		points[[2]ID{littleEndian(negative), littleEndian(sum.y)}] = true
	}
	return found
}

func TestSmallOrderListIsComplete(t *testing.T) {
	c := newCurve()
	torsion := c.torsion(t)
	if len(torsion) != 5 {
		t.Fatalf("the points of small order have %d y coordinates, want 5", len(torsion))
	}
	for y := range torsion {
		a, ok := c.decode(fromLittleEndian(y[:]))
		if !ok || !c.smallOrder(a) {
			t.Fatalf("the test found %s, which is no point of small order", y)
		}
		signed := y
		signed[31] |= 0x80
		for _, id := range []ID{y, signed} {
			if !isSmallOrder(id.y()) || id.Check() == nil {
				t.Errorf("%s has small order and is not refused", id)
			}
		}
	}
	for n := range byte(20) {
		id := testKey(t, n).ID()
		y := id.y()
		a, ok := c.decode(fromLittleEndian(y[:]))
		if !ok || c.smallOrder(a) {
			t.Fatal("an honest key has small order by the definition")
		}
		if err := id.Check(); err != nil {
			t.Errorf("honest key refused: %v", err)
		}
	}
}

func TestCheckRefusesWhatIsNotCanonical(t *testing.T) {
	p := newCurve().p
	for n := range int64(19) { // p … 2^255 - 1
		id := littleEndian(new(big.Int).Add(p, big.NewInt(n)))
		signed := id
		signed[31] |= 0x80
		if belowFieldPrime(id) || id.Check() == nil || signed.Check() == nil {
			t.Errorf("p + %d is taken for canonical", n)
		}
	}
	for n := int64(1); n < 300; n++ {
		if !belowFieldPrime(littleEndian(new(big.Int).Sub(p, big.NewInt(n)))) {
			t.Errorf("p - %d is not taken for canonical", n)
		}
	}
	for i := 1; i < 31; i++ { // one byte lower anywhere is far below p
		id := littleEndian(new(big.Int).Add(p, big.NewInt(5)))
		id[i]--
		if !belowFieldPrime(id) {
			t.Errorf("byte %d is not looked at", i)
		}
	}
}

// One signature that crypto/ed25519 accepts for every message, under keys of
// small order: R = s B, S = s, and the key adds nothing.
func TestVerifyRefusesUniversalForgery(t *testing.T) {
	c := newCurve()
	k := testKey(t, 7)
	digest := sha512.Sum512(k.Seed())
	digest[0] &= 248
	digest[31] = digest[31]&63 | 64
	s := new(big.Int).Mod(fromLittleEndian(digest[:32]), c.order)
	encodedS, id := littleEndian(s), k.ID()
	sig := append(id[:], encodedS[:]...)

	neutral := ID{1}
	again := littleEndian(new(big.Int).Add(c.p, big.NewInt(1))) // y = p + 1
	again[31] |= 0x80                                           // and x = -0
	for name, forged := range map[string]ID{"neutral": neutral, "neutral, not canonical": again} {
		for _, msg := range []string{"one", "two", "three"} {
			if !ed25519.Verify(forged[:], []byte(msg), sig) {
				t.Fatalf("%s: the forgery does not work, so this test shows nothing", name)
			}
			if Verify(forged, []byte(msg), sig) {
				t.Errorf("%s: Verify accepts a forgery of %q", name, msg)
			}
		}
	}
}

func TestVerifyRefusesSmallR(t *testing.T) {
	c := newCurve()
	k, msg := testKey(t, 8), []byte("cepa/1 test")
	digest := sha512.Sum512(k.Seed())
	digest[0] &= 248
	digest[31] = digest[31]&63 | 64
	a, r, id := fromLittleEndian(digest[:32]), ID{1}, k.ID()
	h := sha512.Sum512(slices.Concat(r[:], id[:], msg))
	s := new(big.Int).Mul(fromLittleEndian(h[:]), a)
	encodedS := littleEndian(s.Mod(s, c.order))
	sig := append(r[:], encodedS[:]...)
	if !ed25519.Verify(id[:], msg, sig) {
		t.Fatal("the signature with R = 0 is wrong, so this test shows nothing")
	}
	if Verify(id, msg, sig) {
		t.Error("Verify accepts a signature whose point is neutral")
	}
}

func TestVerifyRefusesSecondScalar(t *testing.T) {
	c := newCurve()
	k, msg := testKey(t, 9), []byte("cepa/1 test")
	sig := k.Sign(msg)
	s := littleEndian(new(big.Int).Add(fromLittleEndian(sig[32:]), c.order))
	if copy(sig[32:], s[:]); Verify(k.ID(), msg, sig) {
		t.Error("Verify accepts S + order: signatures are malleable")
	}
}

func FuzzVerify(f *testing.F) {
	k := testKey(f, 1)
	id := k.ID()
	f.Add(id[:], []byte("m"), k.Sign([]byte("m")))
	f.Add(make([]byte, 32), []byte{}, make([]byte, 64))
	f.Fuzz(func(t *testing.T, key, msg, sig []byte) {
		if len(key) != IDSize {
			return
		}
		// Stricter than crypto/ed25519, never laxer.
		if Verify(ID(key), msg, sig) && !ed25519.Verify(key, msg, sig) {
			t.Fatal("Verify accepts what crypto/ed25519 does not")
		}
	})
}
