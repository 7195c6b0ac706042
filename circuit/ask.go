package circuit

import (
	"context"
	"errors"
	"fmt"

	"cepa/cell"
)

// This file is what an Origin asks of its last hop for onion services (doc/spec.md
// section 5). A circuit has one role: what takes one can neither be extended, nor
// padded, nor carry streams to its last hop from then on. All of it needs two hops
// or more, as a relay that sees the client itself refuses.

// originRole is what a circuit is for, guarded by Origin.mu.
//
//	noRole -> roleAsked (ESTABLISH_INTRO) -> roleIntroduction
//	       -> roleAsked (INTRODUCE), which is all
//	       -> roleAsked (ESTABLISH_RENDEZVOUS) -> roleWaiting -> roleReplied (JOINED) -> roleJoined
//	       -> roleMeeting (RENDEZVOUS) -> roleJoined
type originRole uint8

const (
	noRole originRole = iota
	roleAsked
	roleIntroduction
	roleWaiting
	roleReplied
	roleMeeting
	roleJoined
)

// question is what an Origin waits for an answer to: one at a time.
type question struct {
	want     cell.MessageCommand // EXTENDED stands for CREATED and EXTEND_FAILED too
	answered bool                // guarded by Origin.mu
	reply    chan []byte         // depth 1: the one answer, or
	fail     chan error          // depth 1: why there is none
}

func newQuestion(want cell.MessageCommand) *question {
	return &question{want: want, reply: make(chan []byte, 1), fail: make(chan error, 1)}
}

// EstablishIntro makes the last hop an introduction point: payload is that of
// ESTABLISH_INTRO. From its answer on, which may be before EstablishIntro has
// returned, introduced is called with the payload of each INTRODUCED, on the link's
// reader: it must not wait, and not keep the payload. After an error other than a
// wrong call, a ctx that ended included, the circuit is destroyed.
func (o *Origin) EstablishIntro(ctx context.Context, payload []byte, introduced func(payload []byte)) error {
	if _, err := cell.ParseEstablishIntro(payload); err != nil {
		return fmt.Errorf("circuit: %w", err)
	}
	_, err := o.ask(ctx, cell.EstablishIntro, payload, cell.IntroEstablished, func() { o.introduced = introduced })
	return err
}

// IntroWork tells the introduction point which proof of work to ask for: payload is
// that of INTRO_WORK.
func (o *Origin) IntroWork(payload []byte) error {
	if _, err := cell.ParseIntroWork(payload); err != nil {
		return fmt.Errorf("circuit: %w", err)
	}
	o.mu.Lock()
	if o.err == nil && o.role != roleIntroduction {
		o.mu.Unlock()
		return errors.New("circuit: INTRO_WORK on a circuit that has no introduction point")
	}
	hops := *o.hops.Load()
	err := o.sendLocked(hops[len(hops)-1], cell.IntroWork, 0, payload)
	if err != nil {
		o.failed(err)
	}
	o.mu.Unlock()
	if err == nil {
		o.out.Kick()
	}
	return err
}

// Introduce asks the last hop, an introduction point, to pass an introduction on:
// payload is that of INTRODUCE. ack is the payload of INTRODUCE_ACK. A circuit is
// good for one. After an error other than a wrong call the circuit is destroyed.
func (o *Origin) Introduce(ctx context.Context, payload []byte) (ack []byte, err error) {
	if _, err := cell.ParseIntroduce(payload); err != nil {
		return nil, fmt.Errorf("circuit: %w", err)
	}
	return o.ask(ctx, cell.Introduce, payload, cell.IntroduceAck, nil)
}

