package stream

import (
	"testing"

	"cepa/cell"
)

// TestCloseNow: what was received and not read goes back to the pool at once, and the
// reader is told that something is missing, although the peer said that it was
// through.
func TestCloseNow(t *testing.T) {
	p := newPair(t)
	near, far := p.open()
	if _, n := p.relay.Held(); n != 0 {
		t.Errorf("%d cells are held at first", n)
	}
	mustWrite(t, near, "a first message")
	p.settle()
	one, n := p.relay.Held()
	if n != 1 {
		t.Errorf("%d cells are held of one message", n)
	}
	mustWrite(t, near, string(make([]byte, 2000)))
	near.CloseWrite()
	p.settle()
	if oldest, n := p.relay.Held(); oldest != one || n < 2 {
		t.Errorf("%d cells are held, the oldest of %d; want more than one, of %d as before", n, oldest, one)
	}
	if got, err := far.Read(make([]byte, 2)); got != 2 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	p.relay.CloseNow(cell.EndResource)
	if _, n := p.relay.Held(); n != 0 {
		t.Errorf("%d cells are held at the end", n)
	}
	if far.recv.Len() != 0 {
		t.Errorf("%d cells are unread", far.recv.Len())
	}
	wantRead(t, far, "", cell.EndResource)
	p.origin.Close(nil)
	p.empty()
}
