package link

import (
	"cepa/cell"
	"cepa/pace"
)

// scheduler chooses whose cells go into the next record. It holds the circuits
// that have cells queued and knows nothing of sockets and states. The link's mutex
// guards it.
//
// It works as package pace does among links: each circuit has a tag, the bytes
// that it has sent times the weight of its share, and the lowest is next. A
// circuit that was quiet goes before those that have much to send.
type scheduler struct {
	heap   []*Circuit // circuits with cells, the next one first
	queued int        // cells in all their queues
	now    uint64     // the tag of the last cells that were taken
	shift  uint64     // what is added to all tags, for the pacer
	orders uint64     // counts, to keep the order among equal tags
}

// active returns how many circuits have cells.
func (s *scheduler) active() int { return len(s.heap) }

// add appends cells to c's queue and leaves cells empty.
func (s *scheduler) add(c *Circuit, cells *cell.List) {
	if cells.Len() == 0 {
		return
	}
	idle := c.queue.Len() == 0
	s.queued += cells.Len()
	c.queue.Append(cells)
	if idle {
		c.tag = c.share.Enter(s, max(c.tag, s.now), cellSize)
		s.push(c)
	}
}

// remove takes c out and moves its cells to the end of into.
func (s *scheduler) remove(c *Circuit, into *cell.List) {
	if c.queue.Len() == 0 {
		return
	}
	s.queued -= c.queue.Len()
	into.Append(&c.queue)
	s.drop(c.place)
	c.share.Leave()
}

// take moves at most n cells to the end of into, and sets their circuit IDs. A turn
// is as many cells as divide the record among those that wait, at least one: so a
// record holds runs of one circuit, which are cheap to receive, and everybody gets
// as much as with single cells. Before a circuit's first cell is taken, start gives it
// an ID.
func (s *scheduler) take(n int, into *cell.List, start func(*Circuit)) {
	if len(s.heap) == 0 {
		return
	}
	turn := max(1, n/len(s.heap))
	for n > 0 && len(s.heap) > 0 {
		c := s.heap[0]
		if c.id.Load() == 0 {
			start(c)
		}
		id := c.id.Load()
		k := min(turn, n, c.queue.Len())
		n -= k
		s.queued -= k
		s.now = c.tag
		c.tag += uint64(k) * cellSize * c.share.Weight()
		for ; k > 0; k-- {
			x := c.queue.Pop()
			x.SetCircuitID(id)
			into.Push(x)
		}
		if c.queue.Len() == 0 {
			s.drop(0)
			c.share.Leave()
			continue
		}
		s.orders++
		c.order, c.fresh = s.orders, false
		s.down(0)
	}
}

// head returns the lowest tag, at the pacer's time now. A link that had nothing to
// send, or could not, does not make up for more than the pacer's slack.
func (s *scheduler) head(now uint64) uint64 {
	tag := s.now
	if len(s.heap) > 0 {
		tag = s.heap[0].tag
	}
	if tag+s.shift+pace.Slack < now {
		s.shift = now - pace.Slack - tag
	}
	return tag + s.shift
}

// before tells whether the circuit at i is served before that at j.
func (s *scheduler) before(i, j int) bool {
	a, b := s.heap[i], s.heap[j]
	switch {
	case a.tag != b.tag:
		return a.tag < b.tag
	case a.fresh != b.fresh:
		return a.fresh
	}
	return a.order < b.order
}

func (s *scheduler) swap(i, j int) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.heap[i].place, s.heap[j].place = i, j
}

func (s *scheduler) push(c *Circuit) {
	s.orders++
	c.order, c.fresh = s.orders, true
	c.place = len(s.heap)
	s.heap = append(s.heap, c)
	s.up(c.place)
}

// drop takes the circuit at i out of the heap.
func (s *scheduler) drop(i int) {
	last := len(s.heap) - 1
	s.swap(i, last)
	s.heap[last] = nil
	s.heap = s.heap[:last]
	if i < last {
		s.up(i)
		s.down(i)
	}
}

func (s *scheduler) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !s.before(i, parent) {
			return
		}
		s.swap(i, parent)
		i = parent
	}
}

func (s *scheduler) down(i int) {
	for {
		least := i
		for k := 2*i + 1; k <= 2*i+2 && k < len(s.heap); k++ {
			if s.before(k, least) {
				least = k
			}
		}
		if least == i {
			return
		}
		s.swap(i, least)
		i = least
	}
}

// SetShare says with which other circuits, of any link, the circuit has its turns
// together: those of one client. It must precede the first Send.
func (c *Circuit) SetShare(s *pace.Share) {
	c.link.mu.Lock()
	c.share = s
	c.link.mu.Unlock()
}
