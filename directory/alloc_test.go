//go:build !race

package directory

import (
	"runtime"
	"testing"
	"time"
)

// TestParseAllocLinear: what parsing, verifying and applying a difference allocate, in number and bytes, grows no faster than the document, up to the cap; and
// so does the time, roughly.
func TestParseAllocLinear(t *testing.T) {
	network, parties := testNetwork(t, 9)
	period := network.Period(epoch)
	type cost struct {
		size, diffSize       int
		objects, bytes       float64 // a relay
		diffObjects, diffMem float64
		took                 time.Duration // a relay
	}
	measure := func(n int) cost {
		relays := manyRelays(t, n)
		old := signedConsensus(t, network, parties, period, relays, nil)
		next := signedConsensus(t, network, parties, period+1, hourLater(&testRand{state: [32]byte{5}}, relays, true), nil)
		diff, err := Diff(old, next)
		if err != nil {
			t.Fatal(err)
		}
		run := func(f func() error) (objects, bytes float64, took time.Duration) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			began := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			took = time.Since(began)
			runtime.ReadMemStats(&after)
			return float64(after.Mallocs-before.Mallocs) / float64(n), float64(after.TotalAlloc-before.TotalAlloc) / float64(n), took / time.Duration(n)
		}
		c := cost{size: len(next.Raw()), diffSize: len(diff)}
		c.objects, c.bytes, c.took = run(func() error { _, err := ParseConsensus(next.Raw(), network, next.ValidAfter); return err })
		c.diffObjects, c.diffMem, _ = run(func() error { _, err := ApplyDiff(old, diff, network, next.ValidAfter); return err })
		return c
	}
	few, lots := measure(3_000), measure(24_000)
	t.Logf("a relay of 3,000: %+v", few)
	t.Logf("a relay of 24,000: %+v", lots)
	const slack = 1.5 // buffers grow by doubling
	for _, c := range []struct {
		what      string
		few, lots float64
	}{
		{"objects", few.objects, lots.objects},
		{"bytes", few.bytes, lots.bytes},
		{"objects of a difference", few.diffObjects, lots.diffObjects},
		{"bytes of a difference", few.diffMem, lots.diffMem},
		{"time", float64(few.took), float64(lots.took)}, // with much room for a busy machine
	} {
		if c.lots > c.few*slack+0.05 && c.what != "time" || c.what == "time" && c.lots > c.few*6 {
			t.Errorf("%s a relay: %.2f of 3,000 and %.2f of 24,000", c.what, c.few, c.lots)
		}
	}
}

// TestParseAllocHeap: a client keeps, and needs at its most, little for the real network.
func TestParseAllocHeap(t *testing.T) {
	network, parties := testNetwork(t, 9)
	doc := realConsensus(t, network, parties)
	c, err := VerifyConsensus(doc, network)
	if err != nil {
		t.Fatal(err)
	}
	packed := c.Compressed()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, total := m.HeapAlloc, m.TotalAlloc
	raw, err := Decompress(packed, MaxConsensusSize)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseConsensus(raw, network, epoch)
	if err != nil {
		t.Fatal(err)
	}
	raw = nil
	runtime.ReadMemStats(&m)
	all := m.TotalAlloc - total
	runtime.GC()
	runtime.ReadMemStats(&m)
	kept := m.HeapAlloc - min(before, m.HeapAlloc)
	runtime.KeepAlive(parsed)
	t.Logf("%d bytes are kept, %d are allocated in all", kept, all)
	const most = 32 << 20
	if all > most {
		t.Errorf("%d bytes are allocated, want at most %d even if nothing were collected", all, most)
	}
}
