package cell_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"cepa/cell"
)

// TestSizes holds the figures of doc/spec.md sections 1 and 5 against the code.
func TestSizes(t *testing.T) {
	for _, f := range []struct {
		what      string
		got, want int
	}{
		{"cell", cell.Size, 1408},
		{"header", cell.HeaderSize, 5},
		{"body", cell.BodySize, 1403},
		{"layer overhead", cell.LayerOverhead, 17},
		{"hop message 1", cell.HopMessage1Size, 1232},
		{"hop reply", cell.HopReplySize, 1136 + 16},
		{"EXTEND", cell.ExtendSize, 32 + 8 + 1 + 1232},
		{"whole cell", len(new(cell.Cell).Bytes()), 1408},
		{"its body", len(new(cell.Cell).Body()), 1403},
	} {
		if f.got != f.want {
			t.Errorf("%s: %d bytes, want %d", f.what, f.got, f.want)
		}
	}
}

// TestRoom: what fits a message at each hop. EXTEND must fit where it may be
// sent, up to hop 7, and does not at hop 8; a reply must fit everywhere.
func TestRoom(t *testing.T) {
	want := []int{1381, 1364, 1347, 1330, 1313, 1296, 1279, 1262}
	for k := 1; k <= cell.MaxHops; k++ {
		room := cell.Room(k)
		if room != want[k-1] || room != 1398-17*k {
			t.Errorf("hop %d: room for %d bytes, want %d", k, room, want[k-1])
		}
		if fits := cell.ExtendSize <= room; fits != (k <= 7) {
			t.Errorf("hop %d: EXTEND fits: %v", k, fits)
		}
		if cell.HopReplySize > room {
			t.Errorf("hop %d: EXTENDED does not fit", k)
		}
		// Layers and message account for the whole body.
		if room+cell.MessageHeaderSize+k*cell.LayerOverhead != cell.BodySize {
			t.Errorf("hop %d: a message, %d layers and the header are not the body", k, k)
		}
	}
}

func TestCellHeader(t *testing.T) {
	c := new(cell.Cell)
	c.SetCircuitID(0x81020304)
	c.SetCommand(cell.Relay)
	c.SetBody([]byte{9, 8})
	if want := []byte{0x81, 2, 3, 4, 3, 9, 8, 0}; !bytes.Equal(c.Bytes()[:8], want) {
		t.Errorf("the cell begins with % x, want % x", c.Bytes()[:8], want)
	}
	if c.CircuitID() != 0x81020304 || c.Command() != cell.Relay || c.CircuitID()&cell.InitiatorBit == 0 {
		t.Errorf("read back circuit %#x, %v", c.CircuitID(), c.Command())
	}
}

// TestSetBody: nothing of an earlier content survives, and too much is a bug.
func TestSetBody(t *testing.T) {
	c := new(cell.Cell)
	full := bytes.Repeat([]byte{0xff}, cell.BodySize)
	c.SetBody(full)
	if !bytes.Equal(c.Body(), full) {
		t.Error("a full body was not copied")
	}
	c.SetBody([]byte{1, 2, 3})
	if !bytes.Equal(c.Body()[:3], []byte{1, 2, 3}) || !cell.IsZero(c.Body()[3:]) {
		t.Error("a short body is not followed by zeros")
	}
	wantPanic(t, "SetBody with a byte too many", func() { c.SetBody(make([]byte, cell.BodySize+1)) })
}

// TestIsZero tries each single bit of all lengths around the stride.
func TestIsZero(t *testing.T) {
	for n := range 101 {
		b := make([]byte, n)
		if !cell.IsZero(b) {
			t.Fatalf("%d zeros are not zero", n)
		}
		for i := range n {
			for bit := range 8 {
				b[i] = 1 << bit
				if cell.IsZero(b) {
					t.Fatalf("bit %d of byte %d of %d goes unnoticed", bit, i, n)
				}
			}
			b[i] = 0
		}
	}
}

func TestNames(t *testing.T) {
	for want, got := range map[string]string{
		"PADDING CREATE CREATED RELAY DESTROY REKEY AUTH command 7": join(8, func(i int) any { return cell.Command(i) }),
		"message 0 EXTEND EXTENDED EXTEND_FAILED BEGIN BEGIN_DIR CONNECTED DATA END RESOLVE RESOLVED ACK CREDIT PAD_NEGOTIATE DROP ESTABLISH_INTRO INTRO_ESTABLISHED INTRO_WORK INTRODUCE INTRODUCED INTRODUCE_ACK ESTABLISH_RENDEZVOUS RENDEZVOUS_ESTABLISHED RENDEZVOUS JOINED message 25": join(26, func(i int) any {
			return cell.MessageCommand(i)
		}),
	} {
		if got != want {
			t.Errorf("commands are called\n%s, want\n%s", got, want)
		}
	}
	// Each reason has words of its own.
	for name, texts := range map[string][]string{
		"DESTROY":       texts(0, 7, func(i int) any { return cell.Reason(i) }),
		"END":           texts(0, 13, func(i int) any { return cell.EndReason(i) }),
		"EXTEND_FAILED": texts(1, 7, func(i int) any { return cell.ExtendError(i) }),
		"INTRODUCE_ACK": texts(0, 4, func(i int) any { return cell.IntroduceStatus(i) }),
	} {
		seen := map[string]bool{}
		for _, s := range texts {
			if s == "" || seen[s] {
				t.Errorf("%s: %q names two reasons", name, s)
			}
			seen[s] = true
		}
	}
}

// texts returns the words for the values from…to, and for one that is unknown.
func texts(from, to int, value func(int) any) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(value(i)))
	}
	return append(all, fmt.Sprint(value(250)))
}

func join(n int, value func(int) any) string {
	return strings.Join(texts(0, n, value)[:n], " ")
}

func wantPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}
