package circuit

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
)

// roleSteps bring the last hop of a lab into each of its states that a role has.
var roleSteps = map[string]func(l *lab){
	"asked to be an introduction point": func(l *lab) { l.role(cell.EstablishIntro, 0, nil) },
	"introduction point":                func(l *lab) { l.role(cell.EstablishIntro, cell.IntroEstablished, nil) },
	"asked to introduce":                func(l *lab) { l.role(cell.Introduce, 0, nil) },
	"has introduced":                    func(l *lab) { l.role(cell.Introduce, cell.IntroduceAck, make([]byte, cell.IntroduceAckSize)) },
	"asked to be a rendezvous point":    func(l *lab) { l.role(cell.EstablishRendezvous, 0, nil) },
	"rendezvous point":                  func(l *lab) { l.role(cell.EstablishRendezvous, cell.RendezvousEstablished, nil) },
	"asked to join":                     func(l *lab) { l.role(cell.Rendezvous, 0, nil) },
}

// role asks the last hop for a role as Origin does; answer, when not 0, is what the
// relay says.
func (l *lab) role(cmd, answer cell.MessageCommand, payload []byte) {
	l.t.Helper()
	want := map[cell.MessageCommand]cell.MessageCommand{
		cell.EstablishIntro: cell.IntroEstablished, cell.Introduce: cell.IntroduceAck, cell.EstablishRendezvous: cell.RendezvousEstablished,
	}[cmd]
	_, _ = l.question(cmd, payloadOf(cmd), want, func() {
		l.origin.introduced = func([]byte) {}
		l.origin.joinReply = make(chan []byte, 1)
		if cmd == cell.Rendezvous {
			l.origin.role, l.origin.pending = roleMeeting, nil
		}
	})
	if n := len(l.exit().roles); n != 1 || l.exit().roles[0] != cmd {
		l.t.Fatalf("the relay's Handler was asked for %v", l.exit().roles)
	}
	if answer != 0 {
		if err := l.exit().Answer(answer, payload); err != nil {
			l.t.Fatal(err)
		}
		l.settle()
	}
	if v := l.verdict(); v != "" {
		l.t.Fatalf("ended at %q", v)
	}
	l.exit().roles = nil
}

// TestRolesOut sends every message to a relay in each state of its roles: only what
// doc/spec.md allows there is taken, and anything else ends the circuit before its
// Handler is asked.
func TestRolesOut(t *testing.T) {
	for state, step := range roleSteps {
		for cmd := cell.MessageCommand(1); cmd <= cell.LastMessage+1; cmd++ {
			rule := cmd.Rule()
			if rule.Relay == cell.RelayAlways {
				continue // ACK, of which there is none to send: another test's
			}
			lawful := rule.Relay == cell.RelayIntroduction && state == "introduction point"
			id := uint16(0)
			if rule.Stream != cell.NoStream {
				id = 1
			}
			l := newLab(t, 3, layer.AES256GCM)
			step(l)
			p := payloadOf(cmd)
			l.rawOut(3, kindMessage, inner(3, byte(cmd), id, uint16(len(p)), p...))
			l.settle()
			want := "hop 3"
			if lawful {
				want = ""
			}
			if got := l.verdict(); got != want {
				t.Errorf("%s, %v: noticed by %q, want %q", state, cmd, got, want)
			}
			if asked := len(l.exit().roles) + len(l.exit().extends) + len(l.exit().begun) + len(l.exit().lookups); (asked == 1) != lawful {
				t.Errorf("%s, %v: the Handler was asked %d times", state, cmd, asked)
			}
			if !lawful {
				l.wantReasons(fmt.Sprint(state, ", ", cmd), 3)
			}
			l.close()
		}
		l := newLab(t, 3, layer.AES256GCM)
		step(l)
		l.rawOut(3, kindForward, make([]byte, innerSize(3)))
		l.settle()
		if got := l.verdict(); got != "hop 3" {
			t.Errorf("%s, content for a next hop: noticed by %q", state, got)
		}
		l.close()
	}
}

