package cell

import "testing"

// TestPoolKeeps: a burst does not cost memory for ever.
func TestPoolKeeps(t *testing.T) {
	var p Pool
	var l List
	for range 2 {
		p.GetList(&l, keepFree+1000)
		p.PutList(&l)
		if p.free.n != keepFree || p.out != 0 {
			t.Errorf("the pool holds on to %d cells, want %d; %d are out", p.free.n, keepFree, p.out)
		}
	}
	n := 0
	for c := p.free.head; c != nil; c = c.next {
		n++
	}
	if n != keepFree {
		t.Errorf("%d cells hang in the list of %d", n, keepFree)
	}
}
