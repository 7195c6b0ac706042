package link

import "cepa/cell"

// scheduler chooses whose cells go into the next record. It holds the circuits
// that have cells queued, in the order in which they are served, and knows
// nothing of sockets and states. The link's mutex guards it.
type scheduler struct {
	first, last *Circuit // circuits with cells, linked by next and prev
	active      int      // how many
	queued      int      // cells in all their queues
}

// add appends cells to c's queue and leaves cells empty. A circuit that had
// none goes to the end of the line.
func (s *scheduler) add(c *Circuit, cells *cell.List) {
	if cells.Len() == 0 {
		return
	}
	idle := c.queue.Len() == 0
	s.queued += cells.Len()
	c.queue.Append(cells)
	if idle {
		s.push(c)
	}
}

// remove takes c out of the line and moves its cells to the end of into.
func (s *scheduler) remove(c *Circuit, into *cell.List) {
	if c.queue.Len() == 0 {
		return
	}
	s.queued -= c.queue.Len()
	into.Append(&c.queue)
	s.unlink(c)
}

// take moves at most n cells to the end of into, and sets their circuit IDs.
// Circuits take turns of equal size, as many cells as divide the record among
// those that wait, at least one: so a record holds runs of one circuit, which
// are cheap to receive, and everybody gets as much as with single cells. Before
// a circuit's first cell is taken, start gives it an ID.
func (s *scheduler) take(n int, into *cell.List, start func(*Circuit)) {
	if s.active == 0 {
		return
	}
	turn := max(1, n/s.active)
	for n > 0 && s.first != nil {
		c := s.first
		s.unlink(c)
		if c.id.Load() == 0 {
			start(c)
		}
		id := c.id.Load()
		k := min(turn, n, c.queue.Len())
		n -= k
		s.queued -= k
		for ; k > 0; k-- {
			x := c.queue.Pop()
			x.SetCircuitID(id)
			into.Push(x)
		}
		if c.queue.Len() > 0 {
			s.push(c)
		}
	}
}

// push puts c at the end of the line.
func (s *scheduler) push(c *Circuit) {
	c.prev, c.next = s.last, nil
	if s.last == nil {
		s.first = c
	} else {
		s.last.next = c
	}
	s.last = c
	s.active++
}

// unlink takes c out of the line, where it must be.
func (s *scheduler) unlink(c *Circuit) {
	if c.prev == nil {
		s.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		s.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
	s.active--
}
