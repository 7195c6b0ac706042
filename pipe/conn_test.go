package pipe

import (
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// duplex is one end of a connection in memory that can be half-closed and reset, as a TCP connection can. It is made of two
// net.Pipes, one a direction, and so blocks in a way that a synctest bubble understands.
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

// forgetful reads io.EOF after it was closed on this side, as the streams of several multiplexers do, and takes its time to
// be reset.
type forgetful struct{ *duplex }

func (f forgetful) Reset() {
	f.duplex.Reset()
	<-time.After(time.Second)
}

func (f forgetful) Read(p []byte) (int, error) {
	n, err := f.duplex.Read(p)
	if err == io.ErrClosedPipe {
		err = io.EOF
	}
	return n, err
}

// plain hides everything that a connection offers beyond net.Conn.
type plain struct{ net.Conn }

func memPair(*testing.T) (net.Conn, net.Conn) { return newDuplex() }

func tcpPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	x, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close(); y.Close() })
	return x, y
}
