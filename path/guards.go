package path

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// Rules of guards; ours. doc/anonymity.md says what they are measured to give.
const (
	// SampleSize is how many guards a client draws at once, and stays with: who adds relays later gets in slowly.
	SampleSize = 20
	// maxSample bounds the sample when many of it are out of reach of this machine.
	maxSample = 60
	// LifeMin and LifeMax bound for how many days a guard is kept, from the day on which it became the first in order. Each
	// draws its own, so that neither clients nor guards change in step.
	LifeMin, LifeMax = 120, 270
	// fallbackLife is for how many days a guard is kept that was tried and never became the first.
	fallbackLife = 2 * LifeMax
	// DropAfter is after how many days in which no consensus listed it as a guard a relay leaves the sample.
	DropAfter = 20
	// ForgetAfter is after how many such days a guard that was tried does not count any more.
	ForgetAfter = 90
	// FewGuards may be tried in any network, and one after the other at once.
	FewGuards = 3
	// guardShare is which part of all guards may be tried, ever: one in five.
	guardShare = 5
	// MaxTried bounds that in large networks.
	MaxTried = 20
	// newPause is how long it takes until another guard may be tried when FewGuards fail; with each that fails beyond these
	// it doubles, up to maxNewPause. When so many fail, the fault is more likely on the way to all of them.
	newPause    = time.Hour
	maxNewPause = 24 * time.Hour
	// retryMin is how long a guard that fails is passed over; it doubles each time, up to retryMax, and varies by a quarter.
	retryMin = time.Minute
	retryMax = time.Hour
	// maxPathless bounds how many guards are looked at that leave no path to an exit, before one is drawn.
	maxPathless = 32
	// maxRecords bounds a state: the sample, and those that were tried and left it.
	maxRecords = maxSample + 2*MaxTried
)

// ErrGuardState is wrapped by what is wrong with a GuardState.
var ErrGuardState = errors.New("not a state of guards")

// ErrNoGuard says that no guard that the client may use is in the consensus.
var ErrNoGuard = errors.New("no guard")

// Day is a day (UTC), in days since 1970. Guards remember no times, so that a state tells little of when it was used. 0 stands
// for none.
type Day int32

// maxDay ends the year 9999.
const maxDay = 2932896

// DayOf returns the day of a time.
func DayOf(t time.Time) Day { return Day(min(max(t.Unix()/86400, 1), maxDay)) }

// Why a guard left the sample.
const (
	outExpired  = "expired"  // it has served its time
	outUnlisted = "unlisted" // no consensus has listed it for long
	outFailing  = "failing"  // too few circuits through it came about
)

// GuardRecord is what a client remembers of one guard.
type GuardRecord struct {
	Relay    identity.ID `json:"relay"`
	Sampled  Day         `json:"sampled"`            // when it was drawn
	Life     int         `json:"life_days"`          // LifeMin to LifeMax
	Tried    Day         `json:"tried,omitempty"`    // when a connection was first attempted
	First    Day         `json:"first,omitempty"`    // when it became the first in order that works
	Unlisted Day         `json:"unlisted,omitempty"` // since when it is not listed as a guard
	Out      string      `json:"out,omitempty"`      // why it left the sample
	Circuits int         `json:"circuits,omitempty"` // see bias.go
	Good     int         `json:"good,omitempty"`
}

// GuardState is what a client must keep across restarts, in the order of use.
type GuardState struct {
	Guards    []GuardRecord `json:"guards"`
	Abandoned Day           `json:"abandoned,omitempty"` // when one was last given up for failing circuits
}

