package circuit

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"cepa/cell"
	"cepa/crypto/layer"
)

func numbered(n int) (tag [cell.TagSize]byte) {
	binary.BigEndian.PutUint64(tag[:], uint64(n))
	return tag
}

// TestWindowRing compares the window with a plain list of what asks, through
// growth, wrapping and every mix of sending and acknowledging.
func TestWindowRing(t *testing.T) {
	type asked struct {
		tag    [cell.TagSize]byte
		counts int
	}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 2))
		w := newWindow(Flow{})
		var list []asked // not yet acknowledged
		sent, partial := 0, 0
		for range 300 {
			w.window = 4 + random.IntN(1+int(seed)*20)
			for range random.IntN(2 * (1 + int(seed)%100)) {
				if w.unacked == maxUnacked {
					break
				}
				sent++
				partial++
				tag := numbered(sent)
				asks := w.asks()
				if err := w.sent(tag[:], asks); err != nil {
					t.Fatalf("seed %d: message %d: %v", seed, sent, err)
				}
				if asks {
					list = append(list, asked{tag, partial})
					partial = 0
				}
			}
			for range random.IntN(5) {
				if len(list) == 0 {
					break
				}
				w.blocked = random.IntN(2) == 0
				blocked := w.blocked
				reopened, err := w.acked(list[0].tag)
				if err != nil {
					t.Fatalf("seed %d: the oldest tag is refused: %v", seed, err)
				}
				list = list[1:]
				if want := blocked && w.room() > 0; reopened != want || w.blocked != (blocked && !want) {
					t.Fatalf("seed %d: room for %d, blocked %v: reopened %v", seed, w.room(), blocked, reopened)
				}
			}
			want := partial
			for _, a := range list {
				want += a.counts
			}
			if w.unacked != want || w.n != len(list) {
				t.Fatalf("seed %d: %d unacknowledged, %d asked for; want %d and %d", seed, w.unacked, w.n, want, len(list))
			}
			room := max(0, w.window-want)
			if room == 0 && len(list) == 0 {
				room = 1
			}
			if w.room() != room {
				t.Fatalf("seed %d: room for %d, want %d", seed, w.room(), room)
			}
		}
		if len(w.marks) > 2*maxUnacked {
			t.Fatalf("seed %d: the ring has grown to %d", seed, len(w.marks))
		}
	}
}

// TestWindowNeverWedges: whatever the window does between two messages, the
// sender can go on as soon as all that it asked for has come.
func TestWindowNeverWedges(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 3))
		w := newWindow(Flow{})
		for range 100 {
			w.window = 4 + random.IntN(200)
			for w.room() > 0 && random.IntN(20) > 0 {
				tag := numbered(int(w.total) + 1)
				if err := w.sent(tag[:], w.asks()); err != nil {
					t.Fatal(err)
				}
			}
			w.window = 4 + random.IntN(200)
			for w.n > 0 {
				if _, err := w.acked(w.marks[w.first].tag); err != nil {
					t.Fatal(err)
				}
			}
			if w.room() == 0 {
				t.Fatalf("seed %d: %d unacknowledged, none asks, window %d: no room", seed, w.unacked, w.window)
			}
		}
	}
}

// TestAckInterval: in a window that is always full an acknowledgement is always
// under way, and is for about half a window, or 64 messages.
func TestAckInterval(t *testing.T) {
	for _, window := range []int{4, 5, 16, 127, 128, 4096} {
		w := newWindow(Flow{})
		w.window = window
		acks := 0
		for range 1000 {
			for w.room() > 0 {
				tag := numbered(int(w.total))
				if err := w.sent(tag[:], w.asks()); err != nil {
					t.Fatal(err)
				}
			}
			if w.n < 1 {
				t.Fatalf("window %d: %d acknowledgements are under way", window, w.n)
			}
			if c := w.marks[w.first].counts; c > min(window, maxAckInterval+1) {
				t.Fatalf("window %d: one acknowledgement is for %d messages", window, c)
			}
			w.full = false // let it be as it is
			if _, err := w.acked(w.marks[w.first].tag); err != nil {
				t.Fatal(err)
			}
			w.window = window
			acks++
		}
		if each, want := float64(w.total)/float64(acks), float64(min(window/2, maxAckInterval)); each < 0.5*want {
			t.Errorf("window %d: an acknowledgement for each %.1f messages, want about %v", window, each, want)
		}
	}
}

