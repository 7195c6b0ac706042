package relay

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"cepa/cell"
	"cepa/link"
	"cepa/onion"
)

// What a relay holds at rest, in bytes, as it is counted against Config.MaxMemory.
// The first two are measured: TestIdleMemory.
const (
	// circuitMemory is for a circuit with both sides.
	circuitMemory = 7 << 10
	// linkMemory is for a link without the buffers that it borrows.
	linkMemory = 20 << 10
	// streamMemory is for a stream to the internet: three goroutines, and what its
	// copying buffers.
	streamMemory = 32 << 10
)

// memoryTarget is down to which share of the budget circuits are destroyed, in
// percent: so far below it that they are not destroyed one at a time.
const memoryTarget = 90

// memoryPause is between two attempts of which the first found nothing to give back.
const memoryPause = 20 * time.Millisecond

// stuckLink is how long a link has written nothing that is ended to make room.
const stuckLink = 2 * time.Second

// errStuckLink is why.
var errStuckLink = errors.New("the peer does not take what is written, and memory is full")

// memory keeps a relay within Config.MaxMemory. Nothing is refused to a circuit: when
// more is held, those whose data have waited longest are destroyed. What waits longest
// is what its reader does not read.
type memory struct {
	relay  *Relay
	pool   *cell.Pool
	budget int64
	over   <-chan struct{}

	stuck map[*link.Link]progress // links that had something to write when there was too little room

	mu       sync.Mutex
	circuits map[*circuitHandler]struct{}
}

// progress is how much a link has written, and since when it has not written more.
type progress struct {
	written uint64
	since   time.Time
}

// newMemory has everything counted that Config.MaxMemory speaks of. It returns nil
// when there is no bound.
func newMemory(r *Relay) *memory {
	if r.cfg.MaxMemory == 0 {
		return nil
	}
	pool := r.cfg.Pool
	r.cfg.Buffers.Charge = pool.Charge
	r.circuits.pool, r.circuits.each = pool, circuitMemory
	r.linkCount.pool, r.linkCount.each = pool, linkMemory
	r.streams.pool, r.streams.each = pool, streamMemory
	r.descriptors.uploads.pool, r.descriptors.uploads.each = pool, onion.MaxDescriptor
	return &memory{
		relay: r, pool: pool, budget: r.cfg.MaxMemory, over: pool.SetBudget(r.cfg.MaxMemory),
		circuits: map[*circuitHandler]struct{}{},
	}
}

// status tells how full it is.
func (m *memory) status() Memory {
	if m == nil {
		return Memory{}
	}
	return Memory{Used: m.pool.Used(), Peak: m.pool.Peak(), Budget: m.budget}
}

// add notes a circuit that may hold data; nothing when m is nil.
func (m *memory) add(h *circuitHandler) {
	if m == nil {
		return
	}
	m.mu.Lock()
	m.circuits[h] = struct{}{}
	m.mu.Unlock()
}

func (m *memory) remove(h *circuitHandler) {
	if m == nil {
		return
	}
	m.mu.Lock()
	delete(m.circuits, h)
	m.mu.Unlock()
}

// run makes room whenever more than the budget is in use, until ctx ends.
func (m *memory) run(ctx context.Context) {
	var warned sparse
	for {
		select {
		case <-m.over:
		case <-ctx.Done():
			return
		}
		circuits := m.giveUpCircuits()
		links := m.giveUpLinks()
		if circuits+links == 0 {
			if m.pool.Used() > m.budget {
				wait(ctx, memoryPause)
			}
			continue
		}
		if n := warned.due(time.Now()); n > 0 {
			m.relay.cfg.Log.Warn("memory was full, and the circuits with the oldest data were destroyed; raise the limit if this goes on",
				"circuits", circuits, "links", links, "count", n)
		}
	}
}

// enough tells whether no more needs to be given up.
func (m *memory) enough() bool { return m.pool.Used() <= m.budget/100*memoryTarget }

// giveUpCircuits destroys circuits with data, those with the oldest first, until there
// is room, and returns how many.
func (m *memory) giveUpCircuits() (n int) {
	type holding struct {
		circuit *circuitHandler
		oldest  uint64
	}
	m.mu.Lock()
	circuits := make([]*circuitHandler, 0, len(m.circuits))
	for h := range m.circuits {
		circuits = append(circuits, h)
	}
	m.mu.Unlock()
	var all []holding
	for _, h := range circuits {
		if oldest, cells := h.transit.Held(); cells > 0 {
			all = append(all, holding{h, oldest})
		}
	}
	slices.SortFunc(all, func(a, b holding) int { return cmp.Compare(a.oldest, b.oldest) })
	for _, x := range all {
		if m.enough() {
			break
		}
		x.circuit.transit.GiveUp(cell.ReasonResource)
		n++
	}
	return n
}

// giveUpLinks ends links of clients when there is too little room although no circuit
// holds data any more: what is left stands in write buffers, and their peers do not
// take it. The one that has taken nothing for longest goes first. It returns how many.
func (m *memory) giveUpLinks() (n int) {
	if m.pool.Used() <= m.budget {
		clear(m.stuck)
		return 0
	}
	r, now := m.relay, time.Now()
	r.mu.Lock()
	links := slices.Collect(maps.Keys(r.links))
	r.mu.Unlock()
	stuck := map[*link.Link]progress{}
	var old []*link.Link
	for _, l := range links {
		if !l.Writing() || r.isRelay(l) {
			continue
		}
		p := progress{l.Stats().BytesWritten, now}
		if before, ok := m.stuck[l]; ok && before.written == p.written {
			p = before
		}
		stuck[l] = p
		if now.Sub(p.since) >= stuckLink {
			old = append(old, l)
		}
	}
	m.stuck = stuck
	slices.SortFunc(old, func(a, b *link.Link) int { return stuck[a].since.Compare(stuck[b].since) })
	room := m.pool.Used() - m.budget/100*memoryTarget
	for _, l := range old {
		if room <= 0 {
			break
		}
		l.Abort(errStuckLink)
		room -= linkMemory + link.BufferMemory // as soon as its goroutines end
		n++
	}
	return n
}
