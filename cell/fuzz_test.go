package cell_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"testing"

	"cepa/cell"
)

// All targets hold the same invariant: what parses, and is appended again, is
// what was parsed. Formats have one encoding each, so even the bytes agree.

func FuzzCreate(f *testing.F) {
	f.Add(body("01 0102030405060708 01", fill(cell.HopMessage1Size, 9)))
	f.Add(body("09"))
	f.Add(body("01", fill(1402, 1)))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParseCreate(b)
		if err != nil {
			return
		}
		if again := m.AppendTo(nil); !bytes.Equal(body(again), b) {
			t.Fatalf("% x became % x", b, again)
		}
		if m.Index < 1 || m.Index > cell.MaxHops || len(m.Message1) != cell.HopMessage1Size {
			t.Fatalf("%+v", m)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(bytesOf("07 0001 0002 abcd 000000"))
	f.Add(bytesOf("0b 0000 0010", fill(16, 1)))
	f.Add(bytesOf("07 0001 ffff"))
	f.Add(bytesOf("0e 0000 0000 00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParseMessage(b)
		if err != nil {
			return
		}
		if m.Command.OfStream() != (m.Stream != 0) || m.Command < 1 || m.Command > 24 {
			t.Fatalf("%+v", m)
		}
		again := fill(len(b), 0xff)
		cell.PutMessage(again, m.Command, m.Stream, m.Payload)
		if !bytes.Equal(again, b) {
			t.Fatalf("% x became % x", b, again)
		}
	})
}

func FuzzExtend(f *testing.F) {
	f.Add(fill(cell.ExtendSize, 1))
	f.Add(fill(cell.ExtendSize-1, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParseExtend(b)
		if err == nil && !bytes.Equal(m.AppendTo(nil), b) {
			t.Fatalf("% x became % x", b, m.AppendTo(nil))
		}
	})
}

func FuzzBegin(f *testing.F) {
	f.Add(bytesOf("03 01bb", text("example.org")))
	f.Add(bytesOf("00 0000", text("x")))
	f.Add(bytesOf("00 0001", fill(256, 'x')))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParseBegin(b)
		if err == nil && (!bytes.Equal(m.AppendTo(nil), b) || !cell.ValidHost(m.Host) || m.Port == 0) {
			t.Fatalf("% x became % x", b, m.AppendTo(nil))
		}
	})
}

func FuzzConnected(f *testing.F) {
	f.Add(bytesOf("00 0000003c"))
	f.Add(bytesOf("04 c0000201 00000001"))
	f.Add(bytesOf("06", netip.MustParseAddr("::ffff:1.2.3.4").AsSlice(), "00000001"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParseConnected(b)
		if err == nil && !bytes.Equal(m.AppendTo(nil), b) {
			t.Fatalf("% x became % x", b, m.AppendTo(nil))
		}
	})
}

func FuzzResolve(f *testing.F) {
	f.Add(bytesOf("01", text("example.org")))
	f.Add(bytesOf("04", text("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParseResolve(b)
		if err == nil && (!bytes.Equal(m.AppendTo(nil), b) || !cell.ValidHost(m.Name)) {
			t.Fatalf("% x became % x", b, m.AppendTo(nil))
		}
	})
}

// FuzzResolved: answers keep their order among addresses and among names, but
// not between them, so values are compared. AppendTo keeps to the smallest room.
func FuzzResolved(f *testing.F) {
	f.Add(bytesOf("00 0000003c 02 04 04 c0000201 00 01 78"))
	f.Add(bytesOf("03 00000000 00"))
	f.Add(bytesOf("00 0000003c 01 04 10", fill(16, 1)))
	f.Add(bytesOf("00 0000003c 05", bytes.Repeat(bytesOf("00 ff", fill(255, 'x')), 5)))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParseResolved(b)
		if err != nil {
			return
		}
		again, err := cell.ParseResolved(m.AppendTo(nil))
		if err != nil {
			t.Fatalf("%+v is appended malformed: %v", m, err)
		}
		if len(b) <= cell.Room(cell.MaxHops) && !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

// FuzzFixed is for the bodies of a few bytes, which have no type of their own.
func FuzzFixed(f *testing.F) {
	for _, b := range [][]byte{{}, {0}, {6}, {12}, {0, 0, 0, 1}, fill(16, 1), fill(cell.HopReplySize, 2), body("05"), body(fill(cell.HopReplySize, 1))} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte, err error) {
			if err == nil && !bytes.Equal(again, b) {
				t.Fatalf("%s % x became % x", what, b, again)
			}
		}
		reply, err := cell.ParseCreated(b)
		if err == nil {
			reply = body(reply)
		}
		same("CREATED", reply, err)
		reason, err := cell.ParseDestroy(b)
		same("DESTROY", body([]byte{byte(reason)}), err)
		end, err := cell.ParseEnd(b)
		same("END", []byte{byte(end)}, err)
		failed, err := cell.ParseExtendFailed(b)
		same("EXTEND_FAILED", []byte{byte(failed)}, err)
		extended, err := cell.ParseExtended(b)
		same("EXTENDED", extended, err)
		tag, err := cell.ParseAck(b)
		same("ACK", tag[:], err)
		credit, err := cell.ParseCredit(b)
		same("CREDIT", binary.BigEndian.AppendUint32(nil, credit), err)
		if err == nil && credit == 0 {
			t.Fatal("CREDIT of nothing")
		}
	})
}

