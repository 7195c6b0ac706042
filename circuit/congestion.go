package circuit

import "time"

// Flow is how a circuit end decides how many counted messages it leaves without
// acknowledgement: the parameters of its congestion control (doc/spec.md section
// 5). The zero value means the defaults.
//
// The algorithm is of the kind of TCP Vegas: from the delay it works out how many
// of its own messages stand in queues, and keeps these few. It differs in how many that
// are: some, so that circuits which share a queue come to equal shares, and as
// many as go in Delay, so that a fast machine has enough at hand to work in batches.
type Flow struct {
	// Initial, Min and Max bound the window, in messages.
	Initial, Min, Max int
	// Low and High are how many messages of its own a circuit leaves in queues:
	// below Low its window grows, above High it shrinks.
	Low, High int
	// Delay is how much more it leaves there, as time. Negative: nothing.
	Delay time.Duration
}

// defaultFlow is the network's: ours, measured as doc/benchmarks.md tells.
var defaultFlow = Flow{Initial: 16, Min: 4, Max: MaxWindow, Low: 3, High: 6, Delay: 65 * time.Millisecond}

// FlowOf returns the flow that the parameters of a consensus ask for; get is
// directory.Params.Get.
func FlowOf(get func(name string) int64) Flow {
	f := Flow{
		Initial: int(get("flow-initial")), Min: int(get("flow-min")), Max: int(get("flow-max")),
		Low: int(get("flow-low")), High: int(get("flow-high")), Delay: time.Duration(get("flow-delay")) * time.Millisecond,
	}
	if f.Delay == 0 {
		f.Delay = -1
	}
	return f
}

// complete fills in what is not set and keeps everything within bounds.
func (f Flow) complete() Flow {
	d := defaultFlow
	set := func(v *int, fallback, lowest, highest int) {
		if *v == 0 {
			*v = fallback
		}
		*v = min(max(*v, lowest), highest)
	}
	set(&f.Max, d.Max, d.Min, MaxWindow)
	set(&f.Min, d.Min, d.Min, f.Max)
	set(&f.Initial, d.Initial, f.Min, f.Max)
	set(&f.Low, d.Low, 1, f.Max)
	set(&f.High, d.High, f.Low, f.Max)
	if f.Delay == 0 {
		f.Delay = d.Delay
	}
	f.Delay = min(max(f.Delay, 0), time.Second)
	return f
}

// congestion sizes one window. It sees an acknowledgement at a time and knows
// neither clock nor circuit.
//
//	slow start: the window grows by what is acknowledged, until more than High
//	            of its messages stand in queues
//	then:       once a round, by what stands there
//
// A round ends with the acknowledgement of something that was sent after the last
// round's end.
type congestion struct {
	flow   Flow
	window int
	slow   bool
	full   bool // somebody waited for the window in this round

	least  sample    // of this round, the one with the shortest time
	before [2]sample // of the rounds before
	rttMin time.Duration
	rtt    time.Duration // the last round's least
	rate   float64       // messages a second, in the last round

	samples  int    // in this round
	rounds   int    // in which the window grew, one after the other
	roundEnd uint64 // the number of messages sent when the round began
}

// sample is one acknowledgement: its round trip, and how many messages were under
// way when it began, itself included.
type sample struct {
	rtt   time.Duration
	under int
}

func newCongestion(f Flow) congestion {
	f = f.complete()
	return congestion{flow: f, window: f.Initial, slow: true}
}

// samplesToLeave is how many samples of a round decide on the end of slow start
// before the round is over: enough that one of them met no chance delay.
const samplesToLeave = 8

// acked takes an acknowledgement of n messages, of which the last was number
// message of all, when sent have been sent.
func (c *congestion) acked(n int, s sample, message, sent uint64) {
	s.rtt = max(s.rtt, time.Microsecond) // virtual time may stand still
	if c.rttMin == 0 || s.rtt < c.rttMin {
		c.rttMin = s.rtt
	}
	if c.samples == 0 || s.rtt < c.least.rtt {
		c.least = s
	}
	c.samples++
	over := message > c.roundEnd
	if c.slow {
		if c.full {
			c.grow(n)
		}
		if over || c.samples >= samplesToLeave {
			c.leaveSlowStart()
		}
	} else if over {
		c.adjust()
	}
	if over {
		c.rtt, c.rate = c.least.rtt, c.perSecond()
		c.before[1], c.before[0] = c.before[0], c.least
		c.samples, c.full, c.roundEnd = 0, false, sent
	}
}

// perSecond is the rate of the round: what was under way in the time it took.
func (c *congestion) perSecond() float64 { return float64(c.least.under) / c.least.rtt.Seconds() }

// maxAckInterval is how many messages one ACK is for at most. Ours: it keeps ACKs
// below 2 % of the cells where the window is large.
const maxAckInterval = 64

// ackInterval is how many messages one ACK is for: half a window at most.
func (c *congestion) ackInterval() int { return min(max(1, c.window/2), maxAckInterval) }

// queued estimates how many of our messages stand in queues: of those under
// way, the share of the time that is not the path's own. low and high are what it
// should be.
func (c *congestion) queued(s sample) (queued, low, high int) {
	queued = int(float64(s.under) * float64(s.rtt-c.rttMin) / float64(s.rtt))
	extra := int(min(c.perSecond()*c.flow.Delay.Seconds(), float64(c.flow.Max)))
	return queued, c.flow.Low + extra, c.flow.High + extra
}

func (c *congestion) leaveSlowStart() {
	queued, _, high := c.queued(c.least)
	if queued <= high {
		return
	}
	c.slow = false
	c.window = c.bounded(c.least.under - queued + high)
}

// adjust is the step of a round.
func (c *congestion) adjust() {
	queued, low, high := c.queued(c.least)
	// What one ACK lets go travels as a burst, and the bursts of a small window may
	// meet in the queue in one round and not in the next: only what no round has
	// been without stands there.
	standing := queued
	for _, s := range c.before {
		if s.rtt > 0 {
			n, _, _ := c.queued(s)
			standing = min(standing, n)
		}
	}
	switch {
	case standing > high:
		c.rounds = 0
		c.window = c.bounded(c.window - min(max(1, (standing-high)/2), c.window/4))
	case queued < low && c.full:
		// Where there is room for long, the steps become longer.
		c.rounds++
		step := (1 + (low-queued)/2) << min(max(0, c.rounds-3), 6)
		c.grow(min(step, max(1, c.window/4)))
	default:
		c.rounds = 0
	}
}

func (c *congestion) grow(n int) { c.window = c.bounded(c.window + n) }

func (c *congestion) bounded(n int) int { return min(max(n, c.flow.Min), c.flow.Max) }
