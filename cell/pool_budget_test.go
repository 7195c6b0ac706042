package cell_test

import (
	"runtime"
	"testing"

	"cepa/cell"
)

// told reports whether a budget's channel has something.
func told(over <-chan struct{}) bool {
	select {
	case <-over:
		return true
	default:
		return false
	}
}

// TestBudget: whoever makes room hears of the first byte beyond the budget, whether
// it is a cell's or not, and of nothing before.
func TestBudget(t *testing.T) {
	var p cell.Pool
	over := p.SetBudget(10 * cell.MemorySize)
	var l cell.List
	p.GetList(&l, 9)
	l.Push(p.Get())
	if told(over) {
		t.Error("told of 10 cells")
	}
	l.Push(p.Get())
	if !told(over) || told(over) {
		t.Error("not told once of 11 cells")
	}
	if used := p.Used(); used != 11*cell.MemorySize || p.Peak() != used {
		t.Errorf("%d bytes are in use and %d at most, want 11 cells", used, p.Peak())
	}
	p.PutList(&l)
	p.Charge(10 * cell.MemorySize)
	if told(over) || p.Used() != 10*cell.MemorySize {
		t.Errorf("told of as many bytes beside cells, or not counted: %d", p.Used())
	}
	p.GetList(&l, 1)
	if !told(over) {
		t.Error("not told of a cell with all bytes in use beside")
	}
	p.Charge(1)
	if !told(over) {
		t.Error("not told of a byte beside cells")
	}
	p.Charge(-10*cell.MemorySize - 1)
	p.PutList(&l)
	if told(over) || p.Used() != 0 || p.Peak() != 11*cell.MemorySize+1 {
		t.Errorf("after all came back: %d bytes, %d at most", p.Used(), p.Peak())
	}
}

// TestTaken: the clock of cells tells which was taken first, also of those that are
// taken again.
func TestTaken(t *testing.T) {
	var p cell.Pool
	a, b := p.Get(), p.Get()
	var l cell.List
	p.GetList(&l, 2)
	if a.Taken() >= b.Taken() || b.Taken() >= l.Front().Taken() || l.Front().Taken() != l.Back().Taken() {
		t.Errorf("taken at %d, %d and %d to %d", a.Taken(), b.Taken(), l.Front().Taken(), l.Back().Taken())
	}
	before := l.Back().Taken()
	p.Put(a)
	if a = p.Get(); a.Taken() <= before {
		t.Errorf("taken again at %d, not after %d", a.Taken(), before)
	}
	p.Put(b)
	p.GetList(&l, 1)
	if l.Back().Taken() <= a.Taken() {
		t.Errorf("taken again in a list at %d, not after %d", l.Back().Taken(), a.Taken())
	}
}

// TestMemorySize: cells are counted as what the allocator gives them.
func TestMemorySize(t *testing.T) {
	var p cell.Pool
	var l cell.List
	const n = 4096
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p.GetList(&l, n)
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / n; got < cell.MemorySize || got > cell.MemorySize+8 {
		t.Errorf("a cell takes %d bytes, counted as %d", got, cell.MemorySize)
	}
	p.PutList(&l)
}
