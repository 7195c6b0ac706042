package cell

// List is a first-in-first-out list of cells, linked through the cells
// themselves: moving one allocates nothing. The zero value is empty. It owns
// its cells and is not safe for concurrent use.
type List struct {
	head, tail *Cell
	n          int
}

// Len returns the number of cells.
func (l *List) Len() int { return l.n }

// Push appends c. It panics when c is in a list or was returned to its pool.
func (l *List) Push(c *Cell) {
	if c.place != owned {
		panic("internal error: a cell was pushed that somebody else has")
	}
	c.place = listed
	c.next = nil
	if l.tail == nil {
		l.head = c
	} else {
		l.tail.next = c
	}
	l.tail = c
	l.n++
}

// Pop removes and returns the first cell, or nil when there is none.
func (l *List) Pop() *Cell {
	c := l.head
	if c == nil {
		return nil
	}
	l.head = c.next
	if l.head == nil {
		l.tail = nil
	}
	c.next, c.place = nil, owned
	l.n--
	return c
}

// Front returns the first cell without removing it, or nil.
func (l *List) Front() *Cell { return l.head }

// Back returns the last cell without removing it, or nil.
func (l *List) Back() *Cell { return l.tail }

// Append moves all cells of m to the end of l and leaves m empty.
func (l *List) Append(m *List) {
	if m.n == 0 {
		return
	}
	if l.tail == nil {
		l.head = m.head
	} else {
		l.tail.next = m.head
	}
	l.tail = m.tail
	l.n += m.n
	*m = List{}
}
