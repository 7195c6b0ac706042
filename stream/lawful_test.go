package stream

import (
	"encoding/binary"
	"strings"
	"testing"

	"cepa/cell"
)

// events are the messages of the tables below.
var events = []struct {
	name    string
	cmd     cell.MessageCommand
	payload []byte
}{
	{"CONNECTED", cell.Connected, []byte{0, 0, 0, 0, 60}},
	{"DATA", cell.Data, []byte{1}},
	{"CREDIT", cell.Credit, []byte{0, 0, 0, 1}},
	{"EOF", cell.End, []byte{byte(cell.EndEOF)}},
	{"DONE", cell.End, []byte{byte(cell.EndDone)}},
	{"REFUSED", cell.End, []byte{byte(cell.EndRefused)}},
	// These are never lawful for a stream that exists.
	{"huge CREDIT", cell.Credit, []byte{0x7f, 0xff, 0xff, 0xff}},
	{"empty DATA", cell.Data, nil},
	{"malformed CONNECTED", cell.Connected, []byte{1}},
	{"malformed CREDIT", cell.Credit, []byte{0, 0, 0, 0}},
	{"malformed END", cell.End, []byte{99}},
	{"BEGIN", cell.Begin, []byte{0, 0, 80, 'x'}},
	{"BEGIN_DIR", cell.BeginDir, nil},
	{"RESOLVE", cell.Resolve, []byte{0, 'x'}},
	{"RESOLVED", cell.Resolved, []byte{3, 0, 0, 0, 0, 0}},
}

