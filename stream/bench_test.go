package stream

import (
	"testing"

	"cepa/cell"
)

// BenchmarkData is one cell of DATA from Write to Read, without layers.
func BenchmarkData(b *testing.B) {
	p := newPair(b)
	near, far := p.open()
	data := make([]byte, 46*cell.Room(3))
	buf := make([]byte, 1<<16)
	b.SetBytes(int64(cell.Room(3)))
	b.ReportAllocs()
	for n := 0; n < b.N; n += 46 {
		if _, err := near.Write(data); err != nil {
			b.Fatal(err)
		}
		p.settle()
		if _, err := far.Read(buf); err != nil {
			b.Fatal(err)
		}
		p.settle()
	}
}
