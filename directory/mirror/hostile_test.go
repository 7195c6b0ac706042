package mirror

import (
	"bytes"
	"encoding/binary"
	mrand "math/rand/v2"
	"testing"
	"time"

	"cepa/directory"
)

// TestSoakHostileDocuments: of documents, and differences, that were mutated, rolled back, dated back or ahead, signed by too few or by others, none is
// accepted; that which they were made from is.
func TestSoakHostileDocuments(t *testing.T) {
	n := 600
	if *soak {
		n = 10_000
	}
	inBubble(t, func(t *testing.T, w *world) {
		time.Sleep(2 * time.Hour)
		period := w.network.Period(time.Now())
		m := w.mirror(nil)
		base := w.consensus(period-1, many(0, 6), 0, 1, 2)
		if err := m.Add(base); err != nil {
			t.Fatal(err)
		}
		current := m.Current()
		good := w.consensus(period, many(1, 7), 0, 1, 2)
		parse := func(b []byte) *directory.Consensus {
			c, err := directory.VerifyConsensus(b, w.network)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		diff := func(to *directory.Consensus) []byte {
			b, err := directory.Diff(current, to)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		goodDiff := diff(parse(good))
		// Whole ones that nothing is wrong with but their time, or their signatures.
		var whole, diffs [][]byte
		kinds := map[string]int{}
		add := func(kind string, b []byte, signed bool) {
			whole = append(whole, b)
			kinds[kind]++
			if signed {
				diffs = append(diffs, diff(parse(b)))
				kinds["difference to "+kind]++
			}
		}
		for k := range uint64(12) {
			add("rolled back", w.consensus(period-2-k, many(0, 5), 0, 1, 2, 3), true)
			add("expired", w.consensus(period-directory.ValidPeriods-k, many(0, 5), 0, 1, 2, 3), true)
			add("of the future", w.consensus(period+6+k*100, many(0, 5), 0, 1, 2, 3), true)
			add("under-signed", w.consensus(period, many(0, 5), [][]int{{0, 1}, {2, 3}, {1}}[k%3]...), false)
			add("signed by strangers", w.consensus(period, many(0, 5), []int{7, 8, 9}...), false)
			add("signed by one stranger too", w.consensus(period, many(0, 5), 0, 1, 2, 7), false)
		}
		add("another of the period at hand", w.consensus(period-1, many(2, 6), 0, 1, 2), true)
		random := mrand.New(mrand.NewPCG(1, 2))
		accepted := 0
		try := func(kind string, err error) {
			if err == nil || m.Current() != current {
				accepted++
				t.Errorf("%s: accepted", kind)
			}
		}
		a := &attempt{mirror: m}
		for i := range n {
			switch i % 5 {
			case 0:
				try("whole", m.Add(whole[random.IntN(len(whole))]))
			case 1:
				try("difference", a.takeDiff(current, diffs[random.IntN(len(diffs))]))
			case 2, 3:
				b := mutate(random, good)
				if !bytes.Equal(b, good) {
					try("mutated", m.Add(b))
				}
			case 4:
				b := mutate(random, goodDiff)
				if !bytes.Equal(b, goodDiff) {
					try("mutated difference", a.takeDiff(current, b))
				}
			}
		}
		t.Logf("%d documents, %d accepted; kinds %v", n, accepted, kinds)
		if err := a.takeDiff(current, goodDiff); err != nil || !bytes.Equal(m.Current().Raw(), good) {
			t.Errorf("the good one, by its difference: %v", err)
		}
	})
}

// mutate changes a document in one to three places: bits, bytes that go, come or move, numbers.
func mutate(random *mrand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + random.IntN(3) {
		i := random.IntN(len(b))
		j := min(len(b), i+1+random.IntN(40))
		switch random.IntN(7) {
		case 0:
			b[i] ^= 1 << random.IntN(8)
		case 1:
			b[i] = byte(random.Uint32())
		case 2:
			b = append(b[:i], b[j:]...)
		case 3:
			b = append(b[:j:j], b[i:]...)
		case 4:
			k := random.IntN(len(b))
			copy(b[k:], b[i:j])
		case 5:
			b = b[:i]
		case 6:
			if i+8 <= len(b) {
				binary.BigEndian.PutUint64(b[i:], binary.BigEndian.Uint64(b[i:])+uint64(random.IntN(3))-1)
			}
		}
		if len(b) == 0 {
			return b
		}
	}
	return b
}
