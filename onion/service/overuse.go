package service

import (
	"math"
	"time"

	"cepa/crypto/identity"
)

// Clients choose rendezvous points by weight. Somebody who has the service come to one relay again and again wants to be, in the
// end, where he sees it: he runs that relay, watches it, or learns from its load who comes from where. So a relay that is asked for
// far more often than its weight explains is refused for a while.
const (
	// usesStart is how many introductions are counted before any relay is refused, and usesLeast how many of one.
	usesStart = 500
	usesLeast = 100
	// usesScale is at how many all counts are halved, so that the past fades.
	usesScale = 20000
	// usesRatio is by how much a relay may exceed its share of the weight, and usesFloor what is allowed of any, as a share.
	usesRatio = 5
	usesFloor = 0.01
	// usesRefuse is for how long it is refused.
	usesRefuse = time.Hour
	// usesWarn is how often it is warned of it at most.
	usesWarn = 10 * time.Minute
)

// uses counts rendezvous points. Guarded by Service.mu.
type uses struct {
	count   map[identity.ID]uint32 // relays of the consensus, so as many as that has at most
	total   uint32
	refused map[identity.ID]time.Time // until when
	warned  time.Time
	events  int // refusals since the last warning
}

// see forgets relays that are not in v.
func (u *uses) see(v *view) {
	for id, n := range u.count {
		if _, ok := v.consensus.Lookup(id); !ok {
			u.total -= n
			delete(u.count, id)
		}
	}
	for id := range u.refused {
		if _, ok := v.consensus.Lookup(id); !ok {
			delete(u.refused, id)
		}
	}
}

// ask counts one use of a relay with this share of all weight, and reports whether the relay is refused, and whether that is new.
func (u *uses) ask(id identity.ID, share float64, now time.Time) (refused, fresh bool) {
	if u.count == nil {
		u.count, u.refused = map[identity.ID]uint32{}, map[identity.ID]time.Time{}
	}
	if until, ok := u.refused[id]; ok {
		if now.Before(until) {
			u.events++
			return true, false
		}
		// It begins anew.
		delete(u.refused, id)
		u.total -= u.count[id]
		delete(u.count, id)
	}
	if u.total >= usesScale {
		u.total = 0
		for id, n := range u.count {
			u.count[id] = n / 2
			u.total += n / 2
			if n < 2 {
				delete(u.count, id)
			}
		}
	}
	u.count[id]++
	u.total++
	if n := float64(u.count[id]); u.total < usesStart || n < usesLeast || n <= bound(float64(u.total), share) {
		return false, false
	}
	u.refused[id] = now.Add(usesRefuse)
	u.events++
	return true, true
}

// bound is how many of so many uses a relay may have. Beside the multiple of its share that is allowed, chance is.
func bound(total, share float64) float64 {
	expected := total * max(usesRatio*share, usesFloor)
	return expected + 4*math.Sqrt(expected)
}

// meetsAt counts that a client waits at a relay, and reports whether the service goes there.
func (s *Service) meetsAt(id identity.ID) bool {
	now := time.Now()
	s.mu.Lock()
	v := s.net
	r, ok := v.consensus.Lookup(id)
	if !ok {
		s.mu.Unlock()
		return false
	}
	refused, fresh := s.uses.ask(id, float64(r.Weight)/float64(max(v.weight, 1)), now)
	warn := fresh && (s.uses.warned.IsZero() || now.Sub(s.uses.warned) >= usesWarn)
	events := s.uses.events
	if warn {
		s.uses.warned, s.uses.events = now, 0
	}
	s.mu.Unlock()
	if warn {
		s.cfg.Log.Warn("clients ask an onion service to meet them at one relay far more often than its bandwidth explains, and are refused there for a while: "+
			"somebody may try to find out where the service is",
			"relay", v.name(id), "count", events, "until", s.cfg.Now().Add(usesRefuse))
	}
	return !refused
}
