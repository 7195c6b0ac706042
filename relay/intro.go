package relay

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/work"
)

const (
	// introClaims is how many signatures of ESTABLISH_INTRO may wait to be verified:
	// at some 60 µs each, a sixtieth of a second. Who comes then is refused.
	introClaims = 256
	// spentProofs is how many proofs of work are remembered as used, twice: when so
	// many new ones have come, those before them are forgotten. Some 5 MB at most.
	spentProofs = 1 << 16
)

// introTable holds the services for which the relay is an introduction point. They are
// known by their introduction keys, and by nothing else.
type introTable struct {
	relay  *Relay
	claims chan *introPoint // to be verified

	mu     sync.Mutex // guards what follows; leaf
	points map[[32]byte]*introPoint
	held   int64 // of points, and of circuits that want to be one
	spent  spentWork

	passed, refused int64 // introductions
}

// introPoint is one circuit of a service.
type introPoint struct {
	key     [32]byte
	claim   cell.EstablishIntroBody
	handler *circuitHandler
	transit *circuit.Transit
	bucket  *rate.Limiter // what the service wants at most; nil: no limit
	ask     work.Ask      // guarded by introTable.mu
}

func newIntroTable(r *Relay) *introTable {
	return &introTable{relay: r, claims: make(chan *introPoint, introClaims), points: map[[32]byte]*introPoint{}}
}

// claim is called on a link's reader: it counts the circuit, and leaves the signature
// to run.
func (x *introTable) claim(h *circuitHandler, t *circuit.Transit, b cell.EstablishIntroBody) {
	p := &introPoint{key: b.Key, claim: b, handler: h, transit: t}
	if b.Rate > 0 {
		p.bucket = rate.NewLimiter(rate.Limit(b.Rate), int(max(b.Burst, 1)))
	}
	if !x.enter(p) {
		t.Close(cell.ReasonResource)
		return
	}
	select {
	case x.claims <- p:
	default:
		t.Close(cell.ReasonResource)
	}
}

// enter counts a circuit that wants to be one of a service, until leave.
func (x *introTable) enter(p *introPoint) bool {
	l := &x.relay.limits
	x.mu.Lock()
	defer x.mu.Unlock()
	h := p.handler
	if h.ctx.Err() != nil || x.held >= l.introPoints || h.near.intros >= l.nearIntroPoints {
		return false
	}
	x.held++
	h.near.intros++
	h.point = p
	return true
}

// leave forgets a circuit that has ended: h.ctx has.
func (x *introTable) leave(h *circuitHandler) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := h.point
	if p == nil {
		return
	}
	h.point = nil
	x.held--
	h.near.intros--
	if x.points[p.key] == p {
		delete(x.points, p.key)
	}
}

// run verifies claims, one after the other, until ctx ends.
func (x *introTable) run(ctx context.Context) {
	for {
		select {
		case p := <-x.claims:
			x.establish(p)
		case <-ctx.Done():
			return
		}
	}
}

// establish makes a circuit the one of its key when that key has signed this circuit's
// own secret: so nobody can take a key over, nor repeat a claim on another circuit.
// The circuit that was it before ends, which is how a service moves to a new one.
func (x *introTable) establish(p *introPoint) {
	c := &p.claim
	signed := onion.EstablishMessage(p.transit.Exporter(), c.Rate, c.Burst)
	if !identity.Verify(identity.ID(p.key), signed, c.Signature[:]) {
		p.transit.Close(cell.ReasonProtocol)
		return
	}
	x.mu.Lock()
	if p.handler.ctx.Err() != nil {
		x.mu.Unlock()
		return
	}
	before := x.points[p.key]
	x.points[p.key] = p
	x.mu.Unlock()
	if before != nil {
		before.transit.Close(cell.ReasonFinished)
	}
	// What comes before the answer is told that there is no such point: nobody can
	// know of it yet. An error is the end of the circuit.
	_ = p.transit.Answer(cell.IntroEstablished, nil)
}

// setWork notes what work the service wants from now on.
func (x *introTable) setWork(h *circuitHandler, b cell.IntroWorkBody) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h.point != nil {
		h.point.ask = work.Ask{Effort: b.Effort, Seed: b.Seed, Previous: b.Previous}
	}
}

