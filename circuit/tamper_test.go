package circuit

import (
	"errors"
	"flag"
	"fmt"
	"testing"

	"cepa/cell"
	"cepa/crypto/layer"
	"cepa/stream"
)

// soak turns the sampled campaigns into full ones: go test ./circuit -args -soak.
var soak = flag.Bool("soak", false, "run the long campaigns")

const hopsOfTampering = 3

// caught is where tampering on a link must be noticed. Towards the exit each
// relay opens what it gets. Towards the origin relays only seal, so that
// nobody but the origin can tell; but a relay looks at the zeros behind the
// sealed bytes, which its own layer would cover.
func caught(out bool, link, pos int) string {
	switch {
	case out:
		return fmt.Sprint("hop ", link)
	case link > 1 && (pos < 0 || pos >= sealedSize(link)):
		return fmt.Sprint("hop ", link-1)
	}
	return "origin"
}

// tampered is a circuit with two cells of DATA stopped on one link.
type tampered struct {
	*lab
	out    bool // towards the exit
	link   int  // from 1
	tube   *tube
	beyond *tube          // the next link on the cells' way, or nil
	reader *stream.Stream // whom the data are for
}

func tamper(t testing.TB, suite layer.Suite, out bool, link int) *tampered {
	l := newLab(t, hopsOfTampering, suite)
	x := &tampered{lab: l, out: out, link: link}
	near, far := l.open()
	writer := near
	x.reader = far
	if out {
		x.tube = l.out[link-1]
		if link < hopsOfTampering {
			x.beyond = l.out[link]
		}
	} else {
		writer, x.reader = far, near
		x.tube = l.in[link-1]
		if link > 1 {
			x.beyond = l.in[link-2]
		}
	}
	mustWrite(t, writer, "before")
	l.settle()
	x.tube.frozen = true
	mustWrite(t, writer, "secret one")
	mustWrite(t, writer, "secret two")
	l.settle()
	if n := x.tube.cells.Len(); n != 2 {
		t.Fatalf("%d cells are stopped on link %d, want 2", n, link)
	}
	return x
}

// finish lets the cells go and checks that the circuit died at want, that passed
// of the two messages reached their reader, and that no cell went on after the
// fault.
func (x *tampered) finish(what, want, passed string) {
	x.t.Helper()
	moved := 0
	if x.beyond != nil {
		moved = x.beyond.moved
	}
	x.tube.frozen = false
	x.settle()
	if got := x.verdict(); got != want {
		x.t.Errorf("%s: noticed by %q, want %q", what, got, want)
	}
	x.end()
	got, err := readAll(x.t, x.reader)
	if got != "before"+passed {
		x.t.Errorf("%s: %q reached the reader, want %q", what, got, "before"+passed)
	}
	if !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrDestroyed) {
		x.t.Errorf("%s: the reader's error is %v", what, err)
	}
	if x.beyond != nil && passed == "" && (x.out || want != "origin") && x.beyond.moved != moved {
		x.t.Errorf("%s: %d cells went on", what, x.beyond.moved-moved)
	}
	x.close()
}

// TestFlip flips bits of a cell on each link, in both directions, at the command
// and at every byte of the body: the circuit dies at the next party that
// verifies, and no plaintext of the cell, or of a later one, gets anywhere. (The
// circuit ID belongs to the link.)
func TestFlip(t *testing.T) {
	for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
		for _, out := range []bool{true, false} {
			for link := 1; link <= hopsOfTampering; link++ {
				for pos := -1; pos < cell.BodySize; pos++ {
					bits := []int{(pos + 1 + 3*link) % 8}
					switch {
					case *soak:
						bits = []int{0, 1, 2, 3, 4, 5, 6, 7}
					case suite == layer.ChaCha20Poly1305 && (pos+link)%5 != 0:
						continue // every byte is flipped with the other suite
					}
					for _, bit := range bits {
						x := tamper(t, suite, out, link)
						b := x.tube.cells.Front().Bytes()
						b[cell.HeaderSize+pos] ^= 1 << bit
						x.finish(fmt.Sprintf("%v, link %d, towards the exit %v, byte %d, bit %d", suite, link, out, pos, bit),
							caught(out, link, pos), "")
						if t.Failed() {
							return
						}
					}
				}
			}
		}
	}
}