// TestRolesIdle: a role is for a relay that has nothing else to do in the circuit.
func TestRolesIdle(t *testing.T) {
	for _, cmd := range []cell.MessageCommand{cell.EstablishIntro, cell.Introduce, cell.EstablishRendezvous, cell.Rendezvous} {
		for name, before := range map[string]func(l *lab){
			"a stream":  func(l *lab) { l.open() },
			"a look-up": func(l *lab) { l.toHop(3, cell.Resolve, 2, []byte{0, 'x'}) },
			"an EXTEND": func(l *lab) { l.toHop(3, cell.Extend, 0, extendBody()) },
			"padding": func(l *lab) {
				l.origin.padding = &padWait{left: 2, all: make(chan struct{})}
				l.toHop(3, cell.PadNegotiate, 0, padBody(cell.PadBody{}))
			},
		} {
			l := newLab(t, 3, layer.AES256GCM)
			before(l)
			l.settle()
			l.toHop(3, cmd, 0, payloadOf(cmd))
			l.settle()
			if got := l.verdict(); got != "hop 3" || len(l.exit().roles) != 0 {
				t.Errorf("%v during %s: noticed by %q, the Handler was asked for %v", cmd, name, got, l.exit().roles)
			}
			l.close()
		}
		// At a relay that is not the last.
		l := newLab(t, 3, layer.AES256GCM)
		l.toHop(2, cmd, 0, payloadOf(cmd))
		l.settle()
		if got := l.verdict(); got != "hop 2" || len(l.relays[1].roles) != 0 {
			t.Errorf("%v at hop 2 of 3: noticed by %q", cmd, got)
		}
		l.close()
		// What does not parse.
		for _, p := range [][]byte{nil, payloadOf(cmd)[1:], append(payloadOf(cmd), 0)} {
			l := newLab(t, 3, layer.AES256GCM)
			l.toHop(3, cmd, 0, p)
			l.settle()
			if got := l.verdict(); got != "hop 3" || len(l.exit().roles) != 0 {
				t.Errorf("%v of %d bytes: noticed by %q", cmd, len(p), got)
			}
			l.close()
		}
	}
}

// TestRolesAfterFailedExtend: an answer to an EXTEND that comes too late does not take
// a role away that the circuit has got since.
func TestRolesAfterFailedExtend(t *testing.T) {
	l := newLab(t, 2, layer.AES256GCM)
	l.origin.pending = &question{want: cell.Extended, fail: make(chan error, 1)}
	l.toHop(2, cell.Extend, 0, extendBody())
	l.settle()
	l.exit().ExtendFailed(cell.ExtendTimeout)
	l.settle()
	l.role(cell.EstablishIntro, cell.IntroEstablished, nil)
	sent := l.in[1].moved
	l.exit().ExtendFailed(cell.ExtendTimeout)
	l.settle()
	if l.in[1].moved != sent || l.exit().Answer(cell.Introduced, payloadOf(cell.Introduced)) != nil {
		t.Error("a second EXTEND_FAILED has taken the role away")
	}
	l.settle()
	if v := l.verdict(); v != "" {
		t.Errorf("ended at %q", v)
	}
	l.close()
}

// TestRolesFirstHop: the relay that sees the client itself refuses, and says so.
func TestRolesFirstHop(t *testing.T) {
	for _, cmd := range []cell.MessageCommand{cell.EstablishIntro, cell.Introduce, cell.EstablishRendezvous, cell.Rendezvous} {
		l := newLab(t, 1, layer.AES256GCM)
		l.toHop(1, cmd, 0, payloadOf(cmd))
		l.settle()
		if l.origin.Err() == nil || l.in[0].reason != cell.ReasonRefused || len(l.exit().roles) != 0 || l.verdict() != "" {
			t.Errorf("%v at hop 1: %v, reason %v, the Handler was asked for %v", cmd, l.origin.Err(), l.in[0].reason, l.exit().roles)
		}
		l.close()
		// And our own Origin does not ask.
		l = newLab(t, 1, layer.AES256GCM)
		if _, err := l.question(cmd, payloadOf(cmd), cell.IntroEstablished, nil); err == nil || l.origin.Err() != nil || l.out[0].moved != 0 {
			t.Errorf("%v at hop 1: error %v, circuit %v", cmd, err, l.origin.Err())
		}
		l.close()
	}
}

// TestRolesRoom: what does not fit at a hop is refused before anything is sent.
func TestRolesRoom(t *testing.T) {
	for hops := 2; hops <= cell.MaxHops; hops++ {
		for cmd, limit := range map[cell.MessageCommand]int{cell.Introduce: 6, cell.Rendezvous: 8, cell.EstablishIntro: 8, cell.EstablishRendezvous: 8} {
			l := newLab(t, hops, layer.AES256GCM)
			err := l.origin.takeRole(cmd, payloadOf(cmd), roleAsked, func() {})
			if (err == nil) != (hops <= limit) || l.origin.Err() != nil {
				t.Errorf("%v at hop %d: error %v, circuit %v", cmd, hops, err, l.origin.Err())
			}
			l.settle()
			if got := len(l.exit().roles); (got == 1) != (hops <= limit) {
				t.Errorf("%v at hop %d arrived %d times", cmd, hops, got)
			}
			l.close()
		}
	}
}

