package path

import (
	"fmt"
	"io"
	"slices"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// Next returns the guard to use, of those for which use (if not nil) is true:
//
//  1. the first in order that was tried and does not fail;
//  2. else, of those that fail and may be tried again by now, the one whose last attempt is longest ago;
//  3. else one that was not tried yet, or one that served before and left the sample, if there may be one: the limit allows it,
//     and fewer than FewGuards fail, or for long enough;
//  4. else, of those that fail, the one whose last attempt is longest ago.
//
// Whoever is about to connect to a guard for which Tried is false calls Start, and stores the State, before. Next returns nil
// when use refuses all. The error wraps ErrNoGuard: nobody that may be used is listed. Update comes before the first Next.
func (g *Guards) Next(now time.Time, use func(*directory.Relay) bool) (*directory.Relay, error) {
	var oldest, due *member
	listed, failing := false, 0
	for _, m := range g.list {
		if !m.in() || m.relay == nil || m.Tried == 0 {
			continue
		}
		listed = true
		if m.fails > 0 {
			failing++
		}
		if use != nil && !use(m.relay) {
			continue
		}
		if m.fails == 0 {
			return m.relay, nil
		}
		if oldest == nil || m.failed.Before(oldest.failed) {
			oldest = m
		}
		if !now.Before(m.retry) && (due == nil || m.failed.Before(due.failed)) {
			due = m
		}
	}
	if due != nil {
		return due.relay, nil
	}
	if m := g.another(use); m != nil && (failing < FewGuards || g.waited(now, failing)) {
		return m.relay, nil
	}
	if !listed && g.another(nil) == nil {
		return nil, fmt.Errorf("%w: none of the %d guards that this client may use is in the consensus", ErrNoGuard, g.tried())
	}
	if oldest == nil {
		return nil, nil
	}
	return oldest.relay, nil
}

// waited reports whether another guard may be tried although FewGuards or more fail: the pause for so many has passed, since the
// last new one and since it has been so many.
func (g *Guards) waited(now time.Time, failing int) bool {
	pause := min(newPause<<min(failing-FewGuards, 10), maxNewPause)
	return now.Sub(g.lastNew) >= pause && !g.trouble.IsZero() && now.Sub(g.trouble) >= pause
}

// another returns the guard that comes next when those in the sample that were tried do not serve: one not tried yet, within
// the limit; else one that served before. It returns nil when there is none.
func (g *Guards) another(use func(*directory.Relay) bool) (back *member) {
	room := g.tried() < g.chooser.Limit()
	for _, m := range g.list {
		switch {
		case m.relay == nil, use != nil && !use(m.relay):
		case m.in() && m.Tried == 0 && room:
			return m
		case (m.Out == outExpired || m.Out == outUnlisted) && back == nil:
			back = m
		}
	}
	return back
}

// Tried reports whether a guard may be connected to without Start.
func (g *Guards) Tried(id identity.ID) bool {
	m := g.find(id)
	return m != nil && m.in() && m.Tried != 0
}

// Start notes that a guard that Next returned is about to be tried for the first time, or again after it had left the sample.
// undo takes that back, for when it cannot be stored: then the guard must not be used.
func (g *Guards) Start(rand io.Reader, id identity.ID, now time.Time) (undo func(), err error) {
	m := g.find(id)
	if m == nil {
		return nil, fmt.Errorf("path: guard %s was not drawn", id.Short())
	}
	// Drawn anew: of those that were in the sample for long, the ones with short lives are not there any more.
	life, err := drawLife(rand)
	if err != nil {
		return nil, err
	}
	list, record, lastNew := slices.Clone(g.list), m.GuardRecord, g.lastNew
	if !m.in() {
		// It starts anew, behind all others.
		m.GuardRecord = GuardRecord{Relay: id, Sampled: g.day, Unlisted: m.Unlisted}
		g.list = append(slices.DeleteFunc(g.list, func(o *member) bool { return o == m }), m)
	}
	m.Life, m.Tried, g.lastNew = life, g.day, now
	return func() { g.list, m.GuardRecord, g.lastNew = list, record, lastNew }, nil
}

// Note says whether a guard did its work: it answers and takes circuits. Network failures that are this machine's alone are not
// to be noted. changed says that the State is another.
func (g *Guards) Note(rand io.Reader, id identity.ID, worked bool, now time.Time) (changed bool) {
	m := g.find(id)
	if m == nil {
		return false
	}
	m.probing = false
	if !worked {
		// Failures side by side, or ahead of time, are one.
		if m.fails == 0 || !now.Before(m.retry) {
			m.fails++
			m.retry = now.Add(backoff(rand, m.fails))
		}
		m.failed = now
		if g.trouble.IsZero() && g.failing() >= FewGuards {
			g.trouble = now
		}
		return false
	}
	back := m.fails > 0 && m.failed.After(g.lastGood)
	m.fails = 0
	for _, o := range g.list {
		// Nothing worked for a while, and what had failed works again: so the network was down, and whoever failed meanwhile
		// deserves another look.
		if back && o.fails > 0 && o.failed.After(g.lastGood) {
			o.fails, o.retry = 1, now
		}
	}
	g.lastGood, g.trouble = now, time.Time{}
	if m.First == 0 && m.Tried != 0 && m == g.first() {
		m.First = g.day
		return true
	}
	return false
}

// failing counts the guards that could be used and fail.
func (g *Guards) failing() (n int) {
	for _, m := range g.list {
		if m.in() && m.relay != nil && m.fails > 0 {
			n++
		}
	}
	return n
}

// first returns the first guard in order that was tried and could be used now, whether it works or not.
func (g *Guards) first() *member {
	for _, m := range g.list {
		if m.in() && m.relay != nil && m.Tried != 0 && !m.unfit {
			return m
		}
	}
	return nil
}

// Due returns guards that fail, come before the one in use, and should be tried again now: apart from anything that waits, and
// then noted. It returns none when all fail: then Next returns them.
func (g *Guards) Due(now time.Time) (due []*directory.Relay) {
	works := slices.IndexFunc(g.list, func(m *member) bool {
		return m.in() && m.relay != nil && m.Tried != 0 && m.fails == 0 && !m.unfit
	})
	for i := 0; i < works; i++ {
		if m := g.list[i]; m.in() && m.relay != nil && m.fails > 0 && !m.probing && !now.Before(m.retry) {
			m.probing = true
			due = append(due, m.relay)
		}
	}
	return due
}

// backoff is how long a guard is passed over that fails for the n-th time. If rand gives nothing, it does not vary.
func backoff(rand io.Reader, n int) time.Duration {
	d := min(retryMin<<min(n-1, 10), retryMax)
	if x, err := uniform(rand, uint64(d/2)); err == nil {
		return d*3/4 + time.Duration(x)
	}
	return d
}

// GuardStatus is what people are told of a guard.
type GuardStatus struct {
	GuardRecord
	Nickname string `json:"nickname,omitempty"`
	// State is one of the sentences of Guards.Status, and Failed how often it failed in a row.
	State  string `json:"state"`
	Failed int    `json:"failed,omitempty"`
}

// Status lists the sample in order, and what was tried and left it, with what there is to say of each.
func (g *Guards) Status(now time.Time) []GuardStatus {
	all := make([]GuardStatus, 0, len(g.list))
	inUse := false
	for _, m := range g.list {
		s := GuardStatus{GuardRecord: m.GuardRecord, Failed: m.fails}
		if m.relay != nil {
			s.Nickname = m.relay.Nickname
		}
		switch {
		case m.Out == outExpired:
			s.State = "has served its time"
		case m.Out == outUnlisted:
			s.State = "left: not listed for long"
		case m.Out == outFailing:
			s.State = "given up: too few circuits came about"
		case m.relay == nil:
			s.State = "not listed as a guard now"
		case m.unfit:
			s.State = "out of reach of this machine"
		case m.fails > 0:
			s.State = fmt.Sprintf("fails; tried again in %v", max(m.retry.Sub(now), 0).Round(time.Second))
		case m.Tried != 0 && !inUse:
			s.State, inUse = "in use", true
		case m.Tried != 0:
			s.State = "tried; used when those before it fail"
		default:
			s.State = "not tried"
		}
		all = append(all, s)
	}
	return all
}