// TestWindowRefuses: an ACK of anything but the oldest tag that asks, of one that
// was acknowledged, and of nothing; and a message too many.
func TestWindowRefuses(t *testing.T) {
	w := newWindow(Flow{})
	if _, err := w.acked([cell.TagSize]byte{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("ACK of nothing: %v", err)
	}
	w.window = 64
	for i := 1; i <= 3*32; i++ {
		tag := numbered(i)
		if err := w.sent(tag[:], i%32 == 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{0, 1, 31, 33, 64, 96, 97} {
		if _, err := w.acked(numbered(n)); !errors.Is(err, ErrProtocol) {
			t.Errorf("ACK of message %d when that of 32 is due: %v", n, err)
		}
	}
	for bit := range 8 * cell.TagSize {
		tag := numbered(32)
		tag[bit/8] ^= 1 << (bit % 8)
		if _, err := w.acked(tag); err == nil {
			t.Errorf("a tag with bit %d flipped is taken", bit)
		}
	}
	if _, err := w.acked(numbered(32)); err != nil || w.unacked != 64 {
		t.Errorf("the right ACK after wrong ones: %v, %d unacknowledged", err, w.unacked)
	}
	if _, err := w.acked(numbered(32)); !errors.Is(err, ErrProtocol) {
		t.Errorf("the same ACK again: %v", err)
	}
	full := newWindow(Flow{})
	for i := range maxUnacked {
		tag := numbered(i)
		if err := full.sent(tag[:], full.asks()); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := full.sent(make([]byte, cell.TagSize), true); !errors.Is(err, ErrProtocol) {
		t.Errorf("message %d without any ACK: %v", maxUnacked+1, err)
	}
}

// TestAcks: who receives acknowledges what asks, and the sender's count follows,
// in both directions, at the last hop and on the way.
func TestAcks(t *testing.T) {
	l := newLab(t, 3, layer.AES256GCM)
	near, far := l.open() // BEGIN; CONNECTED
	for i := 2; i <= 200; i++ {
		mustWrite(t, near, "x")
		mustWrite(t, far, "x")
		l.settle()
		if got := l.origin.Flow(3).Unacked; got >= 16 {
			t.Fatalf("after %d messages the origin counts %d unacknowledged", i, got)
		}
		if got := l.exit().win.unacked; got >= 16 {
			t.Fatalf("after %d messages the exit counts %d unacknowledged", i, got)
		}
	}
	// 200 messages and an ACK for some of them each way, all on all links.
	for k := range 3 {
		if out, in := l.out[k].moved, l.in[k].moved; out < 200+200/8 || out > 200+200/3 || in != out || out != l.out[0].moved {
			t.Errorf("link %d carried %d and %d cells", k+1, out, in)
		}
	}
	if l.origin.Flow(1).Unacked != 0 || l.origin.Flow(2).Unacked != 0 {
		t.Error("messages to hop 3 count at the hops before")
	}
	l.close()
}

// setWindow sets the size of the window of both ends of the last hop.
func (l *lab) setWindow(n int) {
	hops := *l.origin.hops.Load()
	hops[len(hops)-1].win.window = n
	l.exit().win.window = n
}

// TestAckLies: acknowledging what one has not received, in the wrong order, or
// twice destroys the circuit, whoever does it.
func TestAckLies(t *testing.T) {
	for _, byOrigin := range []bool{true, false} {
		for name, choose := range map[string]func(tags [][]byte) []byte{
			"made up":                  func([][]byte) []byte { return make([]byte, cell.TagSize) },
			"the second before first":  func(tags [][]byte) []byte { return tags[63] },
			"of the wrong message":     func(tags [][]byte) []byte { return tags[30] },
			"of the one after":         func(tags [][]byte) []byte { return tags[32] },
			"the right one":            func(tags [][]byte) []byte { return tags[31] }, // shows that the others are wrong
			"the first, with its flip": func(tags [][]byte) []byte { b := append([]byte(nil), tags[31]...); b[15] ^= 1; return b },
		} {
			l := newLab(t, 1, layer.AES256GCM)
			near, far := l.open()
			l.setWindow(65)
			// 64 counted messages lie on the link, not received by the liar.
			tube, sender := l.in[0], far
			lie := func(tag []byte) { l.toHop(1, cell.Ack, 0, tag) }
			want := "hop 1"
			if !byOrigin {
				tube, sender = l.out[0], near
				lie = func(tag []byte) { l.fromHop(1, cell.Ack, 0, tag) }
				want = "origin"
			}
			tube.frozen = true
			var tags [][]byte
			for range 64 {
				mustWrite(t, sender, "x")
				tags = append(tags, append([]byte(nil), tube.cells.Back().Body()[cell.BodySize-cell.TagSize:]...))
			}
			lie(choose(tags))
			l.settle()
			if name == "the right one" {
				want = ""
			} else {
				tube.frozen = false
				l.settle()
			}
			if got := l.verdict(); got != want {
				t.Errorf("ACK %s: noticed by %q, want %q", name, got, want)
			}
			l.close()
		}
		// The right one is taken, though nobody could know it yet, and not twice.
		l := newLab(t, 1, layer.AES256GCM)
		near, far := l.open()
		l.setWindow(65)
		tube, sender, lie := l.in[0], far, func(tag []byte) { l.toHop(1, cell.Ack, 0, tag) }
		if !byOrigin {
			tube, sender, lie = l.out[0], near, func(tag []byte) { l.fromHop(1, cell.Ack, 0, tag) }
		}
		tube.frozen = true
		for range 32 {
			mustWrite(t, sender, "x")
		}
		tag := append([]byte(nil), tube.cells.Back().Body()[cell.BodySize-cell.TagSize:]...)
		tube.frozen = false
		l.settle() // acknowledged
		if l.verdict() != "" {
			t.Fatal("an honest ACK is refused")
		}
		lie(tag)
		l.settle()
		if got := l.verdict(); got == "" {
			t.Error("an ACK that came before is taken")
		}
		l.close()
	}
}

// TestWindowCloses: with a window full of messages unacknowledged DATA waits, other messages
// do not, and the next ACK lets it go on. Both directions.
func TestWindowCloses(t *testing.T) {
	for _, fromOrigin := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 3, layer.AES256GCM)
			near, far := l.open()
			const window = 512
			l.setWindow(window)
			sender, reader, tube := near, far, l.out[0]
			unacked := func() int { return l.origin.Flow(3).Unacked }
			if !fromOrigin {
				sender, reader, tube = far, near, l.in[2]
				unacked = func() int { return l.exit().win.unacked }
			}
			tube.frozen = true
			data := make([]byte, 524288)
			for i := range data {
				data[i] = byte(i % 251)
			}
			// In pieces, so that the credit lasts for more than the window.
			written := 0
			go func() {
				for written < len(data) {
					n, err := sender.Write(data[written : written+512])
					written += n
					if err != nil {
						t.Errorf("Write: %v", err)
						return
					}
				}
				sender.CloseWrite()
			}()
			synctest.Wait()
			if n := tube.cells.Len(); n != window || unacked() != window {
				t.Errorf("%d cells went out and %d are unacknowledged, want %d and %d", n, unacked(), window, window)
			}
			if fromOrigin {
				for range 10 {
					s, err := l.origin.Mux().Open(cell.BeginBody{Host: "x", Port: 1})
					if err != nil {
						t.Error(err)
					}
					l.streams = append(l.streams, s)
				}
			} else {
				for range 10 {
					if err := l.exit().Send(cell.Credit, far.ID(), []byte{0, 0, 0, 1}); err != nil {
						t.Error(err)
					}
				}
			}
			if n := tube.cells.Len(); n != window+10 {
				t.Errorf("of 10 other messages %d went out", n-window)
			}
			// One batch, with one ACK or two, moves; the writer goes on.
			tube.frozen = false
			var got []byte
			for len(got) < len(data) {
				l.settle()
				synctest.Wait()
				buf := make([]byte, 1<<16)
				n, err := reader.Read(buf)
				got = append(got, buf[:n]...)
				if err != nil {
					t.Fatalf("after %d bytes: %v", len(got), err)
				}
			}
			if string(got) != string(data) {
				t.Error("the data are not those that were written")
			}
			l.settle()
			if _, err := reader.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("at the end: %v", err)
			}
			if v := l.verdict(); v != "" {
				t.Errorf("the circuit died at %q", v)
			}
			l.close()
		})
	}
}

