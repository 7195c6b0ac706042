package cell_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"cepa/cell"
)

// drain pops all cells of l.
func drain(l *cell.List) (all []*cell.Cell) {
	for c := l.Pop(); c != nil; c = l.Pop() {
		all = append(all, c)
	}
	return all
}

// TestList compares lists with slices over random operations.
func TestList(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var lists [2]cell.List
	var want [2][]*cell.Cell
	for range 20_000 {
		i := random.IntN(2)
		l, w := &lists[i], &want[i]
		switch random.IntN(8) {
		case 0, 1, 2, 3:
			c := new(cell.Cell)
			l.Push(c)
			*w = append(*w, c)
		case 4, 5, 6:
			var first *cell.Cell
			if len(*w) > 0 {
				first, *w = (*w)[0], (*w)[1:]
			}
			if got := l.Pop(); got != first {
				t.Fatalf("Pop returned %p, want %p", got, first)
			}
		case 7:
			l.Append(&lists[1-i])
			*w, want[1-i] = append(*w, want[1-i]...), nil
		}
		for i := range lists {
			var front, back *cell.Cell
			if n := len(want[i]); n > 0 {
				front, back = want[i][0], want[i][n-1]
			}
			if lists[i].Len() != len(want[i]) || lists[i].Front() != front || lists[i].Back() != back {
				t.Fatalf("list %d: %d cells, want %d; ends are wrong", i, lists[i].Len(), len(want[i]))
			}
		}
	}
}

func TestListMisuse(t *testing.T) {
	var l, m cell.List
	first, second := new(cell.Cell), new(cell.Cell)
	l.Push(first)
	l.Push(second)
	wantPanic(t, "pushing the last cell again", func() { l.Push(second) })
	wantPanic(t, "pushing a cell of another list", func() { m.Push(first) })
	m.Push(l.Pop()) // no longer there: fine
	if l.Len() != 1 || m.Len() != 1 || m.Front() != first {
		t.Error("misuse changed the lists")
	}
}

func TestPoolOutstanding(t *testing.T) {
	var p cell.Pool
	var l cell.List
	check := func(want int64) {
		t.Helper()
		if got := p.Outstanding(); got != want {
			t.Fatalf("%d cells are out, want %d", got, want)
		}
	}
	check(0)
	c := p.Get()
	check(1)
	p.GetList(&l, 10)
	check(11)
	if l.Len() != 10 {
		t.Fatalf("GetList gave %d cells, want 10", l.Len())
	}
	p.PutList(&l)
	check(1)
	if l.Len() != 0 {
		t.Error("PutList left cells in the list")
	}
	p.PutList(&l)
	check(1)
	p.Put(c)
	check(0)
	p.GetList(&l, 0)
	p.GetList(&l, 12) // eleven from the pool and a fresh one
	check(12)
	seen := map[*cell.Cell]bool{}
	for _, c := range drain(&l) {
		if seen[c] {
			t.Fatal("the pool gave one cell twice")
		}
		seen[c] = true
		p.Put(c)
	}
	check(0)
}

// TestPoolMisuse: a cell that is handed over twice would soon belong to two
// circuits. It must be noticed at once, also while other cells are out, and by
// a pool that has enough and throws the cell away.
func TestPoolMisuse(t *testing.T) {
	for _, many := range []int{0, 1, 3000} {
		var p cell.Pool
		var others, l cell.List
		p.GetList(&others, many)
		returned := p.Get()
		p.GetList(&l, 3)
		listed := l.Back()
		p.PutList(&others)
		p.Put(returned)
		wantPanic(t, "returning a cell twice", func() { p.Put(returned) })
		wantPanic(t, "returning a cell that is in a list", func() { p.Put(listed) })
		wantPanic(t, "pushing a cell that was returned", func() { l.Push(returned) })
	}
	var p cell.Pool
	wantPanic(t, "returning a cell that the pool did not give", func() { p.Put(new(cell.Cell)) })
}

// TestPoolPanicUnlocks: whoever recovers can still use the pool.
func TestPoolPanicUnlocks(t *testing.T) {
	var p cell.Pool
	c := p.Get()
	p.Put(c)
	wantPanic(t, "returning a cell twice", func() { p.Put(c) })
	p.Get()
}

// TestPoolConcurrent: cells are never in two hands. The race detector watches
// the bytes.
func TestPoolConcurrent(t *testing.T) {
	var p cell.Pool
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			var l cell.List
			for i := range 500 {
				p.GetList(&l, 1+i%50)
				for _, c := range drain(&l) {
					c.SetCircuitID(uint32(worker))
					if c.CircuitID() != uint32(worker) {
						t.Error("somebody else writes to this cell")
					}
					l.Push(c)
				}
				if i%2 == 0 {
					p.PutList(&l)
					continue
				}
				for _, c := range drain(&l) {
					p.Put(c)
				}
			}
		})
	}
	wg.Wait()
	if n := p.Outstanding(); n != 0 {
		t.Errorf("%d cells are out", n)
	}
}
