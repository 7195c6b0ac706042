package link

import (
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
)

// writer is the state of the writer goroutine; nobody else touches it.
type writer struct {
	link     *Link
	records  *layer.Records
	keySince time.Time // when the present key came into use

	small    []byte  // the link's own
	borrowed *buffer // large, nil while small does
	batch    batch
	sent     cell.List // copied, to go back to the pool

	keepalive   keepalive
	lastWrite   time.Time
	lastChecked time.Time // when unanswered DESTROYs were looked for
}

// batch is what goes into one record, DESTROYs first.
type batch struct {
	destroys []destroyCell
	cells    cell.List
	padding  bool // one PADDING cell
	rekey    bool // REKEY at the end
}

// count returns the number of cells.
func (b *batch) count() int {
	n := len(b.destroys) + b.cells.Len()
	if b.padding {
		n++
	}
	if b.rekey {
		n++
	}
	return n
}

func newWriter(l *Link, records *layer.Records) *writer {
	return &writer{
		link: l, records: records, keySince: l.began, lastWrite: l.began, lastChecked: l.began,
		small: make([]byte, smallBuffer),
		batch: batch{destroys: make([]destroyCell, 0, MaxRecordCells)},
	}
}

// run writes what circuits have queued, two full records at a time while there
// is that much, and keeps a client's link from silence. It returns why it cannot go on.
func (w *writer) run() error {
	defer w.keepalive.stop()
	for {
		now := time.Now()
		if err := w.check(now); err != nil {
			return err
		}
		out := w.fill(now)
		if len(out) == 0 {
			silent, err := w.wait()
			if err != nil {
				return err
			}
			if !silent {
				continue
			}
			out = w.fillSilence(time.Now())
		}
		_, err := w.link.conn.Write(out)
		w.link.cfg.Buffers.put(w.borrowed)
		w.borrowed = nil
		if err != nil {
			return &connError{err}
		}
		w.link.counters.bytesWritten.Add(uint64(len(out)))
		w.lastWrite = time.Now()
	}
}

// fill seals what is to be written next, and returns it, valid until the next
// call; nothing when there is nothing, and then the link knows that the writer is about to wait.
func (w *writer) fill(now time.Time) []byte {
	cfg := w.link.cfg
	records := 1
	if cfg.RecordCells == MaxRecordCells {
		records = recordsPerWrite
	}
	var out []byte
	for i := range records {
		limit := cfg.RecordCells
		w.batch.rekey = w.rekeyDue(now)
		if w.batch.rekey {
			limit--
		}
		more := w.link.take(&w.batch, limit, i == 0)
		n := w.batch.count()
		if w.batch.rekey && n == 1 && !more {
			w.batch.rekey, n = false, 0 // not for its own sake
		}
		if n == 0 {
			break
		}
		if i == 0 {
			out = w.buffer(n, more)
		}
		out = w.seal(out, now)
		if !more {
			break
		}
	}
	return out
}

// buffer returns the buffer for a record of n cells, and for the next if there
// is more, with length 0.
func (w *writer) buffer(n int, more bool) []byte {
	if n <= smallCells && (!more || w.link.cfg.RecordCells < MaxRecordCells) {
		return w.small[:0]
	}
	w.borrowed = w.link.cfg.Buffers.get(largeBuffer)
	return w.borrowed.b[:0]
}

// rekeyDue tells whether the next record must replace the key: it is the last
// that the key may serve, or the key is an hour old (doc/spec.md section 3).
func (w *writer) rekeyDue(now time.Time) bool {
	return w.records.Count() >= layer.MaxRecords-1 || now.Sub(w.keySince) >= keyLifetime
}

// seal appends the batch to out as one record, and empties it. The cells' buffers
// go back to the pool at once.
func (w *writer) seal(out []byte, now time.Time) []byte {
	b := &w.batch
	n := b.count()
	start := len(out)
	rec := out[start : start+lengthSize+n*cellSize]
	p := rec[lengthSize:]
	put := func(id uint32, cmd cell.Command, first byte) {
		putCell(p[:cellSize], id, cmd, first)
		p = p[cellSize:]
	}
	for _, d := range b.destroys {
		put(d.id, cell.Destroy, byte(d.reason))
	}
	b.destroys = b.destroys[:0]
	for c := b.cells.Pop(); c != nil; c = b.cells.Pop() {
		p = p[copy(p, c.Bytes()):]
		w.sent.Push(c)
	}
	w.link.cfg.Pool.PutList(&w.sent)
	if b.padding {
		put(0, cell.Padding, 0)
		b.padding = false
		w.link.counters.paddingWritten.Add(1)
	}
	if b.rekey {
		put(0, cell.Rekey, 0)
	}
	rec = w.records.Seal(rec)
	if b.rekey {
		b.rekey = false
		w.records.Rekey()
		w.keySince = now
	}
	w.link.counters.recordsWritten.Add(1)
	w.link.counters.cellsWritten.Add(uint64(n))
	return out[:start+len(rec)]
}

// check looks at what the peer owes us, every now and then.
func (w *writer) check(now time.Time) error {
	if now.Sub(w.lastChecked) < destroyCheck {
		return nil
	}
	w.lastChecked = now
	return w.link.checkDestroys()
}

// take moves at most n cells of what waits into b and tells whether more waits.
// If there is nothing and sleep is set, the writer counts as asleep: the next Send wakes it.
func (l *Link) take(b *batch, n int, sleep bool) (more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	b.destroys = l.takeDestroys(b.destroys, n)
	l.sched.take(n-len(b.destroys), &b.cells, l.start)
	more = len(l.destroys) > 0 || l.sched.active > 0
	l.asleep = sleep && !more && len(b.destroys) == 0 && b.cells.Len() == 0
	return more
}