// TestNeverAcks: a peer that takes and never acknowledges is cut off, at the
// limit and by the one who keeps its messages, not by an overflowing queue.
func TestNeverAcks(t *testing.T) {
	for _, byOrigin := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 3, layer.AES256GCM)
			// What nobody asks for does not come.
			win := &(*l.origin.hops.Load())[2].win
			if byOrigin {
				win = &l.exit().win
			}
			win.window, win.partial, win.total = 1<<30, -1<<40, 1
			unacked := func() int {
				if byOrigin {
					return l.exit().win.unacked
				}
				return l.origin.Flow(3).Unacked
			}
			n := 0
			for ; l.origin.Err() == nil && n < 3*maxUnacked; n++ {
				if unacked() > maxUnacked {
					t.Fatalf("%d messages are unacknowledged", unacked())
				}
				s, err := l.origin.Mux().OpenDir()
				if err != nil {
					break
				}
				s.Close()
				l.settle()
				if len(l.exit().begun) > 0 {
					l.exit().begun[len(l.exit().begun)-1].Close()
					l.exit().begun = nil
				}
				l.settle()
				synctest.Wait()
				l.settle()
			}
			synctest.Wait()
			l.settle()
			// BEGIN and END from the origin; CONNECTED and END from the relay.
			if n < maxUnacked/2-5 || n > maxUnacked/2+5 {
				t.Errorf("cut off after %d streams, want about %d", n, maxUnacked/2)
			}
			want := "hop 3"
			if !byOrigin {
				want = "origin"
			}
			if got := l.verdict(); got != want {
				t.Errorf("noticed by %q, want %q", got, want)
			}
			l.close()
		})
	}
}
