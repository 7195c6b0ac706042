package circuit

import (
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
)

// toHop sends any message to hop k as a dishonest client would.
func (l *lab) toHop(k int, cmd cell.MessageCommand, id uint16, payload []byte) {
	l.t.Helper()
	if err := (*l.origin.hops.Load())[k-1].Send(cmd, id, payload); err != nil {
		l.t.Fatal(err)
	}
}

// fromHop sends any message to the origin as a dishonest relay would.
func (l *lab) fromHop(k int, cmd cell.MessageCommand, id uint16, payload []byte) {
	l.t.Helper()
	if err := l.relays[k-1].Send(cmd, id, payload); err != nil {
		l.t.Fatal(err)
	}
}

// inner is the inner body of a message, well-formed or not, for hop k.
func inner(k int, cmd byte, id, length uint16, payload ...byte) []byte {
	b := []byte{cmd}
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, length)
	b = append(b, payload...)
	return append(b, make([]byte, innerSize(k)-len(b))...)
}

func extendBody() []byte {
	b := cell.ExtendBody{Identity: [32]byte{9}, Suite: 1, Message1: make([]byte, cell.HopMessage1Size)}
	return b.AppendTo(nil)
}

func lastByte(b []byte, x byte) []byte {
	b[len(b)-1] = x
	return b
}

// fault is one thing that a party may not do, and the hop that it is about.
type fault struct {
	name string
	hop  int
	do   func(*lab)
}

// Payloads that parse.
func beginBody() []byte     { return []byte{0, 0, 80, 'x'} }
func connectedBody() []byte { return make([]byte, 5) }
func resolvedBody() []byte  { return []byte{byte(cell.EndNotFound), 0, 0, 0, 0, 0} }