func FuzzPadNegotiate(f *testing.F) {
	f.Add(bytesOf("00000000 00009c40"))
	f.Add(bytesOf("001e8480 001e8480"))
	f.Add(bytesOf("001e8481 00000000"))
	f.Add(fill(9, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := cell.ParsePadNegotiate(b)
		if err != nil {
			return
		}
		if again := m.AppendTo(nil); !bytes.Equal(again, b) {
			t.Fatalf("% x became % x", b, again)
		}
		if m.First < 0 || m.Second < 0 || m.First > cell.MaxPadDelay || m.Second > cell.MaxPadDelay {
			t.Fatalf("%+v", m)
		}
	})
}

// FuzzRoles is for the bodies of onion services. They have one size each, so the
// length of the input says whose turn it is.
func FuzzRoles(f *testing.F) {
	for _, n := range []int{0, cell.EstablishIntroSize, cell.IntroWorkSize, cell.IntroduceSize, cell.CookieSize, cell.RendezvousSize, cell.ReplySize, cell.IntroduceSize - 1, cell.RendezvousSize + 1} {
		f.Add(fill(n, 7))
	}
	f.Add(bytesOf("00 00000000"))
	f.Add(bytesOf("03 00000001"))
	f.Add(bytesOf("03 00000000"))
	f.Add(bytesOf("04 00000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, size int, again []byte, err error) {
			if err == nil && (!bytes.Equal(again, b) || len(b) != size) {
				t.Fatalf("%s % x became % x", what, b, again)
			}
		}
		establish, err := cell.ParseEstablishIntro(b)
		same("ESTABLISH_INTRO", cell.EstablishIntroSize, establish.AppendTo(nil), err)
		same("INTRO_ESTABLISHED", 0, nil, cell.ParseIntroEstablished(b))
		work, err := cell.ParseIntroWork(b)
		same("INTRO_WORK", cell.IntroWorkSize, work.AppendTo(nil), err)
		introduce, err := cell.ParseIntroduce(b)
		same("INTRODUCE", cell.IntroduceSize, introduce.AppendTo(nil), err)
		introduced, err := cell.ParseIntroduced(b)
		same("INTRODUCED", cell.IntroduceSize, introduced.AppendTo(nil), err)
		ack, err := cell.ParseIntroduceAck(b)
		same("INTRODUCE_ACK", cell.IntroduceAckSize, ack.AppendTo(nil), err)
		if err == nil && (ack.Status > cell.IntroduceWork || (ack.Status == cell.IntroduceWork) != (ack.Effort > 0)) {
			t.Fatalf("%+v", ack)
		}
		cookie, err := cell.ParseEstablishRendezvous(b)
		same("ESTABLISH_RENDEZVOUS", cell.CookieSize, cookie[:], err)
		same("RENDEZVOUS_ESTABLISHED", 0, nil, cell.ParseRendezvousEstablished(b))
		rendezvous, err := cell.ParseRendezvous(b)
		same("RENDEZVOUS", cell.RendezvousSize, rendezvous.AppendTo(nil), err)
		reply, err := cell.ParseJoined(b)
		same("JOINED", cell.ReplySize, reply, err)
	})
}
