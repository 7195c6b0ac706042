package visit

import (
	"context"
	"errors"
	"slices"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/onion"
)

// How meetings go; ours.
const (
	// maxIntroductions is how many introductions one descriptor is good for.
	maxIntroductions = 6
	// maxRendezvous is how many rendezvous circuits may fail in a row, and at how many points one descriptor has the client wait.
	maxRendezvous = 3
	// maxAttempts is how many introductions are under way at a time, and hurryTime after how long a second one is: many times what
	// a service takes to come as a rule, and a fraction of joinTime, which a user would wait for when something is lost on the way.
	maxAttempts = 2
	hurryTime   = 4 * time.Second
	// pointTime is how long a circuit to an introduction point and its answer may take; joinTime is how long a service may take to
	// come after an introduction was passed on.
	pointTime = 30 * time.Second
	joinTime  = 20 * time.Second
	// busyPause is how long a client waits when all introduction points have too much to do; twice as long each time.
	busyPause = 500 * time.Millisecond
	// failTime is how long an introduction point that has failed is tried after all others, and maxFailing how many are remembered.
	failTime   = 2 * time.Minute
	maxFailing = 64
	// maxAsks is how often another descriptor is asked for in one meeting, when points say that they are none of the service any
	// more, as after its restart; askPause is how long each time but the first.
	maxAsks  = 4
	askPause = 500 * time.Millisecond
)

// meeting makes one session. Those who want it wait for done.
type meeting struct {
	visitor *Visitor
	site    *site
	done    chan struct{} // closed when one of these is set
	session *session
	err     error
}

// run makes the session and tells who waits.
func (m *meeting) run() {
	v := m.visitor
	ctx, cancel := context.WithTimeoutCause(v.ctx, meetTime, &Error{Reason: TimedOut, cause: context.DeadlineExceeded})
	defer cancel()
	s, err := m.make(ctx)
	if err != nil && ctx.Err() != nil {
		if err = context.Cause(ctx); v.ctx.Err() != nil {
			err = ErrClosed
		}
	}
	v.mu.Lock()
	m.session, m.err = s, err
	m.site.meeting = nil
	v.making--
	closed := v.closed
	if s != nil && !closed {
		s.used = time.Now()
		m.site.session = s
		if v.sites[m.site.siteKey] != m.site {
			v.retired[s] = struct{}{} // forgotten meanwhile: for those who wait, and nobody else
		}
	}
	v.mu.Unlock()
	if s != nil && closed {
		s.circ.Close()
		m.session, m.err = nil, ErrClosed
	}
	close(m.done)
}

// make makes the session: the rendezvous circuit and the descriptor at the same time, then introductions (attempts.go).
func (m *meeting) make(ctx context.Context) (*session, error) {
	v := m.visitor
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &attempts{meeting: m, failed: cancel, spare: m.rendezvous(ctx, cancel)}
	defer a.end()
	k, err := v.descriptor(ctx, m.site, false)
	if err != nil {
		return nil, err
	}
	for asked := 0; ; {
		s, err := a.introductions(ctx, k)
		if err == nil || ctx.Err() != nil {
			return s, err
		}
		// The service may have other introduction points by now.
		gone := errors.Is(err, cell.IntroduceUnknown)
		for again := true; again; {
			if k.fresh && !gone || asked == maxAsks {
				return nil, err
			}
			if k.fresh {
				sleep(ctx, askPause)
			}
			asked++
			next, failure := v.descriptor(ctx, m.site, true)
			if failure != nil {
				return nil, failure
			}
			same := next.period == k.period && samePoints(next.descriptor, k.descriptor)
			rest := gone && !k.fresh && v.untried(m.site, next.descriptor)
			k = next
			k.again = same
			again = same && !rest
			if again && !gone {
				return nil, err
			}
		}
	}
}

// untried reports whether a descriptor has points that have not failed lately.
func (v *Visitor) untried(st *site, d *onion.Descriptor) bool {
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.ContainsFunc(d.Points, func(p onion.Point) bool { return !now.Before(st.failing[p.Key]) })
}

// samePoints reports whether a descriptor leads to no other introduction points than another one, under the same keys and for the
// same work.
func samePoints(d, before *onion.Descriptor) bool {
	for i := range d.Points {
		if !slices.ContainsFunc(before.Points, func(p onion.Point) bool { return p == d.Points[i] }) {
			return false
		}
	}
	return true
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// points returns the introduction points that the network knows, in random order, those last that have failed lately, or not at
// all when they were tried for the present meeting.
func (v *Visitor) points(ctx context.Context, st *site, k known) ([]*onion.Point, error) {
	d := k.descriptor
	cons, err := v.cfg.Network.Consensus(ctx)
	if err != nil {
		return nil, err
	}
	var good, bad []*onion.Point
	now := time.Now()
	v.mu.Lock()
	for i := range d.Points {
		p := &d.Points[i]
		if _, ok := cons.Lookup(p.Relay); !ok {
			continue
		}
		if until, ok := st.failing[p.Key]; ok && now.Before(until) {
			bad = append(bad, p)
		} else {
			good = append(good, p)
		}
	}
	v.mu.Unlock()
	for _, list := range [][]*onion.Point{good, bad} {
		if err := v.shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] }); err != nil {
			return nil, err
		}
	}
	if k.again {
		return good, nil
	}
	return append(good, bad...), nil
}