// TestRolesIn sends every message from the last hop to an origin in each state of its
// roles, and from the hop before.
func TestRolesIn(t *testing.T) {
	answers := map[string]cell.MessageCommand{
		"asked to be an introduction point": cell.IntroEstablished,
		"introduction point":                cell.Introduced,
		"asked to introduce":                cell.IntroduceAck,
		"asked to be a rendezvous point":    cell.RendezvousEstablished,
		"rendezvous point":                  cell.Joined,
	}
	for state, step := range roleSteps {
		for cmd := cell.MessageCommand(1); cmd <= cell.LastMessage+1; cmd++ {
			rule := cmd.Rule()
			id := uint16(0)
			if rule.Stream != cell.NoStream {
				id = 1
			}
			for _, hop := range []int{2, 3} {
				if rule.Origin == cell.OriginAnyHop {
					continue // ACK: of what was sent it is lawful
				}
				lawful := hop == 3 && cmd == answers[state] && cmd != 0
				l := newLab(t, 3, layer.AES256GCM)
				step(l)
				p := payloadOf(cmd)
				l.rawIn(hop, kindMessage, inner(hop, byte(cmd), id, uint16(len(p)), p...))
				l.settle()
				want := "origin"
				if lawful {
					want = ""
				}
				if got := l.verdict(); got != want {
					t.Errorf("%s, %v from hop %d: noticed by %q, want %q", state, cmd, hop, got, want)
				}
				if lawful && cmd != cell.Introduced { // once
					l.rawIn(hop, kindMessage, inner(hop, byte(cmd), id, uint16(len(p)), p...))
					l.settle()
					if got := l.verdict(); got != "origin" {
						t.Errorf("%s, %v twice: noticed by %q", state, cmd, got)
					}
				}
				if lawful {
					l.close()
					l = newLab(t, 3, layer.AES256GCM)
					step(l)
					l.rawIn(hop, kindMessage, inner(hop, byte(cmd), id, uint16(len(p)+1), append(p, 0)...))
					l.settle()
					if got := l.verdict(); got != "origin" {
						t.Errorf("%s, %v that is too long: noticed by %q", state, cmd, got)
					}
				}
				l.close()
			}
		}
	}
}

// TestAnswer: a Handler can answer only what it was asked, and once; anything else is
// an error of the call, and sends nothing.
func TestAnswer(t *testing.T) {
	lawful := map[string]cell.MessageCommand{
		"asked to be an introduction point": cell.IntroEstablished,
		"introduction point":                cell.Introduced,
		"asked to introduce":                cell.IntroduceAck,
		"asked to be a rendezvous point":    cell.RendezvousEstablished,
	}
	states := map[string]func(l *lab){"alone": func(*lab) {}, "extending": func(l *lab) { l.toHop(3, cell.Extend, 0, extendBody()) }}
	for state, step := range roleSteps {
		states[state] = step
	}
	for state, step := range states {
		for cmd := cell.MessageCommand(0); cmd <= cell.LastMessage; cmd++ {
			l := newLab(t, 3, layer.AES256GCM)
			step(l)
			l.settle()
			sent := l.in[2].moved
			err := l.exit().Answer(cmd, payloadOf(cmd))
			l.settle()
			ok := cmd != 0 && cmd == lawful[state]
			if (err == nil) != ok || (l.in[2].moved == sent+1) != ok || !ok && l.in[2].moved != sent {
				t.Errorf("%s, Answer(%v): error %v, %d cells sent", state, cmd, err, l.in[2].moved-sent)
			}
			if v := l.verdict(); v != "" {
				t.Errorf("%s, Answer(%v): ended at %q", state, cmd, v)
			}
			if ok && cmd != cell.Introduced && l.exit().Answer(cmd, payloadOf(cmd)) == nil {
				t.Errorf("%s, Answer(%v) twice: no error", state, cmd)
			}
			l.close()
		}
	}
	l := newLab(t, 3, layer.AES256GCM)
	l.role(cell.EstablishIntro, 0, nil)
	l.origin.Close()
	l.settle()
	if err := l.exit().Answer(cell.IntroEstablished, nil); !errors.Is(err, ErrDestroyed) {
		t.Errorf("an answer on a circuit that has ended: %v", err)
	}
	l.close()
}

