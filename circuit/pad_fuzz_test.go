package circuit

import (
	"testing"
	"time"

	"cepa/cell"
	"cepa/crypto/layer"
)

// FuzzPadding plays a client that pads as it likes, and holds the last relay
// against a few lines that say what is lawful.
func FuzzPadding(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1, 3})
	f.Add([]byte{0, 0})
	f.Add([]byte{2, 1})
	f.Add([]byte{0, 1, 4})
	f.Add([]byte{0, 4})
	f.Add([]byte{0, 3, 1, 0})
	f.Add([]byte{0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0})
	f.Add([]byte{5, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		l := newLab(t, 3, layer.AES256GCM)
		defer l.close()
		l.origin.padding = &padWait{left: 1 << 20, all: make(chan struct{})}
		exchanges, active, answered, stream, extending := 0, false, false, uint16(0), false
		for _, op := range ops[:min(len(ops), 64)] {
			lawful := false
			switch op % 6 {
			case 0, 2: // ask, the second for an answer that does not come in this test
				var b cell.PadBody
				if op%6 == 2 {
					b.Second = cell.MaxPadDelay
				}
				lawful = !active && stream == 0 && !extending && exchanges < maxPadExchanges
				exchanges, active, answered = exchanges+1, true, b.Second == 0
				l.toHop(3, cell.PadNegotiate, 0, padBody(b))
			case 1:
				lawful = active && answered && !extending
				active = false
				l.toHop(3, cell.Drop, 0, nil)
			case 3:
				stream++
				lawful = !extending
				l.toHop(3, cell.Begin, stream, []byte{0, 0, 80, 'x'})
			case 4:
				lawful = !active && stream == 0 && !extending
				extending = true
				l.toHop(3, cell.Extend, 0, extendBody())
			case 5:
				l.toHop(3, cell.PadNegotiate, 0, append(padBody(cell.PadBody{First: time.Duration(op) * time.Millisecond}), op))
			}
			l.exit().refuse = true // CONNECTED would be a surprise to the origin
			l.settle()
			if got := l.verdict(); (got == "") != lawful || !lawful && got != "hop 3" {
				t.Fatalf("%v: noticed by %q, lawful: %v", ops, got, lawful)
			}
			if !lawful {
				break
			}
		}
		if l.in[0].moved > l.out[0].moved+1 { // one, while an exchange is under way
			t.Fatalf("%v: %d cells came back for %d", ops, l.in[0].moved, l.out[0].moved)
		}
	})
}
