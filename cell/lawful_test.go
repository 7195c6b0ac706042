package cell_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
	"testing"

	"cepa/cell"
)

// spec is doc/spec.md, whose tables the code and this test share.
func spec(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../doc/spec.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// table returns the rows of the one table of doc/spec.md whose head is given,
// each with as many fields as the head.
func table(t *testing.T, head string) [][]string {
	t.Helper()
	lines := strings.Split(spec(t), "\n")
	var rows [][]string
	found := 0
	for i, line := range lines {
		if line != head {
			continue
		}
		found++
		if !strings.HasPrefix(lines[i+1], "|---") {
			t.Fatalf("line %d of doc/spec.md is no rule below a head", i+2)
		}
		for _, row := range lines[i+2:] {
			if !strings.HasPrefix(row, "|") {
				break
			}
			rows = append(rows, fields(row))
		}
	}
	if found != 1 {
		t.Fatalf("doc/spec.md has %d tables with the head %q, want 1", found, head)
	}
	for _, row := range rows {
		if len(row) != len(fields(head)) {
			t.Fatalf("row %q has %d fields, its head has %d", row, len(row), len(fields(head)))
		}
	}
	return rows
}

func fields(row string) []string {
	parts := strings.Split(strings.Trim(row, "|"), "|")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// same compares one cell of a table with what the data say.
func same(t *testing.T, row []string, column, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s is %q in doc/spec.md and %q in the data", strings.Join(row[:min(2, len(row))], " "), column, got, want)
	}
}

var verdicts = map[cell.Verdict]string{cell.Unlawful: "–", cell.Dropped: "drop", cell.Lawful: "yes"}

const commands = 7 // PADDING to AUTH

// TestLawfulCells: which cell is taken on which circuit ID.
func TestLawfulCells(t *testing.T) {
	values := table(t, "| command | value | circuit ID | body |")
	rows := table(t, "| cell | 0 | new | pending | offered | open | destroyed | unknown |")
	if len(values) != commands || len(rows) != commands {
		t.Fatalf("%d commands and %d rows of verdicts, want %d each", len(values), len(rows), commands)
	}
	states := []cell.CircuitState{
		cell.CircuitZero, cell.CircuitNew, cell.CircuitPending, cell.CircuitOffered,
		cell.CircuitOpen, cell.CircuitDestroyed, cell.CircuitUnknown,
	}
	for i, row := range rows {
		c := cell.Command(i)
		same(t, row, "command", row[0], c.String())
		same(t, row, "command", values[i][0], c.String())
		same(t, row, "value", values[i][1], strconv.Itoa(i))
		for k, s := range states {
			same(t, row, "state "+strconv.Itoa(k), row[k+1], verdicts[c.On(s)])
		}
	}
	for c := commands; c < 256; c++ {
		for s := range 256 {
			if cell.Command(c).On(cell.CircuitState(s)) != cell.Unlawful {
				t.Errorf("%v is lawful in state %d", cell.Command(c), s)
			}
		}
	}
	for s := len(states); s < 256; s++ {
		if cell.Relay.On(cell.CircuitState(s)) != cell.Unlawful {
			t.Errorf("RELAY is lawful in the unknown state %d", s)
		}
	}
}

// TestLawfulMessages: which message is taken by whom.
func TestLawfulMessages(t *testing.T) {
	formats := table(t, "| message | value | stream | direction | payload |")
	rows := table(t, "| message | at a relay | at an origin | counts |")
	if len(formats) != int(cell.LastMessage) || len(rows) != int(cell.LastMessage) {
		t.Fatalf("%d messages and %d rules, want %d each", len(formats), len(rows), cell.LastMessage)
	}
	streams := map[cell.StreamUse]string{cell.NoStream: "0", cell.NewStream: "new", cell.KnownStream: "known"}
	relays := map[cell.RelayRule]string{cell.RelayNever: "–", cell.RelayAlways: "always", cell.RelayLast: "last", cell.RelayIdle: "idle", cell.RelayIntroduction: "introduction"}
	origins := map[cell.OriginRule]string{
		cell.OriginNever: "–", cell.OriginAnyHop: "any hop", cell.OriginLastHop: "last hop", cell.OriginPending: "pending",
		cell.OriginIntroduction: "introduction", cell.OriginRendezvous: "rendezvous",
	}
	for i, row := range rows {
		c := cell.MessageCommand(i + 1)
		r := c.Rule()
		same(t, row, "name", row[0], c.String())
		same(t, row, "name", formats[i][0], c.String())
		same(t, row, "value", formats[i][1], strconv.Itoa(i+1))
		same(t, row, "stream", formats[i][2], streams[r.Stream])
		same(t, row, "direction", formats[i][3], direction(r))
		same(t, row, "at a relay", row[1], relays[r.Relay])
		same(t, row, "at an origin", row[2], origins[r.Origin])
		same(t, row, "counts", row[3], map[bool]string{true: "yes", false: "no"}[r.Counts])
		if (r.Stream != cell.NoStream) != c.OfStream() {
			t.Errorf("%v: stream ID %v, but OfStream is %v", c, r.Stream, c.OfStream())
		}
	}
	for c := range 256 {
		if c >= 1 && c <= int(cell.LastMessage) {
			continue
		}
		if r := cell.MessageCommand(c).Rule(); r.Relay != cell.RelayNever || r.Origin != cell.OriginNever {
			t.Errorf("%v is lawful somewhere", cell.MessageCommand(c))
		}
	}
}

// direction follows from who takes a message.
func direction(r cell.Rule) string {
	switch out, back := r.Relay != cell.RelayNever, r.Origin != cell.OriginNever; {
	case out && back:
		return "both"
	case out:
		return "out"
	case back:
		return "back"
	}
	return "–"
}

// TestLawfulStreams: which message is taken in which state of its stream.
func TestLawfulStreams(t *testing.T) {
	const head = "| at | state | BEGIN | BEGIN_DIR | RESOLVE | CONNECTED | DATA | CREDIT | END 0 | END other | RESOLVED |"
	rows := table(t, head)
	states := []struct {
		state cell.StreamState
		at    string
		name  string
	}{
		{cell.StreamUnknown, "both", "unknown"},
		{cell.StreamNew, "relay", "new: higher than all before"},
		{cell.OriginAsked, "origin", "asked: BEGIN sent"},
		{cell.OriginOpen, "origin", "open"},
		{cell.OriginEOF, "origin", "EOF received"},
		{cell.OriginEndedUnanswered, "origin", "ended before CONNECTED"},
		{cell.OriginEnded, "origin", "ended after CONNECTED"},
		{cell.OriginEndedEOF, "origin", "ended, EOF received"},
		{cell.OriginLookup, "origin", "RESOLVE sent"},
		{cell.RelayAsked, "relay", "asked: BEGIN received"},
		{cell.RelayAskedEOF, "relay", "asked, EOF received"},
		{cell.RelayOpen, "relay", "open"},
		{cell.RelayEOF, "relay", "EOF received"},
		{cell.RelayEndedUnanswered, "relay", "ended before CONNECTED"},
		{cell.RelayEndedUnansweredEOF, "relay", "ended before CONNECTED, EOF received"},
		{cell.RelayEnded, "relay", "ended after CONNECTED"},
		{cell.RelayEndedEOF, "relay", "ended after CONNECTED, EOF received"},
		{cell.RelayLookup, "relay", "RESOLVE received"},
	}
	if len(rows) != len(states) {
		t.Fatalf("%d states in doc/spec.md, want %d", len(rows), len(states))
	}
	columns := map[string]cell.MessageCommand{
		"BEGIN": cell.Begin, "BEGIN_DIR": cell.BeginDir, "RESOLVE": cell.Resolve, "CONNECTED": cell.Connected,
		"DATA": cell.Data, "CREDIT": cell.Credit, "END other": cell.End, "RESOLVED": cell.Resolved,
	}
	for i, row := range rows {
		s := states[i].state
		same(t, row, "at", row[0], states[i].at)
		same(t, row, "state", row[1], states[i].name)
		for k, name := range fields(head)[2:] {
			if name == "END 0" {
				same(t, row, name, row[k+2], verdicts[s.TakesEnd(cell.EndEOF)])
				continue
			}
			c, ok := columns[name]
			if !ok {
				t.Fatalf("column %q is no message", name)
			}
			same(t, row, name, row[k+2], verdicts[s.Takes(c)])
		}
		for why := cell.EndDone; why <= cell.EndNoDirectory; why++ {
			if s.TakesEnd(why) != s.Takes(cell.End) {
				t.Errorf("%s %s: END %d is judged unlike other finals", row[0], row[1], why)
			}
		}
		// Messages that are not those of streams are lawful in no state of one.
		for c := range 256 {
			if m := cell.MessageCommand(c); !m.OfStream() && s.Takes(m) != cell.Unlawful {
				t.Errorf("%s %s: %v is lawful", row[0], row[1], m)
			}
		}
	}
	for s := len(states); s < 256; s++ {
		if x := cell.StreamState(s); x.Takes(cell.Data) != cell.Unlawful || x.TakesEnd(cell.EndEOF) != cell.Unlawful || x.TakesEnd(cell.EndDone) != cell.Unlawful {
			t.Errorf("something is lawful in the unknown state %d", s)
		}
	}
}

// TestLawfulAgrees: the two tables of messages say the same. What a relay or an
// origin never takes is lawful in none of its states of a stream, and the other
// way round; and a side that has ended takes no more than one that has not.
func TestLawfulAgrees(t *testing.T) {
	origin := []cell.StreamState{
		cell.OriginAsked, cell.OriginOpen, cell.OriginEOF, cell.OriginEndedUnanswered,
		cell.OriginEnded, cell.OriginEndedEOF, cell.OriginLookup,
	}
	relay := []cell.StreamState{
		cell.StreamNew, cell.RelayAsked, cell.RelayAskedEOF, cell.RelayOpen,
		cell.RelayEOF, cell.RelayEnded, cell.RelayEndedEOF, cell.RelayLookup,
	}
	somewhere := func(states []cell.StreamState, c cell.MessageCommand) bool {
		for _, s := range states {
			if s.Takes(c) != cell.Unlawful {
				return true
			}
		}
		return false
	}
	for c := cell.Extend; c <= cell.LastMessage; c++ {
		if !c.OfStream() {
			continue
		}
		if got, want := somewhere(relay, c), c.Rule().Relay != cell.RelayNever; got != want {
			t.Errorf("%v: lawful for a relay's streams: %v, for the relay: %v", c, got, want)
		}
		if got, want := somewhere(origin, c), c.Rule().Origin != cell.OriginNever; got != want {
			t.Errorf("%v: lawful for an origin's streams: %v, for the origin: %v", c, got, want)
		}
		if got, want := cell.StreamNew.Takes(c) == cell.Lawful, c.Rule().Stream == cell.NewStream; got != want {
			t.Errorf("%v: opens a stream: %v, carries a new ID: %v", c, got, want)
		}
		for before, after := range map[cell.StreamState]cell.StreamState{
			cell.OriginAsked: cell.OriginEndedUnanswered, cell.OriginOpen: cell.OriginEnded, cell.OriginEOF: cell.OriginEndedEOF,
			cell.RelayAsked: cell.RelayEndedUnanswered, cell.RelayAskedEOF: cell.RelayEndedUnansweredEOF, cell.RelayOpen: cell.RelayEnded, cell.RelayEOF: cell.RelayEndedEOF,
		} {
			if a, b := before.Takes(c), after.Takes(c); (a == cell.Unlawful) != (b == cell.Unlawful) {
				t.Errorf("%v: our END, of which the peer does not know, changes what it may send: %v, %v", c, a, b)
			}
			if a, b := before.TakesEnd(cell.EndEOF), after.TakesEnd(cell.EndEOF); (a == cell.Unlawful) != (b == cell.Unlawful) {
				t.Errorf("EOF: our END, of which the peer does not know, changes what it may send: %v, %v", a, b)
			}
		}
	}
}

// TestStateOf is the state that follows from what has passed.
func TestStateOf(t *testing.T) {
	for _, f := range []struct {
		origin, answered, eof, ended bool
		want                         cell.StreamState
	}{
		{true, false, false, false, cell.OriginAsked},
		{true, false, false, true, cell.OriginEndedUnanswered},
		{true, false, true, false, cell.OriginAsked},
		{true, false, true, true, cell.OriginEndedUnanswered},
		{true, true, false, false, cell.OriginOpen},
		{true, true, true, false, cell.OriginEOF},
		{true, true, false, true, cell.OriginEnded},
		{true, true, true, true, cell.OriginEndedEOF},
		{false, false, false, false, cell.RelayAsked},
		{false, false, true, false, cell.RelayAskedEOF},
		{false, true, false, false, cell.RelayOpen},
		{false, true, true, false, cell.RelayEOF},
		{false, false, false, true, cell.RelayEndedUnanswered},
		{false, true, false, true, cell.RelayEnded},
		{false, false, true, true, cell.RelayEndedUnansweredEOF},
		{false, true, true, true, cell.RelayEndedEOF},
	} {
		if got := cell.StateOf(f.origin, f.answered, f.eof, f.ended); got != f.want {
			t.Errorf("%+v: state %d", f, got)
		}
	}
}

// TestSpecExamples: the encodings that doc/spec.md gives are those of this code,
// both ways.
func TestSpecExamples(t *testing.T) {
	seen := map[cell.MessageCommand]bool{}
	for _, row := range table(t, "| message | bytes |") {
		want, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(row[1], "`"), " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", row[0], err)
		}
		m, err := cell.ParseMessage(append(want[:len(want):len(want)], make([]byte, 100)...))
		if err != nil {
			t.Errorf("%s: %v", row[0], err)
			continue
		}
		same(t, row, "message", row[0], m.Command.String())
		if !bytes.Equal(m.Payload, want[cell.MessageHeaderSize:]) {
			t.Errorf("%s: payload % x, the example goes on", row[0], m.Payload)
		}
		payload, err := again(m)
		if err != nil {
			t.Errorf("%s: %v", row[0], err)
			continue
		}
		b := make([]byte, len(want))
		cell.PutMessage(b, m.Command, m.Stream, payload)
		if !bytes.Equal(b, want) {
			t.Errorf("%s: encoded as % x", row[0], b)
		}
		seen[m.Command] = true
	}
	// Those of hundreds of bytes are in cells.json alone.
	long := map[cell.MessageCommand]bool{cell.Introduce: true, cell.Introduced: true, cell.Rendezvous: true, cell.Joined: true}
	for c := cell.ExtendFailed; c <= cell.LastMessage; c++ {
		if !seen[c] && !long[c] {
			t.Errorf("%v has no example", c)
		}
	}
}

