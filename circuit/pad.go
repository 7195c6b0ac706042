package circuit

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"cepa/cell"
)

// This file is the padding of a circuit's setup (doc/spec.md section 5): after its
// last hop an Origin goes on as if there were more, so that how a circuit begins
// does not tell how long it is nor what it is for. To everybody before the last
// relay, an exchange of padding looks like the one that adds a hop:
//
//	EXTEND         →           PAD_NEGOTIATE  →
//	               ←  ACK                     ←  DROP, after the first delay
//	               ←  EXTENDED                ←  DROP, after the second
//	ACK            →           DROP           →

// maxPadExchanges is how many exchanges of padding a relay takes on a circuit: as
// many as a circuit can have hops. A DROP back costs the origin one cell out, so
// that there is nothing to amplify; this bounds the rest.
const maxPadExchanges = cell.MaxHops

// MaxPadCells is how many cells each way PadSetup can make alike.
const MaxPadCells = 2 * maxPadExchanges

// padWait is the exchange that an Origin waits for.
type padWait struct {
	left  int           // DROPs to come, guarded by Origin.mu
	first time.Time     // when the first came, likewise
	all   chan struct{} // closed when none is left
}

// PadSetup goes on with exchanges of padding as if more hops were added, until
// each side has sent cells cells, and waits for the end of the last one. It is for
// a circuit that has all its hops and no streams yet, with two hops or more, whose
// OnClose will hear of the end like that of Extend: after an error other than a
// wrong call the circuit is destroyed. steps is where it learns how long its
// exchanges should take, and tells what it has seen.
func (o *Origin) PadSetup(ctx context.Context, cells int, steps *Steps) error {
	hops := *o.hops.Load()
	n := min(cells, MaxPadCells)/2 - (len(hops) - 1)
	if n <= 0 {
		return nil
	}
	if len(hops) < 2 {
		return errors.New("circuit: PadSetup of a circuit of one hop")
	}
	last, before := hops[len(hops)-1], hops[len(hops)-2]
	near := before.RTT()
	own := step{gap: last.took - near}
	lead := time.Duration(0)
	for i := range n {
		s, mine, err := steps.draw(o.cfg.Rand, own)
		if err != nil {
			o.destroy(cell.ReasonResource, fmt.Errorf("%w: %w", ErrDestroyed, err))
			return o.Err()
		}
		took, err := o.exchange(ctx, last, cell.PadBody{First: lead, Second: s.gap})
		if err != nil {
			return err
		}
		if i == 0 {
			own.further = took - near
			steps.add(own)
			if mine && own.gap > 0 { // drawn before this was known
				s.further = time.Duration(float64(own.further) * float64(s.gap) / float64(own.gap))
			}
		}
		lead += max(0, s.further)
	}
	return nil
}

// exchange does one exchange with the last hop and returns when the first answer
// came.
func (o *Origin) exchange(ctx context.Context, h *hop, b cell.PadBody) (time.Duration, error) {
	p := &padWait{left: 2, all: make(chan struct{})}
	busy := h.mux.Len() > 0 // before mu, as in reserve
	o.mu.Lock()
	if o.err != nil {
		defer o.mu.Unlock()
		return 0, o.err
	}
	if o.pending != nil || o.padding != nil || busy || o.role != noRole || h.pos != o.Len() {
		o.mu.Unlock()
		return 0, errors.New("circuit: PadSetup of a circuit that is extended, padded or carries streams")
	}
	o.padding = p
	o.mu.Unlock()
	asked := time.Now()
	if err := h.Send(cell.PadNegotiate, 0, b.AppendTo(make([]byte, 0, cell.PadSize))); err != nil {
		return 0, err
	}
	h.Kick()
	select {
	case <-p.all:
	case <-o.done:
		return 0, o.Err()
	case <-ctx.Done():
		err := fmt.Errorf("circuit: padding: %w", ctx.Err())
		o.destroy(cell.ReasonFinished, err)
		return 0, err
	}
	o.mu.Lock()
	o.padding = nil
	first := p.first
	o.mu.Unlock()
	if err := h.Send(cell.Drop, 0, nil); err != nil {
		return 0, err
	}
	h.Kick()
	return first.Sub(asked), nil
}

