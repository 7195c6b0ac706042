package link

import (
	"math/rand/v2"
	"testing"

	"cepa/cell"
	"cepa/pace"
)

// ids gives circuits their numbers in the order in which they are first served.
func (s *scheduler) served(t *testing.T, pool *cell.Pool, n int) (by map[uint32]int, order []uint32) {
	t.Helper()
	var out cell.List
	s.take(n, &out, func(*Circuit) { t.Error("a circuit without ID") })
	by = map[uint32]int{}
	for c := out.Pop(); c != nil; c = out.Pop() {
		by[c.CircuitID()]++
		if len(order) == 0 || order[len(order)-1] != c.CircuitID() {
			order = append(order, c.CircuitID())
		}
		pool.Put(c)
	}
	return by, order
}

func numberedCircuit(id uint32, share *pace.Share) *Circuit {
	c := &Circuit{share: share}
	c.id.Store(id)
	return c
}

// TestSchedulerQuietFirst: among 100 circuits with much to send, a cell of one
// that was quiet is the very next, each time it comes.
func TestSchedulerQuietFirst(t *testing.T) {
	var s scheduler
	pool := new(cell.Pool)
	for id := range uint32(100) {
		s.add(numberedCircuit(id+1, nil), cells(pool, cell.Relay, 0, 1000))
	}
	quiet := numberedCircuit(101, nil)
	for range 50 {
		s.served(t, pool, 46)
		s.served(t, pool, 46)
		s.served(t, pool, 46)
		s.served(t, pool, 46)
		s.served(t, pool, 46)
		s.add(quiet, cells(pool, cell.Relay, 0, 1))
		if _, order := s.served(t, pool, 1); order[0] != 101 {
			t.Fatalf("circuit %d goes before the quiet one", order[0])
		}
	}
}

// TestSchedulerShare: 200 circuits of one share get together what each of five
// others gets.
func TestSchedulerShare(t *testing.T) {
	var s scheduler
	pool := new(cell.Pool)
	greedy := new(pace.Share)
	var all []*Circuit
	add := func(id uint32, share *pace.Share) {
		c := numberedCircuit(id, share)
		all = append(all, c)
		s.add(c, cells(pool, cell.Relay, 0, 2000))
	}
	for id := range uint32(200) {
		add(100+id, greedy)
	}
	for id := range uint32(5) {
		add(id+1, new(pace.Share))
	}
	got := map[uint32]int{} // the greedy ones as 0
	for range 60 * 46 {
		by, _ := s.served(t, pool, 1)
		for id, n := range by {
			if id >= 100 {
				id = 0
			}
			got[id] += n
		}
	}
	for id, n := range got {
		if n < 400 || n > 552 { // 460, and 1.2 times that
			t.Errorf("circuit %d (0: the 200 together) had %d of 2,760 cells, want about 460", id, n)
		}
	}
	if w := greedy.Weight(); w != 200 {
		t.Errorf("200 circuits weigh %d", w)
	}
	var rest cell.List
	for _, c := range all {
		s.remove(c, &rest)
	}
	pool.PutList(&rest)
	if w := greedy.Weight(); w != 1 || s.active() != 0 || s.queued != 0 || pool.Outstanding() != 0 {
		t.Errorf("at the end: weight %d, %d circuits, %d cells, %d out", w, s.active(), s.queued, pool.Outstanding())
	}
}

// TestSchedulerHeap: through any sequence of additions, turns and removals the
// circuit with the lowest tag is served, and every circuit with cells is in its place.
func TestSchedulerHeap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var s scheduler
	pool := new(cell.Pool)
	all := make([]*Circuit, 60)
	for i := range all {
		all[i] = numberedCircuit(uint32(i+1), nil)
	}
	for range 20_000 {
		c := all[random.IntN(len(all))]
		switch random.IntN(4) {
		case 0, 1:
			s.add(c, cells(pool, cell.Relay, 0, 1+random.IntN(5)))
		case 2:
			lowest := uint64(1 << 63)
			for _, x := range all {
				if x.queue.Len() > 0 {
					lowest = min(lowest, x.tag)
				}
			}
			if s.active() > 0 {
				if s.take(1, &cell.List{}, nil); s.now != lowest {
					t.Fatalf("served tag %d, the lowest was %d", s.now, lowest)
				}
			}
		default:
			var rest cell.List
			s.remove(c, &rest)
			pool.PutList(&rest)
		}
		active, queued := 0, 0
		for _, x := range all {
			if x.queue.Len() > 0 {
				active++
				queued += x.queue.Len()
				if s.heap[x.place] != x {
					t.Fatal("a circuit is not where it says")
				}
			}
		}
		if active != s.active() || queued != s.queued {
			t.Fatalf("%d circuits with %d cells; want %d and %d", s.active(), s.queued, active, queued)
		}
	}
}

// TestSchedulerHead: a link that had nothing to send does not make up for it, and
// one that keeps up is left alone.
func TestSchedulerHead(t *testing.T) {
	var s scheduler
	pool := new(cell.Pool)
	c := numberedCircuit(1, nil)
	s.add(c, cells(pool, cell.Relay, 0, 10))
	if got := s.head(1_000_000); got != 1_000_000-pace.Slack {
		t.Errorf("a late link comes at %d, want %d", got, 1_000_000-pace.Slack)
	}
	s.served(t, pool, 1)
	if got, want := s.head(1_000_000), uint64(1_000_000-pace.Slack+cellSize); got != want {
		t.Errorf("after a cell it comes at %d, want %d", got, want)
	}
	if got, want := s.head(10), uint64(1_000_000-pace.Slack+cellSize); got != want {
		t.Errorf("it comes at %d, want %d", got, want)
	}
}
