package work

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"testing"

	"golang.org/x/crypto/blake2b"
)

// The file in testdata is made by the reference of reference_test.go, never by the code it tests:
//
//	go test ./onion/work -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

const vectorsFile = "testdata/work.json"

type vectors struct {
	About    string          `json:"about"`
	Puzzles  []puzzleVector  `json:"puzzles"`
	Failures []failureVector `json:"failures"`
}

type puzzleVector struct {
	Seed      string            `json:"seed"`
	Key       string            `json:"key"`
	Sealed    string            `json:"sealed"`
	SealedSum string            `json:"sealed_sum"`
	Effort    uint32            `json:"effort"`
	Nonce     string            `json:"nonce"`
	Root      string            `json:"root"`
	Words     map[string]string `json:"words"`
	Solutions []solutionVector  `json:"solutions"`
}

type solutionVector struct {
	Solution string `json:"solution"`
	R        uint32 `json:"r"`
	Proof    string `json:"proof,omitempty"` // if it wins
}

type failureVector struct {
	Name  string `json:"name"`
	Proof string `json:"proof"`
	Error string `json:"error"`
}

// vectorChallenge is that of all vectors.
func vectorChallenge() (c Challenge, sealed []byte) {
	sealed = make([]byte, 1220)
	for i := range sealed {
		sealed[i] = byte(i % 251)
	}
	for i := range 32 {
		c.Seed[i], c.Key[i] = byte(i), byte(0x80+i)
	}
	c.Sealed = blake2b.Sum256(sealed)
	return c, sealed
}

// makeVectors puts the file together: the first nonces for effort 1, and those up
// to the first proof for effort 16.
func makeVectors() vectors {
	v := vectors{About: "Proof of work, doc/spec.md, section Onion services. All solutions of each puzzle, sorted; words by their index. Failures are to be refused with the challenge of the puzzles."}
	c, sealed := vectorChallenge()
	var proof []byte
	add := func(effort uint32, number uint64) (won bool) {
		var nonce [16]byte
		binary.BigEndian.PutUint64(nonce[8:], number)
		root := referenceRoot(c, effort, nonce)
		words := referenceWords(root)
		p := puzzleVector{
			Seed: hex.EncodeToString(c.Seed[:]), Key: hex.EncodeToString(c.Key[:]), Sealed: hex.EncodeToString(sealed), SealedSum: hex.EncodeToString(c.Sealed[:]),
			Effort: effort, Nonce: hex.EncodeToString(nonce[:]), Root: hex.EncodeToString(root[:]), Words: map[string]string{}, Solutions: []solutionVector{},
		}
		for index, name := range map[int]string{0: "0", 1: "1", 7: "7", 8: "8", 12345: "12345", 65535: "65535"} {
			p.Words[name] = hex.EncodeToString(binary.BigEndian.AppendUint64(nil, words[index]))
		}
		for _, s := range referenceSolutions(root) {
			r := referenceNumber(root, s)
			sv := solutionVector{Solution: hex.EncodeToString(s[:]), R: r}
			if uint64(r)*uint64(effort) < 1<<32 {
				b := binary.BigEndian.AppendUint32([]byte{1}, effort)
				b = append(b, c.Seed[:4]...)
				b = append(b, nonce[:]...)
				b = append(b, s[:]...)
				sv.Proof = hex.EncodeToString(b)
				proof, won = b, true
			}
			p.Solutions = append(p.Solutions, sv)
		}
		v.Puzzles = append(v.Puzzles, p)
		return won
	}
	for number := range uint64(2) {
		add(1, number)
	}
	for number := uint64(0); !add(16, number); number++ {
	}
	fail := func(name, err string, change func(b []byte) []byte) {
		v.Failures = append(v.Failures, failureVector{name, hex.EncodeToString(change(bytes.Clone(proof))), err})
	}
	at := func(i int, to byte) func([]byte) []byte {
		return func(b []byte) []byte { b[i] = to; return b }
	}
	fail("version 2", ErrMalformed.Error(), at(0, 2))
	fail("no work, and yet something", ErrMalformed.Error(), at(0, 0))
	fail("effort 0", ErrMalformed.Error(), at(4, 0))
	fail("a byte less", ErrMalformed.Error(), func(b []byte) []byte { return b[:40] })
	fail("a byte more", ErrMalformed.Error(), func(b []byte) []byte { return append(b, 0) })
	fail("no work", ErrMore.Error(), func(b []byte) []byte { return make([]byte, 41) })
	fail("another seed", ErrSeed.Error(), at(5, 0xff))
	fail("two indices swapped", ErrSolution.Error(), func(b []byte) []byte {
		return append(b[:25], b[27], b[28], b[25], b[26], b[29], b[30], b[31], b[32], b[33], b[34], b[35], b[36], b[37], b[38], b[39], b[40])
	})
	fail("halves swapped", ErrSolution.Error(), func(b []byte) []byte { return append(b[:25:25], append(bytes.Clone(b[33:]), b[25:33]...)...) })
	fail("an index twice", ErrSolution.Error(), func(b []byte) []byte { b[27], b[28] = b[25], b[26]; return b })
	fail("an effort that was not solved for", ErrEffort.Error(), func(b []byte) []byte { b[1] = 0xff; return b })
	return v
}

