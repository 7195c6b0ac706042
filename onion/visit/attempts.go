package visit

import (
	"context"
	"errors"
	"slices"
	"time"

	"cepa/cell"
	"cepa/onion"
)

// attempts are the introductions of one meeting: one at a time, and a second one beside it when the service has been told and has
// not come for a while. The other one has a rendezvous of its own at another relay, and goes by another introduction point if there
// is one: what was lost on one way is not waited for. Who comes first is taken.
type attempts struct {
	meeting *meeting
	failed  context.CancelCauseFunc // of the meeting
	spare   *rendezvous             // made, and in no attempt; may be nil
}

// attempt is one introduction.
type attempt struct {
	point      *onion.Point
	rendezvous *rendezvous
	pause      time.Duration // before it

	session *session
	err     error
	over    bool
}

// rendezvous returns the one that is spare, or begins another. If none comes about, the meeting ends, unless another attempt may
// still succeed.
func (a *attempts) rendezvous(ctx context.Context, alone bool) *rendezvous {
	if r := a.spare; r != nil {
		a.spare = nil
		return r
	}
	failed := a.failed
	if !alone {
		failed = func(error) {}
	}
	return a.meeting.rendezvous(ctx, failed)
}

// keep keeps the rendezvous of an attempt that has ended for another one.
func (a *attempts) keep(r *rendezvous) {
	if a.spare == nil {
		a.spare = r
		return
	}
	r.abandon()
}

// end ends what is left.
func (a *attempts) end() {
	if a.spare != nil {
		a.spare.abandon()
	}
}

// introductions tries the points of a descriptor.
func (a *attempts) introductions(ctx context.Context, k known) (*session, error) {
	m := a.meeting
	v := m.visitor
	points, err := v.points(ctx, m.site, k)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	results, told := make(chan *attempt), make(chan *attempt, maxIntroductions)
	under := 0 // attempts under way
	defer func() {
		cancel()
		for ; under > 0; under-- {
			x := <-results
			if x.session != nil {
				x.session.circ.Close() // it came second
			}
			x.rendezvous.abandon()
		}
	}()
	failure := error(&Error{Reason: IntroductionFailed, Detail: "none of its introduction points is in the network"})
	begun, width, missed, busy := 0, 1, 0, 0
	pause, next := busyPause, time.Duration(0)
	hurry := time.NewTimer(hurryTime)
	hurry.Stop()
	defer hurry.Stop()
	for {
		for under < width && begun < maxIntroductions && len(points) > 0 && missed+under < maxRendezvous {
			x := &attempt{point: points[0], rendezvous: a.rendezvous(ctx, under == 0), pause: next}
			points, next = points[1:], 0
			begun++
			under++
			v.start(func() {
				sleep(ctx, x.pause)
				x.session, x.err = m.introduce(ctx, k, x.point, x.rendezvous, func() { told <- x })
				results <- x
			})
		}
		if under == 0 {
			return nil, failure
		}
		select {
		case x := <-told:
			if width == 1 && !x.over {
				hurry.Reset(hurryTime)
				points = appendNew(points, x.point) // for another attempt, after all others
			}
			continue
		case <-hurry.C:
			width = maxAttempts
			continue
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case x := <-results:
			under--
			x.over = true
			if x.err == nil {
				v.noteFailing(m.site, x.point.Key, false)
				return x.session, nil
			}
			failure = x.err
			if ctx.Err() != nil {
				x.rendezvous.abandon()
				return nil, context.Cause(ctx)
			}
			hurry.Stop()
			switch {
			case errors.Is(x.err, cell.IntroduceFull):
				a.keep(x.rendezvous)
				if points, busy = append(points, x.point), busy+1; busy%len(points) == 0 {
					next = pause
					pause *= 2
				}
			case errors.Is(x.err, RendezvousFailed), x.rendezvous.lost():
				// The service was told of that rendezvous point, or it is lost: another one is needed, and another introduction point
				// does no harm.
				missed++
				x.rendezvous.abandon()
				points = appendNew(points, x.point)
			case errors.Is(x.err, errOldSeed) && !k.fresh:
				a.keep(x.rendezvous)
				points = nil // the same would come of all of them
			case errors.Is(x.err, cell.IntroduceUnknown) && !k.fresh:
				// The service has left it, and others perhaps too: what it says now is to be seen first.
				a.keep(x.rendezvous)
				v.noteFailing(m.site, x.point.Key, true)
				return nil, failure
			default:
				a.keep(x.rendezvous)
				v.noteFailing(m.site, x.point.Key, true)
			}
		}
	}
}

// appendNew appends a point that is not among them.
func appendNew(points []*onion.Point, p *onion.Point) []*onion.Point {
	if slices.Contains(points, p) {
		return points
	}
	return append(points, p)
}