// TestUnlawfulOut is what a client may not send to hop 2, which is extended, and
// to hop 3, which is the last of three and has one stream, with ID 1: the hop
// destroys the circuit, and neither its Handler nor the next hop hears of it.
func TestUnlawfulOut(t *testing.T) {
	send := func(k int, cmd cell.MessageCommand, id uint16, payload []byte) func(*lab) {
		return func(l *lab) { l.toHop(k, cmd, id, payload) }
	}
	raw := func(k int, kind byte, b []byte) func(*lab) { return func(l *lab) { l.rawOut(k, kind, b) } }
	extendPending := func(then func(*lab)) func(*lab) {
		return func(l *lab) {
			l.streams[0].Close()
			l.exit().begun[0].Close()
			l.settle()
			l.toHop(3, cell.Extend, 0, extendBody())
			l.settle()
			if len(l.exit().extends) != 1 || l.verdict() != "" {
				t.Error("the first EXTEND was refused")
			}
			then(l)
		}
	}
	rows := []fault{
		{"EXTEND of a hop that is extended", 2, send(2, cell.Extend, 0, extendBody())},
		{"EXTEND with a stream open", 3, send(3, cell.Extend, 0, extendBody())},
		{"EXTEND with a look-up open", 3, func(l *lab) {
			l.streams[0].Close()
			l.toHop(3, cell.Resolve, 2, []byte{0, 'x'})
			l.toHop(3, cell.Extend, 0, extendBody())
		}},
		{"EXTEND twice", 3, extendPending(send(3, cell.Extend, 0, extendBody()))},
		{"BEGIN while EXTEND is pending", 3, extendPending(send(3, cell.Begin, 5, beginBody()))},
		{"content for the next hop while EXTEND is pending", 3, extendPending(raw(3, kindForward, make([]byte, innerSize(3))))},
		{"EXTEND that is too short", 3, extendPending(send(3, cell.Extend, 0, extendBody()[1:]))},
		{"content for a hop behind the last", 3, raw(3, kindForward, make([]byte, innerSize(3)))},
		{"BEGIN with the ID of a stream", 3, send(3, cell.Begin, 1, beginBody())},
		{"DATA of no stream", 3, send(3, cell.Data, 2, []byte{1})},
		{"END of no stream", 3, send(3, cell.End, 2, []byte{1})},
		{"CREDIT beyond the bound", 3, send(3, cell.Credit, 1, []byte{0x7f, 0xff, 0xff, 0xff})},
		{"DATA beyond the credit", 3, func(l *lab) {
			for range 524288/1024 + 1 {
				l.toHop(3, cell.Data, 1, make([]byte, 1024))
				l.settle()
				if l.origin.Err() != nil {
					break
				}
			}
		}},
		{"a cell that is CREATED", 3, func(l *lab) {
			l.toHop(3, cell.Data, 1, []byte{1})
			l.out[2].frozen = true
			l.settle()
			l.out[2].cells.Front().SetCommand(cell.Created)
			l.out[2].frozen = false
		}},
	}
	for _, k := range []int{2, 3} {
		for cmd, payload := range map[cell.MessageCommand][]byte{
			cell.Extended: make([]byte, cell.HopReplySize), cell.ExtendFailed: {1},
			cell.PadNegotiate: nil, cell.Drop: nil, cell.Ack: make([]byte, 16),
		} {
			rows = append(rows, fault{cmd.String(), k, send(k, cmd, 0, payload)})
		}
		for cmd, payload := range map[cell.MessageCommand][]byte{cell.Connected: connectedBody(), cell.Resolved: resolvedBody()} {
			rows = append(rows, fault{cmd.String(), k, send(k, cmd, 1, payload)})
		}
		rows = append(rows, malformed(k, func(kind byte, b []byte) func(*lab) { return raw(k, kind, b) })...)
	}
	for cmd, payload := range map[cell.MessageCommand][]byte{
		cell.Begin: beginBody(), cell.BeginDir: nil, cell.Data: {1}, cell.End: {0}, cell.Credit: {0, 0, 0, 1}, cell.Resolve: {0, 'x'},
	} {
		rows = append(rows, fault{cmd.String() + " at a hop that is extended", 2, send(2, cmd, 2, payload)})
	}
	for _, row := range rows {
		for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
			l := newLab(t, 3, suite)
			_, far := l.open()
			row.do(l)
			asked := len(l.relays[1].extends) + len(l.relays[1].begun) + len(l.relays[1].lookups)
			begun, extends := len(l.exit().begun), len(l.exit().extends)
			moved := l.out[2].moved
			l.settle()
			want := fmt.Sprint("hop ", row.hop)
			if got := l.verdict(); got != want {
				t.Errorf("%s: noticed by %q, want %q", row.name, got, want)
			}
			if asked != 0 || len(l.exit().begun) != begun || len(l.exit().extends) != extends {
				t.Errorf("%s: a Handler was asked", row.name)
			}
			if row.hop == 2 && l.out[2].moved != moved {
				t.Errorf("%s: the next hop got a cell", row.name)
			}
			l.wantReasons(row.name, row.hop)
			l.end()
			if got, _ := io.ReadAll(far); len(got) > 524288 || row.name != "DATA beyond the credit" && len(got) != 0 {
				t.Errorf("%s: %d bytes left the exit", row.name, len(got))
			}
			l.close()
		}
	}
}

// malformed is what is unlawful in whatever direction and at whatever hop.
func malformed(k int, raw func(kind byte, b []byte) func(*lab)) (rows []fault) {
	for _, m := range malformedBodies(k) {
		rows = append(rows, fault{fmt.Sprintf("%s, hop %d", m.name, k), k, raw(m.kind, m.inner)})
	}
	return rows
}

type malformedBody struct {
	name  string
	kind  byte
	inner []byte
}

// malformedBodies are what no hop takes, with the kind that the layer says.
func malformedBodies(k int) (list []malformedBody) {
	add := func(name string, kind byte, b []byte) { list = append(list, malformedBody{name, kind, b}) }
	for _, cmd := range []byte{0, 25, 99, 255} {
		add(fmt.Sprintf("unknown command %d", cmd), kindMessage, inner(k, cmd, 0, 0))
		add(fmt.Sprintf("unknown command %d of a stream", cmd), kindMessage, inner(k, cmd, 1, 0))
	}
	for _, cmd := range []cell.MessageCommand{cell.Extend, cell.Extended, cell.ExtendFailed, cell.Ack, cell.Drop, cell.PadNegotiate, cell.EstablishIntro, cell.IntroWork, cell.Introduced, cell.Joined} {
		add(cmd.String()+" with a stream ID", kindMessage, inner(k, byte(cmd), 1, 0))
	}
	for _, cmd := range []cell.MessageCommand{cell.Begin, cell.BeginDir, cell.Connected, cell.Data, cell.End, cell.Resolve, cell.Resolved, cell.Credit} {
		add(cmd.String()+" without a stream ID", kindMessage, inner(k, byte(cmd), 0, 1, 1))
	}
	add("a byte behind the payload", kindMessage, inner(k, byte(cell.Data), 1, 1, 1, 1))
	add("a byte at the end", kindMessage, lastByte(inner(k, byte(cell.Data), 1, 1, 1), 1))
	add("a length beyond the room", kindMessage, inner(k, byte(cell.Data), 1, uint16(cell.Room(k)+1), 1))
	add("the largest length", kindMessage, inner(k, byte(cell.Data), 1, 65535, 1))
	add("an empty DATA", kindMessage, inner(k, byte(cell.Data), 1, 0))
	add("an ACK that is too short", kindMessage, inner(k, byte(cell.Ack), 0, 15))
	add("an ACK that asks for one", kindAsking, inner(k, byte(cell.Ack), 0, 16))
	for _, kind := range []byte{3, 4, 128, 255} {
		add(fmt.Sprint("kind ", kind), kind, inner(k, byte(cell.Data), 1, 1, 1))
	}
	return list
}

