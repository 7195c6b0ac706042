package cell

// MemorySize is what a cell takes of memory, in bytes: the allocator's next size
// above that of a Cell.
const MemorySize = 1536

// budget is the part of a Pool that bounds memory. The Pool's mutex guards it.
type budget struct {
	limit  int64         // bytes; 0: none
	beside int64         // bytes of what is no cell; see Charge
	peak   int64         // most bytes since SetBudget
	over   chan struct{} // depth 1
}

// SetBudget bounds what the cells that are out and what is charged beside them may
// take, in bytes, and returns the channel on which somebody who makes room is told
// when they take more. Nothing is refused and nobody waits. It must precede the first
// use of the Pool, and may be called once.
func (p *Pool) SetBudget(bytes int64) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit != 0 || bytes <= 0 {
		panic("internal error: the budget of a pool is set once, above 0")
	}
	p.limit, p.over = bytes, make(chan struct{}, 1)
	return p.over
}

// Charge counts bytes that something else than cells takes, or, when negative, gives
// back.
func (p *Pool) Charge(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beside += bytes
	if p.limit > 0 && bytes > 0 {
		p.checkLocked()
	}
}

// Used returns how many bytes the cells that are out and what is charged take.
func (p *Pool) Used() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.usedLocked()
}

// Peak returns the most that Used was since SetBudget.
func (p *Pool) Peak() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peak
}

func (p *Pool) usedLocked() int64 { return p.out*MemorySize + p.beside }

// checkLocked tells who makes room when there is more than the limit.
func (p *Pool) checkLocked() {
	used := p.usedLocked()
	p.peak = max(p.peak, used)
	if used <= p.limit {
		return
	}
	select {
	case p.over <- struct{}{}:
	default:
	}
}