// Check refuses what no Guards would have stored; errors wrap ErrGuardState.
func (s GuardState) Check() error {
	if len(s.Guards) > maxRecords {
		return fmt.Errorf("%w: %d guards, at most %d are kept", ErrGuardState, len(s.Guards), maxRecords)
	}
	day := func(d Day) bool { return d >= 0 && d <= maxDay }
	for i, r := range s.Guards {
		bad := ""
		switch {
		case r.Relay.IsZero():
			bad = "has no relay"
		case slices.ContainsFunc(s.Guards[:i], func(o GuardRecord) bool { return o.Relay == r.Relay }):
			bad = "is there twice"
		case r.Sampled < 1, !day(r.Sampled), !day(r.Tried), !day(r.First), !day(r.Unlisted):
			bad = "has a day that is none"
		case r.Life < LifeMin || r.Life > LifeMax:
			bad = "has a lifetime that is none"
		case r.Out != "" && r.Out != outExpired && r.Out != outUnlisted && r.Out != outFailing:
			bad = "left the sample for no known reason"
		case r.Tried == 0 && (r.First != 0 || r.Out != "" || r.Circuits != 0):
			bad = "was used and not tried"
		case r.Circuits < 0 || r.Good < 0 || r.Good > r.Circuits || r.Circuits > biasWindow:
			bad = "has impossible counts of circuits"
		}
		if bad != "" {
			return fmt.Errorf("%w: the guard at place %d %s", ErrGuardState, i+1, bad)
		}
	}
	if !day(s.Abandoned) {
		return fmt.Errorf("%w: a day that is none", ErrGuardState)
	}
	return nil
}

// Guards decides which first hop a client uses. It holds no connection and reads no clock: who uses it tells it what happened,
// and keeps its State. Its methods must not be called at the same time.
//
//	drawn ──▶ in the sample, in order ──(all before it fail, or left)──▶ tried ──▶ left: expired, unlisted, failing
//	  └────────────────(never tried, and expired or unlisted)──▶ forgotten             └─(no longer listed at all)─▶ forgotten
type Guards struct {
	list      []*member
	chooser   *Chooser // that the members' relays are of
	day       Day      // of the last Update
	abandoned Day
	lastNew   time.Time // when one was tried that was not before
	lastGood  time.Time // when any last worked
	trouble   time.Time // since when FewGuards fail and none has worked; zero otherwise
}

// member is a guard, and what need not survive a restart.
type member struct {
	GuardRecord
	relay   *directory.Relay // in the consensus, as a guard; nil when it is not
	unfit   bool             // out of reach of this machine, as of the last Update
	fails   int              // in a row; 0: it works, or nothing is known
	failed  time.Time        // the last time
	retry   time.Time        // when it may be tried again
	probing bool             // Due has returned it, and Note was not called since
}

// in reports whether m is in the sample.
func (m *member) in() bool { return m.Out == "" }

// NewGuards returns the guards of a state, which may be empty. Errors wrap ErrGuardState.
func NewGuards(s GuardState, now time.Time) (*Guards, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	g := &Guards{abandoned: s.Abandoned}
	for _, r := range s.Guards {
		if r.Tried != 0 {
			g.lastNew = now // a restart is no reason to hurry
		}
		g.list = append(g.list, &member{GuardRecord: r})
	}
	return g, nil
}

// State returns what must be kept.
func (g *Guards) State() GuardState {
	s := GuardState{Guards: make([]GuardRecord, len(g.list)), Abandoned: g.abandoned}
	for i, m := range g.list {
		s.Guards[i] = m.GuardRecord
	}
	return s
}

// Clone returns guards that can be asked, and change, without effect on g.
func (g *Guards) Clone() *Guards {
	c := *g
	c.list = make([]*member, len(g.list))
	for i, m := range g.list {
		copied := *m
		c.list[i] = &copied
	}
	return &c
}

// Limit is how many guards a client may try, ever: max(3, 20 %) of those that there are, and MaxTried at most.
func (c *Chooser) Limit() int { return min(max(FewGuards, c.guards/guardShare), MaxTried) }

