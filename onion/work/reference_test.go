package work

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/crypto/blake2b"
)

// The reference below is written from doc/spec.md, as plainly as possible, and uses
// nothing of the code that it checks.

func referenceRoot(c Challenge, effort uint32, nonce [16]byte) [32]byte {
	b := []byte("cepa/1 work")
	b = append(b, c.Seed[:]...)
	b = append(b, c.Key[:]...)
	b = append(b, c.Sealed[:]...)
	b = binary.BigEndian.AppendUint32(b, effort)
	return blake2b.Sum256(append(b, nonce[:]...))
}

func referenceWords(root [32]byte) (words []uint64) {
	for block := range 8192 {
		b := append([]byte("cepa/1 work table"), root[:]...)
		sum := blake2b.Sum512(binary.BigEndian.AppendUint16(b, uint16(block)))
		for i := range 8 {
			words = append(words, binary.BigEndian.Uint64(sum[8*i:8*i+8])>>4)
		}
	}
	return words
}

func referenceNumber(root [32]byte, solution [16]byte) uint32 {
	b := append([]byte("cepa/1 work effort"), root[:]...)
	sum := blake2b.Sum256(append(b, solution[:]...))
	return binary.BigEndian.Uint32(sum[:4])
}

// referenceSolutions returns all solutions of a puzzle, sorted.
func referenceSolutions(root [32]byte) (solutions [][16]byte) {
	words := referenceWords(root)
	type node struct {
		indices []uint16
		sum     uint64
	}
	level := make([]node, len(words))
	for i, w := range words {
		level[i] = node{[]uint16{uint16(i)}, w}
	}
	for _, bits := range []int{15, 30, 60} {
		groups := map[uint64][]node{}
		for _, n := range level {
			groups[n.sum>>(60-bits)] = append(groups[n.sum>>(60-bits)], n)
		}
		level = nil
		for _, group := range groups {
			for i, a := range group {
				for _, b := range group[i+1:] {
					left, right := a, b
					if left.indices[0] > right.indices[0] {
						left, right = right, left
					}
					level = append(level, node{slices.Concat(left.indices, right.indices), left.sum ^ right.sum})
				}
			}
		}
	}
	for _, n := range level {
		heads, seconds := map[uint64]bool{}, map[uint64]bool{}
		for i := 0; i < 8; i += 2 {
			heads[words[n.indices[i]]>>45] = true
		}
		for i := 0; i < 8; i += 4 {
			seconds[(words[n.indices[i]]^words[n.indices[i+1]])>>30] = true
		}
		if len(heads) < 4 || len(seconds) < 2 {
			continue
		}
		var solution [16]byte
		for i, index := range n.indices {
			binary.BigEndian.PutUint16(solution[2*i:], index)
		}
		solutions = append(solutions, solution)
	}
	slices.SortFunc(solutions, func(a, b [16]byte) int { return slices.Compare(a[:], b[:]) })
	return solutions
}

// TestDifferential: the solver finds what the reference finds, but for what its
// tables have no room for.
func TestDifferential(t *testing.T) {
	puzzles := 6
	if *soak {
		puzzles = 2000
	}
	fast := new(table)
	want, missed := 0, 0
	for n := range puzzles {
		root := referenceRoot(Challenge{Seed: [32]byte{byte(n), byte(n >> 8)}}, 1, [16]byte{})
		var got [][16]byte
		fast.solve(&root, func(list *[indices]uint16) bool {
			got = append(got, pack(list))
			return true
		})
		slices.SortFunc(got, func(a, b [16]byte) int { return slices.Compare(a[:], b[:]) })
		all := referenceSolutions(root)
		for i, s := range got {
			if !slices.Contains(all, s) {
				t.Errorf("puzzle %d: found %x, which is none", n, s)
			}
			if i > 0 && got[i-1] == s {
				t.Errorf("puzzle %d: found %x twice", n, s)
			}
		}
		want += len(all)
		missed += len(all) - len(got)
	}
	t.Logf("%d solutions, %.2f a puzzle, of which the solver missed %d", want, float64(want)/float64(puzzles), missed)
	if want < puzzles || missed > max(want/50, 3) {
		t.Errorf("of %d solutions of %d puzzles the solver missed %d", want, puzzles, missed)
	}
}

// TestOnePermutation: of the 40,320 orders of a solution's indices, one passes.
func TestOnePermutation(t *testing.T) {
	c := Challenge{Seed: [32]byte{7}}
	var nonce [16]byte
	solutions := referenceSolutions(referenceRoot(c, 1, nonce))
	if len(solutions) == 0 {
		t.Fatal("no solution: the puzzle of this test needs another seed")
	}
	p := Proof{Effort: 1, SeedHead: [4]byte(c.Seed[:4]), Nonce: nonce}
	list := unpack(&solutions[0])
	passed := 0
	var permute func(n int)
	permute = func(n int) {
		if n == len(list) {
			p.Solution = pack(&list)
			if p.Verify(c) == nil {
				passed++
			}
			return
		}
		for i := n; i < len(list); i++ {
			list[n], list[i] = list[i], list[n]
			permute(n + 1)
			list[n], list[i] = list[i], list[n]
		}
	}
	permute(0)
	if passed != 1 {
		t.Fatalf("%d orders pass, want 1", passed)
	}
}

// TestConditions: words that a solver would get for nothing are refused, each for one reason.
func TestConditions(t *testing.T) {
	const a, b = 1 << 45, 1 << 30
	good := [indices]uint64{0, b, a, a | b, 2 * a, 2*a | 2*b, 3 * a, 3*a | 2*b}
	if !conditions(&good) {
		t.Fatal("good words are refused")
	}
	for _, c := range []struct {
		name  string
		words [indices]uint64
	}{
		{"a pair that does not agree", [indices]uint64{0, b | a, a, a | b, 2 * a, 2*a | 2*b, 3 * a, 3*a | 2*b}},
		{"quads that do not agree", [indices]uint64{0, b, a, a | 3*b, 2 * a, 2*a | 2*b, 3 * a, 3*a | 2*b}},
		{"a sum that is not zero", [indices]uint64{0, b | 1, a, a | b, 2 * a, 2*a | 2*b, 3 * a, 3*a | 2*b}},
		{"pairs with one head", [indices]uint64{0, b, 0, b, 2 * a, 2*a | 2*b, 3 * a, 3*a | 2*b}},
		{"pairs of both quads with one head", [indices]uint64{0, b, a, a | b, 0, 2 * b, 3 * a, 3*a | 2*b}},
		{"quads with one second part", [indices]uint64{0, b, a, a | b, 2 * a, 2*a | b, 3 * a, 3*a | b}},
		{"all words the same", [indices]uint64{}},
	} {
		if conditions(&c.words) {
			t.Errorf("%s: accepted", c.name)
		}
	}
}

func ExampleRate_Choose() {
	phone := Rate(200)
	fmt.Println(phone.Choose(0, 0))
	fmt.Println(phone.Choose(800, 0))
	fmt.Println(phone.Choose(800, 2))
	fmt.Println(phone.Choose(5000, 0))
	// Output:
	// 0 true
	// 900 true
	// 2000 true
	// 0 false
}