// TestOrder: cells that are replayed, exchanged, left out, doubled or cut short,
// on each link and in both directions.
func TestOrder(t *testing.T) {
	const first = "secret one"
	for _, f := range []struct {
		name   string
		do     func(l *cell.List, pool *cell.Pool)
		passed string // what came before the fault is good
	}{
		{"the first left out", func(l *cell.List, pool *cell.Pool) { pool.Put(l.Pop()) }, ""},
		{"both exchanged", func(l *cell.List, _ *cell.Pool) { l.Push(l.Pop()) }, ""},
		{"the first doubled", func(l *cell.List, pool *cell.Pool) {
			c, twin := l.Pop(), pool.Get()
			copy(twin.Bytes(), c.Bytes())
			c2 := l.Pop()
			for _, c := range []*cell.Cell{c, twin, c2} {
				l.Push(c)
			}
		}, first},
		{"the first in place of the second", func(l *cell.List, _ *cell.Pool) { copy(l.Back().Bytes(), l.Front().Bytes()) }, first},
		{"the first again after both", func(l *cell.List, pool *cell.Pool) {
			twin := pool.Get()
			copy(twin.Bytes(), l.Front().Bytes())
			l.Push(twin)
		}, first + "secret two"},
		{"the first cut to nothing", func(l *cell.List, _ *cell.Pool) { clear(l.Front().Body()) }, ""},
		{"the first cut by half", func(l *cell.List, _ *cell.Pool) { clear(l.Front().Body()[700:]) }, ""},
		{"the first cut by its tag", func(l *cell.List, _ *cell.Pool) { clear(l.Front().Body()[cell.BodySize-60:]) }, ""},
		{"the first replaced by noise", func(l *cell.List, _ *cell.Pool) {
			for i := range l.Front().Body() {
				l.Front().Body()[i] = byte(i * 7)
			}
		}, ""},
	} {
		for _, suite := range []layer.Suite{layer.AES256GCM, layer.ChaCha20Poly1305} {
			for _, out := range []bool{true, false} {
				for link := 1; link <= hopsOfTampering; link++ {
					x := tamper(t, suite, out, link)
					f.do(&x.tube.cells, x.pool)
					want := caught(out, link, 0)
					if f.name == "the first replaced by noise" {
						want = caught(out, link, cell.BodySize-1) // zeros as well
					}
					passed := f.passed
					if out && link < hopsOfTampering {
						passed = "" // it waits for the batch's end, and goes down with the circuit
					}
					x.finish(fmt.Sprintf("%s, %v, link %d, towards the exit %v", f.name, suite, link, out), want, passed)
				}
			}
		}
	}
}

// TestReplayLater: a cell that comes again after a ratchet step, or on another
// circuit, or in the other direction.
func TestReplayLater(t *testing.T) {
	for _, out := range []bool{true, false} {
		x := tamper(t, layer.AES256GCM, out, 1)
		recorded := append([]byte(nil), x.tube.cells.Front().Body()...)
		x.tube.frozen = false
		x.settle()
		// 1,024 more cells: the keys are others now.
		for range layer.RatchetCells {
			near, far := x.open()
			near.Close()
			far.Close()
			x.settle()
		}
		if x.verdict() != "" {
			t.Fatal("the circuit died early")
		}
		x.tube.to.Receive(cell.Relay, append([]byte(nil), recorded...))
		x.finish("replayed after the ratchet", caught(out, 1, 0), "secret onesecret two")

		for _, across := range []bool{false, true} {
			y := tamper(t, layer.AES256GCM, out, 1)
			to := y.tube
			if across { // the same circuit, backwards
				to = to.back
				copy(recorded, y.tube.cells.Front().Body())
			}
			to.to.Receive(cell.Relay, append([]byte(nil), recorded...))
			want := caught(out != across, 1, 0)
			y.tube.frozen = false
			y.settle()
			if got := y.verdict(); got != want {
				t.Errorf("a cell of another circuit or direction: noticed by %q, want %q", got, want)
			}
			y.close()
		}
	}
}
