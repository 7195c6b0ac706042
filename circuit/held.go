package circuit

import "cepa/cell"

// holder is what an Outlet of a link can tell: how many cells it holds queued, and
// when the oldest of them was taken from the pool.
type holder interface {
	Held() (oldest uint64, cells int)
}

// Held returns how many cells the circuit has waiting at this relay, in the queues of
// both links and unread in its streams, and when the oldest of them was taken from the
// pool (cell.Cell.Taken).
func (t *Transit) Held() (oldest uint64, cells int) {
	add := func(first uint64, n int) {
		if n > 0 && (cells == 0 || first < oldest) {
			oldest = first
		}
		cells += n
	}
	t.mu.Lock()
	outs := [2]Outlet{t.cfg.Prev, t.nextOut}
	t.mu.Unlock()
	for _, out := range outs {
		if h, ok := out.(holder); ok {
			add(h.Held())
		}
	}
	add(t.mux.Held())
	return oldest, cells
}

// GiveUp destroys the circuit on both sides and gives all back that it holds at once,
// what its streams have received included.
func (t *Transit) GiveUp(reason cell.Reason) {
	t.end(reason, reason, ErrClosed, t.mux.CloseNow)
}
