package identity

import "crypto/ed25519"

// SignatureSize is the length of a signature in bytes (RFC 8032 section 5.1.6).
const SignatureSize = 64

// Verify tells whether sig is a signature of msg by id. It is Ed25519 of RFC 8032
// without cofactor, and stricter than that RFC where it leaves room, so that
// whoever holds the signature cannot make a second valid one, and so that no key
// exists whose signatures fit several messages:
//
//   - sig has exactly 64 bytes, its scalar is below the group order, and its
//     point is in canonical form (crypto/ed25519 sees to the last two);
//   - id is in canonical form: its y coordinate is below 2^255 - 19;
//   - neither id nor the point of sig has small order. With an id of small order
//     one signature would fit every message, or every eighth.
//
// A key that its own owner spoiled by adding a point of small order to an honest
// one is not told apart. All verifiers judge its signatures alike, because none
// multiplies by the cofactor; but code that derives keys from an ID (blinding)
// must check for it (ID.CheckGroup).
func Verify(id ID, msg, sig []byte) bool {
	if len(sig) != SignatureSize || id.Check() != nil {
		return false
	}
	if isSmallOrder(ID(sig[:IDSize]).y()) {
		return false
	}
	return ed25519.Verify(id[:], msg, sig)
}

// y returns the y coordinate, little-endian: an encoded point without its top
// bit, which is the sign of x (RFC 8032 section 5.1.2).
func (id ID) y() ID {
	id[IDSize-1] &= 0x7f
	return id
}

// belowFieldPrime tells whether y, less than 2^255, is below p = 2^255 - 19. Of
// the y below 2^255 only those whose bytes are ed…ff, ff…ff, 7f and more are not.
// (The two other encodings that are not canonical, x = 0 with the sign set, are
// of small order.)
func belowFieldPrime(y ID) bool {
	if y[0] < 0xed || y[IDSize-1] != 0x7f {
		return true
	}
	for _, b := range y[1 : IDSize-1] {
		if b != 0xff {
			return true
		}
	}
	return false
}

// isSmallOrder tells whether y is the coordinate, in canonical form, of one of
// the eight points whose order divides the cofactor 8. These have five
// y coordinates between them.
func isSmallOrder(y ID) bool {
	switch y {
	case
		// Order 4: y = 0.
		ID{},
		// Order 1, the neutral element: y = 1.
		ID{1},
		// Order 2: y = p - 1.
		ID{
			0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
			0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
		},
		// Order 8: a root of d y^4 + 2 y^2 = 1, d of the curve, and its negative.
		ID{
			0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
			0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
		},
		ID{
			0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
			0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
		}:
		return true
	}
	return false
}
