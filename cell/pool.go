package cell

import "sync"

// keepFree is how many free cells a Pool holds on to: 2,048 cells are 2.9 MB,
// the working set of a busy relay; more goes back to the garbage collector, so
// that a burst does not cost memory for ever.
const keepFree = 2048

// Pool hands out cell buffers and takes them back. It counts what is out, so
// that a leak shows in a test. It is safe for concurrent use; the zero value
// is ready. Take and return lists on the hot path: one lock a batch.
type Pool struct {
	mu    sync.Mutex
	free  List
	out   int64
	taken uint64 // how often cells were taken: the clock of Cell.Taken

	budget // see pool_budget.go
}

// Get returns a cell whose content is undefined. The caller owns it.
func (p *Pool) Get() *Cell {
	p.mu.Lock()
	c := p.free.Pop()
	p.out++
	p.taken++
	taken := p.taken
	if p.limit > 0 {
		p.checkLocked()
	}
	p.mu.Unlock()
	if c == nil {
		c = new(Cell)
	}
	c.taken = taken
	return c
}

// GetList appends n cells to l; their content is undefined.
func (p *Pool) GetList(l *List, n int) {
	p.mu.Lock()
	p.out += int64(n)
	p.taken++
	taken := p.taken
	if p.limit > 0 {
		p.checkLocked()
	}
	for n > 0 {
		c := p.free.Pop()
		if c == nil {
			break
		}
		c.taken = taken
		l.Push(c)
		n--
	}
	p.mu.Unlock()
	for ; n > 0; n-- {
		l.Push(&Cell{taken: taken})
	}
}

// Put takes c back. The caller must not use it any more. It panics when c was
// returned already or is in a list.
func (p *Pool) Put(c *Cell) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out--
	p.put(c)
}

// PutList takes all cells of l back and leaves l empty. It panics when one of
// them was returned already.
func (p *Pool) PutList(l *List) {
	if l.n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out -= int64(l.n)
	for c := l.Pop(); c != nil; c = l.Pop() {
		p.put(c)
	}
}

// put keeps c at the front, where it is taken from next while its memory is
// still in the processor's cache.
func (p *Pool) put(c *Cell) {
	if c.place != owned || p.out < 0 {
		panic("internal error: a cell was returned that the caller does not own")
	}
	c.place = pooled
	if p.free.n >= keepFree {
		c.next = nil
		return
	}
	c.next = p.free.head
	p.free.head = c
	if p.free.tail == nil {
		p.free.tail = c
	}
	p.free.n++
}

// Outstanding returns how many cells are out: taken and not yet returned.
func (p *Pool) Outstanding() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out
}