// EstablishRendezvous makes the last hop a rendezvous point that knows this circuit
// by cookie. The channel, of depth 1, gets the reply of JOINED when the service has
// come; it stays silent when the circuit ends before (see Done). After an error
// other than a wrong call the circuit is destroyed.
func (o *Origin) EstablishRendezvous(ctx context.Context, cookie []byte) (joined <-chan []byte, err error) {
	if _, err := cell.ParseEstablishRendezvous(cookie); err != nil {
		return nil, fmt.Errorf("circuit: %w", err)
	}
	reply := make(chan []byte, 1)
	_, err = o.ask(ctx, cell.EstablishRendezvous, cookie, cell.RendezvousEstablished, func() { o.joinReply = reply })
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// ask sends one message that gives the circuit its role, and waits for the answer.
// set is called before it is sent, under mu.
func (o *Origin) ask(ctx context.Context, cmd cell.MessageCommand, payload []byte, want cell.MessageCommand, set func()) ([]byte, error) {
	q := newQuestion(want)
	err := o.takeRole(cmd, payload, roleAsked, func() {
		o.pending = q
		if set != nil {
			set()
		}
	})
	if err != nil {
		return nil, err
	}
	o.out.Kick()
	select {
	case reply := <-q.reply:
		return reply, nil
	case <-o.done:
		return nil, o.Err()
	case <-ctx.Done():
		err := fmt.Errorf("circuit: %s: %w", cmd, ctx.Err())
		o.destroy(cell.ReasonFinished, err)
		return nil, err
	}
}

// takeRole sends the message that gives the circuit a role. The circuit lives on
// after an error that is about the call alone.
func (o *Origin) takeRole(cmd cell.MessageCommand, payload []byte, role originRole, set func()) error {
	mux := o.Mux() // before mu, as in reserve
	busy := mux != nil && mux.Len() > 0
	o.mu.Lock()
	hops := *o.hops.Load()
	var err error
	switch {
	case o.err != nil:
		err = o.err
	case o.out == nil || len(hops) < 2:
		err = fmt.Errorf("circuit: %s on a circuit of less than two hops", cmd)
	case o.pending != nil || o.padding != nil || o.role != noRole || busy:
		err = fmt.Errorf("circuit: %s on a circuit that has a role, is being extended or padded, or carries streams", cmd)
	case len(payload) > cell.Room(hops[len(hops)-1].index):
		err = fmt.Errorf("circuit: %s does not fit at hop %d", cmd, len(hops))
	}
	if err != nil {
		o.mu.Unlock()
		return err
	}
	o.role = role
	set()
	err = o.sendLocked(hops[len(hops)-1], cmd, 0, payload)
	o.mu.Unlock()
	if err != nil {
		o.destroy(cell.ReasonResource, fmt.Errorf("%w: %s: %w", ErrDestroyed, cmd, err))
		return o.Err()
	}
	return nil
}

// answer takes an answer of the last hop to what gave the circuit its role.
func (o *Origin) answer(m cell.Message) error {
	next := roleAsked
	var err error
	switch m.Command {
	case cell.IntroEstablished:
		next, err = roleIntroduction, cell.ParseIntroEstablished(m.Payload)
	case cell.RendezvousEstablished:
		next, err = roleWaiting, cell.ParseRendezvousEstablished(m.Payload)
	default:
		_, err = cell.ParseIntroduceAck(m.Payload)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.pending
	if q == nil || q.answered || q.want != m.Command {
		return fmt.Errorf("%w: %s that was not asked for", ErrProtocol, m.Command)
	}
	o.role, o.pending = next, nil
	q.answered = true
	q.reply <- append([]byte(nil), m.Payload...)
	return nil
}

// introduce takes INTRODUCED.
func (o *Origin) introduce(payload []byte) error {
	if _, err := cell.ParseIntroduced(payload); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	o.mu.Lock()
	ok, introduced := o.role == roleIntroduction, o.introduced
	o.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: INTRODUCED from what is no introduction point", ErrProtocol)
	}
	introduced(payload)
	return nil
}

// joinedReply takes JOINED.
func (o *Origin) joinedReply(payload []byte) error {
	reply, err := cell.ParseJoined(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.role != roleWaiting {
		return fmt.Errorf("%w: JOINED twice, or from what is no rendezvous point", ErrProtocol)
	}
	o.role = roleReplied
	o.joinReply <- append([]byte(nil), reply...)
	return nil
}

// takes tells whether a message of this kind from h is lawful at all. On the
// service's side of joined circuits the rules are those of a last relay, which is
// not padded.
func (o *Origin) takes(h *hop, m cell.MessageCommand) bool {
	rule := m.Rule()
	if h.serves {
		return rule.Relay == cell.RelayAlways || rule.Relay == cell.RelayLast && m != cell.Drop
	}
	switch rule.Origin {
	case cell.OriginNever:
		return false
	case cell.OriginAnyHop:
		return true
	default: // what more there is to it, who takes it looks at
		return h.pos == o.Len()
	}
}
