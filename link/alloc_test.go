//go:build !race

package link

import (
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
)

// TestAllocRead: opening a record of 46 cells and handing them over allocates
// nothing, whether they are of one circuit or of two in turn.
func TestAllocRead(t *testing.T) {
	l, r, _ := fuzzLink(&Config{Pool: new(cell.Pool), Rand: seeded(1)})
	s := new(sink)
	for id := uint32(1); id <= 2; id++ {
		c := &Circuit{link: l, receiver: s}
		c.id.Store(id)
		c.set(open)
		l.table[id] = c
	}
	peer := layer.NewRecords([32]byte{1})
	for name, second := range map[string]uint32{"one circuit": 1, "two circuits": 2} {
		plain := make([]byte, lengthSize, maxRecord)
		for n := range MaxRecordCells {
			id := uint32(1)
			if n%2 == 1 {
				id = second
			}
			plain = append(plain, rawCell(id, cell.Relay)...)
		}
		rec := make([]byte, len(plain), maxRecord)
		before := s.cells
		allocs := testing.AllocsPerRun(200, func() {
			copy(rec, plain)
			if _, err := r.consume(peer.Seal(rec)); err != nil {
				t.Fatal(err)
			}
			r.flush()
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations a record", name, allocs)
		}
		if got := s.cells - before; got != 201*MaxRecordCells {
			t.Errorf("%s: %d cells", name, got)
		}
	}
}

// TestAllocWrite: taking cells from the pool, queueing, choosing, copying and
// sealing them allocates nothing.
func TestAllocWrite(t *testing.T) {
	pool := new(cell.Pool)
	l, _, w := fuzzLink(&Config{Pool: pool, Rand: seeded(1)})
	var circuits []*Circuit
	for id := range uint32(3) {
		c := &Circuit{link: l}
		c.id.Store(id + 1)
		c.set(open)
		circuits = append(circuits, c)
	}
	var list cell.List
	written := 0
	round := func(n int) float64 {
		return testing.AllocsPerRun(200, func() {
			for _, c := range circuits {
				pool.GetList(&list, n)
				for k := list.Len(); k > 0; k-- {
					x := list.Pop()
					x.SetCommand(cell.Relay)
					list.Push(x)
				}
				if err := c.sendNow(&list); err != nil {
					t.Fatal(err)
				}
			}
			for {
				out, _ := w.fill(l.began, false, unlimited)
				l.cfg.Buffers.put(w.borrowed)
				w.borrowed = nil
				if len(out) == 0 {
					break
				}
				written += len(out)
			}
		})
	}
	for _, n := range []int{1, 50} {
		if allocs := round(n); allocs != 0 {
			t.Errorf("%d cells a circuit: %v allocations", n, allocs)
		}
	}
	if written < 201*3*50*cellSize || pool.Outstanding() != 0 {
		t.Errorf("%d bytes were written, %d cells are out", written, pool.Outstanding())
	}
}
