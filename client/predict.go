package client

import (
	"slices"
	"time"
)

// What circuits are built ahead for; all ours.
const (
	// predictFor is how long a need is expected to come again.
	predictFor = time.Hour
	// maxPredicted bounds the ports that are predicted; of more, the latest count.
	maxPredicted = 16
	// readyEach is how many unused circuits there are for each such port, but for the web,
	// which has Config.Ready: most ports are asked for by one program.
	readyEach = 1
	// burst is how close together circuits are taken by one and the same need: a page
	// that, with isolation by destination, needs a circuit for each of its hosts.
	burst = 10 * time.Second
	// maxBurst bounds the unused circuits that are kept because of such bursts.
	maxBurst = 8
	// burstShare is which part of all circuits unused ones for bursts may be: one in four.
	burstShare = 4
)

// needs is what has been asked for lately, from which it is told what will be asked
// for next.
type needs struct {
	ports []need      // by port and kind of address, in no order
	taken []time.Time // when circuits were given to a key, oldest first; the last 2·maxBurst of them
}

// need is one port that was asked for.
type need struct {
	want want // without key
	last time.Time
}

// asked notes that a stream for w came.
func (n *needs) asked(w want, now time.Time) {
	w.key = ""
	if w.port == 0 {
		return // any exit will do, of whom there are always some
	}
	n.forget(now)
	if i := slices.IndexFunc(n.ports, func(x need) bool { return x.want == w }); i >= 0 {
		n.ports[i].last = now
		return
	}
	if len(n.ports) == maxPredicted {
		oldest := 0
		for i := range n.ports {
			if n.ports[i].last.Before(n.ports[oldest].last) {
				oldest = i
			}
		}
		n.ports = slices.Delete(n.ports, oldest, oldest+1)
	}
	n.ports = append(n.ports, need{w, now})
}

// took notes that a circuit was given to a key.
func (n *needs) took(now time.Time) {
	if len(n.taken) == 2*maxBurst {
		n.taken = slices.Delete(n.taken, 0, 1)
	}
	n.taken = append(n.taken, now)
}

// forget drops what is too old to come again.
func (n *needs) forget(now time.Time) {
	n.ports = slices.DeleteFunc(n.ports, func(x need) bool { return now.Sub(x.last) >= predictFor })
	n.taken = slices.DeleteFunc(n.taken, func(t time.Time) bool { return now.Sub(t) >= predictFor })
}

// atOnce returns how many circuits were taken together, at most, lately.
func (n *needs) atOnce() int {
	most := 0
	for i, first := range n.taken {
		j := i
		for j < len(n.taken) && n.taken[j].Sub(first) < burst {
			j++
		}
		most = max(most, j-i)
	}
	return min(most, maxBurst)
}

// missingLocked returns for which need a circuit should be built ahead, if for any. Each
// unused circuit counts for all that it serves. c.mu is held.
func (c *Client) missingLocked(now time.Time) (want, bool) {
	c.needs.forget(now)
	var unused []*circ
	for _, x := range c.circuits {
		if !x.assigned && c.usable(x, now) {
			unused = append(unused, x)
		}
	}
	serving := func(w want) (n int) {
		for _, x := range unused {
			if w.servedBy(x.exit()) {
				n++
			}
		}
		return n
	}
	web := c.cfg.Ready
	if len(c.circuits) < c.limit/burstShare {
		web = max(web, c.needs.atOnce())
	}
	if len(unused) < web {
		return want{}, true
	}
	if len(unused) >= maxReady {
		return want{}, false
	}
	for _, x := range c.needs.ports {
		if !c.unserved[x.want] && serving(x.want) < readyEach {
			return x.want, true
		}
	}
	return want{}, false
}