// introduce passes an introduction on, or says why not. It is called on a link's
// reader: what costs least is looked at first, and all of it together takes a few
// microseconds, far less than the handshake of the circuit that it came on.
func (x *introTable) introduce(t *circuit.Transit, b *cell.IntroduceBody) {
	proof, err := work.Parse(b.Work[:])
	if err != nil {
		t.Close(cell.ReasonProtocol)
		return
	}
	status, effort, err := x.pass(&proof, b)
	if err != nil {
		t.Close(cell.ReasonProtocol)
		return
	}
	x.count(status)
	ack := cell.IntroduceAckBody{Status: status, Effort: effort}
	_ = t.Answer(cell.IntroduceAck, ack.AppendTo(nil)) // an error is the end of the circuit
}

// pass decides, and hands it to the service. An error is for a proof that nobody makes
// by mistake.
func (x *introTable) pass(proof *work.Proof, b *cell.IntroduceBody) (status cell.IntroduceStatus, effort uint32, err error) {
	x.mu.Lock()
	p := x.points[b.Key]
	var ask work.Ask
	if p != nil {
		ask = p.ask
	}
	x.mu.Unlock()
	if p == nil {
		return cell.IntroduceUnknown, 0, nil
	}
	switch err := ask.Check(proof, &b.Key, b.Sealed[:]); {
	case errors.Is(err, work.ErrMore), errors.Is(err, work.ErrSeed):
		return cell.IntroduceWork, max(ask.Effort, 1), nil
	case err != nil:
		return 0, 0, err
	}
	if proof.Effort > 0 {
		status = x.spend(p, b.Sealed[:])
	} else {
		status = p.take()
	}
	switch status {
	case cell.IntroducePassed:
	case cell.IntroduceWork:
		return status, max(ask.Effort, 1), nil
	default:
		return status, 0, nil
	}
	switch err := p.transit.Answer(cell.Introduced, b.AppendTo(make([]byte, 0, cell.IntroduceSize))); {
	case errors.Is(err, circuit.ErrFull):
		if proof.Effort > 0 {
			x.refund(b.Sealed[:])
		}
		return cell.IntroduceFull, 0, nil
	case err != nil:
		return cell.IntroduceUnknown, 0, nil
	}
	return cell.IntroducePassed, 0, nil
}

// take takes one from what the service wants at most.
func (p *introPoint) take() cell.IntroduceStatus {
	if p.bucket != nil && !p.bucket.AllowN(time.Now(), 1) {
		return cell.IntroduceFull
	}
	return cell.IntroducePassed
}

// spend is take for who has worked: one proof must not be good for many introductions,
// nor be lost to who has to try again because too many come just now.
func (x *introTable) spend(p *introPoint, sealed []byte) cell.IntroduceStatus {
	sum := work.SealedSum(sealed)
	key := [16]byte(sum[:])
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.spent.has(key) {
		return cell.IntroduceWork
	}
	status := p.take()
	if status == cell.IntroducePassed {
		x.spent.add(key)
	}
	return status
}

// refund forgets that work was used: the service did not get it.
func (x *introTable) refund(sealed []byte) {
	sum := work.SealedSum(sealed)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.spent.present, [16]byte(sum[:]))
	delete(x.spent.past, [16]byte(sum[:]))
}

func (x *introTable) count(status cell.IntroduceStatus) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if status == cell.IntroducePassed {
		x.passed++
	} else {
		x.refused++
	}
}

func (x *introTable) counts() (points, passed, refused int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return int64(len(x.points)), x.passed, x.refused
}

// spentWork is a bounded memory of what was used: at least the last spentProofs.
type spentWork struct {
	present, past map[[16]byte]struct{}
}

// has reports whether sum was added.
func (s *spentWork) has(sum [16]byte) bool {
	if _, used := s.present[sum]; used {
		return true
	}
	_, used := s.past[sum]
	return used
}

// add remembers sum.
func (s *spentWork) add(sum [16]byte) {
	if len(s.present) >= spentProofs {
		s.present, s.past = nil, s.present
	}
	if s.present == nil {
		s.present = map[[16]byte]struct{}{}
	}
	s.present[sum] = struct{}{}
}