// noteFailing remembers whether an introduction point works.
func (v *Visitor) noteFailing(st *site, key identity.ID, failing bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !failing {
		delete(st.failing, key)
		return
	}
	if len(st.failing) >= maxFailing {
		clear(st.failing)
	}
	st.failing[key] = time.Now().Add(failTime)
}

// introduce has one point pass an introduction on and waits for the service at the rendezvous point. passed is called when it was
// passed on without work.
func (m *meeting) introduce(ctx context.Context, k known, p *onion.Point, r *rendezvous, passed func()) (*session, error) {
	v := m.visitor
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	way := v.toPoint(ctx, p.Relay)
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	in, err := onion.Introduce(onion.Binding{Address: m.site.address, Blinded: k.blinded, Period: k.period, Key: p.Key}, p.Seal, r.cookie, r.relay, v.cfg.Rand)
	if err != nil {
		return nil, &Error{Reason: DescriptorInvalid, cause: err}
	}
	wanted := p.Effort // and then what the point says
	for attempt := 0; ; attempt++ {
		proof, done, err := v.prove(ctx, p, in.Sealed(), wanted, attempt)
		if err != nil {
			return nil, err
		}
		asked := make(chan outcome[cell.IntroduceAckBody], 1)
		v.start(func() {
			ack, err := way.introduce(ctx, p.Key, proof, in.Sealed())
			asked <- outcome[cell.IntroduceAckBody]{ack, err}
		})
		told := passed
		if wanted > 0 {
			told = func() {} // it has much to do, and takes those first that have done most
		}
		reply, ack, err := r.meet(ctx, asked, told)
		if err != nil {
			return nil, err
		}
		if reply != nil {
			return m.join(k.descriptor, r, in, reply)
		}
		if ack.Status == cell.IntroduceWork && wanted > 0 && ack.Effort <= done {
			return nil, &Error{Reason: IntroductionFailed, Detail: "its work has another seed by now", cause: errOldSeed}
		}
		if ack.Status != cell.IntroduceWork || attempt+1 == maxProofs {
			return nil, &Error{Reason: IntroductionFailed, Detail: ack.Status.Error(), cause: ack.Status}
		}
		wanted = ack.Effort
		way = v.toPoint(ctx, p.Relay) // a circuit is good for one introduction
	}
}

// join makes a session of the circuit to the rendezvous point.
func (m *meeting) join(d *onion.Descriptor, r *rendezvous, in *onion.Introducer, reply []byte) (*session, error) {
	keys, first, err := in.Finish(reply, m.visitor.cfg.Rand)
	if err != nil {
		return nil, &Error{Reason: RendezvousFailed, Detail: "who came is not the service", cause: err}
	}
	mux, err := r.circ.Join(circuit.JoinConfig{Suite: layer.Suite(d.Suite), Forward: keys.Forward, Backward: keys.Backward}, first)
	if err != nil {
		return nil, &Error{Reason: RendezvousFailed, cause: err}
	}
	s := &session{circ: r.circ, mux: mux}
	r.taken = true
	return s, nil
}

// way is a circuit to an introduction point that is being built.
type way struct {
	done chan struct{} // closed when one of these is set
	circ circ
	err  error
}

// toPoint begins to build a circuit to an introduction point, which ends with ctx.
func (v *Visitor) toPoint(ctx context.Context, relay identity.ID) *way {
	w := &way{done: make(chan struct{})}
	v.start(func() {
		timed, cancel := context.WithTimeout(ctx, pointTime)
		defer cancel()
		w.circ, w.err = v.open(timed, relay, true)
		close(w.done)
		if w.err == nil {
			<-ctx.Done()
			w.circ.Close()
		}
	})
	return w
}

// introduce sends an introduction and returns the answer.
func (w *way) introduce(ctx context.Context, key identity.ID, proof [cell.WorkSize]byte, sealed []byte) (cell.IntroduceAckBody, error) {
	select {
	case <-w.done:
	case <-ctx.Done():
		return cell.IntroduceAckBody{}, ctx.Err()
	}
	if w.err != nil {
		return cell.IntroduceAckBody{}, &Error{Reason: IntroductionFailed, Detail: "an introduction point was not reached", cause: w.err}
	}
	ctx, cancel := context.WithTimeout(ctx, pointTime)
	defer cancel()
	body := cell.IntroduceBody{Key: key, Work: proof, Sealed: [cell.SealedSize]byte(sealed)}
	b, err := w.circ.Introduce(ctx, body.AppendTo(nil))
	if err != nil {
		return cell.IntroduceAckBody{}, &Error{Reason: IntroductionFailed, Detail: "an introduction point did not answer", cause: err}
	}
	ack, err := cell.ParseIntroduceAck(b)
	if err != nil {
		return ack, &Error{Reason: IntroductionFailed, cause: err}
	}
	return ack, nil
}

// start runs f in a goroutine that Close waits for. It is called by what Close waits for already.
func (v *Visitor) start(f func()) {
	v.wg.Add(1)
	go func() {
		defer v.wg.Done()
		f()
	}()
}
