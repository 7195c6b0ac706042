package work_test

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"cepa/onion/work"
)

// model is a queue as plainly as possible: a list in the order of arrival.
type model struct {
	size int
	age  time.Duration
	list []waiting
	load work.Load
}

type waiting struct {
	value  int
	effort uint32
	since  time.Time
}

func (m *model) expire(now time.Time) {
	kept := m.list[:0]
	for _, w := range m.list {
		if now.Sub(w.since) < m.age {
			kept = append(kept, w)
		} else {
			m.load.Dropped++
		}
	}
	m.list = kept
}

func (m *model) push(now time.Time, effort uint32, value int) bool {
	m.expire(now)
	m.load.Arrived++
	m.load.Effort += uint64(effort)
	m.list = append(m.list, waiting{value, effort, now})
	if len(m.list) <= m.size {
		return true
	}
	m.load.Dropped++
	lowest := 0
	for i, w := range m.list {
		if w.effort < m.list[lowest].effort {
			lowest = i
		}
	}
	// Of equals the oldest is dropped: the first of the list.
	taken := m.list[lowest].value != value
	m.list = slices.Delete(m.list, lowest, lowest+1)
	return taken
}

func (m *model) pop(now time.Time) (waiting, bool) {
	m.expire(now)
	if len(m.list) == 0 {
		return waiting{}, false
	}
	best := 0
	for i, w := range m.list {
		if w.effort > m.list[best].effort {
			best = i
		}
	}
	w := m.list[best]
	m.list = slices.Delete(m.list, best, best+1)
	m.load.Served++
	return w, true
}

// TestQueueModel: whatever comes in whatever order, the queue does what the model does.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 8).Draw(t, "size")
		const age = 10 * time.Second
		q := work.NewQueue[int](work.QueueConfig{Size: size, Age: age})
		defer q.Close()
		m := model{size: size, age: age}
		now := time.Unix(0, 0)
		next := 0
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				effort := rapid.Uint32Range(0, 5).Draw(t, "effort")
				next++
				if got, want := q.Push(now, effort, next), m.push(now, effort, next); got != want {
					t.Fatalf("push of %d: %v, want %v", effort, got, want)
				}
			},
			"pop": func(t *rapid.T) {
				value, effort, ok := q.TryPop(now)
				want, any := m.pop(now)
				if ok != any || value != want.value || effort != want.effort {
					t.Fatalf("popped %d of effort %d (%v), want %d of %d (%v)", value, effort, ok, want.value, want.effort, any)
				}
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 6000).Draw(t, "ms")) * time.Millisecond)
			},
			"load": func(t *rapid.T) {
				m.expire(now)
				want := m.load
				want.Waiting = len(m.list)
				m.load = work.Load{}
				if got := q.TakeLoad(now); got != want {
					t.Fatalf("load %+v, want %+v", got, want)
				}
			},
			"": func(t *rapid.T) {
				if q.Len() > size {
					t.Fatalf("%d wait, more than %d", q.Len(), size)
				}
			},
		})
	})
}

// TestQueueOrder: highest effort first, the first of equals first.
func TestQueueOrder(t *testing.T) {
	q := work.NewQueue[int](work.QueueConfig{})
	now := time.Unix(0, 0)
	for i, effort := range []uint32{5, 9, 5, 0, 9, 7} {
		q.Push(now.Add(time.Duration(i)), effort, i)
	}
	var got []int
	for {
		v, _, ok := q.TryPop(now)
		if !ok {
			break
		}
		got = append(got, v)
	}
	if want := []int{1, 4, 5, 0, 2, 3}; !slices.Equal(got, want) {
		t.Fatalf("order %v, want %v", got, want)
	}
}

// TestQueuePopWaits: workers sleep until something comes, each thing goes to one of
// them, and what is too old to none.
func TestQueuePopWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := work.NewQueue[int](work.QueueConfig{Age: 3 * time.Second})
		start := time.Now()
		type done struct {
			value int
			after time.Duration
		}
		var mu sync.Mutex
		var all []done
		var workers sync.WaitGroup
		for range 3 {
			workers.Go(func() {
				for {
					v, _, err := q.Pop(t.Context())
					if errors.Is(err, work.ErrQueueClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					all = append(all, done{v, time.Since(start)})
					mu.Unlock()
					time.Sleep(2 * time.Second)
				}
			})
		}
		time.Sleep(time.Second)
		for i := range 8 {
			q.Push(time.Now(), 1, i)
		}
		time.Sleep(time.Minute)
		q.Close()
		workers.Wait()
		slices.SortFunc(all, func(a, b done) int { return cmp.Compare(a.value, b.value) })
		// Three at once, three after 2 s; after 4 s the last two are too old.
		at := []time.Duration{1, 1, 1, 3, 3, 3}
		if len(all) != len(at) {
			t.Fatalf("%d were worked on, want %d: %v", len(all), len(at), all)
		}
		for i, d := range all {
			if d.value != i || d.after != at[i]*time.Second {
				t.Errorf("%d after %v, want %d after %v", d.value, d.after, i, at[i]*time.Second)
			}
		}
		if load := q.TakeLoad(time.Now()); load != (work.Load{Arrived: 8, Effort: 8, Served: 6, Dropped: 2}) {
			t.Errorf("load %+v", load)
		}
	})
}

func TestQueuePopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := work.NewQueue[int](work.QueueConfig{})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		if _, _, err := q.Pop(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		q.Push(time.Now(), 1, 1)
		if _, _, err := q.Pop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("something waits, but the context has ended: %v", err)
		}
		q.Close()
		q.Close()
		if _, _, err := q.Pop(t.Context()); !errors.Is(err, work.ErrQueueClosed) {
			t.Errorf("closed: %v", err)
		}
		if q.Push(time.Now(), 1, 1) || q.Len() != 0 {
			t.Error("a closed queue takes something")
		}
	})
}

// TestQueueConcurrent: nothing is lost and nothing comes twice with many at it.
func TestQueueConcurrent(t *testing.T) {
	const pushers, each = 4, 500
	q := work.NewQueue[int](work.QueueConfig{Size: pushers * each, Age: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var pushing, popping sync.WaitGroup
	for p := range pushers {
		pushing.Go(func() {
			for i := range each {
				q.Push(time.Now(), uint32(i%7), p*each+i)
			}
		})
	}
	var mu sync.Mutex
	seen := map[int]int{}
	for range 3 {
		popping.Go(func() {
			for {
				v, _, err := q.Pop(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				seen[v]++
				all := len(seen) == pushers*each
				mu.Unlock()
				if all {
					q.Close()
				}
			}
		})
	}
	pushing.Wait()
	popping.Wait()
	if len(seen) != pushers*each {
		t.Fatalf("%d of %d came out", len(seen), pushers*each)
	}
	for v, n := range seen {
		if n != 1 {
			t.Errorf("%d came out %d times", v, n)
		}
	}
}