func TestVectors(t *testing.T) {
	made, err := json.MarshalIndent(makeVectors(), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.WriteFile(vectorsFile, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	held, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made, held) {
		t.Errorf("%s is not what the reference makes: run go test ./onion/work -run TestVectors -update, and look at what differs", vectorsFile)
	}
	var v vectors
	if err := json.Unmarshal(held, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Puzzles) < 5 || len(v.Failures) < 10 {
		t.Fatalf("%d puzzles and %d failures", len(v.Puzzles), len(v.Failures))
	}
	bin := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var c Challenge
	tables := new(table)
	for _, p := range v.Puzzles {
		c = Challenge{Seed: [32]byte(bin(p.Seed)), Key: [32]byte(bin(p.Key)), Sealed: SealedSum(bin(p.Sealed))}
		if !bytes.Equal(c.Sealed[:], bin(p.SealedSum)) {
			t.Errorf("sum of the sealed payload %x, want %s", c.Sealed, p.SealedSum)
		}
		nonce := [16]byte(bin(p.Nonce))
		root := c.root(p.Effort, &nonce)
		if !bytes.Equal(root[:], bin(p.Root)) {
			t.Errorf("root %x, want %s", root, p.Root)
		}
		for name, w := range p.Words {
			var index uint16
			if err := json.Unmarshal([]byte(name), &index); err != nil {
				t.Fatal(err)
			}
			if got := word(&root, index); got != binary.BigEndian.Uint64(bin(w)) {
				t.Errorf("word %d is %016x, want %s", index, got, w)
			}
		}
		found := map[[16]byte]bool{}
		tables.solve(&root, func(list *[indices]uint16) bool {
			found[pack(list)] = true
			return true
		})
		if len(found) > len(p.Solutions) {
			t.Errorf("effort %d, nonce %s: %d solutions found, want %d", p.Effort, p.Nonce, len(found), len(p.Solutions))
		}
		for _, s := range p.Solutions {
			solution := [16]byte(bin(s.Solution))
			proof := Proof{Effort: p.Effort, SeedHead: [4]byte(c.Seed[:]), Nonce: nonce, Solution: solution}
			if wins(&root, &solution, p.Effort) != (s.Proof != "") {
				t.Errorf("solution %s of r %d at effort %d wins: %v", s.Solution, s.R, p.Effort, s.Proof == "")
			}
			if s.Proof == "" {
				if err := proof.Verify(c); !errors.Is(err, ErrEffort) {
					t.Errorf("solution %s is no proof: %v", s.Solution, err)
				}
				continue
			}
			parsed, err := Parse(bin(s.Proof))
			if err != nil || parsed != proof {
				t.Errorf("proof %s is %+v (%v)", s.Proof, parsed, err)
			}
			if err := parsed.Verify(c); err != nil {
				t.Errorf("proof %s: %v", s.Proof, err)
			}
			if !bytes.Equal(proof.AppendTo(nil), bin(s.Proof)) {
				t.Errorf("proof %s is written as %x", s.Proof, proof.AppendTo(nil))
			}
		}
	}
	for _, f := range v.Failures {
		p, err := Parse(bin(f.Proof))
		if err == nil {
			err = p.Verify(c)
		}
		if err == nil || err.Error() != f.Error {
			t.Errorf("%s: %v, want %s", f.Name, err, f.Error)
		}
	}
}
