package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"cepa/cell"
)

// TestHonest plays random users on both sides, with messages delivered in any
// order between the two directions: nothing that they do is ever unlawful, what
// is read is what was written, an EOF is read only when all was, and nothing is
// left.
func TestHonest(t *testing.T) {
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 1))
		p := newPair(t)
		near, err := p.origin.Open(cell.BeginBody{Host: "x", Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		type user struct {
			s          *Stream
			wrote, got []byte
			complete   bool // said EOF before anything else
			sawEOF     bool
		}
		users := []*user{{s: near}, {}}
		for range 60 {
			u := users[random.IntN(2)]
			if u.s == nil && len(p.begun) > 0 {
				u.s = p.begun[0]
			}
			op := random.IntN(12)
			if op >= 6 {
				if _, err := p.deliver(op%2 == 0, false); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				continue
			}
			if u.s == nil {
				continue
			}
			switch op {
			case 0:
				if !u.s.origin {
					u.s.Accept(cell.ConnectedBody{})
				}
			case 1:
				data := make([]byte, 1+random.IntN(3000))
				for i := range data {
					data[i] = byte(random.Uint32())
				}
				n, _ := u.s.tryWrite(data)
				u.wrote = append(u.wrote, data[:n]...)
			case 2, 3:
				got, err := readNow(t, u.s)
				u.got = append(u.got, got...)
				u.sawEOF = u.sawEOF || err == io.EOF
			case 4:
				if random.IntN(3) == 0 && u.s.CloseWrite() == nil {
					u.complete = true
				}
			case 5:
				switch random.IntN(8) {
				case 0:
					u.s.Close()
					u.complete = true // what was written is delivered
				case 1:
					u.s.Reset()
				}
			}
		}
		for range 10 {
			p.settle()
			for _, u := range users {
				if u.s == nil && len(p.begun) > 0 {
					u.s = p.begun[0]
				}
				got, err := readNow(t, u.s)
				u.got = append(u.got, got...)
				u.sawEOF = u.sawEOF || err == io.EOF
			}
		}
		for i, u := range users {
			peer := users[1-i]
			if !bytes.HasPrefix(peer.wrote, u.got) {
				t.Fatalf("seed %d: read %d bytes that are not what was written", seed, len(u.got))
			}
			if u.sawEOF && (!peer.complete || !bytes.Equal(peer.wrote, u.got)) {
				t.Fatalf("seed %d: EOF after %d of %d bytes, the writer was done: %v", seed, len(u.got), len(peer.wrote), peer.complete)
			}
		}
		p.done(near, users[1].s)
	}
}

// TestLoss: when the circuit is gone, what was received stays readable, then
// comes the reason, never io.EOF, even if the reason is one.
func TestLoss(t *testing.T) {
	for _, f := range []struct{ err, want error }{
		{errLost, errLost}, {nil, net.ErrClosed}, {io.EOF, net.ErrClosed}, {errors.Join(errLost, io.EOF), net.ErrClosed},
	} {
		p := newPair(t)
		near, far := p.open()
		half, otherHalf := p.open()
		unanswered, _ := p.origin.OpenDir()
		mustWrite(t, far, "received")
		mustWrite(t, otherHalf, "complete")
		otherHalf.CloseWrite()
		p.settle()
		mustWrite(t, near, "under way")
		p.lose(f.err)
		p.lose(errors.New("again")) // changes nothing
		wantRead(t, near, "received", f.want)
		wantRead(t, far, "", f.want)
		wantRead(t, half, "complete", io.EOF) // the peer did say so
		if err := unanswered.Connected(context.Background()); !errors.Is(err, f.want) {
			t.Errorf("Connected says %v, want %v", err, f.want)
		}
		for _, s := range []*Stream{near, far, half, unanswered} {
			if _, err := s.Write([]byte("x")); !errors.Is(err, f.want) {
				t.Errorf("Write says %v, want %v", err, f.want)
			}
			s.Close()
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read after Close says %v", err)
			}
		}
		otherHalf.Close()
		if _, err := p.origin.OpenDir(); !errors.Is(err, f.want) {
			t.Errorf("Open says %v, want %v", err, f.want)
		}
		if !p.origin.Exhausted() {
			t.Error("the Mux of a lost circuit has streams left")
		}
		p.empty()
	}
}
