package circuit

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// path is a bottleneck in virtual time: a link that serves so many messages a
// second, circuits in turns or in the order of their coming, and a way there and
// back without queues.
type path struct {
	rate  float64
	base  time.Duration // round trip without queue
	fifo  bool
	now   time.Duration
	busy  bool
	came  uint64 // messages, ever
	turns turns  // what is to happen
	flows []*flow
	delay []time.Duration // of each message in the queue
}

// waiting is a message in the queue.
type waiting struct {
	came   uint64
	since  time.Duration
	number uint64
	asks   bool
}

// flow is a sender that always has something to send.
type flow struct {
	w         window
	delivered int
	queue     []waiting // oldest first, from head on
	head      int
	served    time.Duration
}

// turn is something that will happen at a time.
type turn struct {
	at time.Duration
	do func()
}

type turns []turn

func (t turns) Len() int           { return len(t) }
func (t turns) Less(i, j int) bool { return t[i].at < t[j].at }
func (t turns) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *turns) Push(x any)        { *t = append(*t, x.(turn)) }
func (t *turns) Pop() any {
	old := *t
	x := old[len(old)-1]
	*t = old[:len(old)-1]
	return x
}

func (p *path) later(at time.Duration, do func()) { heap.Push(&p.turns, turn{at, do}) }

// fill sends all that f's window allows.
func (p *path) fill(f *flow) {
	for f.w.room() > 0 {
		number, asks := f.w.total+1, f.w.asks()
		f.note(p.now, asks)
		p.came++
		f.queue = append(f.queue, waiting{p.came, p.now, number, asks})
	}
	f.w.wait()
	p.serve()
}

// serve takes the next message, of the circuit that was served longest ago.
func (p *path) serve() {
	if p.busy {
		return
	}
	var next *flow
	for _, f := range p.flows {
		switch {
		case f.head == len(f.queue):
		case next == nil, p.fifo && f.queue[f.head].came < next.queue[next.head].came, !p.fifo && f.served < next.served:
			next = f
		}
	}
	if next == nil {
		return
	}
	x := next.queue[next.head]
	if next.head++; next.head == len(next.queue) {
		next.queue, next.head = next.queue[:0], 0
	}
	next.served = p.now
	p.delay = append(p.delay, p.now-x.since)
	p.busy = true
	done := p.now + time.Duration(float64(time.Second)/p.rate)
	p.later(done, func() {
		p.busy = false
		p.serve()
	})
	p.later(done+p.base, func() {
		next.delivered++
		if x.asks {
			next.ack(p.now, x.number)
			p.fill(next)
		}
	})
}

// note and ack are window.sent and window.acked with a clock of their own.
func (f *flow) note(now time.Duration, asks bool) {
	tag := numbered(int(f.w.total + 1))
	f.w.sent(tag[:], asks)
	if asks {
		f.w.marks[(f.w.first+f.w.n-1)%len(f.w.marks)].sent = now
	}
}

func (f *flow) ack(now time.Duration, number uint64) {
	m := f.w.marks[f.w.first]
	if m.number != number {
		panic("acknowledged in another order")
	}
	f.w.first = (f.w.first + 1) % len(f.w.marks)
	f.w.n--
	f.w.head = true
	f.w.unacked -= m.counts
	f.w.congestion.acked(m.counts, sample{now - m.sent, m.unacked}, m.number, f.w.total)
}

// run goes on until a time.
func (p *path) run(until time.Duration) {
	for len(p.turns) > 0 && p.turns[0].at <= until {
		t := heap.Pop(&p.turns).(turn)
		p.now = t.at
		t.do()
	}
	p.now = until
}

func (p *path) start() *flow {
	f := &flow{w: newWindow(Flow{})}
	p.flows = append(p.flows, f)
	p.fill(f)
	return f
}

func jain(x []float64) float64 {
	var sum, squares float64
	for _, v := range x {
		sum += v
		squares += v * v
	}
	return sum * sum / (float64(len(x)) * squares)
}

