package link

import (
	"sync/atomic"
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/pace"
)

// writer is the sending side of a link. One goroutine at a time holds it: its
// own, in run, or one that called Circuit.Kick while nobody did. Link.free says
// that nobody does; who sets that to false holds it, until it sets it again or
// hands the writer to its own goroutine with the token of Link.wake.
type writer struct {
	link     *Link
	records  *layer.Records
	keySince time.Time // when the present key came into use

	small    []byte  // the link's own
	borrowed *buffer // large, nil while small does
	batch    batch
	sent     cell.List // copied, to go back to the pool

	claim *pace.Claimant // nil without a pacer

	try  tryWriter // nil where the connection has none
	rest []byte    // of small or borrowed: what the connection did not take at once

	keepalive   keepalive    // its goroutine's alone
	lastWrite   atomic.Int64 // when, in nanoseconds since the link began
	lastChecked time.Time    // when unanswered DESTROYs were looked for
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
	try, _ := l.conn.(tryWriter)
	w := &writer{
		link: l, records: records, keySince: l.began, lastChecked: l.began,
		small: make([]byte, smallBuffer), try: try,
		batch: batch{destroys: make([]destroyCell, 0, MaxRecordCells)},
	}
	if l.cfg.Pacer != nil {
		w.claim = l.cfg.Pacer.Claimant(l.head)
	}
	return w
}

// run writes what circuits have queued, two full records at a time while there
// is that much, and keeps a client's link from silence. It returns why it cannot
// go on, and then holds the writer for good.
func (w *writer) run() error {
	defer func() {
		w.keepalive.stop()
		w.wrote(0, nil)
	}()
	for {
		now := time.Now()
		if err := w.check(now); err != nil {
			return err
		}
		out, more := w.rest, false
		if len(out) == 0 {
			allowed, err := w.allow(true)
			if err != nil {
				return err
			}
			out, more = w.fill(now, true, allowed)
			w.refund(allowed - len(out))
		}
		if len(out) == 0 {
			if more {
				if w.link.Err() != nil {
					return ErrClosed
				}
				continue
			}
			silent, err := w.wait()
			if err != nil {
				return err
			}
			if !silent {
				continue
			}
			if out, err = w.breakSilence(); err != nil {
				return err
			}
		}
		n, err := w.link.conn.Write(out)
		w.wrote(n, nil)
		if err != nil {
			return &connError{err}
		}
	}
}

// inlineWrites is how many writes a goroutine does for others before it leaves
// the rest to the writer's own: it has cells of its own to work on.
const inlineWrites = 2

// runInline does what run does, on the goroutine of whoever just took hold of
// the writer, for as long as the connection takes everything at once and the rate
// allows it. False: the caller still holds the writer, and more is to be written.
func (w *writer) runInline() bool {
	for range inlineWrites {
		now := time.Now()
		if err := w.check(now); err != nil {
			w.link.fail(err)
			return false
		}
		allowed, _ := w.allow(false)
		out, more := w.fill(now, true, allowed)
		w.refund(allowed - len(out))
		if len(out) == 0 {
			return !more
		}
		n, err := w.try.TryWrite(out)
		w.wrote(n, out[n:])
		if err != nil {
			w.link.fail(&connError{err})
			return false
		}
		if len(w.rest) > 0 {
			return false
		}
	}
	return false
}

// unlimited is what may be written without a pacer.
const unlimited = 1 << 30

// allow returns how many bytes may be written now, of those that wait to be, after
// waiting for them if so asked.
func (w *writer) allow(wait bool) (int, error) {
	if w.claim == nil {
		return unlimited, nil
	}
	want := w.link.wanted()
	if want == 0 {
		return 0, nil
	}
	if n := w.claim.Try(recordSize(1), want); n > 0 || !wait {
		return n, nil
	}
	return w.await(recordSize(1), want)
}

// await waits for the rate.
func (w *writer) await(least, want int) (int, error) {
	n, err := w.claim.Wait(w.link.dying, least, want)
	if err != nil {
		return 0, ErrClosed
	}
	return n, nil
}

// refund gives back what was allowed and not written.
func (w *writer) refund(n int) {
	if w.claim != nil {
		w.claim.Return(n)
	}
}

// wrote notes that n bytes went out and that rest did not, and gives back the
// buffer when there is none.
func (w *writer) wrote(n int, rest []byte) {
	w.rest = rest
	if len(rest) == 0 {
		w.link.cfg.Buffers.put(w.borrowed)
		w.borrowed = nil
	}
	w.link.counters.bytesWritten.Add(uint64(n))
	if n > 0 {
		w.lastWrite.Store(int64(time.Since(w.link.began)))
	}
}

// fill seals what is to be written next, at most so many bytes, and returns it,
// valid until the next call, and whether more waits. If there is nothing and leave is
// set, nobody holds the writer from then on and it is no longer the caller's.
func (w *writer) fill(now time.Time, leave bool, allowed int) (out []byte, more bool) {
	cfg := w.link.cfg
	records := 1
	if cfg.RecordCells == MaxRecordCells {
		records = recordsPerWrite
	}
	for i := range records {
		limit := max(0, min(cfg.RecordCells, (allowed-len(out)-recordOverhead)/cellSize))
		rekey := w.rekeyDue(now)
		if rekey && limit > 0 {
			limit--
		}
		var n int
		n, more = w.link.take(&w.batch, limit, leave && i == 0)
		if n == 0 && !(rekey && more && allowed-len(out) >= recordSize(1)) {
			break // nor is a key replaced for its own sake
		}
		w.batch.rekey = rekey
		if i == 0 {
			out = w.buffer(w.batch.count(), more)
		}
		out = w.seal(out, now)
		if !more {
			break
		}
	}
	return out, more
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

// take moves at most n cells of what waits into b and returns how many, and
// whether more waits. If nothing does and leave is set, nobody holds the writer, and
// b no longer the caller's.
func (l *Link) take(b *batch, n int, leave bool) (taken int, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		b.destroys = l.takeDestroys(b.destroys, n)
		l.sched.take(n-len(b.destroys), &b.cells, l.start)
		taken = len(b.destroys) + b.cells.Len()
		more = len(l.destroys) > 0 || l.sched.active() > 0
	}
	if l.closed && leave {
		return 0, true // the caller holds the writer still, and must end it or hand it on
	}
	l.free = leave && taken == 0 && !more
	return taken, more
}
