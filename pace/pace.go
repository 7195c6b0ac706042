// Package pace keeps a volunteer's bandwidth rate, one direction of it, and shares it
// out: a Pacer is a token bucket, and decides whose turn it is when there is not
// enough for all. Bytes are those of TCP payloads.
//
// # Fairness
//
// Each claimant has a tag: how far it has come in virtual time, which is the bytes that
// it has had, times a weight. The lowest tag is next. Who was quiet does not fall
// behind the others, and so is next as soon as it wants something (start-time fair
// queueing, Goyal, Vin and Cheng 1996). Claimants that belong together have one Share: each
// weighs as much as how many of them want something, so that together they get
// what one gets.
package pace

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// ErrClosed says that the pacer was closed.
var ErrClosed = errors.New("pace: closed")

// Pacer is the rate of one direction. It is safe for concurrent use. New makes one.
type Pacer struct {
	mu      sync.Mutex
	bucket  *rate.Limiter // nil before there was a limit
	slice   int           // most bytes of one grant
	now     uint64        // virtual time: the tag of the last grant
	waiting []*Claimant
	timer   *time.Timer // to grant when there are tokens; nil when none runs
	closed  bool
	limited bool
	took    time.Duration // time in which somebody had to wait, for Status
	since   time.Time     // when the present such time began
}

// Slack is by how much a tag may lie behind virtual time, in bytes: a few cells. It is
// what puts who was quiet before those who are just as far, and all that it may make up for.
const Slack = 4 * 1408

// sliceTime is how much of the rate one claimant gets in one go.
const sliceTime = 10 * time.Millisecond

// maxSlice bounds it for a very high rate, in bytes.
const maxSlice = 1 << 20

// New returns a pacer of so many bytes a second, and burst bytes at once after a pause.
// leastSlice is what one grant may always have, in bytes; burst must not be less. A
// rate of 0 is no limit.
func New(perSecond int64, burst, leastSlice int) *Pacer {
	p := new(Pacer)
	p.Set(perSecond, burst, leastSlice)
	return p
}

// Set changes the rate. Who waits, waits for the new one. Where there was none, the
// bucket is full.
func (p *Pacer) Set(perSecond int64, burst, leastSlice int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.limited
	p.limited = perSecond > 0
	if p.limited {
		if was {
			now := time.Now()
			p.bucket.SetLimitAt(now, rate.Limit(perSecond))
			p.bucket.SetBurstAt(now, burst)
		} else {
			p.bucket = rate.NewLimiter(rate.Limit(perSecond), burst)
		}
		p.slice = min(max(leastSlice, int(sliceTime.Seconds()*float64(perSecond))), burst, maxSlice)
	}
	p.grantLocked()
}

// Slice is the most bytes of one grant, or 0 when there is no limit.
func (p *Pacer) Slice() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.limited {
		return 0
	}
	return p.slice
}

// Close refuses all further claims and ends the waiting of those that wait.
func (p *Pacer) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.waiting {
		close(c.granted)
	}
	p.waiting = nil
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}

// Waited returns for how long, in all, somebody has had to wait.
func (p *Pacer) Waited() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 {
		return p.took + time.Since(p.since)
	}
	return p.took
}

// Busy tells whether somebody waits.
func (p *Pacer) Busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting) > 0
}

// Claimant is one who wants bytes, such as a socket. Its methods are called by one
// goroutine at a time.
type Claimant struct {
	pacer *Pacer
	head  func(now uint64) uint64

	// The pacer's, while it waits:
	least, want int
	granted     chan int // depth 1
}

// Claimant returns a new claimant. head returns its tag when it is asked for, at virtual
// time now; it is called under the pacer's lock and must not call the pacer.
func (p *Pacer) Claimant(head func(now uint64) uint64) *Claimant {
	return &Claimant{pacer: p, head: head, granted: make(chan int, 1)}
}

// Try returns how many of want bytes, and no fewer than least, may move now, or 0
// when it must wait for its turn.
func (c *Claimant) Try(least, want int) int {
	p := c.pacer
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return 0
	case !p.limited:
		return want
	case len(p.waiting) > 0:
		return 0
	}
	return p.takeLocked(c, least, want, time.Now())
}

// takeLocked takes tokens for c, if there are as many as it needs at least.
func (p *Pacer) takeLocked(c *Claimant, least, want int, now time.Time) int {
	have := int(p.bucket.TokensAt(now))
	least = min(least, p.slice)
	if have < least {
		return 0
	}
	n := min(max(least, min(want, have)), p.slice)
	if !p.bucket.AllowN(now, n) {
		return 0
	}
	p.now = max(p.now, c.head(p.now))
	return n
}

// Wait waits for its turn and returns how many of want bytes may move: no fewer than
// least, or a slice if that is less. ErrClosed when the pacer, or done, was closed.
func (c *Claimant) Wait(done <-chan struct{}, least, want int) (int, error) {
	p := c.pacer
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return 0, ErrClosed
	case !p.limited:
		p.mu.Unlock()
		return want, nil
	}
	c.least, c.want = least, want
	if len(p.waiting) == 0 {
		p.since = time.Now()
	}
	p.waiting = append(p.waiting, c)
	p.grantLocked()
	p.mu.Unlock()
	select {
	case n, ok := <-c.granted:
		if !ok {
			return 0, ErrClosed
		}
		return n, nil
	case <-done:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, x := range p.waiting {
		if x == c {
			p.removeLocked(i)
			return 0, ErrClosed
		}
	}
	if n := <-c.granted; n > 0 { // it came at the same time
		p.returnLocked(n)
	}
	return 0, ErrClosed
}

// Return gives back n bytes of a grant that were not used.
func (c *Claimant) Return(n int) {
	if n <= 0 {
		return
	}
	c.pacer.mu.Lock()
	defer c.pacer.mu.Unlock()
	c.pacer.returnLocked(n)
}

func (p *Pacer) returnLocked(n int) {
	if p.limited && !p.closed {
		p.bucket.AllowN(time.Now(), -n)
		p.grantLocked()
	}
}

// grantLocked serves who waits, as long as there are tokens, and otherwise sees to
// being called when there are.
func (p *Pacer) grantLocked() {
	for len(p.waiting) > 0 {
		best, lowest := 0, uint64(0)
		for i, c := range p.waiting {
			if tag := c.head(p.now); i == 0 || tag < lowest {
				best, lowest = i, tag
			}
		}
		c := p.waiting[best]
		if !p.limited {
			p.removeLocked(best)
			c.granted <- c.want
			continue
		}
		now := time.Now()
		n := p.takeLocked(c, c.least, c.want, now)
		if n == 0 {
			missing := float64(min(c.least, p.slice)) - p.bucket.TokensAt(now)
			p.later(time.Duration(missing / float64(p.bucket.Limit()) * float64(time.Second)))
			return
		}
		p.removeLocked(best)
		c.granted <- n
	}
}

// removeLocked takes one out of those who wait; the order of their coming is kept.
func (p *Pacer) removeLocked(i int) {
	p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
	if len(p.waiting) == 0 {
		p.took += time.Since(p.since)
	}
}

// later sees to a call of grantLocked after d.
func (p *Pacer) later(d time.Duration) {
	d = max(d, 0) + time.Microsecond
	if p.timer != nil {
		p.timer.Reset(d)
		return
	}
	p.timer = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.closed {
			p.grantLocked()
		}
	})
}
