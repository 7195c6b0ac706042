package work

import (
	"crypto/rand"
	"testing"
)

func TestSolve(t *testing.T) {
	c := Challenge{Seed: [32]byte{1}, Key: [32]byte{2}, Sealed: [32]byte{3}}
	p, err := Solve(t.Context(), c, 50, rand.Reader, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Verify(c); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkTable(b *testing.B) {
	t := new(table)
	n := 0
	for i := 0; i < b.N; i++ {
		t.solve(&[32]byte{byte(i), byte(i >> 8)}, func(list *[indices]uint16) bool { n++; return true })
	}
	b.ReportMetric(float64(n)/float64(b.N), "solutions/op")
}

func BenchmarkFill(b *testing.B) {
	t := new(table)
	for i := 0; i < b.N; i++ {
		t.fill(&[32]byte{byte(i), byte(i >> 8)})
	}
}

func BenchmarkPair(b *testing.B) {
	t := new(table)
	for i := 0; i < b.N; i++ {
		b.StopTimer()
		t.fill(&[32]byte{byte(i), byte(i >> 8)})
		b.StartTimer()
		t.pair()
	}
}

func BenchmarkQuad(b *testing.B) {
	t := new(table)
	for i := 0; i < b.N; i++ {
		b.StopTimer()
		t.fill(&[32]byte{byte(i), byte(i >> 8)})
		n := t.pair()
		b.StartTimer()
		t.quad(n)
	}
}
func BenchmarkFinish(b *testing.B) {
	t := new(table)
	for i := 0; i < b.N; i++ {
		b.StopTimer()
		t.fill(&[32]byte{byte(i), byte(i >> 8)})
		n := t.quad(t.pair())
		b.StartTimer()
		t.finish(n, func(*[indices]uint16) bool { return true })
	}
}
