// Package work is the proof of work that a client adds to an introduction when an
// onion service is flooded: a puzzle that takes memory and time to solve and
// microseconds to check, a queue ordered by what the waiting ones have paid, and the
// control loop that decides what a service asks for.
//
// # The puzzle
//
// It is Equihash (Biryukov and Khovratovich 2016) with n = 60, k = 3 over BLAKE2b. A
// challenge gives 2^16 words of 60 bits. A solution is 8 of them whose sum (XOR) is
// zero, and that were found in a certain way: as two quads that agree in 30 bits,
// each of two pairs that agree in 15. That takes tables of about 2 MiB. Each solution
// is a ticket in a lottery, that wins with probability 1/effort: so effort is the number
// of solutions that had to be found, on average. A set of words counts once: see
// conditions.
//
// The challenge binds the service's seed, the introduction key, the sealed payload,
// the effort and a nonce, so that work is good for one introduction at one
// introduction point only, and what was found for one effort cannot claim another.
//
// The package does no I/O and knows nothing of circuits.
package work

import (
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/blake2b"
)

// Sizes on the wire, in bytes.
const (
	SeedSize     = 32
	KeySize      = 32
	NonceSize    = 16
	SolutionSize = 2 * indices
	Size         = 1 + 4 + seedHead + NonceSize + SolutionSize
)

// seedHead is how much of a seed a proof names: enough to tell two apart.
const seedHead = 4

// version is the first byte of a proof; none is that of an introduction without.
const (
	none    = 0
	version = 1
)

// Errors of this package. A Proof that Verify or Ask.Check refuses gives one of the
// first four.
var (
	// ErrMore says that the proof claims less effort than is asked for.
	ErrMore = errors.New("work: more work is wanted: solve for the effort that is asked for")
	// ErrSeed says that the proof names a seed that is not accepted, any more or at all.
	ErrSeed = errors.New("work: the proof is for another seed: fetch the descriptor again")
	// ErrEffort says that the solution does not win at the effort that the proof claims.
	ErrEffort = errors.New("work: the solution is not good enough for the effort that it claims")
	// ErrSolution says that the indices do not solve the puzzle.
	ErrSolution = errors.New("work: the indices do not solve the puzzle")
	// ErrMalformed says that the bytes are not a proof.
	ErrMalformed = errors.New("work: malformed proof")
)

// Challenge is what a proof is bound to, besides its nonce and effort.
type Challenge struct {
	Seed   [SeedSize]byte // the service's, from its descriptor
	Key    [KeySize]byte  // introduction key
	Sealed [32]byte       // SealedSum of the sealed payload of the introduction
}

// SealedSum returns what a Challenge holds of a sealed payload.
func SealedSum(sealed []byte) [32]byte { return blake2b.Sum256(sealed) }

// Proof is a proof of work. The zero value is none at all.
type Proof struct {
	Effort   uint32 // 0: none
	SeedHead [seedHead]byte
	Nonce    [NonceSize]byte
	Solution [SolutionSize]byte
}

// Parse reads a proof, which b must hold exactly. An introduction without work has
// zeros there, and gives the zero Proof. Nothing is checked but the form.
func Parse(b []byte) (Proof, error) {
	var p Proof
	if len(b) != Size {
		return p, ErrMalformed
	}
	switch b[0] {
	case none:
		for _, c := range b[1:] {
			if c != 0 {
				return p, ErrMalformed
			}
		}
		return p, nil
	case version:
	default:
		return p, ErrMalformed
	}
	p.Effort = binary.BigEndian.Uint32(b[1:])
	if p.Effort == 0 {
		return Proof{}, ErrMalformed
	}
	b = b[5:]
	b = b[copy(p.SeedHead[:], b):]
	b = b[copy(p.Nonce[:], b):]
	copy(p.Solution[:], b)
	return p, nil
}

// AppendTo appends the Size bytes of the proof.
func (p Proof) AppendTo(b []byte) []byte {
	if p.Effort == 0 {
		return append(b, make([]byte, Size)...)
	}
	b = append(b, version)
	b = binary.BigEndian.AppendUint32(b, p.Effort)
	b = append(b, p.SeedHead[:]...)
	b = append(b, p.Nonce[:]...)
	return append(b, p.Solution[:]...)
}

// Verify returns nil if p is a proof for c of the effort that it claims. No proof at
// all is not one: ErrMore. It allocates nothing and takes some microseconds; what costs
// least is looked at first.
func (p Proof) Verify(c Challenge) error {
	if p.Effort == 0 {
		return ErrMore
	}
	if p.SeedHead != [seedHead]byte(c.Seed[:seedHead]) {
		return ErrSeed
	}
	list := unpack(&p.Solution)
	if !ordered(&list) {
		return ErrSolution
	}
	root := c.root(p.Effort, &p.Nonce)
	if !wins(&root, &p.Solution, p.Effort) {
		return ErrEffort
	}
	var words [indices]uint64
	for i, index := range list {
		words[i] = word(&root, index)
	}
	if !conditions(&words) {
		return ErrSolution
	}
	return nil
}