// dropped takes DROP.
func (o *Origin) dropped(payload []byte) error {
	if err := cell.ParseDrop(payload); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.padding
	if p == nil || p.left == 0 {
		return fmt.Errorf("%w: DROP that was not asked for", ErrProtocol)
	}
	if p.left--; p.left > 0 {
		p.first = time.Now()
		return nil
	}
	close(p.all)
	return nil
}

// step is how an EXTEND behind the first hop looked from here.
type step struct {
	gap     time.Duration // from its ACK to its answer
	further time.Duration // how much later the new hop answers than the one before
}

// maxSteps is how many a Steps remembers.
const maxSteps = 64

// Steps remembers how long hops took to add, for the padding of later circuits:
// what is to look like an EXTEND should take as long as one. The zero value is
// ready. It is safe for concurrent use.
type Steps struct {
	mu   sync.Mutex
	all  []step // a ring, once it is full
	next int
}

func (s *Steps) add(x step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) < maxSteps {
		s.all = append(s.all, x)
		return
	}
	s.all[s.next] = x
	s.next = (s.next + 1) % maxSteps
}

// stepNoise is by how much a step that is drawn is made longer or shorter at
// most, in percent: the last relay reads the delays, and the same ones at two
// relays would tell that two circuits are of one client.
const stepNoise = 10

// draw returns one of the steps, or own: with the same chance each, and noise.
func (s *Steps) draw(random io.Reader, own step) (drawn step, mine bool, err error) {
	if random == nil {
		random = rand.Reader
	}
	var b [8]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return step{}, false, fmt.Errorf("circuit: drawing the time of padding: %w", err)
	}
	s.mu.Lock()
	i := int(binary.BigEndian.Uint32(b[:]) % uint32(len(s.all)+1))
	if mine = i == len(s.all); !mine {
		own = s.all[i]
	}
	s.mu.Unlock()
	// Both by as much: that the one follows from the other can be seen.
	permille := 1000 - 10*stepNoise + time.Duration(binary.BigEndian.Uint32(b[4:])%(20*stepNoise+1))
	return step{own.gap * permille / 1000, own.further * permille / 1000}, mine, nil
}

// padding is a relay's side of it, guarded by Transit.mu.
type padding struct {
	exchanges int  // so far
	active    bool // one is under way
	left      int  // DROPs that it has still to send
	second    time.Duration
	timer     *time.Timer // runs out when the next is due
}

func (p *padding) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// padNegotiate takes PAD_NEGOTIATE.
func (t *Transit) padNegotiate(payload []byte) error {
	b, err := cell.ParsePadNegotiate(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	busy := t.mux.Len() > 0 // before mu, as in extend
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &t.pad
	switch {
	case t.err != nil:
		return t.err
	case t.state != alone || busy || p.active:
		return fmt.Errorf("%w: PAD_NEGOTIATE of a circuit that is extended, padded or carries streams", ErrProtocol)
	case p.exchanges == maxPadExchanges:
		return fmt.Errorf("%w: more than %d PAD_NEGOTIATE", ErrProtocol, maxPadExchanges)
	}
	p.exchanges++
	p.active, p.left, p.second = true, 2, b.Second
	return t.padLocked(b.First)
}

// padLocked sends what is due of the DROPs, of which the next is after wait.
func (t *Transit) padLocked(wait time.Duration) error {
	p := &t.pad
	for p.left > 0 {
		if wait > 0 {
			p.timer = time.AfterFunc(wait, t.padDue)
			return nil
		}
		p.left--
		if err := t.sendLocked(cell.Drop, 0, nil); err != nil {
			return err
		}
		wait = p.second
	}
	return nil
}

// padDue is called by the timer, on a goroutine that waits for nothing.
func (t *Transit) padDue() {
	t.mu.Lock()
	if t.err == nil {
		// A send that failed has ended the circuit.
		p := &t.pad
		p.left--
		if t.sendLocked(cell.Drop, 0, nil) == nil {
			_ = t.padLocked(p.second)
		}
	}
	t.mu.Unlock()
	t.cfg.Prev.Kick()
}

// padDone takes DROP, with which the origin ends an exchange.
func (t *Transit) padDone(payload []byte) error {
	if err := cell.ParseDrop(payload); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := &t.pad; !p.active || p.left > 0 {
		return fmt.Errorf("%w: DROP that ends no padding", ErrProtocol)
	}
	t.pad.active = false
	return nil
}
