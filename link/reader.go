package link

import (
	"time"

	"cepa/crypto/layer"
)

// reader is the state of the reader goroutine; nobody else touches it.
type reader struct {
	link    *Link
	records *layer.Records

	small    []byte  // the link's own
	borrowed *buffer // medium or large, nil while small does
	buf      []byte  // the one in use
	have     int     // bytes in buf that were not used up

	dispatch
}

func newReader(l *Link, records *layer.Records) *reader {
	r := &reader{link: l, records: records, small: make([]byte, smallBuffer)}
	r.buf = r.small
	r.dispatch.link = l
	r.dispatch.touched = make([]*Circuit, 0, flushCells)
	return r
}

// run reads until the connection ends or the peer breaks a rule.
func (r *reader) run() error {
	c := &r.link.counters
	for {
		n, readErr := r.link.conn.Read(r.buf[r.have:])
		r.have += n
		filled := r.have == len(r.buf)
		c.bytesRead.Add(uint64(n))
		r.link.lastRead.Store(int64(time.Since(r.link.began)))
		used, err := r.consume(r.buf[:r.have])
		r.flush()
		if err != nil {
			return err
		}
		r.have = copy(r.buf, r.buf[used:r.have])
		if readErr != nil {
			return readFailed(readErr, r.have > 0)
		}
		r.resize(n, filled)
	}
}

// consume handles all whole records at the start of b and returns how many
// bytes they had.
func (r *reader) consume(b []byte) (used int, err error) {
	for len(b)-used >= lengthSize {
		size, n, err := parseLength(b[used:])
		if err != nil {
			return used, err
		}
		if len(b)-used < lengthSize+size {
			break
		}
		if r.link.over() {
			return used, ErrClosed
		}
		if err := r.record(b[used:used+lengthSize+size], n); err != nil {
			return used, err
		}
		used += lengthSize + size
	}
	return used, nil
}

// record opens one record in place and handles its n cells.
func (r *reader) record(rec []byte, n int) error {
	cells, err := openRecord(r.records, rec)
	if err != nil {
		return err
	}
	r.link.counters.recordsRead.Add(1)
	r.link.counters.cellsRead.Add(uint64(n))
	if n == 0 && r.link.keepalive && !r.link.initiator {
		// So a client asks for less padding (doc/spec.md section 3), for itself alone.
		r.link.spare.Store(true)
	}
	for left := n; left > 0; left-- {
		if err := r.cell(cells[:cellSize], left == 1); err != nil {
			return err
		}
		cells = cells[cellSize:]
	}
	if r.rekey {
		r.rekey = false
		r.records.Rekey()
	}
	return nil
}

// resize picks the buffer for the next Read, after one that returned n bytes. A
// buffer that was filled makes way for the next larger one; one that a smaller
// could have replaced, and still can, makes way for that.
func (r *reader) resize(n int, filled bool) {
	switch size := len(r.buf); {
	case filled && size == smallBuffer:
		r.swap(r.link.cfg.Buffers.get(mediumBuffer))
	case filled && size == mediumBuffer:
		r.swap(r.link.cfg.Buffers.get(largeBuffer))
	case size == largeBuffer && n < mediumBuffer && r.fits(mediumBuffer):
		r.swap(r.link.cfg.Buffers.get(mediumBuffer))
	case size == mediumBuffer && n < smallBuffer && r.fits(smallBuffer):
		r.swap(nil)
	}
}

// fits tells whether the record that has begun, if one has, fits a buffer of
// this size.
func (r *reader) fits(size int) bool {
	if r.have < lengthSize {
		return true
	}
	n, _, err := parseLength(r.buf)
	return err == nil && lengthSize+n <= size
}

// swap moves what is left over to another buffer, the link's own when b is nil,
// and gives back the present one.
func (r *reader) swap(b *buffer) {
	next := r.small
	if b != nil {
		next = b.b
	}
	copy(next, r.buf[:r.have])
	r.link.cfg.Buffers.put(r.borrowed)
	r.buf, r.borrowed = next, b
}

// finish gives back what the reader borrowed, after its last Read.
func (r *reader) finish() {
	r.have = 0
	r.swap(nil)
}
