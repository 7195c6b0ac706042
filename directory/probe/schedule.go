package probe

import (
	"container/heap"
	"context"
	"net/netip"
	"sync"
	"time"

	"cepa/directory"
)

// lane separates the tests of running relays from those of others, which may take long and be many.
type lane uint8

const (
	known    lane = iota // relays that are running
	unproven             // all others
	lanes
)

// queue is the relays of a lane that wait for their next test, the one that is due first in front. It is a heap.Interface.
type queue []*relay

func (q queue) Len() int { return len(q) }

// Less puts, of relays that wait for the same address, those first that have failed least: a new one does not wait for all who ever claimed it.
func (q queue) Less(i, j int) bool {
	if q[i].due.Equal(q[j].due) {
		return q[i].failures < q[j].failures
	}
	return q[i].due.Before(q[j].due)
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(x any) {
	r := x.(*relay)
	r.place = len(*q)
	*q = append(*q, r)
}

func (q *queue) Pop() any {
	old := *q
	r := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	r.place = nowhere
	return r
}

// enqueue puts r where its due time belongs, unless it is being tested or is not to be. mu is held.
func (p *Prober) enqueue(r *relay) {
	p.dequeue(r)
	if r.testing || !r.awake() {
		return
	}
	r.lane = unproven
	if r.up && r.proved {
		r.lane = known
	}
	heap.Push(&p.queues[r.lane], r)
}

func (p *Prober) dequeue(r *relay) {
	if r.place != nowhere {
		heap.Remove(&p.queues[r.lane], r.place)
	}
}

// limit is how many tests of a lane may be under way. mu is held.
func (p *Prober) limit(l lane) int {
	most := p.cfg.Parallel
	if p.cutOff {
		most = min(most, parallelCutOff)
	}
	if l == unproven {
		return max(1, most/2)
	}
	return max(1, most-p.busy[unproven])
}

// testLoop starts tests when they are due, until ctx ends.
func (p *Prober) testLoop(ctx context.Context, wg *sync.WaitGroup) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		next := p.startDue(func(r *relay, d *directory.Descriptor, use6 bool) {
			wg.Go(func() {
				res := p.test(ctx, d, use6)
				if ctx.Err() == nil { // else it was cut short by us
					p.finish(r, d, res)
				}
			})
		})
		timer.Reset(time.Until(next))
	}
}

// While votes are exchanged, the last quarter of an interval or ten minutes of it (doc/spec.md section 8), the connection is theirs: running relays are not tested
// then, and nothing is measured.
const (
	votingPart = 4
	votingMost = 10 * time.Minute
)

// voting returns how much longer votes are exchanged now, 0 if they are not, and how long they are in all.
func (p *Prober) voting() (left, all time.Duration) {
	n := p.cfg.Network
	date := p.cfg.Now()
	all = min(n.Interval/votingPart, votingMost)
	if left = n.PeriodStart(n.Period(date) + 1).Sub(date); left > all {
		left = 0
	}
	return left, all
}

// idleWake is when the loop looks again although nothing is due.
const idleWake = time.Minute

// startDue calls start for each relay whose test is due and may begin, and returns when to look again. A test that ends wakes the loop.
func (p *Prober) startDue(start func(*relay, *directory.Descriptor, bool)) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	next := now.Add(idleWake)
	voting, spread := p.voting()
	for l := range lanes {
		q := &p.queues[l]
		for len(*q) > 0 {
			r := (*q)[0]
			if r.due.After(now) {
				if r.due.Before(next) {
					next = r.due
				}
				break
			}
			if p.busy[l] >= p.limit(l) {
				break
			}
			if l == known && r.failures == 0 && voting > 0 {
				r.due = now.Add(voting + time.Duration(p.fraction()*float64(spread)))
				heap.Fix(q, 0)
				continue
			}
			if free := p.freeAt(r.descriptor, now); free.After(now) {
				r.due = free
				heap.Fix(q, 0)
				continue
			}
			heap.Pop(q)
			p.take(r.descriptor, now)
			r.testing = true
			p.busy[l]++
			start(r, r.descriptor, p.cfg.IPv6 != IPv6No)
		}
	}
	return next
}

// door is the address whose connections are counted together: an IPv4 address, or an IPv6 /64.
func door(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	prefix, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // an invalid address, which descriptors do not have
	}
	return prefix
}

// freeAt returns when all addresses of a relay may be dialled. mu is held.
func (p *Prober) freeAt(d *directory.Descriptor, now time.Time) time.Time {
	free := now
	for _, a := range d.Addresses {
		if last, ok := p.dialled[door(a.Addr())]; ok && last.Add(p.cfg.Gap).After(free) {
			free = last.Add(p.cfg.Gap)
		}
	}
	return free
}

// sweepAddresses is from how many addresses on old ones are forgotten.
const sweepAddresses = 4096

// take notes that the addresses of a relay are dialled now. mu is held.
func (p *Prober) take(d *directory.Descriptor, now time.Time) {
	if len(p.dialled) >= sweepAddresses {
		for a, last := range p.dialled {
			if now.Sub(last) >= p.cfg.Gap {
				delete(p.dialled, a)
			}
		}
	}
	for _, a := range d.Addresses {
		p.dialled[door(a.Addr())] = now
	}
}