// TestIntroducedFull: a service that does not acknowledge is given no more after a
// while, and its circuit lives on; when it does, there is more.
func TestIntroducedFull(t *testing.T) {
	l := newLab(t, 3, layer.AES256GCM)
	var got [][]byte
	l.role(cell.EstablishIntro, cell.IntroEstablished, nil)
	l.origin.introduced = func(p []byte) { got = append(got, bytes.Clone(p)) }
	l.in[0].frozen = true
	passed, payload := 0, payloadOf(cell.Introduced)
	var err error
	for range 2 * maxIntroduced {
		payload[0], payload[1] = byte(passed>>8), byte(passed)
		if err = l.exit().Answer(cell.Introduced, payload); err != nil {
			break
		}
		passed++
		l.settle()
	}
	if !errors.Is(err, ErrFull) || passed > maxIntroduced || passed < maxIntroduced-maxAckInterval {
		t.Errorf("%d introductions were passed on, error %v", passed, err)
	}
	for range 10_000 { // a flood
		if err := l.exit().Answer(cell.Introduced, payload); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	l.in[0].frozen = false
	l.settle()
	if err := l.exit().Answer(cell.Introduced, payload); err != nil {
		t.Errorf("after the service has acknowledged: %v", err)
	}
	l.settle()
	if v := l.verdict(); v != "" || l.origin.Err() != nil || len(got) != passed+1 {
		t.Errorf("ended at %q, %v; %d of %d introductions arrived", v, l.origin.Err(), len(got), passed+1)
	}
	for i, p := range got[:passed] {
		if len(p) != cell.IntroduceSize || int(p[0])<<8|int(p[1]) != i {
			t.Fatalf("introduction %d is another", i)
		}
	}
	l.close()
}

// TestIntroWork: the service tells its introduction point, and nobody else, what work
// it wants.
func TestIntroWork(t *testing.T) {
	l := newLab(t, 3, layer.AES256GCM)
	if err := l.origin.IntroWork(payloadOf(cell.IntroWork)); err == nil || l.out[0].moved != 0 {
		t.Error("INTRO_WORK without an introduction point")
	}
	l.role(cell.EstablishIntro, cell.IntroEstablished, nil)
	if err := l.origin.IntroWork([]byte{1}); err == nil {
		t.Error("a malformed INTRO_WORK is sent")
	}
	want := cell.IntroWorkBody{Effort: 7, Seed: [32]byte{1}, Previous: [32]byte{2}}
	var got cell.IntroWorkBody
	l.exit().introWork = func(_ *Transit, b cell.IntroWorkBody) { got = b }
	for range 3 { // any number
		want.Effort++
		if err := l.origin.IntroWork(want.AppendTo(nil)); err != nil {
			t.Fatal(err)
		}
		l.settle()
		if got != want {
			t.Errorf("the introduction point was told %+v, want %+v", got, want)
		}
	}
	l.origin.Close()
	l.settle()
	if err := l.origin.IntroWork(want.AppendTo(nil)); !errors.Is(err, ErrClosed) {
		t.Errorf("on a circuit that has ended: %v", err)
	}
	l.close()
}

// TestTransitExporter: both ends have the same secret.
func TestTransitExporter(t *testing.T) {
	l := newLab(t, 3, layer.AES256GCM)
	for i, r := range l.relays {
		if got := r.Exporter(); got != l.keys[i].Exporter || got == [32]byte{} {
			t.Errorf("hop %d: %x", i+1, got)
		}
	}
	l.close()
}

// FuzzRolesAt plays a client that asks for roles as it likes, and holds the relay
// against a few lines that say what is lawful.
func FuzzRolesAt(f *testing.F) {
	f.Add([]byte{0, 4, 1, 1})
	f.Add([]byte{0, 1})
	f.Add([]byte{2, 4})
	f.Add([]byte{3, 4, 5})
	f.Add([]byte{6, 7})
	f.Add([]byte{5, 0})
	f.Add([]byte{2, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		l := newLab(t, 2, layer.AES256GCM)
		defer l.close()
		l.origin.introduced = func([]byte) {}
		role, point := false, false
		send := func(cmd cell.MessageCommand) { l.toHop(2, cmd, 0, payloadOf(cmd)) }
		for _, op := range ops[:min(len(ops), 32)] {
			lawful := true
			switch op % 8 {
			case 0:
				lawful, role = !role, true
				send(cell.EstablishIntro)
			case 1:
				lawful = point
				send(cell.IntroWork)
			case 2:
				lawful, role = !role, true
				send(cell.Introduce)
			case 3:
				lawful, role = !role, true
				send(cell.EstablishRendezvous)
			case 4: // the relay answers; the origin of this test has not asked
				l.in[1].frozen = true
				if l.exit().Answer(cell.IntroEstablished, nil) == nil {
					point = true
				}
			case 5:
				lawful, role = !role, true
				l.toHop(2, cell.Extend, 0, extendBody())
			case 6:
				lawful, role = !role, true
				send(cell.Rendezvous)
			default:
				lawful = !role
				role = true
				l.exit().refuse = true
				l.toHop(2, cell.Begin, 1, beginBody())
			}
			l.in[1].frozen = true
			l.settle()
			broken := errors.Is(l.exit().err, ErrProtocol)
			if broken == lawful {
				t.Fatalf("%v: broken: %v, lawful: %v", ops, broken, lawful)
			}
			if !lawful {
				break
			}
		}
	})
}
