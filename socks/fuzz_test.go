package socks

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What can be read can be written, and reads as the same again; no message is longer than its format allows.
func FuzzReadRequest(f *testing.F) {
	for _, conv := range conversations() {
		if rest, ok := strings.CutPrefix(conv.in, greetNone); ok {
			f.Add([]byte(rest))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.NewReader(data)
		command, e, err := readRequest(in)
		if used := len(data) - in.Len(); used > 3+1+1+255+2 {
			t.Fatalf("a request of %d bytes", used)
		}
		if err != nil {
			return
		}
		out := appendRequest(nil, command, e)
		rest := bytes.NewReader(out)
		again, e2, err := readRequest(rest)
		if err != nil || again != command || e2 != e || rest.Len() != 0 {
			t.Fatalf("%v %+v was written as %q, which reads %v %+v, %v", command, e, out, again, e2, err)
		}
	})
}

func FuzzReadGreeting(f *testing.F) {
	f.Add([]byte(greetNone))
	f.Add([]byte("\x05\x00"))
	f.Add([]byte("\x05\xff" + allMethods()))
	f.Fuzz(func(t *testing.T, data []byte) {
		methods, err := readGreeting(bytes.NewReader(data))
		if err != nil {
			return
		}
		out := appendGreeting(nil, methods)
		if !bytes.HasPrefix(data, out) || len(methods) == 0 {
			t.Fatalf("%q was written as %q", data, out)
		}
	})
}

func FuzzReadCredentials(f *testing.F) {
	f.Add([]byte(alice))
	f.Add([]byte("\x01\x00\x00"))
	f.Add([]byte("\x01\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		username, password, err := readCredentials(bytes.NewReader(data))
		if err != nil {
			return
		}
		if out := appendCredentials(nil, username, password); !bytes.HasPrefix(data, out) {
			t.Fatalf("%q was written as %q", data, out)
		}
	})
}

func FuzzReadReply(f *testing.F) {
	f.Add([]byte(reply(ReplySucceeded)))
	f.Add([]byte("\x05\x05\x00\x03\x01a\x00\x50"))
	f.Add([]byte("\x05\xf7\x00\x04" + strings.Repeat("\x01", 18)))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := readReply(bytes.NewReader(data))
		if err != nil {
			return
		}
		if again, err := readReply(bytes.NewReader(appendReply(nil, r, endpoint{host: unspecified}))); again != r || err != nil {
			t.Fatalf("reply %v reads again as %v, %v", r, again, err)
		}
	})
}

// scripted is a connection that delivers its bytes in pieces and then an end or a failure, and never blocks.
type scripted struct {
	net.Conn // for the addresses only
	in       []byte
	piece    int
	end      error
	out      bytes.Buffer
	closed   bool
}

func newScripted(in []byte, piece int, end error) *scripted {
	c, d := net.Pipe()
	d.Close()
	return &scripted{Conn: c, in: in, piece: piece, end: end}
}

func (s *scripted) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, s.end
	}
	n := copy(p[:min(len(p), s.piece)], s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *scripted) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *scripted) CloseWrite() error                { return nil }
func (s *scripted) Close() error                     { s.closed = true; return s.Conn.Close() }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

// Whatever a client sends: the server never panics, comes to an end, closes, says only what it may say, and what reaches the
// dial is sound.
func FuzzConversation(f *testing.F) {
	for _, conv := range conversations() {
		f.Add([]byte(conv.in), uint8(len(conv.in)), uint8(0))
		f.Add([]byte(conv.in), uint8(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, piece, mode uint8) {
		end := io.EOF
		if mode&1 != 0 {
			end = net.ErrClosed
		}
		client := newScripted(bytes.Clone(data), max(1, int(piece)), end)
		far := newScripted([]byte("from afar"), 4, end)
		dialled := 0
		s := &Server{
			Dial: func(_ context.Context, r *Request) (net.Conn, error) {
				dialled++
				check(t, data, r)
				if mode&2 != 0 {
					return nil, errors.New("no")
				}
				return far, nil
			},
			Resolve: func(_ context.Context, r *Request) (ResolveResult, error) {
				if r.Command != CommandResolve && r.Command != CommandResolvePTR || r.IsName != (r.Command == CommandResolve) {
					t.Fatalf("resolved %+v", r)
				}
				return ResolveResult{}, errors.New("no")
			},
			Virtual: newVirtual(t),
		}
		s.service().converse(t.Context(), client)
		// HTTP clients may ask again, and again each time that the far end, which says nothing sensible, ends the connection.
		if isHTTP := len(data) > 0 && isUpper(data[0]); !client.closed || dialled > 1 && !isHTTP {
			t.Fatalf("closed %t, dialled %d times", client.closed, dialled)
		}
		if dialled == 1 && mode&2 == 0 && !far.closed {
			t.Fatal("the dialled connection is left open")
		}
		out := client.out.String()
		if dialled == 0 && !spoken(out) {
			t.Fatalf("the server said %q", out)
		}
	})
}

// check fails unless r is sound and is what data asks for.
func check(t *testing.T, data []byte, r *Request) {
	t.Helper()
	host, isName, err := parseHost(r.Host)
	if err != nil || host != r.Host || isName != r.IsName || r.Command != CommandConnect {
		t.Fatalf("dialled with %+v", r)
	}
	if data[0] != version5 {
		return
	}
	if offered := bytes.IndexByte(data[2:2+int(data[1])], methodPassword) >= 0; offered != r.Auth {
		t.Fatalf("credentials were offered: %t, and taken: %t", offered, r.Auth)
	}
}

// spoken says whether out is all that a server may say to a client whose request did not get as far as the dial.
func spoken(out string) bool {
	if out == "" || out == rejected || out == choseNothing || strings.HasPrefix(out, granted[:4]+"\x7f") {
		return true
	}
	if resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(out)), nil); err == nil {
		return resp.StatusCode >= 400 && resp.Header.Get("Content-Type") == "text/plain; charset=utf-8"
	}
	for _, chosen := range []string{choseNone, chosePassword, chosePassword + accepted} {
		if rest, ok := strings.CutPrefix(out, chosen); ok {
			switch rest {
			case "", "\x01\x01", reply(ReplyGeneralFailure), reply(ReplyCommandNotSupported), reply(ReplyAddressTypeNotSupported),
				reply(ReplyHostUnreachable):
				return true
			}
			if strings.HasPrefix(rest, "\x05\x00\x00") { // an answer to RESOLVE
				return true
			}
		}
	}
	return false
}