// again parses a payload and encodes what it says.
func again(m cell.Message) ([]byte, error) {
	switch m.Command {
	case cell.ExtendFailed:
		why, err := cell.ParseExtendFailed(m.Payload)
		return []byte{byte(why)}, err
	case cell.Begin:
		b, err := cell.ParseBegin(m.Payload)
		return b.AppendTo(nil), err
	case cell.Connected:
		b, err := cell.ParseConnected(m.Payload)
		return b.AppendTo(nil), err
	case cell.End:
		why, err := cell.ParseEnd(m.Payload)
		return []byte{byte(why)}, err
	case cell.Resolve:
		b, err := cell.ParseResolve(m.Payload)
		return b.AppendTo(nil), err
	case cell.Resolved:
		b, err := cell.ParseResolved(m.Payload)
		return b.AppendTo(nil), err
	case cell.Ack:
		tag, err := cell.ParseAck(m.Payload)
		return tag[:], err
	case cell.Credit:
		n, err := cell.ParseCredit(m.Payload)
		return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, err
	case cell.PadNegotiate:
		b, err := cell.ParsePadNegotiate(m.Payload)
		return b.AppendTo(nil), err
	case cell.Drop:
		return nil, cell.ParseDrop(m.Payload)
	case cell.EstablishIntro:
		b, err := cell.ParseEstablishIntro(m.Payload)
		return b.AppendTo(nil), err
	case cell.IntroEstablished:
		return nil, cell.ParseIntroEstablished(m.Payload)
	case cell.IntroWork:
		b, err := cell.ParseIntroWork(m.Payload)
		return b.AppendTo(nil), err
	case cell.Introduce:
		b, err := cell.ParseIntroduce(m.Payload)
		return b.AppendTo(nil), err
	case cell.Introduced:
		b, err := cell.ParseIntroduced(m.Payload)
		return b.AppendTo(nil), err
	case cell.IntroduceAck:
		b, err := cell.ParseIntroduceAck(m.Payload)
		return b.AppendTo(nil), err
	case cell.EstablishRendezvous:
		cookie, err := cell.ParseEstablishRendezvous(m.Payload)
		return cookie[:], err
	case cell.RendezvousEstablished:
		return nil, cell.ParseRendezvousEstablished(m.Payload)
	case cell.Rendezvous:
		b, err := cell.ParseRendezvous(m.Payload)
		return b.AppendTo(nil), err
	case cell.Joined:
		return cell.ParseJoined(m.Payload)
	}
	return m.Payload, nil // BEGIN_DIR and DATA: any
}

// TestAllocLawful: the rules are asked for every message.
func TestAllocLawful(t *testing.T) {
	n := 0
	if got := testing.AllocsPerRun(1000, func() {
		s := cell.StateOf(true, true, false, false)
		if s.Takes(cell.Data) == cell.Lawful && cell.Data.Rule().Counts && cell.Relay.On(cell.CircuitOpen) == cell.Lawful {
			n++
		}
	}); got != 0 || n == 0 {
		t.Errorf("%v allocations a message, want 0", got)
	}
}