// TestLawful is every message in every state of a stream, at both ends. A row
// says of the first six events whether they are lawful.
func TestLawful(t *testing.T) {
	eof := func(p *pair, m *Mux) { p.handle(m, cell.End, 1, []byte{byte(cell.EndEOF)}) }
	final := func(p *pair, m *Mux) { p.handle(m, cell.End, 1, []byte{byte(cell.EndDone)}) }
	connected := func(p *pair, m *Mux) { p.handle(m, cell.Connected, 1, []byte{0, 0, 0, 0, 60}) }
	for _, side := range []struct {
		name   string
		enter  func(p *pair) (*Mux, *Stream)
		states []struct {
			name  string
			enter func(p *pair, m *Mux, s *Stream)
			row   string // CONNECTED DATA CREDIT EOF DONE REFUSED
		}
	}{
		{"origin", func(p *pair) (*Mux, *Stream) {
			s, err := p.origin.Open(cell.BeginBody{Host: "x", Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			return p.origin, s
		}, []struct {
			name  string
			enter func(p *pair, m *Mux, s *Stream)
			row   string
		}{
			{"BEGIN sent", func(*pair, *Mux, *Stream) {}, "+ - - - + +"},
			{"BEGIN and EOF sent", func(p *pair, m *Mux, s *Stream) { s.CloseWrite() }, "+ - - - + +"},
			{"open", func(p *pair, m *Mux, s *Stream) { connected(p, m) }, "- + + + + +"},
			{"EOF sent", func(p *pair, m *Mux, s *Stream) { connected(p, m); s.CloseWrite() }, "- + + + + +"},
			{"EOF received", func(p *pair, m *Mux, s *Stream) { connected(p, m); eof(p, m) }, "- - + - + +"},
			{"EOF sent, then received: DONE sent", func(p *pair, m *Mux, s *Stream) { connected(p, m); s.CloseWrite(); eof(p, m) }, "- - + - + +"},
			{"EOF received, then CloseWrite: DONE sent", func(p *pair, m *Mux, s *Stream) { connected(p, m); eof(p, m); s.CloseWrite() }, "- - + - + +"},
			{"closed before CONNECTED", func(p *pair, m *Mux, s *Stream) { s.Close() }, "+ - - - + +"},
			{"closed, then CONNECTED", func(p *pair, m *Mux, s *Stream) { s.Close(); connected(p, m) }, "- + + + + +"},
			{"closed", func(p *pair, m *Mux, s *Stream) { connected(p, m); s.Close() }, "- + + + + +"},
			{"reset", func(p *pair, m *Mux, s *Stream) { connected(p, m); s.Reset() }, "- + + + + +"},
			{"closed, then EOF", func(p *pair, m *Mux, s *Stream) { connected(p, m); s.Close(); eof(p, m) }, "- - + - + +"},
			{"refused", func(p *pair, m *Mux, s *Stream) { final(p, m) }, "- - - - - -"},
			{"ended by the peer", func(p *pair, m *Mux, s *Stream) { connected(p, m); final(p, m) }, "- - - - - -"},
			{"closed, then ended by the peer", func(p *pair, m *Mux, s *Stream) { connected(p, m); s.Close(); final(p, m) }, "- - - - - -"},
		}},
		{"relay", func(p *pair) (*Mux, *Stream) {
			if err := p.handle(p.relay, cell.Begin, 1, []byte{0, 0, 80, 'x'}); err != nil {
				t.Fatal(err)
			}
			return p.relay, p.begun[0]
		}, []struct {
			name  string
			enter func(p *pair, m *Mux, s *Stream)
			row   string
		}{
			{"asked", func(*pair, *Mux, *Stream) {}, "- + - + + +"},
			{"asked, EOF received", func(p *pair, m *Mux, s *Stream) { eof(p, m) }, "- - - - + +"},
			{"open", func(p *pair, m *Mux, s *Stream) { s.Accept(cell.ConnectedBody{}) }, "- + + + + +"},
			{"EOF sent", func(p *pair, m *Mux, s *Stream) { s.Accept(cell.ConnectedBody{}); s.CloseWrite() }, "- + + + + +"},
			{"EOF received", func(p *pair, m *Mux, s *Stream) { s.Accept(cell.ConnectedBody{}); eof(p, m) }, "- - + - + +"},
			{"EOF received, then CloseWrite: DONE sent", func(p *pair, m *Mux, s *Stream) { s.Accept(cell.ConnectedBody{}); eof(p, m); s.CloseWrite() }, "- - + - + +"},
			{"refused", func(p *pair, m *Mux, s *Stream) { s.Abort(cell.EndPolicy) }, "- + - + + +"},
			{"refused, then EOF", func(p *pair, m *Mux, s *Stream) { s.Abort(cell.EndPolicy); eof(p, m) }, "- - - - + +"},
			{"closed, then EOF", func(p *pair, m *Mux, s *Stream) { s.Accept(cell.ConnectedBody{}); s.Close(); eof(p, m) }, "- - + - + +"},
			{"closed", func(p *pair, m *Mux, s *Stream) { s.Accept(cell.ConnectedBody{}); s.Close() }, "- + + + + +"},
			{"ended by the peer", func(p *pair, m *Mux, s *Stream) { s.Accept(cell.ConnectedBody{}); final(p, m) }, "- - - - - -"},
			{"ended before Accept", func(p *pair, m *Mux, s *Stream) { final(p, m); s.Accept(cell.ConnectedBody{}) }, "- - - - - -"},
		}},
	} {
		for _, state := range side.states {
			lawful := strings.Fields(state.row)
			for i, e := range events {
				p := newPair(t)
				m, s := side.enter(p)
				state.enter(p, m, s)
				err := p.handle(m, e.cmd, 1, e.payload)
				want := i < len(lawful) && lawful[i] == "+"
				if (err == nil) != want {
					t.Errorf("%s, %s: %s: %v, want lawful: %v", side.name, state.name, e.name, err, want)
				}
				s.Close()
				p.lose(errLost)
				if n := p.pool.Outstanding(); n != 0 {
					t.Errorf("%s, %s: %s: %d cells were not returned", side.name, state.name, e.name, n)
				}
			}
		}
	}
}

// TestLawfulUnknown: a stream that never was, and messages that are not those
// of a stream.
func TestLawfulUnknown(t *testing.T) {
	p := newPair(t)
	for _, m := range []*Mux{p.origin, p.relay} {
		for _, e := range events {
			if m == p.relay && (e.cmd == cell.Begin || e.cmd == cell.BeginDir || e.cmd == cell.Resolve) {
				continue
			}
			if p.handle(m, e.cmd, 7, e.payload) == nil {
				t.Errorf("%s of an unknown stream is lawful (relay: %v)", e.name, m == p.relay)
			}
		}
	}
	// Messages of the circuit belong to the circuit.
	if err := p.handle(p.relay, cell.Drop, 0, nil); err == nil {
		t.Error("DROP is lawful as a message of a stream")
	}
	p.empty()
}

// TestMalformedRequests: BEGIN, BEGIN_DIR and RESOLVE that do not parse ask for
// nothing.
func TestMalformedRequests(t *testing.T) {
	p := newPair(t)
	for _, f := range []struct {
		cmd     cell.MessageCommand
		payload []byte
	}{
		{cell.Begin, nil},
		{cell.Begin, []byte{0, 0, 0, 'x'}},
		{cell.Begin, []byte{0xff, 0, 80, 'x'}},
		{cell.BeginDir, []byte{0}},
		{cell.Resolve, []byte{0}},
		{cell.Resolve, []byte{0, ' '}},
	} {
		if p.handle(p.relay, f.cmd, 1, f.payload) == nil {
			t.Errorf("%v % x is lawful", f.cmd, f.payload)
		}
	}
	if len(p.begun) != 0 || len(p.lookups) != 0 || p.relay.Len() != 0 {
		t.Error("a malformed request came through")
	}
}

// TestCreditIsExact: DATA is lawful up to the credit and not a byte further,
// while the stream is open and after our end, when nothing of it may be held.
func TestCreditIsExact(t *testing.T) {
	full := make([]byte, 1024) // 512 of them are the initial credit
	for _, late := range []bool{false, true} {
		for _, over := range []bool{false, true} {
			p := newPair(t)
			p.handle(p.relay, cell.Begin, 1, []byte{0, 0, 80, 'x'})
			s := p.begun[0]
			s.Accept(cell.ConnectedBody{})
			granted := InitialCredit
			// What was read and granted counts again.
			for range InitialCredit / grantShare / len(full) {
				if err := p.handle(p.relay, cell.Data, 1, full); err != nil {
					t.Fatal(err)
				}
			}
			readNow(t, s)
			if p.back.sent[cell.Credit] != 1 {
				t.Fatalf("%d CREDIT for %d bytes read", p.back.sent[cell.Credit], (InitialCredit / grantShare))
			}
			if late {
				s.Close()
			}
			for range granted/len(full) - 1 {
				if err := p.handle(p.relay, cell.Data, 1, full); err != nil {
					t.Fatalf("late: %v: %v", late, err)
				}
			}
			if held := p.pool.Outstanding() - int64(p.back.queue.Len()); late && held != 0 {
				t.Errorf("%d cells are held of a stream that was closed", held)
			}
			last := full
			if over {
				last = append(last, 0)
			}
			if err := p.handle(p.relay, cell.Data, 1, last); (err == nil) == over {
				t.Errorf("late: %v, a byte more than granted: %v: error %v", late, over, err)
			}
			s.Close()
			p.lose(errLost)
			if n := p.pool.Outstanding(); n != 0 {
				t.Errorf("%d cells were not returned", n)
			}
		}
	}
}

// TestCreditOverflow: outstanding credit may reach 2^31 - 1 and no more, also
// after our end.
func TestCreditOverflow(t *testing.T) {
	credit := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for _, closed := range []bool{false, true} {
		p := newPair(t)
		near, far := p.open()
		mustWrite(t, near, "12345")
		p.settle()
		if closed {
			near.Close()
		}
		if err := p.handle(p.origin, cell.Credit, near.id, credit(maxCredit-InitialCredit+5)); err != nil {
			t.Errorf("credit of exactly 2^31 - 1: %v", err)
		}
		if near.sendCredit != maxCredit {
			t.Errorf("%d bytes may be sent, want %d", near.sendCredit, maxCredit)
		}
		if p.handle(p.origin, cell.Credit, near.id, credit(1)) == nil {
			t.Error("a byte more than 2^31 - 1 is lawful")
		}
		if p.handle(p.origin, cell.Credit, near.id, credit(1<<32-1)) == nil {
			t.Error("2^32 - 1 bytes on top are lawful")
		}
		p.done(near, far)
	}
}

// TestStreamIDs count up, from whatever side they are looked at.
func TestStreamIDs(t *testing.T) {
	p := newPair(t)
	for _, f := range []struct {
		id uint16
		ok bool
	}{{5, true}, {5, false}, {4, false}, {1, false}, {6, true}, {65535, true}, {65535, false}, {7, false}} {
		if f.ok {
			if err := p.handle(p.relay, cell.BeginDir, f.id, nil); err != nil {
				t.Errorf("BEGIN_DIR with stream ID %d: %v", f.id, err)
			}
			continue
		}
		for cmd, payload := range map[cell.MessageCommand][]byte{cell.Begin: {0, 0, 80, 'x'}, cell.BeginDir: nil, cell.Resolve: {0, 'x'}} {
			if p.handle(p.relay, cmd, f.id, payload) == nil {
				t.Errorf("%v with stream ID %d is lawful", cmd, f.id)
			}
		}
	}
	for _, s := range p.begun {
		s.Close()
	}
}
