package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"cepa/cell"
)

// TestAccept: data go out before the answer, the answer says where to, and all
// arrives.
func TestAccept(t *testing.T) {
	p := newPair(t)
	var asked cell.BeginBody
	p.handler.begin = func(s *Stream, b cell.BeginBody) { p.begun, asked = append(p.begun, s), b }
	near, err := p.origin.Open(cell.BeginBody{Flags: cell.BeginIPv6, Host: "example.test", Port: 443})
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, near, "optimistic")
	if p.out.sent[cell.Data] != 1 {
		t.Error("data wait for CONNECTED")
	}
	p.settle()
	if want := (cell.BeginBody{Flags: cell.BeginIPv6, Host: "example.test", Port: 443}); asked != want {
		t.Errorf("the relay was asked for %+v, want %+v", asked, want)
	}
	far := p.begun[0]
	wantRead(t, far, "optimistic", nil)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := near.Connected(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Connected before the answer, with a context that ended: %v", err)
	}
	addr := netip.MustParseAddr("192.0.2.7")
	if err := far.Accept(cell.ConnectedBody{Addr: addr, TTL: 60}); err != nil {
		t.Fatal(err)
	}
	if err := far.Accept(cell.ConnectedBody{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Accept: %v", err)
	}
	mustWrite(t, far, "answer")
	p.settle()
	if err := near.Connected(context.Background()); err != nil {
		t.Error(err)
	}
	if a, ttl := near.Peer(); a != addr || ttl != 60 {
		t.Errorf("connected to %v for %d s", a, ttl)
	}
	wantRead(t, near, "answer", nil)
	if near.ID() != 1 || far.ID() != 1 {
		t.Errorf("stream IDs %d and %d, want 1", near.ID(), far.ID())
	}
	p.done(near, far)
}

// TestNothingBeforeAccept: a relay that wrote before CONNECTED would lose the
// client its circuit, so it cannot; credit for what was read waits as well.
func TestNothingBeforeAccept(t *testing.T) {
	p := newPair(t)
	near, _ := p.origin.Open(cell.BeginBody{Host: "x", Port: 1})
	sent := bytes.Repeat([]byte("x"), InitialCredit)
	if n, err := near.Write(sent); n != len(sent) || err != nil {
		t.Fatal(n, err)
	}
	p.settle()
	far := p.begun[0]
	if n, err := far.Write([]byte("x")); n != 0 || err == nil {
		t.Errorf("wrote %d bytes before Accept, error %v", n, err)
	}
	if err := far.CloseWrite(); err == nil {
		t.Error("CloseWrite before Accept succeeds")
	}
	if got, err := readNow(t, far); len(got) != InitialCredit || err != nil {
		t.Errorf("read %d bytes, error %v", len(got), err)
	}
	p.settle() // nothing unlawful was sent
	if near.sendCredit != 0 {
		t.Errorf("credit of %d bytes came before CONNECTED", near.sendCredit)
	}
	far.Accept(cell.ConnectedBody{})
	p.settle()
	if near.sendCredit != InitialCredit {
		t.Errorf("credit of %d bytes after CONNECTED, want %d", near.sendCredit, InitialCredit)
	}
	p.done(near, far)
}

// TestRefuse: each reason reaches the one who asked, for all that he may do,
// and never looks like the end of data.
func TestRefuse(t *testing.T) {
	for why := cell.EndEOF; why <= cell.EndNoDirectory; why++ {
		p := newPair(t)
		near, err := p.origin.OpenDir()
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, near, "request")
		p.settle()
		if err := p.begun[0].Abort(why); err != nil {
			t.Fatal(err)
		}
		p.settle()
		want := why
		if why == cell.EndEOF { // not final, so it cannot refuse
			want = cell.EndInternal
		}
		if err := near.Connected(context.Background()); err != want {
			t.Errorf("refused with %q: Connected says %v", why, err)
		}
		wantRead(t, near, "", want)
		if _, err := near.Write([]byte("x")); err == nil {
			t.Errorf("refused with %q: Write succeeds", why)
		}
		if err := p.begun[0].Accept(cell.ConnectedBody{}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Abort: %v", err)
		}
		p.done(near)
	}
}

