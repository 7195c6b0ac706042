package simnet

import (
	"math/bits"
	"slices"
	"syscall"
	"time"
)

// The stations of a half, in the order in which bytes pass them. The latency lies between the last two.
const (
	stageUp   = iota // the sending host's uplink
	stageLink        // the link between the hosts
	stageDown        // the receiving host's downlink
	stages
)

// station is a serialising queue. Its states: idle (not busy, nobody waits), busy (current is being served), blocked
// (not busy, somebody may wait). Guarded by Network.mu.
type station struct {
	index   int // stageUp, stageLink or stageDown
	rate    int64
	blocked bool
	busy    bool
	waiting []*half // round robin
	current *half
	size    int // bytes of current that are being served

	// The present busy period: done bytes since base at rate. Times are computed from its beginning, so that
	// roundings do not add up. done is 0 between periods.
	base int64
	done uint64
}

// wire is a link in one direction.
type wire struct {
	station
	from, to *Host
	params   LinkParams
	cut      bool // by Partition
}

func (s *station) setRate(rate int64) {
	if s.rate != rate {
		s.rate, s.done = rate, 0
	}
}

// before is how many bytes of h wait for the station. The caller holds n.mu.
func (s *station) before(h *half) int {
	switch {
	case h.dead || h.purged:
		return 0
	case s.index == stageUp:
		h.mu.Lock()
		defer h.mu.Unlock()
		return int(h.written - h.passed[stageUp])
	case s.index == stageLink:
		return int(h.passed[stageUp] - h.passed[stageLink])
	default:
		return int(h.landed - h.passed[stageDown])
	}
}

// enter makes h wait for its station k if it has bytes there. The caller holds n.mu.
func (n *Network) enter(h *half, k int, t int64) {
	s := h.route[k]
	if h.waits[k] || s.before(h) == 0 {
		return
	}
	h.waits[k] = true
	s.waiting = append(s.waiting, h)
	n.run(s, t)
}

// run serves whoever waits, if the station can. The caller holds n.mu.
func (n *Network) run(s *station, t int64) {
	for !s.busy && !s.blocked && len(s.waiting) > 0 {
		h := s.waiting[0]
		s.waiting = slices.Delete(s.waiting, 0, 1)
		size := s.before(h)
		if s.rate == 0 || size == 0 {
			h.waits[s.index] = false
			if size > 0 {
				n.pass(h, s.index, size, t)
			}
			continue
		}
		s.busy, s.current, s.size = true, h, min(size, n.cfg.Segment)
		if s.done == 0 {
			s.base = t
		}
		s.done += uint64(s.size)
		hi, lo := bits.Mul64(s.done, uint64(time.Second))
		took, _ := bits.Div64(hi, lo, uint64(s.rate))
		n.schedule(event{at: s.base + int64(took), kind: evServed, st: s})
		return
	}
	if !s.busy {
		s.done = 0 // the busy period is over
	}
}

// served ends the service of a segment. The caller holds n.mu.
func (n *Network) served(s *station, t int64) {
	h, size := s.current, s.size
	s.busy, s.current = false, nil
	n.pass(h, s.index, size, t)
	if s.before(h) > 0 {
		s.waiting = append(s.waiting, h)
	} else {
		h.waits[s.index] = false
	}
	n.run(s, t)
}

// pass moves size bytes of h out of its station k at t. The caller holds n.mu.
func (n *Network) pass(h *half, k, size int, t int64) {
	if h.dead {
		return
	}
	h.passed[k] += uint64(size)
	switch k {
	case stageUp:
		n.enter(h, stageLink, t)
	case stageLink:
		step := size
		if p := &h.wire.params; p.Loss > 0 || p.Jitter > 0 {
			step = n.cfg.Segment
		}
		for ; size > 0; size -= step {
			step = min(step, size)
			n.send(h, event{kind: evData, size: step}, t)
		}
		n.finish(h, t)
	case stageDown:
		n.deliver(h, size, t)
	}
}

// finish sends the end of h's stream once all its bytes are on the link. The caller holds n.mu.
func (n *Network) finish(h *half, t int64) {
	h.mu.Lock()
	now := h.fin && !h.finSent && !h.purged && h.written == h.passed[stageLink]
	h.mu.Unlock()
	if now {
		h.finSent = true
		n.send(h, event{kind: evFin}, t)
	}
}

// arrival draws when what is put on h's link at t arrives. It never overtakes what was sent before.
func (h *half) arrival(t int64) int64 {
	p := &h.wire.params
	t += int64(p.Latency)
	if p.Jitter > 0 {
		t += h.rng.Int64N(int64(p.Jitter) + 1)
	}
	if p.Loss > 0 && h.rng.Float64() < p.Loss {
		t += p.rto()
	}
	h.last = max(h.last, t)
	return h.last
}

// send puts ev on h's link at t. The caller holds n.mu.
func (n *Network) send(h *half, ev event, t int64) {
	ev.half, ev.sent, ev.at = h, t, h.arrival(t)
	h.flying++
	if ev.at == t && h.flying == 1 {
		n.arrive(ev)
		return
	}
	n.schedule(ev)
}

// arrive handles what comes to the end of a link. The caller holds n.mu.
func (n *Network) arrive(ev event) {
	h := ev.half
	if h.wire.blocked {
		h.held = append(h.held, ev)
		return
	}
	h.flying--
	if h.dead {
		return
	}
	switch ev.kind {
	case evData:
		if n.tapped() {
			h.mu.Lock()
			n.showBytes(h, h.landed, h.landed+uint64(ev.size), ev.sent, ev.at)
			h.mu.Unlock()
		}
		h.landed += uint64(ev.size)
		n.enter(h, stageDown, ev.at)
	case evSyn:
		n.show(h, TapOpen, ev.sent, ev.at, nil)
		n.answer(h, ev.at)
	case evSynAck:
		if !h.dst.over { // it may have stopped waiting
			h.dst.opened <- nil
			n.send(h.dst.out, event{kind: evAck}, ev.at)
		}
	case evAck:
		if l := h.dst.listener; !l.put(h.dst) {
			n.reset(h.dst, ev.at)
		}
	case evRefused:
		n.fail(h.dst, syscall.ECONNREFUSED)
		n.fail(h.src, syscall.ECONNREFUSED)
	case evFin:
		n.show(h, TapEnd, ev.sent, ev.at, nil)
		h.finLanded = true
		n.deliver(h, 0, ev.at)
	case evReset:
		n.show(h, TapReset, ev.sent, ev.at, nil)
		n.fail(h.dst, syscall.ECONNRESET)
	}
}

// deliver hands size bytes, and perhaps the end, to the receiver. The caller holds n.mu.
func (n *Network) deliver(h *half, size int, t int64) {
	h.mu.Lock()
	h.arrived += uint64(size)
	h.eof = h.finLanded && h.arrived == h.written
	refuse := h.discard && size > 0
	if h.discard {
		h.read = h.arrived
	}
	h.wakeReader()
	h.mu.Unlock()
	if refuse {
		n.reset(h.dst, t)
	}
	n.setDirect(h)
}

// setDirect decides whether writes to h may go straight into the receiver's buffer: when nothing on the way takes
// time and nothing is on the way. The caller holds n.mu.
func (n *Network) setDirect(h *half) {
	ideal := !h.wire.blocked && h.wire.params == (LinkParams{})
	for _, s := range h.route {
		ideal = ideal && s.rate == 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case ideal && !h.direct:
		h.direct = h.flying == 0 && !h.fin && h.arrived == h.written
	case !ideal && h.direct:
		h.leaveDirect()
	}
}
