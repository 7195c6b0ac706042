package cell_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"cepa/cell"
)

// parsers are all parsers under the names of doc/spec.md, for the tables below
// and for what holds for all of them.
var parsers = map[string]func([]byte) (any, error){
	"CREATE":        func(b []byte) (any, error) { return cell.ParseCreate(b) },
	"CREATED":       func(b []byte) (any, error) { return cell.ParseCreated(b) },
	"DESTROY":       func(b []byte) (any, error) { return cell.ParseDestroy(b) },
	"message":       func(b []byte) (any, error) { return cell.ParseMessage(b) },
	"EXTEND":        func(b []byte) (any, error) { return cell.ParseExtend(b) },
	"EXTENDED":      func(b []byte) (any, error) { return cell.ParseExtended(b) },
	"EXTEND_FAILED": func(b []byte) (any, error) { return cell.ParseExtendFailed(b) },
	"BEGIN":         func(b []byte) (any, error) { return cell.ParseBegin(b) },
	"CONNECTED":     func(b []byte) (any, error) { return cell.ParseConnected(b) },
	"END":           func(b []byte) (any, error) { return cell.ParseEnd(b) },
	"RESOLVE":       func(b []byte) (any, error) { return cell.ParseResolve(b) },
	"RESOLVED":      func(b []byte) (any, error) { return cell.ParseResolved(b) },
	"ACK":           func(b []byte) (any, error) { return cell.ParseAck(b) },
	"CREDIT":        func(b []byte) (any, error) { return cell.ParseCredit(b) },

	"ESTABLISH_INTRO":        func(b []byte) (any, error) { return cell.ParseEstablishIntro(b) },
	"INTRO_ESTABLISHED":      func(b []byte) (any, error) { return nil, cell.ParseIntroEstablished(b) },
	"INTRO_WORK":             func(b []byte) (any, error) { return cell.ParseIntroWork(b) },
	"INTRODUCE":              func(b []byte) (any, error) { return cell.ParseIntroduce(b) },
	"INTRODUCED":             func(b []byte) (any, error) { return cell.ParseIntroduced(b) },
	"INTRODUCE_ACK":          func(b []byte) (any, error) { return cell.ParseIntroduceAck(b) },
	"ESTABLISH_RENDEZVOUS":   func(b []byte) (any, error) { return cell.ParseEstablishRendezvous(b) },
	"RENDEZVOUS_ESTABLISHED": func(b []byte) (any, error) { return nil, cell.ParseRendezvousEstablished(b) },
	"RENDEZVOUS":             func(b []byte) (any, error) { return cell.ParseRendezvous(b) },
	"JOINED":                 func(b []byte) (any, error) { return cell.ParseJoined(b) },
}

