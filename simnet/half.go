package simnet

import (
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"
)

// half is one direction of a connection: a stream of bytes from the end src to the end dst. All bytes that are not
// read yet are in one ring; being on the way is only a position in the stream:
//
//	read <= arrived = passed[stageDown] <= landed <= passed[stageLink] <= passed[stageUp] <= written
type half struct {
	n        *Network
	src, dst *Conn

	// The way, fixed when the half is made.
	wire  *wire
	route [stages]*station

	// Transit state, guarded by n.mu.
	rng       *rand.Rand
	passed    [stages]uint64
	waits     [stages]bool // is in the station's queue, or being served
	landed    uint64       // bytes that came to the far end of the link
	last      int64        // latest arrival at the far end of the link
	flying    int          // events on the link, including those held
	held      []event      // arrived while the link was cut
	finSent   bool
	finLanded bool
	dead      bool // both ends are over: nothing moves any more

	mu      sync.Mutex // guards what follows; taken after n.mu
	canRead sync.Cond
	canSend sync.Cond
	ring    ring
	read    uint64
	arrived uint64
	written uint64
	direct  bool  // a write arrives at once
	writing bool  // one Write at a time, so that they do not mix
	purged  bool  // src was reset: nothing leaves any more (changed under both locks)
	fin     bool  // src writes no more
	eof     bool  // dst has got it all
	discard bool  // dst reads no more
	readErr error // what dst's Read returns
	sendErr error // what src's Write returns

	readLimit, sendLimit deadline
}

func (h *half) init() {
	h.canRead.L = &h.mu
	h.canSend.L = &h.mu
}

// leaveDirect brings the positions on the way up to date. The caller holds n.mu and h.mu.
func (h *half) leaveDirect() {
	h.direct = false
	h.landed = h.written
	for k := range h.passed {
		h.passed[k] = h.written
	}
}

func (h *half) wakeReader() { h.canRead.Broadcast() }

// readBytes is dst's Read.
func (h *half) readBytes(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch have := h.arrived - h.read; {
		case h.readErr != nil:
			return 0, h.readErr
		case h.readLimit.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case have > 0:
			m := min(have, uint64(len(p)))
			h.ring.get(p[:m], h.read)
			h.read += m
			// Waking the writer for every few bytes would cost a switch of goroutines each.
			if free := h.n.cfg.Buffer - int(h.written-h.read); free >= h.n.cfg.Buffer/4 {
				h.canSend.Broadcast()
			}
			return int(m), nil
		case h.eof:
			return 0, io.EOF
		}
		h.canRead.Wait()
	}
}

// writeBytes is src's Write, or, when wait is not set, its TryWrite.
func (h *half) writeBytes(p []byte, wait bool) (total int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.writing && h.sendErr == nil && !h.sendLimit.passed {
		h.canSend.Wait()
	}
	if h.sendErr == nil && !h.sendLimit.passed && !h.fin {
		h.writing = true
		defer func() {
			h.writing = false
			h.canSend.Broadcast()
		}()
	}
	for {
		room := h.n.cfg.Buffer - int(h.written-h.read)
		switch {
		case total > 0 && len(p) == 0:
			return total, nil
		case h.sendErr != nil:
			return total, h.sendErr
		case h.sendLimit.passed:
			return total, os.ErrDeadlineExceeded
		case h.fin:
			return total, os.NewSyscallError("write", syscall.EPIPE)
		case len(p) == 0:
			return 0, nil
		case room > 0:
			m := min(room, len(p))
			h.put(p[:m])
			total += m
			p = p[m:]
			continue
		case !wait:
			return total, nil
		}
		h.canSend.Wait()
	}
}

// put accepts p, which fits, and sets it on its way. The caller holds h.mu, which is released for a moment unless the
// bytes go straight into the receiver's buffer.
func (h *half) put(p []byte) {
	h.ring.put(p, h.read, h.written, h.n.cfg.Buffer)
	h.written += uint64(len(p))
	if h.direct {
		if h.n.tapped() {
			t := h.n.now()
			h.n.showBytes(h, h.arrived, h.written, t, t)
		}
		h.arrived = h.written
		if !h.discard {
			h.wakeReader()
			return
		}
		h.read = h.arrived
	}
	refuse := h.direct
	h.mu.Unlock()
	h.n.mu.Lock()
	if refuse {
		h.n.reset(h.dst, h.n.now())
	} else {
		h.n.enter(h, stageUp, h.n.now())
	}
	h.n.mu.Unlock()
	h.mu.Lock()
}

// ring holds the unread bytes of a stream; the byte at position i is buf[i % len(buf)].
type ring struct{ buf []byte }

// leastRing is the first size of a ring in bytes: a few cells.
const leastRing = 4 << 10

// put adds p at position written; the bytes from read on are kept. The ring grows to limit at most.
func (r *ring) put(p []byte, read, written uint64, limit int) {
	if need := int(written-read) + len(p); need > len(r.buf) {
		bigger := make([]byte, min(limit, max(need, 2*len(r.buf), leastRing)))
		for i := read; i < written; {
			a := r.buf[i%uint64(len(r.buf)):]
			a = a[:min(uint64(len(a)), written-i)]
			i += uint64(copy(bigger[i%uint64(len(bigger)):], a))
		}
		r.buf = bigger
	}
	for len(p) > 0 {
		m := copy(r.buf[written%uint64(len(r.buf)):], p)
		p, written = p[m:], written+uint64(m)
	}
}

// get copies the bytes at position at into p; they must be there.
func (r *ring) get(p []byte, at uint64) {
	for len(p) > 0 {
		m := copy(p, r.buf[at%uint64(len(r.buf)):])
		p, at = p[m:], at+uint64(m)
	}
}

// deadline is a limit on waiting. Guarded by its half's mu.
type deadline struct {
	timer  *time.Timer
	round  uint64 // tells a timer that was replaced while it fired
	passed bool
}

// set moves the limit to t, or away if t is zero. The caller holds h.mu.
func (d *deadline) set(h *half, cond *sync.Cond, t time.Time) {
	d.stop(h)
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		cond.Broadcast()
		return
	}
	round := d.round
	h.n.wg.Add(1)
	d.timer = time.AfterFunc(wait, func() {
		defer h.n.wg.Done()
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.round == round {
			d.passed = true
			cond.Broadcast()
		}
	})
}

// stop ends the timer. The caller holds h.mu.
func (d *deadline) stop(h *half) {
	d.round++
	if d.timer != nil && d.timer.Stop() {
		h.n.wg.Done()
	}
	d.timer = nil
}