// TestEnds is the ways in which the two sides of an open stream may end it, and
// what each then reads and may write.
func TestEnds(t *testing.T) {
	const (
		eof = iota
		closing
		reset
	)
	for _, f := range []struct {
		name      string
		near, far int // what each does, after writing
		first     int // 0: near, and all is delivered before far acts; 1: far first; 2: both at once
		nearErr   error
		farErr    error
	}{
		{"EOF, EOF", eof, eof, 0, io.EOF, io.EOF},
		{"EOF and EOF cross", eof, eof, 2, io.EOF, io.EOF},
		{"EOF, answered by EOF from the relay first", eof, eof, 1, io.EOF, io.EOF},
		{"EOF, Close", eof, closing, 0, io.EOF, net.ErrClosed},
		{"EOF and Close cross", eof, closing, 2, io.EOF, net.ErrClosed},
		{"Close of the relay, then EOF", eof, closing, 1, io.EOF, net.ErrClosed},
		{"Close, EOF", closing, eof, 0, net.ErrClosed, io.EOF},
		{"Close and EOF cross", closing, eof, 2, net.ErrClosed, io.EOF},
		{"EOF of the relay, then Close", closing, eof, 1, net.ErrClosed, io.EOF},
		{"Close, Close", closing, closing, 0, net.ErrClosed, net.ErrClosed},
		{"Close and Close cross", closing, closing, 2, net.ErrClosed, net.ErrClosed},
		{"Reset after EOF", eof, reset, 0, cell.EndReset, net.ErrClosed},
		{"Reset and EOF cross", eof, reset, 2, cell.EndReset, net.ErrClosed},
		{"Reset, Reset", reset, reset, 2, net.ErrClosed, net.ErrClosed},
		{"Reset by the origin", reset, eof, 0, net.ErrClosed, cell.EndReset},
	} {
		p := newPair(t)
		near, far := p.open()
		act := func(s *Stream, what int) {
			mustWrite(t, s, "data")
			switch what {
			case eof:
				if err := s.CloseWrite(); err != nil {
					t.Errorf("%s: CloseWrite: %v", f.name, err)
				}
				if n, err := s.Write([]byte("x")); n != 0 || err == nil {
					t.Errorf("%s: Write after CloseWrite: %v", f.name, err)
				}
			case closing:
				s.Close()
			case reset:
				s.Reset()
			}
		}
		// A side that was ended cannot write any more; only its end counts then.
		late := func(s *Stream, what int) {
			if s.rcvdFinal {
				if _, err := s.Write([]byte("data")); err == nil {
					t.Errorf("%s: Write after the peer's end succeeds", f.name)
				}
				if what == eof {
					s.CloseWrite()
				} else {
					s.Close()
				}
				return
			}
			act(s, what)
		}
		switch f.first {
		case 0:
			act(near, f.near)
			p.settle()
			late(far, f.far)
		case 1:
			act(far, f.far)
			p.settle()
			late(near, f.near)
		case 2:
			act(near, f.near)
			act(far, f.far)
		}
		p.settle()
		if f.near == eof && f.far == eof {
			p.forgotten(f.name) // what was said is enough: nobody has to Close
		}
		for _, end := range []struct {
			s     *Stream
			err   error
			other *Stream
		}{{near, f.nearErr, far}, {far, f.farErr, near}} {
			data := "data"
			if errors.Is(end.err, net.ErrClosed) {
				data = ""
			}
			got, err := readNow(t, end.s)
			if !errors.Is(err, end.err) {
				t.Errorf("%s: stream of the origin %v: read ends with %v, want %v", f.name, end.s.origin, err, end.err)
			}
			// Who ended first heard nothing of what came later.
			if len(got) != 0 && string(got) != data {
				t.Errorf("%s: read %q", f.name, got)
			}
		}
		p.done(near, far)
	}
}

// TestHalfClose: after EOF in one direction the other carries on, with credit,
// for as long as it likes.
func TestHalfClose(t *testing.T) {
	p := newPair(t)
	near, far := p.open()
	mustWrite(t, near, "request")
	if err := near.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := near.CloseWrite(); err != nil {
		t.Errorf("a second CloseWrite: %v", err)
	}
	if _, err := near.Write([]byte("x")); !errors.Is(err, ErrWriteClosed) {
		t.Errorf("Write after CloseWrite: %v", err)
	}
	p.settle()
	wantRead(t, far, "request", io.EOF)
	part, got := bytes.Repeat([]byte("abcdefgh"), 1<<13), 0
	for range 40 { // 2.6 MB: five times the initial credit
		mustWrite(t, far, string(part))
		p.settle()
		data, err := readNow(t, near)
		if !bytes.Equal(data, part) || err != nil {
			t.Fatalf("read %d bytes, error %v", len(data), err)
		}
		got += len(data)
		p.settle()
	}
	if want := got / (InitialCredit / grantShare); p.out.sent[cell.Credit] != want {
		t.Errorf("%d CREDIT for %d bytes, want %d", p.out.sent[cell.Credit], got, want)
	}
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	p.settle()
	wantRead(t, near, "", io.EOF)
	p.empty() // both finals have passed without a Close
	p.done(near, far)
}

// TestAfterClose: nothing can be done with a stream that we closed.
func TestAfterClose(t *testing.T) {
	p := newPair(t)
	near, far := p.open()
	mustWrite(t, far, "unread")
	p.settle()
	if err := near.Close(); err != nil {
		t.Fatal(err)
	}
	if err := near.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	for what, f := range map[string]func() error{
		"Read":             func() error { _, err := near.Read(make([]byte, 1)); return err },
		"Write":            func() error { _, err := near.Write([]byte("x")); return err },
		"CloseWrite":       near.CloseWrite,
		"SetDeadline":      func() error { return near.SetDeadline(noDeadline) },
		"SetWriteDeadline": func() error { return near.SetWriteDeadline(noDeadline) },
	} {
		if err := f(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	fresh, _ := p.origin.OpenDir()
	fresh.Close()
	if err := fresh.Connected(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Connected after Close: %v", err)
	}
	p.settle()
	p.done(far, p.begun[1])
}

// TestAddrs: what a stream answers as its addresses, set or not.
func TestAddrs(t *testing.T) {
	p := newPair(t)
	p.origin.cfg.Local, p.origin.cfg.Remote = Addr("here"), Addr("there")
	near, far := p.open()
	for _, f := range []struct {
		got  net.Addr
		want string
	}{{near.LocalAddr(), "here"}, {near.RemoteAddr(), "there"}, {far.LocalAddr(), "circuit"}, {far.RemoteAddr(), "circuit"}} {
		if f.got.String() != f.want || f.got.Network() != "cepa" {
			t.Errorf("address %s %q, want %q", f.got.Network(), f.got, f.want)
		}
	}
	p.done(near, far)
}
