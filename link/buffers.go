package link

import (
	"sync"
	"sync/atomic"
)

// Sizes in bytes of the buffers between socket and cells. Ours: an idle link
// holds the small one only.
const (
	// smallBuffer holds a record of two cells (2,834).
	smallBuffer = 3072
	// mediumBuffer is what a link gets that filled the small one, so that nobody
	// makes us hold a large one by sending less than an eighth of it.
	mediumBuffer = 16 << 10
	// largeBuffer holds two full records (129,572).
	largeBuffer = 128 << 10
)

// Relations that the reader and the writer need; if one breaks, an array length
// here is negative.
type _ struct {
	_ [smallBuffer - (recordOverhead + smallCells*cellSize)]byte
	_ [largeBuffer - recordsPerWrite*maxRecord]byte
}

// buffer is a buffer on loan from a Buffers.
type buffer struct{ b []byte }

// Buffers lends links the buffers that they need only while busy. It is safe
// for concurrent use; the zero value is ready. What nobody uses goes back to
// the garbage collector.
type Buffers struct {
	// Charge, unless nil, is told the bytes of what is lent, and as a negative
	// number of what comes back. Set it before the first link.
	Charge func(bytes int64)

	medium, large sync.Pool
	out           atomic.Int64
}

// get returns a buffer of mediumBuffer or largeBuffer bytes.
func (p *Buffers) get(size int) *buffer {
	p.out.Add(1)
	if p.Charge != nil {
		p.Charge(int64(size))
	}
	pool := &p.large
	if size == mediumBuffer {
		pool = &p.medium
	}
	if b, ok := pool.Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, size)}
}

// put takes b back; nil is nothing.
func (p *Buffers) put(b *buffer) {
	if b == nil {
		return
	}
	p.out.Add(-1)
	if p.Charge != nil {
		p.Charge(-int64(len(b.b)))
	}
	if len(b.b) == mediumBuffer {
		p.medium.Put(b)
	} else {
		p.large.Put(b)
	}
}

// Outstanding returns how many buffers are lent.
func (p *Buffers) Outstanding() int64 { return p.out.Load() }