// TestCongestionFills: one circuit fills a path within seconds, whatever its rate
// and length, and leaves little in its queue.
func TestCongestionFills(t *testing.T) {
	for _, x := range []struct {
		rate  float64 // messages a second
		base  time.Duration
		after time.Duration
		share float64       // of the rate, from after on
		queue time.Duration // p95
	}{
		{14, 200 * time.Millisecond, 20 * time.Second, 0.95, 900 * time.Millisecond}, // 20 KB/s; a message takes 71 ms
		{71, 100 * time.Millisecond, 5 * time.Second, 0.95, 330 * time.Millisecond},  // 100 KB/s
		{710, 50 * time.Millisecond, 5 * time.Second, 0.95, 150 * time.Millisecond},  // 1 MB/s
		{8900, 150 * time.Millisecond, 5 * time.Second, 0.95, 80 * time.Millisecond}, // 100 Mbit/s
		{36000, 50 * time.Millisecond, 5 * time.Second, 0.95, 80 * time.Millisecond}, // 50 MB/s
		{150000, time.Millisecond, time.Second, 0.95, 80 * time.Millisecond},         // one machine
	} {
		p := &path{rate: x.rate, base: x.base}
		f := p.start()
		p.run(x.after)
		before := f.delivered
		p.delay = p.delay[:0]
		for range 10 {
			p.run(p.now + x.after/10)
		}
		share := float64(f.delivered-before) / (x.after.Seconds() * x.rate)
		slices.Sort(p.delay)
		queue := p.delay[len(p.delay)*95/100]
		if share < x.share || queue > x.queue {
			t.Errorf("%v messages a second, %v: %.2f of the rate, want %.2f; queue %v, want %v at most (window %d)",
				x.rate, x.base, share, x.share, queue, x.queue, f.w.window)
		}
	}
}

// TestCongestionFair: circuits that start one after the other come to equal
// shares, and the first gives way.
func TestCongestionFair(t *testing.T) {
	for _, n := range []int{2, 10} {
		p := &path{rate: 8900, base: 150 * time.Millisecond}
		for range n {
			p.start()
			p.run(p.now + time.Second)
		}
		p.run(p.now + 10*time.Second)
		before := make([]int, n)
		for i, f := range p.flows {
			before[i] = f.delivered
		}
		p.delay = p.delay[:0]
		p.run(p.now + 20*time.Second)
		var got []float64
		total := 0.0
		for i, f := range p.flows {
			got = append(got, float64(f.delivered-before[i]))
			total += got[i]
		}
		slices.Sort(p.delay)
		if j := jain(got); j < 0.9 || total < 0.9*20*8900 {
			t.Errorf("%d circuits: Jain %.3f, %.2f of the rate: %v", n, j, total/(20*8900), got)
		}
		if q := p.delay[len(p.delay)*95/100]; q > 150*time.Millisecond {
			t.Errorf("%d circuits: queue %v", n, q)
		}
	}
}

// TestCongestionIdle: who does not use the window does not get a larger one.
func TestCongestionIdle(t *testing.T) {
	c := newCongestion(Flow{})
	for i := range uint64(1000) {
		c.acked(8, sample{10 * time.Millisecond, 8}, i*8+8, i*8+8)
	}
	if c.window != defaultFlow.Initial {
		t.Errorf("the window has grown to %d", c.window)
	}
}

// TestCongestionStall: when the clock or the machine stands still for an hour, or
// a sample is absurd, the window takes a step back and recovers.
func TestCongestionStall(t *testing.T) {
	p := &path{rate: 8900, base: 150 * time.Millisecond}
	f := p.start()
	p.run(10 * time.Second)
	window := f.w.window
	for i := range p.turns {
		p.turns[i].at += time.Hour
	}
	p.run(p.now + time.Hour + 20*time.Second)
	if f.w.window < window*8/10 || f.w.window > window*12/10 {
		t.Errorf("window %d before and %d after", window, f.w.window)
	}
}

// FuzzCongestion: no sequence of acknowledgements takes the window out of its
// bounds.
func FuzzCongestion(f *testing.F) {
	f.Add(uint64(1), 0, 0, 0)
	f.Add(uint64(2), 1, 1<<20, -5)
	f.Fuzz(func(t *testing.T, seed uint64, lowest, highest, low int) {
		random := rand.New(rand.NewPCG(seed, 1))
		c := newCongestion(Flow{Min: lowest, Max: highest, Low: low, Delay: time.Duration(highest)})
		if c.flow.Min < 4 || c.flow.Max > MaxWindow || c.flow.Min > c.flow.Max {
			t.Fatalf("%+v", c.flow)
		}
		sent := uint64(0)
		for range 200 {
			c.full = random.IntN(2) == 0
			sent += random.Uint64N(1 << 13)
			rtt := time.Duration(random.Int64()) >> random.IntN(63)
			if random.IntN(10) == 0 {
				rtt = -rtt
			}
			c.acked(random.IntN(maxUnacked), sample{rtt, 1 + random.IntN(maxUnacked)}, random.Uint64N(sent+1), sent)
			if c.window < c.flow.Min || c.window > c.flow.Max {
				t.Fatalf("the window is %d", c.window)
			}
		}
	})
}
