package simnet_test

import (
	"io"
	"runtime"
	"testing"
	"time"

	"cepa/simnet"
)

// TestAllocWriteRead: on an ideal link a write and a read neither allocate nor start anything.
func TestAllocWriteRead(t *testing.T) {
	_, h := network(t, simnet.Config{}, 2)
	a, b := pair(t, h[0], h[1])
	buf := make([]byte, 64<<10)
	before := runtime.NumGoroutine()
	allocs := testing.AllocsPerRun(100, func() {
		a.Write(buf)
		io.ReadFull(b, buf)
	})
	if allocs != 0 {
		t.Errorf("a write and a read allocate %v times", allocs)
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

// TestRealTime: on the real clock a link has its latency and bandwidth, never less, and at rest costs no goroutine.
func TestRealTime(t *testing.T) {
	_, h := network(t, simnet.Config{Default: simnet.LinkParams{Latency: 20 * time.Millisecond, Bandwidth: 10_000_000}}, 2)
	before := runtime.NumGoroutine()
	a, b := pair(t, h[0], h[1])
	if took := transfer(t, a, b, noise(1, 1_000_000)); took < 120*time.Millisecond {
		t.Errorf("1 MB at 10 MB/s took %v", took)
	}
	if after := runtime.NumGoroutine(); after > before+1 { // the timer's may be about to end
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

func BenchmarkIdeal(b *testing.B)  { benchmark(b, simnet.LinkParams{}) }
func BenchmarkShaped(b *testing.B) { benchmark(b, simnet.LinkParams{Latency: 100 * time.Microsecond}) }

func BenchmarkBandwidth(b *testing.B) {
	benchmark(b, simnet.LinkParams{Latency: 100 * time.Microsecond, Bandwidth: 10_000_000_000})
}

func benchmark(b *testing.B, p simnet.LinkParams) {
	_, h := network(b, simnet.Config{Default: p}, 2)
	from, to := pair(b, h[0], h[1])
	const size = 64 << 10
	b.SetBytes(size)
	b.ReportAllocs()
	go func() {
		buf := make([]byte, size)
		for b.Loop() {
			from.Write(buf)
		}
		from.Close()
	}()
	if got, err := io.Copy(io.Discard, struct{ io.Reader }{to}); err != nil || got != int64(b.N)*size {
		b.Errorf("%d bytes of %d arrived, %v", got, int64(b.N)*size, err)
	}
}
