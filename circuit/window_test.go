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

// TestWindowRing compares the window with a plain list of tags, through growth,
// wrapping and every mix of sending and acknowledging.
func TestWindowRing(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 2))
		var w window
		var tags [][cell.TagSize]byte // not yet acknowledged, every 32nd
		sent := 0
		for range 300 {
			for range random.IntN(2 * (1 + int(seed)%100)) {
				if w.unacked == maxUnacked {
					break
				}
				sent++
				tag := numbered(sent)
				if err := w.sent(tag[:]); err != nil {
					t.Fatalf("seed %d: message %d: %v", seed, sent, err)
				}
				if sent%AckEvery == 0 {
					tags = append(tags, tag)
				}
			}
			for range random.IntN(3) {
				if len(tags) == 0 {
					break
				}
				w.blocked = random.IntN(2) == 0
				blocked := w.blocked
				reopened, err := w.acked(tags[0])
				if err != nil {
					t.Fatalf("seed %d: the oldest tag is refused: %v", seed, err)
				}
				tags = tags[1:]
				if want := blocked && w.room() > 0; reopened != want || w.blocked != (blocked && !want) {
					t.Fatalf("seed %d: room for %d, blocked %v: reopened %v", seed, w.room(), blocked, reopened)
				}
			}
			if want := len(tags)*AckEvery + sent%AckEvery; w.unacked != want || w.n != len(tags) {
				t.Fatalf("seed %d: %d unacknowledged, %d tags; want %d and %d", seed, w.unacked, w.n, want, len(tags))
			}
			if want := max(0, Window-w.unacked); w.room() != want {
				t.Fatalf("seed %d: room for %d, want %d", seed, w.room(), want)
			}
		}
		if len(w.tags) > 2*maxUnacked/AckEvery {
			t.Fatalf("seed %d: the ring has grown to %d tags", seed, len(w.tags))
		}
	}
}

// TestWindowRefuses: an ACK of anything but the oldest tag, of one that was
// acknowledged, and of nothing; and a message too many.
func TestWindowRefuses(t *testing.T) {
	var w window
	if _, err := w.acked([cell.TagSize]byte{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("ACK of nothing: %v", err)
	}
	for i := 1; i <= 3*AckEvery; i++ {
		tag := numbered(i)
		if err := w.sent(tag[:]); err != nil {
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
	var full window
	for i := range maxUnacked {
		tag := numbered(i)
		if err := full.sent(tag[:]); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := full.sent(make([]byte, cell.TagSize)); !errors.Is(err, ErrProtocol) {
		t.Errorf("message %d without any ACK: %v", maxUnacked+1, err)
	}
}

// TestReceipts: every 32nd message but ACK is due.
func TestReceipts(t *testing.T) {
	var r receipts
	for i := 1; i <= 10*AckEvery; i++ {
		if r.due(cell.Ack) {
			t.Fatal("an ACK is to be acknowledged")
		}
		if due := r.due(cell.MessageCommand(1 + i%10)); due != (i%AckEvery == 0) {
			t.Fatalf("message %d: due: %v", i, due)
		}
	}
}

// TestAcks: who receives acknowledges each 32nd message, and the sender's count
// follows, in both directions, at the last hop and on the way.
func TestAcks(t *testing.T) {
	l := newLab(t, 3, layer.AES256GCM)
	near, far := l.open() // BEGIN; CONNECTED
	for i := 2; i <= 200; i++ {
		mustWrite(t, near, "x")
		mustWrite(t, far, "x")
		l.settle()
		if got := l.origin.Unacked(3); got != i%AckEvery {
			t.Fatalf("after %d messages the origin counts %d unacknowledged", i, got)
		}
		if got := l.exit().win.unacked; got != i%AckEvery {
			t.Fatalf("after %d messages the exit counts %d unacknowledged", i, got)
		}
	}
	// 200 messages and 6 ACKs each way, all on all links.
	for k := range 3 {
		if l.out[k].moved != 206 || l.in[k].moved != 206 {
			t.Errorf("link %d carried %d and %d cells, want 206", k+1, l.out[k].moved, l.in[k].moved)
		}
	}
	if l.origin.Unacked(1) != 0 || l.origin.Unacked(2) != 0 {
		t.Error("messages to hop 3 count at the hops before")
	}
	l.close()
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
			// One message went before: the 32nd counted one is the 31st here.
			tags = append([][]byte{nil}, tags...)
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
		tube, sender, lie := l.in[0], far, func(tag []byte) { l.toHop(1, cell.Ack, 0, tag) }
		if !byOrigin {
			tube, sender, lie = l.out[0], near, func(tag []byte) { l.fromHop(1, cell.Ack, 0, tag) }
		}
		tube.frozen = true
		for range 31 {
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

// TestWindowCloses: with 512 messages unacknowledged DATA waits, other messages
// do not, and the next ACK lets it go on. Both directions.
func TestWindowCloses(t *testing.T) {
	for _, fromOrigin := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, 3, layer.AES256GCM)
			near, far := l.open()
			sender, reader, tube := near, far, l.out[0]
			unacked := func() int { return l.origin.Unacked(3) }
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
			if n := tube.cells.Len(); n != Window-1 || unacked() != Window {
				t.Errorf("%d cells went out and %d are unacknowledged, want %d and %d", n, unacked(), Window-1, Window)
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
			if n := tube.cells.Len(); n != Window-1+10 {
				t.Errorf("of 10 other messages %d went out", n-Window+1)
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
			hop := (*l.origin.hops.Load())[2]
			if byOrigin {
				hop.rcpt.n = -1 << 40
			} else {
				l.exit().rcpt.n = -1 << 40
			}
			unacked := func() int {
				if byOrigin {
					return l.exit().win.unacked
				}
				return l.origin.Unacked(3)
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
