package socks

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cepa/virtual"
)

// duplex is one end of a connection in memory that can be half-closed and reset. It is made of two net.Pipes, one a
// direction, and so blocks in a way that a synctest bubble understands.
type duplex struct {
	in, out  net.Conn
	wasReset *atomic.Bool // shared by both ends
}

func newDuplex() (x, y *duplex) {
	xIn, yOut := net.Pipe()
	yIn, xOut := net.Pipe()
	reset := new(atomic.Bool)
	return &duplex{xIn, xOut, reset}, &duplex{yIn, yOut, reset}
}

func (d *duplex) Read(p []byte) (int, error) {
	n, err := d.in.Read(p)
	if err == io.EOF && d.wasReset.Load() {
		err = syscall.ECONNRESET
	}
	return n, err
}

func (d *duplex) Write(p []byte) (int, error) { return d.out.Write(p) }
func (d *duplex) CloseWrite() error           { return d.out.Close() }

func (d *duplex) Close() error {
	d.in.Close()
	return d.out.Close()
}

func (d *duplex) Reset() {
	d.wasReset.Store(true)
	d.Close()
}

func (d *duplex) LocalAddr() net.Addr  { return d.in.LocalAddr() }
func (d *duplex) RemoteAddr() net.Addr { return d.in.RemoteAddr() }

func (d *duplex) SetDeadline(t time.Time) error {
	d.in.SetDeadline(t)
	return d.out.SetDeadline(t)
}
func (d *duplex) SetReadDeadline(t time.Time) error  { return d.in.SetReadDeadline(t) }
func (d *duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }

// memListener is a listener in memory. Errors that are sent to fail come out of Accept.
type memListener struct {
	conns  chan net.Conn
	fail   chan error
	closed chan struct{}
	once   sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), fail: make(chan error), closed: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case err := <-l.fail:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return &net.TCPAddr{} }

// dial returns the client's end of a new connection.
func (l *memListener) dial() *duplex {
	x, y := newDuplex()
	l.conns <- y
	return x
}

// serveMem serves in memory until the test ends, and then checks that Serve comes to an end as promised.
func serveMem(t *testing.T, s *Server) *memListener {
	t.Helper()
	ln := newMemListener()
	serve(t, s, ln)
	return ln
}

// serveTCP serves on a loopback address in the same way and returns the address.
func serveTCP(t *testing.T, s *Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s, ln)
	return ln.Addr().String()
}

func serve(t *testing.T, s *Server, ln net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil after the end of its context", err)
		}
	})
}

// target is the dialled end of a request.
type target struct {
	*duplex
	request *Request
}

// dialer returns a dial func that hands the far ends of its connections to the channel.
func dialer() (func(context.Context, *Request) (net.Conn, error), chan target) {
	targets := make(chan target, 1)
	return func(_ context.Context, r *Request) (net.Conn, error) {
		near, far := newDuplex()
		targets <- target{far, r}
		return near, nil
	}, targets
}

// echo is a dial func whose every connection sends back what it gets.
func echo(context.Context, *Request) (net.Conn, error) {
	near, far := newDuplex()
	go func() {
		io.Copy(far, far)
		far.CloseWrite()
	}()
	return near, nil
}

// greetNone, greetPassword and so on are a client's messages; replies are the server's.
const (
	greetNone     = "\x05\x01\x00"
	greetPassword = "\x05\x01\x02"
	alice         = "\x01\x05alice\x06secret"
	connectName   = "\x05\x01\x00\x03\x0bexample.org\x01\xbb"

	choseNone     = "\x05\x00"
	chosePassword = "\x05\x02"
	choseNothing  = "\x05\xff"
	accepted      = "\x01\x00"
)

// The answers of SOCKS4.
const (
	granted  = "\x00\x5a\x00\x00\x00\x00\x00\x00"
	rejected = "\x00\x5b\x00\x00\x00\x00\x00\x00"
)

func reply(r Reply) string {
	return "\x05" + string([]byte{byte(r)}) + "\x00\x01\x00\x00\x00\x00\x00\x00"
}

// established is the answer to an HTTP CONNECT.
const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// errorPage is the response that tells of an error, as it must look.
func errorPage(status int, text string) string {
	body := "cepa: " + text + "\n"
	if text == "" {
		body = ""
	}
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"+
		"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(body), body)
}

func newVirtual(t testing.TB) *virtual.Map {
	t.Helper()
	m, err := virtual.New(virtual.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
