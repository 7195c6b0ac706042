package probe

import (
	"net/netip"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// relay is what the prober knows of one relay. Prober.mu guards it.
//
//	        passes                       fails, for Patience and leastFailures times
//	never ─────────▶ up (proved) ───────────────────────────────────────────────────▶ down
//	                  ▲   │ new address or onion key                                   │
//	                  │   ▼                                                            │
//	                  │  up, not proved: not running until it passes                   │
//	                  └────────────────────────────────────────────────────────────────┘
//
// While the authority takes itself to be cut off, failures move nobody.
type relay struct {
	id         identity.ID
	descriptor *directory.Descriptor // nil: none is current

	history
	up       bool
	proved   bool      // with the present addresses and onion key
	lastPass time.Time // while up: its last passed test
	failures int       // tests failed in a row
	over4    bool      // of the last test: passed over IPv4
	over6    bool      // and over IPv6

	// Schedule.
	testing bool
	due     time.Time
	lane    lane
	place   int // in the queue of its lane; nowhere when in none

	measured measured
}

// nowhere is the place of a relay that is in no queue.
const nowhere = -1

// awake reports whether the relay has a descriptor and does not say that it hibernates: it takes no links then, is not tested, and the time
// does not count.
func (r *relay) awake() bool { return r.descriptor != nil && !r.descriptor.Extra.Hibernating }

// counts reports whether the relay is one of those by whose tests the prober judges itself.
func (r *relay) counts() bool { return r.up && r.awake() }

// count adds the relay to the sums that uncount takes it out of. Between them it may change. mu is held.
func (p *Prober) count(r *relay)   { p.sum(r, 1) }
func (p *Prober) uncount(r *relay) { p.sum(r, -1) }

func (p *Prober) sum(r *relay, n int) {
	if !r.counts() {
		return
	}
	p.running += n
	if r.failures > 0 {
		p.failing += n
	}
	if r.over4 && has6(r.descriptor) {
		p.both += n
		if r.over6 {
			p.both6 += n
		}
	}
}

// ipv6Counts reports whether failures over IPv6 are the relays'. mu is held.
func (p *Prober) ipv6Counts() bool {
	switch p.cfg.IPv6 {
	case IPv6Yes:
		return true
	case IPv6No:
		return false
	}
	return p.both6 > 0 && 2*p.both6 >= p.both
}

func has6(d *directory.Descriptor) bool {
	return slices.ContainsFunc(d.Addresses, func(a netip.AddrPort) bool { return a.Addr().Is6() })
}

// sameDoor reports whether two descriptors are tested alike.
func sameDoor(a, b *directory.Descriptor) bool {
	return a.OnionKey == b.OnionKey && a.Suite == b.Suite && slices.Equal(a.Addresses, b.Addresses)
}

// finish takes the outcome of a test of r with descriptor d.
func (p *Prober) finish(r *relay, d *directory.Descriptor, res outcome) {
	now := time.Now()
	p.mu.Lock()
	p.uncount(r)
	r.testing = false
	p.busy[r.lane]--
	r.over4, r.over6 = res.over4, res.over6
	was := r.up
	if passed := res.passed(p.ipv6Counts()); r.descriptor != nil && sameDoor(r.descriptor, d) {
		p.judge(r, passed, now)
	} else if r.descriptor != nil {
		r.due = now // it has moved meanwhile
	}
	p.count(r)
	p.checkConnection(now)
	if r.descriptor == nil && !r.reached {
		delete(p.relays, r.id)
	}
	p.enqueue(r)
	up, failures := r.up, r.failures
	p.dirty = true
	p.mu.Unlock()
	switch {
	case up && !was:
		p.cfg.Log.Debug("relay is running", "nickname", d.Nickname, "relay", d.Identity.Short())
	case was && !up:
		p.cfg.Log.Debug("relay is not running any more", "nickname", d.Nickname, "relay", d.Identity.Short(), "failures", failures, "reason", res.reason)
	case failures > 0:
		p.cfg.Log.Debug("relay failed a test", "nickname", d.Nickname, "relay", d.Identity.Short(), "failures", failures, "reason", res.reason)
	}
	p.notify()
	p.poke()
}

// judge moves r by one test. mu is held, and r is not counted.
func (p *Prober) judge(r *relay, passed bool, now time.Time) {
	t := &p.times
	if passed {
		r.credit(now, r.up)
		r.reached, r.up, r.proved = true, true, true
		r.lastPass, r.failures = now, 0
		r.lastSeen = p.cfg.Now()
		r.due = now.Add(p.upTo(t.every))
		return
	}
	r.failures++
	switch {
	case r.up && (p.cutOff || r.failures < leastFailures || now.Sub(r.lastPass) < t.patience):
		// It is not yet known what the time since the last pass was.
		r.due = now.Add(p.upTo(t.retry))
		return
	case r.up:
		r.up = false
		r.endRun()
		r.credit(now, false)
		r.failures = 1 // of those while down
	case r.reached:
		r.credit(now, false)
	}
	most := t.strangerMost
	if r.reached {
		most = t.downMost
	}
	wait := againLeast // it may just be starting
	if r.failures > 1 {
		wait = min(t.again<<min(r.failures-2, 20), most)
	}
	r.due = now.Add(p.upTo(wait))
}

// checkConnection finds out whether it is this authority that is cut off: more than half of the running relays fail. mu is held.
func (p *Prober) checkConnection(now time.Time) {
	lost := p.failing >= leastLost && 2*p.failing > p.running
	if lost == p.cutOff {
		return
	}
	p.cutOff = lost
	if lost {
		p.cfg.Log.Warn("most relays are out of reach: this authority seems cut off, and blames none of them; check its connection", "count", p.failing, "running", p.running)
		return
	}
	p.cfg.Log.Info("most relays are in reach again", "running", p.running)
	// Those who have failed meanwhile have as much time as after a passed test.
	for _, r := range p.relays {
		if r.counts() && r.failures > 0 {
			p.uncount(r)
			r.lastPass, r.accounted, r.failures = now, now, 0
			p.count(r)
		}
	}
}
