//go:build !race

package stream

import (
	"testing"

	"cepa/cell"
)

// TestAllocData: 1,000 cells of DATA written, delivered and read allocate
// nothing, CREDIT included.
func TestAllocData(t *testing.T) {
	p := newPair(t)
	near, far := p.open()
	data := make([]byte, 40*cell.Room(3))
	buf := make([]byte, 1<<16)
	round := func() {
		for range 25 {
			if n, err := near.Write(data); n != len(data) || err != nil {
				t.Fatal(n, err)
			}
			p.settle()
			if n, err := far.Read(buf); n != len(data) || err != nil {
				t.Fatal(n, err)
			}
			p.settle()
		}
	}
	credits := p.back.sent[cell.Credit]
	if allocs := testing.AllocsPerRun(20, round); allocs != 0 {
		t.Errorf("%v allocations for 1,000 cells", allocs)
	}
	if n := p.back.sent[cell.Credit] - credits; n < 100 {
		t.Errorf("only %d CREDIT were sent", n)
	}
	if sent := p.out.sent[cell.Data]; sent != 21*1000 {
		t.Errorf("%d cells were sent", sent)
	}
	p.done(near, far)
}
