package link

import (
	"flag"
	"math/rand/v2"
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
)

var soak = flag.Bool("soak", false, "run the long campaigns")

// TestSoakHostilePeer lets a peer that has done the handshake send random and
// mutated sequences of cells and records, while our side opens, sends and
// destroys: 20,000 operations, 1,000,000 with -soak. playPeer says what must
// hold.
func TestSoakHostilePeer(t *testing.T) {
	const length = 40
	total := 20_000
	if *soak {
		total = 1_000_000
	}
	seeds := peerSeeds()
	rng := rand.New(rand.NewPCG(3, 9))
	for done := 0; done < total; done += length {
		var ops []byte
		if rng.IntN(2) == 0 {
			for range 1 + rng.IntN(3) {
				ops = append(ops, seeds[rng.IntN(len(seeds))]...)
			}
		}
		for len(ops) < 3*length {
			// Few circuit IDs, so that states meet.
			ops = append(ops, byte(rng.IntN(256)), byte(rng.IntN(2)<<7|rng.IntN(5)), byte(rng.IntN(256)))
		}
		for range rng.IntN(4) {
			ops[rng.IntN(len(ops))] = byte(rng.IntN(256))
		}
		playPeer(t, ops)
		if t.Failed() {
			t.Fatalf("with %v", ops)
		}
	}
}

// BenchmarkLookup looks up circuits in tables of a thousand and of a million IDs
// that the peer chose: with all low bits alike, so that a bad table would
// degrade.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(map[int]string{1_000: "1e3", 1_000_000: "1e6"}[n], func(b *testing.B) {
			l, r, _ := fuzzLink(&Config{Pool: new(cell.Pool), MaxCircuits: n, OnCreate: func(*Circuit, []byte) {}})
			r.records = layer.NewRecords([32]byte{1})
			const step = 1 << 10
			for i := range n {
				if _, err := l.accept(cell.InitiatorBit | uint32(i)*step); err != nil {
					b.Fatal(err)
				}
			}
			rng := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				if c, _ := l.find(cell.InitiatorBit | uint32(rng.IntN(n))*step); c == nil {
					b.Fatal("a circuit is missing")
				}
			}
		})
	}
}
