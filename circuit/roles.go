package circuit

import (
	"errors"
	"fmt"

	"cepa/cell"
)

// This file is what a relay is for onion services in one circuit: an introduction
// point, what passes an introduction on, or a rendezvous point (doc/spec.md section
// 5). Who asks for what is the Handler's business; here is what is lawful when.

// maxIntroduced is how many counted messages a service may leave unacknowledged
// before its introduction point passes nothing more on to it: far below maxUnacked,
// so that a flood of introductions cannot end the service's circuit, and far above
// what comes within a round trip of one that keeps up.
const maxIntroduced = 512

// ErrFull says that the service does not acknowledge fast enough to be given more.
var ErrFull = errors.New("circuit: as many introductions are unacknowledged as may be")

// errRefused says that a relay next to the client was asked for what is not for
// clients' neighbours: the circuit is destroyed as refused.
var errRefused = errors.New("circuit: refused at the first hop")

// takes tells whether messages with this rule are lawful in this state; of "idle"
// the rest is enter's.
func (s farState) takes(r cell.RelayRule) bool {
	switch r {
	case cell.RelayAlways:
		return true
	case cell.RelayLast, cell.RelayIdle:
		return s == alone
	case cell.RelayIntroduction:
		return s == introductionPoint
	default:
		return false
	}
}

// enter gives the circuit its role, which no other message may have done before.
func (t *Transit) enter(s farState) error {
	busy := t.mux.Len() > 0 // before mu, as in extend
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err != nil:
		return t.err
	case t.k == 1:
		return errRefused
	case t.state != alone || busy || t.pad.active:
		return fmt.Errorf("%w: a role for a circuit that has one, is extended, padded or carries streams", ErrProtocol)
	}
	t.state = s
	return nil
}

// role takes the messages of onion services.
func (t *Transit) role(m cell.Message) error {
	var err error
	switch m.Command {
	case cell.EstablishIntro:
		var b cell.EstablishIntroBody
		if b, err = cell.ParseEstablishIntro(m.Payload); err == nil {
			if err := t.enter(introductionAsked); err != nil {
				return err
			}
			t.cfg.Handler.EstablishIntro(t, b)
		}
	case cell.IntroWork:
		var b cell.IntroWorkBody
		if b, err = cell.ParseIntroWork(m.Payload); err == nil {
			t.cfg.Handler.IntroWork(t, b)
		}
	case cell.Introduce:
		var b cell.IntroduceBody
		if b, err = cell.ParseIntroduce(m.Payload); err == nil {
			if err := t.enter(introducing); err != nil {
				return err
			}
			t.cfg.Handler.Introduce(t, b)
		}
	case cell.EstablishRendezvous:
		var cookie [cell.CookieSize]byte
		if cookie, err = cell.ParseEstablishRendezvous(m.Payload); err == nil {
			if err := t.enter(rendezvousAsked); err != nil {
				return err
			}
			t.cfg.Handler.EstablishRendezvous(t, cookie)
		}
	default:
		var b cell.RendezvousBody
		if b, err = cell.ParseRendezvous(m.Payload); err == nil {
			if err := t.enter(rendezvousMet); err != nil {
				return err
			}
			t.cfg.Handler.Rendezvous(t, b)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// Exporter returns a secret of 32 bytes that only the origin and this relay know.
func (t *Transit) Exporter() [32]byte { return t.exporter }

// answers says which state a message of a Handler is an answer in, and what comes
// of it.
func (s farState) answers(cmd cell.MessageCommand) (next farState, ok bool) {
	switch cmd {
	case cell.IntroEstablished:
		return introductionPoint, s == introductionAsked
	case cell.Introduced:
		return introductionPoint, s == introductionPoint
	case cell.IntroduceAck:
		return introduced, s == introducing
	case cell.RendezvousEstablished:
		return rendezvousPoint, s == rendezvousAsked
	default:
		return s, false
	}
}

// Answer sends INTRO_ESTABLISHED, INTRODUCED, INTRODUCE_ACK or RENDEZVOUS_ESTABLISHED
// with this payload. It does not wait, and may be called from anywhere. The error is
// ErrFull when the service must acknowledge first, which says nothing against the
// circuit; otherwise the circuit has ended, or this is not what it was asked, and
// nothing is sent.
func (t *Transit) Answer(cmd cell.MessageCommand, payload []byte) error {
	t.mu.Lock()
	err := t.answerLocked(cmd, payload)
	t.mu.Unlock()
	if err == nil {
		t.cfg.Prev.Kick()
	}
	return err
}

func (t *Transit) answerLocked(cmd cell.MessageCommand, payload []byte) error {
	if t.err != nil {
		return t.err
	}
	next, ok := t.state.answers(cmd)
	if !ok {
		return fmt.Errorf("circuit: %s on a circuit that was not asked for it", cmd)
	}
	if cmd == cell.Introduced && t.win.unacked >= maxIntroduced {
		return ErrFull
	}
	t.state = next
	return t.sendLocked(cmd, 0, payload)
}