// wantReasons checks what was said on the links after hop (0: the origin) had
// found a fault: a reason on the link over which the fault came, none beyond.
func (l *lab) wantReasons(name string, hop int) {
	l.t.Helper()
	for k := range l.out {
		for _, w := range []struct {
			tube *tube
			want bool // says what was wrong
			what string
		}{
			{l.out[k], hop == 0 && k == 0, "towards the exit"},
			{l.in[k], k == hop-1, "towards the origin"},
		} {
			want := cell.ReasonNone
			if w.want {
				want = cell.ReasonProtocol
			}
			if w.tube.reason != want {
				l.t.Errorf("%s: on link %d %s the reason is %q, want %q", name, k+1, w.what, w.tube.reason, want)
			}
		}
	}
}

// TestUnlawfulIn is what relays may not send: hop 2, which is extended, and hop
// 3, which is the last and has one stream, with ID 1.
func TestUnlawfulIn(t *testing.T) {
	send := func(k int, cmd cell.MessageCommand, id uint16, payload []byte) func(*lab) {
		return func(l *lab) { l.fromHop(k, cmd, id, payload) }
	}
	// All but the last step are lawful while an Extend waits for its answer.
	pending := func(steps ...func(*lab)) func(*lab) {
		return func(l *lab) {
			l.origin.pending = newQuestion(cell.Extended)
			for i, step := range steps {
				l.settle()
				if i > 0 && l.verdict() != "" {
					t.Error("a lawful answer to EXTEND ends the circuit")
				}
				step(l)
			}
		}
	}
	rows := []fault{
		{"CONNECTED twice", 3, send(3, cell.Connected, 1, connectedBody())},
		{"DATA of no stream", 3, send(3, cell.Data, 2, []byte{1})},
		{"RESOLVED of no look-up", 3, send(3, cell.Resolved, 2, resolvedBody())},
		{"CREDIT beyond the bound", 3, send(3, cell.Credit, 1, []byte{0xff, 0xff, 0xff, 0xff})},
		{"EXTENDED twice", 3, pending(
			send(3, cell.Extended, 0, make([]byte, cell.HopReplySize)),
			send(3, cell.Extended, 0, make([]byte, cell.HopReplySize)))},
		{"EXTEND_FAILED after EXTENDED", 3, pending(
			send(3, cell.Extended, 0, make([]byte, cell.HopReplySize)),
			send(3, cell.ExtendFailed, 0, []byte{1}))},
		{"EXTENDED after EXTEND_FAILED", 3, pending(
			send(3, cell.ExtendFailed, 0, []byte{1}),
			send(3, cell.Extended, 0, make([]byte, cell.HopReplySize)))},
		{"EXTENDED from a hop that was not asked", 2, pending(send(2, cell.Extended, 0, make([]byte, cell.HopReplySize)))},
		{"EXTEND_FAILED from a hop that was not asked", 2, pending(send(2, cell.ExtendFailed, 0, []byte{1}))},
		{"CREATED instead of EXTENDED", 1, pending(func(l *lab) { l.in[0].to.Receive(cell.Created, make([]byte, cell.BodySize)) })},
		{"an EXTENDED that is too short", 3, pending(send(3, cell.Extended, 0, []byte{1}))},
		{"an EXTEND_FAILED for no reason", 3, pending(send(3, cell.ExtendFailed, 0, []byte{0}))},
		{"content from behind the last hop", 3, func(l *lab) { l.rawIn(3, kindForward, make([]byte, innerSize(3))) }},
		{"CREATED on a circuit with hops", 1, func(l *lab) { l.in[0].to.Receive(cell.Created, make([]byte, cell.BodySize)) }},
		{"a cell that is CREATE", 1, func(l *lab) { l.in[0].to.Receive(cell.Create, make([]byte, cell.BodySize)) }},
		{"DATA beyond the credit", 3, func(l *lab) {
			for range 524288/1024 + 1 {
				l.fromHop(3, cell.Data, 1, make([]byte, 1024))
				l.settle()
				if l.origin.Err() != nil {
					break
				}
			}
		}},
	}
	for _, k := range []int{2, 3} {
		for cmd, payload := range map[cell.MessageCommand][]byte{
			cell.Extend: extendBody(), cell.Extended: make([]byte, cell.HopReplySize), cell.ExtendFailed: {1},
			cell.PadNegotiate: nil, cell.Drop: nil, cell.Ack: make([]byte, 16),
		} {
			rows = append(rows, fault{fmt.Sprintf("%v from hop %d", cmd, k), k, send(k, cmd, 0, payload)})
		}
		for cmd, payload := range map[cell.MessageCommand][]byte{cell.Begin: beginBody(), cell.BeginDir: nil, cell.Resolve: {0, 'x'}} {
			rows = append(rows, fault{fmt.Sprintf("%v from hop %d", cmd, k), k, send(k, cmd, 9, payload)})
		}
		rows = append(rows, malformed(k, func(kind byte, b []byte) func(*lab) {
			return func(l *lab) { l.rawIn(k, kind, b) }
		})...)
	}
	for cmd, payload := range map[cell.MessageCommand][]byte{
		cell.Connected: connectedBody(), cell.Data: {1}, cell.End: {0}, cell.Credit: {0, 0, 0, 1}, cell.Resolved: resolvedBody(),
	} {
		rows = append(rows, fault{cmd.String() + " from a hop that is not the last", 2, send(2, cmd, 1, payload)})
	}
	for _, row := range rows {
		l := newLab(t, 3, layer.AES256GCM)
		near, _ := l.open()
		row.do(l)
		l.settle()
		if got := l.verdict(); got != "origin" {
			t.Errorf("%s: noticed by %q, want the origin", row.name, got)
		}
		l.wantReasons(row.name, 0)
		l.end()
		if got, _ := readAll(t, near); len(got) > 524288 || row.name != "DATA beyond the credit" && got != "" {
			t.Errorf("%s: %d bytes reached the application", row.name, len(got))
		}
		l.close()
	}
}

