package socket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// tcpPair returns both ends of a connection on loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
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
	t.Cleanup(func() {
		x.Close()
		y.Close()
	})
	return x.(*net.TCPConn), y.(*net.TCPConn)
}

// TestConn holds wrapped connections to what the net package promises of its own.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		a, b := tcpPair(t)
		return Wrap(a), Wrap(b), func() {
			a.Close()
			b.Close()
		}, nil
	})
}

// TestHalfClose: one direction ends with io.EOF, the other goes on.
func TestHalfClose(t *testing.T) {
	x, y := tcpPair(t)
	a, b := Wrap(x), Wrap(y)
	if err := a.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := b.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := b.Read(nil); n != 0 || err != nil {
		t.Errorf("a Read of nothing at the end: %d, %v", n, err)
	}
	if _, err := b.Write([]byte("still")); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Read(buf); string(buf[:n]) != "still" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// TestReset: a reset is an error, and not an end.
func TestReset(t *testing.T) {
	x, y := tcpPair(t)
	a, b := Wrap(x), Wrap(y)
	if err := a.(interface{ SetLinger(int) error }).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if n, err := b.Read(make([]byte, 10)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %d, %v", n, err)
	}
	if n, err := a.Read(make([]byte, 10)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %d, %v", n, err)
	}
	if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %d, %v", n, err)
	}
}

// TestTryWrite: it takes what fits and never waits, and with Write after it
// everything arrives in order.
func TestTryWrite(t *testing.T) {
	x, y := tcpPair(t)
	a, ok := Wrap(x).(interface {
		net.Conn
		TryWrite([]byte) (int, error)
	})
	if !ok {
		t.Skip("not on this system")
	}
	all := make([]byte, 16<<20)
	for i := range all {
		all[i] = byte(i * 7 >> 3)
	}
	rest := all
	for {
		n, err := a.TryWrite(rest[:min(len(rest), 1<<20)])
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
		if n == 0 {
			break
		}
	}
	if len(rest) == len(all) || len(rest) == 0 {
		t.Fatalf("%d of %d bytes are left when the socket is full", len(rest), len(all))
	}
	a.SetWriteDeadline(time.Now().Add(-time.Second))
	if n, err := a.TryWrite(rest); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %d, %v", n, err)
	}
	a.SetWriteDeadline(time.Time{})
	done := make(chan error, 1)
	go func() {
		_, err := a.Write(rest)
		a.Close()
		done <- err
	}()
	got, err := io.ReadAll(Wrap(y))
	if err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes, %v; want the %d that were written", len(got), err, len(all))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAllocs: neither direction allocates.
func TestAllocs(t *testing.T) {
	x, y := tcpPair(t)
	a, b := Wrap(x), Wrap(y)
	buf := make([]byte, 1000)
	if n := testing.AllocsPerRun(100, func() {
		a.Write(buf)
		io.ReadFull(b, buf)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestOthers: what is no TCP connection comes back as it is, and a dialer's error too.
func TestOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Wrap(a) != a {
		t.Error("a pipe was wrapped")
	}
	fails := errors.New("no")
	dial := Dialer(func(context.Context, string, string) (net.Conn, error) { return nil, fails })
	if c, err := dial(t.Context(), "tcp", "192.0.2.1:1"); c != nil || err != fails {
		t.Errorf("%v, %v", c, err)
	}
}

// BenchmarkPingPong is a byte to and fro between two goroutines.
func BenchmarkPingPong(b *testing.B) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"net": func(c net.Conn) net.Conn { return c }, "wrapped": Wrap,
	} {
		b.Run(name, func(b *testing.B) {
			x, y := tcpPair(b)
			near, far := wrap(x), wrap(y)
			go io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{far})
			buf := []byte{1}
			b.ReportAllocs()
			for b.Loop() {
				near.Write(buf)
				io.ReadFull(near, buf)
			}
			near.Close()
		})
	}
}
