package work

import (
	"container/heap"
	"context"
	"errors"
	"sync"
	"time"
)

// ErrQueueClosed says that the queue was closed.
var ErrQueueClosed = errors.New("work: queue closed")

// Bounds of a Queue whose QueueConfig does not say.
const (
	// QueueSize is how many introductions wait at most: some 1.3 KB each.
	QueueSize = 4096
	// QueueAge is how long an introduction may wait: the client has given up by then.
	QueueAge = 15 * time.Second
)

// QueueConfig says how much a Queue holds. The zero value works.
type QueueConfig struct {
	Size int           // entries; 0: QueueSize
	Age  time.Duration // after which an entry is dropped; 0: QueueAge
}

// Queue holds what waits to be worked on, highest effort first, and the first come first
// among equals. It is bounded: when it is full, of the lowest effort the oldest is
// dropped, which may be the new one; and what has waited too long is dropped. It is safe for
// concurrent use. NewQueue makes one.
type Queue[T any] struct {
	size int
	age  time.Duration

	mu     sync.Mutex
	best   entryHeap[T] // next one first
	worst  entryHeap[T] // first one to be dropped first
	oldest entryHeap[T]
	seq    uint64
	load   Load
	closed bool
	ready  chan struct{} // depth 1: there may be something to pop
	done   chan struct{} // closed by Close
}

// entry is one that waits, and where it is in the three heaps.
type entry[T any] struct {
	value  T
	effort uint32
	seq    uint64
	since  time.Time
	at     [3]int
}

// NewQueue returns an empty queue.
func NewQueue[T any](config QueueConfig) *Queue[T] {
	q := &Queue[T]{size: config.Size, age: config.Age, ready: make(chan struct{}, 1), done: make(chan struct{})}
	if q.size <= 0 {
		q.size = QueueSize
	}
	if q.age <= 0 {
		q.age = QueueAge
	}
	q.best = entryHeap[T]{which: 0, less: func(a, b *entry[T]) bool {
		return a.effort > b.effort || a.effort == b.effort && a.seq < b.seq
	}}
	q.worst = entryHeap[T]{which: 1, less: func(a, b *entry[T]) bool {
		return a.effort < b.effort || a.effort == b.effort && a.seq < b.seq
	}}
	q.oldest = entryHeap[T]{which: 2, less: func(a, b *entry[T]) bool {
		return a.since.Before(b.since) || a.since.Equal(b.since) && a.seq < b.seq
	}}
	return q
}

// Push adds an entry that came now. It never waits. It returns false if the entry was not
// taken: the queue is full of higher efforts, or closed.
func (q *Queue[T]) Push(now time.Time, effort uint32, value T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.load.Arrived++
	q.load.Effort += uint64(effort)
	q.expire(now)
	if len(q.best.list) >= q.size {
		q.load.Dropped++
		lowest := q.worst.list[0]
		if lowest.effort > effort {
			return false
		}
		q.remove(lowest)
	}
	e := &entry[T]{value: value, effort: effort, seq: q.seq, since: now}
	q.seq++
	heap.Push(&q.best, e)
	heap.Push(&q.worst, e)
	heap.Push(&q.oldest, e)
	q.wake()
	return true
}

// TryPop takes what is next, as of now; false if nothing waits.
func (q *Queue[T]) TryPop(now time.Time) (value T, effort uint32, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.expire(now)
	if len(q.best.list) == 0 {
		return value, 0, false
	}
	e := q.best.list[0]
	q.remove(e)
	q.load.Served++
	if len(q.best.list) > 0 {
		q.wake() // for another worker
	}
	return e.value, e.effort, true
}

// Pop takes what is next, and waits for it until ctx ends or the queue is closed. Any
// number of workers may wait.
func (q *Queue[T]) Pop(ctx context.Context) (value T, effort uint32, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return value, 0, context.Cause(ctx)
		}
		select {
		case <-q.done:
			return value, 0, ErrQueueClosed
		default:
		}
		if value, effort, ok := q.TryPop(time.Now()); ok {
			return value, effort, nil
		}
		select {
		case <-q.ready:
		case <-q.done:
		case <-ctx.Done():
		}
	}
}

// Len returns how many wait, those included that are too old but not yet dropped.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.best.list)
}

// TakeLoad returns what has happened since the last call, for Controller.Update.
func (q *Queue[T]) TakeLoad(now time.Time) Load {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.expire(now)
	load := q.load
	load.Waiting = len(q.best.list)
	q.load = Load{}
	return load
}

// Close drops what waits, and ends Pop. It may be called more than once.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	q.best.list, q.worst.list, q.oldest.list = nil, nil, nil
	close(q.done)
}

// wake lets one worker look. q.mu is held.
func (q *Queue[T]) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// expire drops what has waited too long. q.mu is held.
func (q *Queue[T]) expire(now time.Time) {
	for len(q.oldest.list) > 0 && now.Sub(q.oldest.list[0].since) >= q.age {
		q.remove(q.oldest.list[0])
		q.load.Dropped++
	}
}

// remove takes an entry out of all heaps. q.mu is held.
func (q *Queue[T]) remove(e *entry[T]) {
	heap.Remove(&q.best, e.at[q.best.which])
	heap.Remove(&q.worst, e.at[q.worst.which])
	heap.Remove(&q.oldest, e.at[q.oldest.which])
}

// entryHeap is a heap whose entries know where in it they are.
type entryHeap[T any] struct {
	list  []*entry[T]
	which int
	less  func(a, b *entry[T]) bool
}

func (h *entryHeap[T]) Len() int           { return len(h.list) }
func (h *entryHeap[T]) Less(i, j int) bool { return h.less(h.list[i], h.list[j]) }

func (h *entryHeap[T]) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.list[i].at[h.which], h.list[j].at[h.which] = i, j
}

func (h *entryHeap[T]) Push(x any) {
	e := x.(*entry[T])
	e.at[h.which] = len(h.list)
	h.list = append(h.list, e)
}

func (h *entryHeap[T]) Pop() any {
	last := len(h.list) - 1
	e := h.list[last]
	h.list[last] = nil
	h.list = h.list[:last]
	return e
}
