package work

import (
	"encoding/binary"

	"golang.org/x/crypto/blake2b"
)

const (
	indices   = 8       // words of a solution
	indexBits = 16      // there are 2^16 words
	wordBits  = 60      // of each
	levelBits = 15      // in which the two sides of a level agree: 15, 15, and at last 30
	allWords  = 1 << 16 // 2^indexBits
	perBlock  = 8       // words of one BLAKE2b-512
)

// The texts that keep the three uses of BLAKE2b apart. With them each input is one
// block of 128 bytes at most.
const (
	rootText   = "cepa/1 work"
	tableText  = "cepa/1 work table"
	effortText = "cepa/1 work effort"
)

// root is the sum that all words of one puzzle are made of.
func (c *Challenge) root(effort uint32, nonce *[NonceSize]byte) [32]byte {
	var in [len(rootText) + SeedSize + KeySize + 32 + 4 + NonceSize]byte
	b := in[:copy(in[:], rootText)]
	b = append(b, c.Seed[:]...)
	b = append(b, c.Key[:]...)
	b = append(b, c.Sealed[:]...)
	b = binary.BigEndian.AppendUint32(b, effort)
	b = append(b, nonce[:]...)
	return blake2b.Sum256(b)
}

// blockInput is what the words of one block are the sum of.
type blockInput [len(tableText) + 32 + 2]byte

func newBlockInput(root *[32]byte) (in blockInput) {
	copy(in[:], tableText)
	copy(in[len(tableText):], root[:])
	return in
}

// sum returns the block of that number: perBlock words of 64 bits, of which the
// first 60 count.
func (in *blockInput) sum(block uint16) [64]byte {
	binary.BigEndian.PutUint16(in[len(in)-2:], block)
	return blake2b.Sum512(in[:])
}

// word returns one word of a puzzle.
func word(root *[32]byte, index uint16) uint64 {
	in := newBlockInput(root)
	sum := in.sum(index / perBlock)
	return binary.BigEndian.Uint64(sum[8*(index%perBlock):]) >> (64 - wordBits)
}

// wins says whether a solution is good enough for the effort: with r the first 32 bits
// of its sum, r times effort must not be above 2^32 - 1.
func wins(root *[32]byte, solution *[SolutionSize]byte, effort uint32) bool {
	var in [len(effortText) + 32 + SolutionSize]byte
	b := in[:copy(in[:], effortText)]
	b = append(b, root[:]...)
	b = append(b, solution[:]...)
	sum := blake2b.Sum256(b)
	r := binary.BigEndian.Uint32(sum[:])
	return uint64(r)*uint64(effort) <= 1<<32-1
}

func unpack(solution *[SolutionSize]byte) (list [indices]uint16) {
	for i := range list {
		list[i] = binary.BigEndian.Uint16(solution[2*i:])
	}
	return list
}

func pack(list *[indices]uint16) (solution [SolutionSize]byte) {
	for i, index := range list {
		binary.BigEndian.PutUint16(solution[2*i:], index)
	}
	return solution
}

// ordered says whether the indices are in the one order that is allowed: at each
// node of the tree, the first index of the left side is below the first of the right.
func ordered(l *[indices]uint16) bool {
	return l[0] < l[1] && l[2] < l[3] && l[4] < l[5] && l[6] < l[7] &&
		l[0] < l[2] && l[4] < l[6] && l[0] < l[4]
}

// order brings indices that form a tree into the order that is allowed.
func order(l *[indices]uint16) {
	for width := 1; width < indices; width *= 2 {
		for at := 0; at < indices; at += 2 * width {
			if l[at] > l[at+width] {
				for i := at; i < at+width; i++ {
					l[i], l[i+width] = l[i+width], l[i]
				}
			}
		}
	}
}

// conditions says whether the words of a solution, in the order of its indices, form
// the tree: the words of a pair agree in their first 15 bits, the sums of two pairs in
// the next 15, and the sum of all is zero. So that a set of indices has one
// arrangement at most, the four pairs differ from each other in the first 15 bits, and
// the sums of the two quads' first pairs in the next 15. With that and the order, no index
// comes twice.
func conditions(w *[indices]uint64) bool {
	const first, second = wordBits - levelBits, wordBits - 2*levelBits
	var heads [indices / 2]uint64 // the pairs' first 15 bits
	var pairs [indices / 2]uint64 // the pairs' sums
	for i := range pairs {
		pairs[i] = w[2*i] ^ w[2*i+1]
		if pairs[i]>>first != 0 {
			return false
		}
		heads[i] = w[2*i] >> first
		for j := range i {
			if heads[i] == heads[j] {
				return false
			}
		}
	}
	left, right := pairs[0]^pairs[1], pairs[2]^pairs[3]
	return left>>second == 0 && right>>second == 0 && left == right &&
		pairs[0]>>second != pairs[2]>>second
}