// Update takes note of a consensus and a day: who is listed no more, whose time is over, who is drawn into the sample instead.
// Only those are drawn for which fits (if not nil) is true: that this machine can reach. It does nothing when neither consensus
// nor day are new. changed says that the State is another. Errors: no guard could be drawn, and there is none; or what rand
// returned.
func (g *Guards) Update(ch *Chooser, rand io.Reader, day Day, fits func(*directory.Relay) bool) (changed bool, err error) {
	if g.chooser == ch && g.day == day && len(g.list) > 0 {
		return false, nil
	}
	g.chooser, g.day = ch, day
	kept := g.list[:0]
	for _, m := range g.list {
		before := m.GuardRecord
		stays := g.age(m, fits)
		changed = changed || !stays || before != m.GuardRecord
		if stays {
			kept = append(kept, m)
		}
	}
	g.list = kept
	sample, fit := 0, 0
	for _, m := range g.list {
		if m.in() {
			sample++
			if !m.unfit {
				fit++
			}
		}
	}
	for ; fit < SampleSize && sample < maxSample && len(g.list) < maxRecords; fit, sample = fit+1, sample+1 {
		r, err := g.draw(rand, fits)
		if errors.Is(err, ErrNoPath) {
			if len(g.list) == 0 {
				return changed, err
			}
			return changed, nil // all that there are
		}
		if err != nil {
			return changed, err
		}
		life, err := drawLife(rand)
		if err != nil {
			return changed, err
		}
		g.list = append(g.list, &member{relay: r, GuardRecord: GuardRecord{Relay: r.Identity, Sampled: day, Life: life}})
		changed = true
	}
	return changed, nil
}

// drawLife draws for how many days a guard is kept.
func drawLife(rand io.Reader) (int, error) {
	x, err := uniform(rand, LifeMax-LifeMin+1)
	return LifeMin + int(x), err
}

// age brings one guard up to date, and reports whether it is still worth remembering.
func (g *Guards) age(m *member, fits func(*directory.Relay) bool) bool {
	// A clock that was ahead must not keep a guard for ever.
	for _, d := range []*Day{&m.Sampled, &m.Tried, &m.First, &m.Unlisted} {
		*d = min(*d, g.day)
	}
	m.relay = g.chooser.guardOf(m.Relay)
	if m.relay != nil {
		m.Unlisted = 0
		m.unfit = fits != nil && !fits(m.relay)
	} else if m.Unlisted == 0 {
		m.Unlisted = g.day
	}
	gone := 0
	if m.Unlisted != 0 {
		gone = int(g.day - m.Unlisted)
	}
	over := int(g.day-m.Sampled) >= m.Life
	if m.Tried != 0 {
		over = int(g.day-m.Tried) >= fallbackLife || m.First != 0 && int(g.day-m.First) >= m.Life
	}
	if m.in() && (over || gone >= DropAfter) {
		if m.Tried == 0 {
			return false
		}
		if m.Out = outUnlisted; over {
			m.Out = outExpired
		}
	}
	return m.in() || gone < ForgetAfter
}

// guardOf returns the entry of a relay that may be a guard, else nil.
func (c *Chooser) guardOf(id identity.ID) *directory.Relay {
	r, ok := c.consensus.Lookup(id)
	if !ok || !isGuard(r) {
		return nil
	}
	return r
}

// draw chooses a guard that was not drawn before, and from which there is a path to an exit.
func (g *Guards) draw(rand io.Reader, fits func(*directory.Relay) bool) (*directory.Relay, error) {
	var out []identity.ID
	var pathless error
	for range maxPathless {
		r, err := g.chooser.PickGuard(rand, func(r *directory.Relay) bool {
			return slices.ContainsFunc(g.list, func(m *member) bool { return m.Relay == r.Identity }) ||
				slices.Contains(out, r.Identity) || fits != nil && !fits(r)
		})
		if err != nil {
			if pathless != nil && errors.Is(err, ErrNoPath) {
				return nil, pathless
			}
			return nil, err
		}
		_, err = g.chooser.Pick(rand, Request{Guard: r, Exit: true})
		if !errors.Is(err, ErrNoPath) {
			return r, err
		}
		pathless = err
		out = append(out, r.Identity)
	}
	return nil, pathless
}

// tried counts the guards that count as tried.
func (g *Guards) tried() (n int) {
	for _, m := range g.list {
		if m.Tried != 0 {
			n++
		}
	}
	return n
}

// find returns the guard with this identity, or nil.
func (g *Guards) find(id identity.ID) *member {
	for _, m := range g.list {
		if m.Relay == id {
			return m
		}
	}
	return nil
}