// TestUnlawfulNext is what the next relay may not send to the one before it,
// which cannot read it but sees its form.
func TestUnlawfulNext(t *testing.T) {
	for name, do := range map[string]func(r Receiver){
		"CREATED twice":            func(r Receiver) { r.Receive(cell.Created, make([]byte, cell.BodySize)) },
		"a malformed CREATED":      func(r Receiver) { r.Receive(cell.Created, lastByte(make([]byte, cell.BodySize), 1)) },
		"a cell that is DESTROY":   func(r Receiver) { r.Receive(cell.Destroy, make([]byte, cell.BodySize)) },
		"bytes behind its layer":   func(r Receiver) { r.Receive(cell.Relay, lastByte(make([]byte, cell.BodySize), 1)) },
		"the first of those bytes": func(r Receiver) { b := make([]byte, cell.BodySize); b[innerSize(2)] = 1; r.Receive(cell.Relay, b) },
	} {
		l := newLab(t, 3, layer.AES256GCM)
		near, _ := l.open()
		do(l.in[2].to)
		l.settle()
		if got := l.verdict(); got != "hop 2" {
			t.Errorf("%s: noticed by %q, want hop 2", name, got)
		}
		if got := l.out[2].reason; got != cell.ReasonProtocol {
			t.Errorf("%s: the next relay is told %q", name, got)
		}
		if got := l.in[1].reason; got != cell.ReasonNone {
			t.Errorf("%s: the relay before is told %q", name, got)
		}
		l.end()
		_, _ = readAll(t, near)
		l.close()
	}
}
