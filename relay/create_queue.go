package relay

import (
	"sync"
	"time"
)

// createPatience is the longest wait with which a CREATE is taken in. Source:
// doc/spec.md section 12.
const createPatience = 1750 * time.Millisecond

// createQueue holds the CREATEs that wait for a worker. Relays and clients take
// turns, and among each of them the links that have some: whoever floods a link waits
// behind himself.
type createQueue struct {
	limits  *limits
	workers int

	mu      sync.Mutex // guards what follows
	ready   sync.Cond  // something waits, or the queue is closed
	closed  bool
	waiting int64
	busy    int           // workers that do one
	cost    time.Duration // of a handshake: moving average; 0 before the first
	relays  createClass
	clients createClass
	turn    bool // the clients are next
}

// createClass is the links of relays, or of clients, that have CREATEs waiting, in the
// order of their turns.
type createClass struct {
	waiting     int64
	links       int64
	first, last *createLine
}

// createLine is what waits of one link.
type createLine struct {
	class       *createClass // nil while nothing waits
	first, last *createJob
	n           int64
	next        *createLine
}

func newCreateQueue(l *limits, workers int) *createQueue {
	q := &createQueue{limits: l, workers: workers}
	q.ready.L = &q.mu
	return q
}

// add takes a job in, unless there is no place or it would wait too long.
func (q *createQueue) add(j *createJob, fromRelay bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	line := &j.near.line
	class := line.class
	switch {
	case class != nil: // whatever it is, until the line is empty
	case fromRelay:
		class = &q.relays
	default:
		class = &q.clients
	}
	// A link may have twice as many as there are places free: so there always are
	// some for a link that has none.
	free := q.limits.createQueue - q.waiting
	if class == &q.clients {
		free = min(free, q.limits.clientQueue-class.waiting)
	}
	if q.closed || line.n >= 2*free || q.waitOf(class, line.n) > createPatience {
		return false
	}
	if line.class == nil {
		line.class = class
		class.links++
		class.push(line)
	}
	if line.last == nil {
		line.first = j
	} else {
		line.last.next = j
	}
	line.last = j
	line.n++
	class.waiting++
	q.waiting++
	q.ready.Signal()
	return true
}

// waitOf estimates how long a job will wait that comes behind n of its own link: each
// other link has its turn before each of these, and the other class its turn
// before each of those.
func (q *createQueue) waitOf(class *createClass, n int64) time.Duration {
	others := class.links
	if n > 0 {
		others-- // one is its own
	}
	ahead := min(class.waiting, n+others*(n+1))
	ahead += min(q.waiting-class.waiting, ahead+1)
	return q.cost * time.Duration(ahead+int64(q.busy)) / time.Duration(q.workers)
}

// take waits for a job and returns it; nil when the queue is closed. done must follow.
func (q *createQueue) take() *createJob {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.waiting == 0 && !q.closed {
		q.ready.Wait()
	}
	if q.closed {
		return nil
	}
	q.busy++
	return q.pop()
}

// pop removes the next job, of which there must be one.
func (q *createQueue) pop() *createJob {
	class := &q.relays
	if q.relays.waiting == 0 || q.turn && q.clients.waiting > 0 {
		class = &q.clients
	}
	q.turn = class == &q.relays
	line := class.shift()
	j := line.first
	line.first, j.next = j.next, nil
	line.n--
	class.waiting--
	q.waiting--
	if line.n > 0 {
		class.push(line)
	} else {
		*line = createLine{}
		class.links--
	}
	return j
}

// done notes that a worker has finished, with what took it how long, 0 for nothing.
func (q *createQueue) done(took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	switch {
	case took <= 0:
	case q.cost == 0:
		q.cost = took
	default:
		q.cost += (took - q.cost) / 8
	}
}

// close ends the waiting of the workers; nothing is taken in any more.
func (q *createQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ready.Broadcast()
}

// drain removes all jobs.
func (q *createQueue) drain() (jobs []*createJob) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.waiting > 0 {
		jobs = append(jobs, q.pop())
	}
	return jobs
}

// push puts a line behind the others.
func (c *createClass) push(l *createLine) {
	if c.last == nil {
		c.first = l
	} else {
		c.last.next = l
	}
	c.last = l
}

// shift removes the first line, of which there must be one.
func (c *createClass) shift() *createLine {
	l := c.first
	c.first, l.next = l.next, nil
	if c.first == nil {
		c.last = nil
	}
	return l
}