// bytesOf joins parts: hex text, or bytes.
func bytesOf(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			x, err := hex.DecodeString(strings.ReplaceAll(p, " ", ""))
			if err != nil {
				panic(err)
			}
			b = append(b, x...)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

// body fills up with zeros to a cell's body.
func body(parts ...any) []byte {
	b := bytesOf(parts...)
	return append(b, make([]byte, cell.BodySize-len(b))...)
}

func fill(n int, x byte) []byte { return bytes.Repeat([]byte{x}, n) }

func text(s string) []byte { return []byte(s) }

// TestParse is what each parser takes, and what it says of what it does not.
func TestParse(t *testing.T) {
	id, message1 := "0102030405060708", fill(cell.HopMessage1Size, 0xaa)
	key := [8]byte{1, 2, 3, 4, 5, 6, 7, 8}
	reply := fill(cell.HopReplySize, 0xbb)
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	mapped := netip.MustParseAddr("::ffff:192.0.2.1")
	long := text(strings.Repeat("x", cell.MaxHost))
	for _, f := range []struct {
		what string
		in   []byte
		want any // a value, or as a string the field that is malformed
	}{
		{"CREATE", body("01", id, "02", message1), cell.CreateBody{Index: 1, KeyID: key, Suite: 2, Message1: message1}},
		{"CREATE", body("08", id, "ff", message1), cell.CreateBody{Index: 8, KeyID: key, Suite: 255, Message1: message1}},
		{"CREATE", body("00", id, "01", message1), "hop index"},
		{"CREATE", body("09", id, "01", message1), "hop index"},
		{"CREATE", body("01", id, "01", message1, "01"), "trailing bytes"},
		{"CREATE", bytesOf("01", id, "01", message1, fill(160, 0), "80"), "trailing bytes"},
		{"CREATE", bytesOf("01", id, "01", message1), "body size"},
		{"CREATE", nil, "body size"},
		{"CREATE", append(body("01"), 0), "body size"},

		{"CREATED", body(reply), reply},
		{"CREATED", body(reply, "01"), "trailing bytes"},
		{"CREATED", reply, "body size"},

		{"DESTROY", body("00"), cell.ReasonNone},
		{"DESTROY", body("06"), cell.ReasonRefused},
		{"DESTROY", body("07"), "reason"},
		{"DESTROY", body("ff"), "reason"},
		{"DESTROY", body("01 01"), "trailing bytes"},
		{"DESTROY", bytesOf("00"), "body size"},

		{"message", bytesOf("07 1234 0002 abcd 0000"), cell.Message{Command: cell.Data, Stream: 0x1234, Payload: []byte{0xab, 0xcd}}},
		{"message", bytesOf("05 0001 0000"), cell.Message{Command: cell.BeginDir, Stream: 1, Payload: []byte{}}},
		{"message", bytesOf("0b 0000 0001 05"), cell.Message{Command: cell.Ack, Payload: []byte{5}}},
		{"message", bytesOf("0e 0000 0000 00"), cell.Message{Command: cell.Drop, Payload: []byte{}}},
		{"message", bytesOf("07 0001 00"), "header"},
		{"message", nil, "header"},
		{"message", bytesOf("07 0001 0003 abcd"), "length"},
		{"message", bytesOf("07 0001 ffff abcd"), "length"},
		{"message", bytesOf("07 0001 0001 ab 00 01"), "trailing bytes"},
		{"message", bytesOf("00 0000 0000"), "command"},
		{"message", bytesOf("19 0001 0000"), "command"},
		{"message", bytesOf("ff 0000 0000"), "command"},

		{"EXTEND", bytesOf(fill(32, 3), id, "01", message1), cell.ExtendBody{Identity: [32]byte(fill(32, 3)), KeyID: key, Suite: 1, Message1: message1}},
		{"EXTEND", fill(cell.ExtendSize-1, 3), "length"},
		{"EXTEND", fill(cell.ExtendSize+1, 3), "length"},
		{"EXTENDED", reply, reply},
		{"EXTENDED", reply[1:], "length"},
		{"EXTENDED", append(reply[:len(reply):len(reply)], 0), "length"},
		{"EXTEND_FAILED", bytesOf("01"), cell.ExtendUnknownRelay},
		{"EXTEND_FAILED", bytesOf("06"), cell.ExtendNotAllowed},
		{"EXTEND_FAILED", bytesOf("00"), "reason"},
		{"EXTEND_FAILED", bytesOf("07"), "reason"},
		{"EXTEND_FAILED", bytesOf("01 00"), "reason"},
		{"EXTEND_FAILED", nil, "reason"},

		{"BEGIN", bytesOf("03 01bb", text("example.org")), cell.BeginBody{Flags: 3, Port: 443, Host: "example.org"}},
		{"BEGIN", bytesOf("00 0001", text("[2001:db8::1]")), cell.BeginBody{Port: 1, Host: "[2001:db8::1]"}},
		{"BEGIN", bytesOf("00 ffff", long), cell.BeginBody{Port: 65535, Host: string(long)}},
		{"BEGIN", bytesOf("00 0050", long, text("x")), "length"},
		{"BEGIN", bytesOf("00 0050"), "length"},
		{"BEGIN", bytesOf("04 0050", text("x")), "flags"},
		{"BEGIN", bytesOf("80 0050", text("x")), "flags"},
		{"BEGIN", bytesOf("00 0000", text("x")), "port"},
		{"BEGIN", bytesOf("00 0050", text("a b")), "host"},
		{"BEGIN", bytesOf("00 0050", text("a\x00")), "host"},
		{"BEGIN", bytesOf("00 0050", text("\x7f")), "host"},
		{"BEGIN", bytesOf("00 0050", text("é")), "host"},

		{"CONNECTED", bytesOf("00 0000003c"), cell.ConnectedBody{TTL: 60}},
		{"CONNECTED", bytesOf("04 c0000201 00000001"), cell.ConnectedBody{Addr: v4, TTL: 1}},
		{"CONNECTED", bytesOf("06", v6.AsSlice(), "ffffffff"), cell.ConnectedBody{Addr: v6, TTL: 1<<32 - 1}},
		{"CONNECTED", bytesOf("06", mapped.AsSlice(), "00000000"), cell.ConnectedBody{Addr: mapped}},
		{"CONNECTED", nil, "length"},
		{"CONNECTED", bytesOf("00"), "address"},
		{"CONNECTED", bytesOf("00 0000003c 00"), "address"},
		{"CONNECTED", bytesOf("04 c0000201 000001"), "address"},
		{"CONNECTED", bytesOf("05 c0000201 00000001"), "address"},
		{"CONNECTED", bytesOf("06 c0000201 00000001"), "address"},

		{"END", bytesOf("00"), cell.EndEOF},
		{"END", bytesOf("0c"), cell.EndNoDirectory},
		{"END", bytesOf("0d"), "reason"},
		{"END", nil, "reason"},
		{"END", bytesOf("01 00"), "reason"},

		{"RESOLVE", bytesOf("01", text("example.org")), cell.ResolveBody{Flags: 1, Name: "example.org"}},
		{"RESOLVE", bytesOf("00", long), cell.ResolveBody{Name: string(long)}},
		{"RESOLVE", bytesOf("00", long, text("x")), "length"},
		{"RESOLVE", bytesOf("00"), "length"},
		{"RESOLVE", bytesOf("04", text("x")), "flags"},
		{"RESOLVE", bytesOf("00", text("\t")), "name"},

		{"RESOLVED", bytesOf("00 0000003c 02 04 04 c0000201 06 10", v6.AsSlice()), cell.ResolvedBody{TTL: 60, Addrs: []netip.Addr{v4, v6}}},
		{"RESOLVED", bytesOf("00 0000003c 01 00 01", text("x")), cell.ResolvedBody{TTL: 60, Names: []string{"x"}}},
		{"RESOLVED", bytesOf("03 00000000 00"), cell.ResolvedBody{Status: cell.EndNotFound}},
		{"RESOLVED", bytesOf("00 0000003c 10", bytes.Repeat(bytesOf("00 01 78"), 16)), cell.ResolvedBody{TTL: 60, Names: strings.Split(strings.Repeat("x", 16), "")}},
		{"RESOLVED", bytesOf("00 0000003c 11", bytes.Repeat(bytesOf("00 01 78"), 17)), "count"},
		{"RESOLVED", bytesOf("00 0000003c 00"), "count"},
		{"RESOLVED", bytesOf("03 00000000 01 00 01 78"), "count"},
		{"RESOLVED", bytesOf("01 00000000 00"), "status"},
		{"RESOLVED", bytesOf("0d 00000000 00"), "status"},
		{"RESOLVED", bytesOf("00 000000"), "length"},
		{"RESOLVED", bytesOf("00 0000003c 01 00 01 78 00"), "length"},
		{"RESOLVED", bytesOf("00 0000003c 01"), "answer"},
		{"RESOLVED", bytesOf("00 0000003c 02 00 01 78"), "answer"},
		{"RESOLVED", bytesOf("00 0000003c 01 00 02 78"), "answer"},
		{"RESOLVED", bytesOf("00 0000003c 01 00 00"), "answer"},
		{"RESOLVED", bytesOf("00 0000003c 01 00 01 20"), "answer"},
		{"RESOLVED", bytesOf("00 0000003c 01 04 03 c00002"), "answer"},
		{"RESOLVED", bytesOf("00 0000003c 01 06 04 c0000201"), "answer"},
		{"RESOLVED", bytesOf("00 0000003c 01 05 01 78"), "answer"},

		{"ACK", fill(16, 7), [16]byte(fill(16, 7))},
		{"ACK", fill(15, 7), "length"},
		{"ACK", fill(17, 7), "length"},
		{"CREDIT", bytesOf("00000001"), uint32(1)},
		{"CREDIT", bytesOf("ffffffff"), uint32(1<<32 - 1)},
		{"CREDIT", bytesOf("00000000"), "bytes"},
		{"CREDIT", bytesOf("000001"), "length"},
		{"CREDIT", bytesOf("0000000001"), "length"},

		{"ESTABLISH_INTRO", bytesOf(fill(32, 1), "00000002 00000003", fill(64, 4)), cell.EstablishIntroBody{Key: [32]byte(fill(32, 1)), Rate: 2, Burst: 3, Signature: [64]byte(fill(64, 4))}},
		{"ESTABLISH_INTRO", fill(103, 1), "length"},
		{"ESTABLISH_INTRO", fill(105, 1), "length"},
		{"INTRO_ESTABLISHED", nil, nil},
		{"INTRO_ESTABLISHED", bytesOf("00"), "length"},
		{"INTRO_WORK", bytesOf("00000005", fill(32, 6), fill(32, 0)), cell.IntroWorkBody{Effort: 5, Seed: [32]byte(fill(32, 6))}},
		{"INTRO_WORK", fill(67, 1), "length"},
		{"INTRO_WORK", fill(69, 1), "length"},
		{"INTRODUCE", bytesOf(fill(32, 1), fill(41, 2), fill(1220, 3)), cell.IntroduceBody{Key: [32]byte(fill(32, 1)), Work: [41]byte(fill(41, 2)), Sealed: [1220]byte(fill(1220, 3))}},
		{"INTRODUCE", fill(1292, 1), "length"},
		{"INTRODUCE", fill(1294, 1), "length"},
		{"INTRODUCED", bytesOf(fill(32, 1), fill(41, 2), fill(1220, 3)), cell.IntroduceBody{Key: [32]byte(fill(32, 1)), Work: [41]byte(fill(41, 2)), Sealed: [1220]byte(fill(1220, 3))}},
		{"INTRODUCED", fill(1292, 1), "length"},
		{"INTRODUCE_ACK", bytesOf("00 00000000"), cell.IntroduceAckBody{}},
		{"INTRODUCE_ACK", bytesOf("01 00000000"), cell.IntroduceAckBody{Status: cell.IntroduceUnknown}},
		{"INTRODUCE_ACK", bytesOf("02 00000000"), cell.IntroduceAckBody{Status: cell.IntroduceFull}},
		{"INTRODUCE_ACK", bytesOf("03 00000001"), cell.IntroduceAckBody{Status: cell.IntroduceWork, Effort: 1}},
		{"INTRODUCE_ACK", bytesOf("03 00000000"), "effort"},
		{"INTRODUCE_ACK", bytesOf("00 00000001"), "effort"},
		{"INTRODUCE_ACK", bytesOf("02 80000000"), "effort"},
		{"INTRODUCE_ACK", bytesOf("04 00000000"), "status"},
		{"INTRODUCE_ACK", bytesOf("ff 00000001"), "status"},
		{"INTRODUCE_ACK", bytesOf("00 000000"), "length"},
		{"INTRODUCE_ACK", bytesOf("00 00000000 00"), "length"},
		{"ESTABLISH_RENDEZVOUS", fill(20, 7), [20]byte(fill(20, 7))},
		{"ESTABLISH_RENDEZVOUS", fill(19, 7), "length"},
		{"ESTABLISH_RENDEZVOUS", fill(21, 7), "length"},
		{"RENDEZVOUS_ESTABLISHED", nil, nil},
		{"RENDEZVOUS_ESTABLISHED", bytesOf("00"), "length"},
		{"RENDEZVOUS", bytesOf(fill(20, 7), fill(1232, 8)), cell.RendezvousBody{Cookie: [20]byte(fill(20, 7)), Reply: [1232]byte(fill(1232, 8))}},
		{"RENDEZVOUS", fill(1251, 7), "length"},
		{"RENDEZVOUS", fill(1253, 7), "length"},
		{"JOINED", fill(1232, 8), fill(1232, 8)},
		{"JOINED", fill(1231, 8), "length"},
		{"JOINED", fill(1233, 8), "length"},
	} {
		got, err := parsers[f.what](f.in)
		if field, bad := f.want.(string); bad {
			var format *cell.FormatError
			if !errors.As(err, &format) || format.Field != field {
				t.Errorf("%s % .16x… (%d bytes): error %v, want one about the field %q", f.what, f.in, len(f.in), err, field)
			} else if f.what != "message" && format.Message != f.what || !strings.Contains(err.Error(), format.Message+": "+field) {
				t.Errorf("%s: the error %q does not name the message", f.what, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, f.want) {
			t.Errorf("%s % .16x… (%d bytes): %+v, error %v", f.what, f.in, len(f.in), got, err)
		}
	}
}

// TestStreamID: each command with and without a stream ID. The table is that of
// doc/spec.md section 5.
func TestStreamID(t *testing.T) {
	ofStream := map[cell.MessageCommand]bool{
		cell.Extend: false, cell.Extended: false, cell.ExtendFailed: false,
		cell.Begin: true, cell.BeginDir: true, cell.Connected: true, cell.Data: true, cell.End: true, cell.Resolve: true, cell.Resolved: true,
		cell.Ack: false, cell.Credit: true, cell.PadNegotiate: false, cell.Drop: false,
		cell.EstablishIntro: false, cell.IntroEstablished: false, cell.IntroWork: false, cell.Introduce: false, cell.Introduced: false,
		cell.IntroduceAck: false, cell.EstablishRendezvous: false, cell.RendezvousEstablished: false, cell.Rendezvous: false, cell.Joined: false,
	}
	for cmd := cell.MessageCommand(1); cmd <= cell.LastMessage; cmd++ {
		for _, id := range []uint16{0, 1, 65535} {
			b := make([]byte, 20)
			cell.PutMessage(b, cmd, id, nil)
			_, err := cell.ParseMessage(b)
			if ok := ofStream[cmd] == (id != 0); ok != (err == nil) {
				t.Errorf("%v on stream %d: error %v", cmd, id, err)
			}
		}
	}
	if len(ofStream) != 24 {
		t.Error("the table does not name 24 commands")
	}
}

// TestPutMessage: the message overwrites all that a used buffer held, its
// payload may fill the room, and too much is a bug.
func TestPutMessage(t *testing.T) {
	for k := 1; k <= cell.JoinedIndex; k++ {
		b := fill(cell.BodySize-cell.LayerOverhead*k, 0xff)
		cell.PutMessage(b, cell.Data, 7, []byte{1, 2})
		m, err := cell.ParseMessage(b)
		if err != nil || m.Command != cell.Data || m.Stream != 7 || !bytes.Equal(m.Payload, []byte{1, 2}) || cap(m.Payload) != 2 {
			t.Errorf("hop %d: %+v, error %v", k, m, err)
		}
		payload := fill(cell.Room(k), 5)
		cell.PutMessage(b, cell.Data, 7, payload)
		if m, err = cell.ParseMessage(b); err != nil || !bytes.Equal(m.Payload, payload) {
			t.Errorf("hop %d: a full message: %d bytes, error %v", k, len(m.Payload), err)
		}
		wantPanic(t, "a message too large for its hop", func() { cell.PutMessage(b, cell.Data, 7, fill(cell.Room(k)+1, 5)) })
	}
}

// TestValidHost agrees with what BEGIN takes.
func TestValidHost(t *testing.T) {
	for _, h := range []string{"", "x", "a b", "é", "a\n", strings.Repeat("x", 255), strings.Repeat("x", 256), "[::1]", "a\x7f"} {
		b := cell.BeginBody{Port: 1, Host: h}
		_, err := cell.ParseBegin(b.AppendTo(nil))
		if cell.ValidHost(h) != (err == nil) {
			t.Errorf("%q: valid: %v, but BEGIN says %v", h, cell.ValidHost(h), err)
		}
	}
}

// TestResolvedAppend: whatever a relay puts into the answer, what is sent is
// well-formed and fits every hop. A malformed answer would cost the client its
// circuit, and a name server can be hostile.
func TestResolvedAppend(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1%eth0")
	many := make([]netip.Addr, 40)
	for i := range many {
		many[i] = v4
	}
	name := strings.Repeat("n", 255)
	for _, f := range []struct {
		what         string
		in           cell.ResolvedBody
		status       cell.EndReason
		addrs, names int
	}{
		{"both", cell.ResolvedBody{TTL: 5, Addrs: []netip.Addr{v4, v6}, Names: []string{"a"}}, 0, 2, 1},
		{"too many", cell.ResolvedBody{Addrs: many}, 0, cell.MaxAnswers, 0},
		{"too long", cell.ResolvedBody{Names: []string{name, name, name, name, name, "x"}}, 0, 0, 5},
		{"names that cannot be said", cell.ResolvedBody{Names: []string{"a b", "", name + "n", "ok"}}, 0, 0, 1},
		{"only such names", cell.ResolvedBody{Names: []string{"a b", ""}}, cell.EndNotFound, 0, 0},
		{"no address", cell.ResolvedBody{Addrs: []netip.Addr{{}}}, cell.EndNotFound, 0, 0},
		{"found, but nothing", cell.ResolvedBody{}, cell.EndNotFound, 0, 0},
		{"failed, with answers", cell.ResolvedBody{Status: cell.EndPolicy, Addrs: many, Names: []string{"a"}}, cell.EndPolicy, 0, 0},
	} {
		b := f.in.AppendTo([]byte("before"))
		if !bytes.HasPrefix(b, []byte("before")) {
			t.Errorf("%s: AppendTo does not append", f.what)
		}
		b = b[len("before"):]
		m, err := cell.ParseResolved(b)
		if err != nil || m.Status != f.status || len(m.Addrs) != f.addrs || len(m.Names) != f.names || m.TTL != f.in.TTL {
			t.Errorf("%s: %+v, error %v", f.what, m, err)
		}
		if len(b) > cell.Room(cell.MaxHops) {
			t.Errorf("%s: %d bytes do not fit hop %d", f.what, len(b), cell.MaxHops)
		}
	}
}
