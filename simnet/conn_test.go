package simnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"cepa/simnet"
)

// TestConnSuite runs the suite for net.Conn in real time on an ideal network, on one with delays, and on one whose
// buffer is smaller than a segment.
func TestConnSuite(t *testing.T) {
	for name, cfg := range map[string]simnet.Config{
		"ideal":  {},
		"slow":   {Default: simnet.LinkParams{Latency: time.Millisecond, Bandwidth: 20_000_000}},
		"lossy":  {Default: simnet.LinkParams{Jitter: time.Millisecond, Loss: 0.001}},
		"narrow": {Buffer: 700},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				n, h := network(t, cfg, 2)
				a, b := pair(t, h[0], h[1])
				return a, b, func() { n.Close() }, nil
			})
		})
	}
}

// modes are an ideal network and one where everything takes a while.
func modes(t *testing.T, hosts int, f func(t *testing.T, n *simnet.Network, h []*simnet.Host)) {
	t.Helper()
	for name, cfg := range map[string]simnet.Config{
		"ideal": {},
		"slow":  {Default: simnet.LinkParams{Latency: 20 * time.Millisecond, Bandwidth: 1_000_000}},
	} {
		t.Run(name, func(t *testing.T) { bubble(t, cfg, hosts, f) })
	}
}

// wantError reads until an error comes, and checks it.
func wantError(t *testing.T, c net.Conn, want error) {
	t.Helper()
	_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if want == io.EOF {
		want = nil // io.Copy's way of saying it
	}
	if !errors.Is(err, want) {
		t.Errorf("read ended with %v, want %v", err, want)
	}
}

func TestHalfClose(t *testing.T) {
	modes(t, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		a.Write([]byte("question"))
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte("more")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write after CloseWrite: %v, want EPIPE", err)
		}
		got, err := io.ReadAll(b)
		if string(got) != "question" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		transfer(t, b, a, noise(1, 100_000))
		b.Close()
		wantError(t, a, io.EOF)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		if err := a.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("SetDeadline after Close: %v", err)
		}
	})
}

// TestCloseDelivers: Close does not take back what was written.
func TestCloseDelivers(t *testing.T) {
	modes(t, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		data := noise(1, 200_000)
		if _, err := a.Write(data); err != nil {
			t.Fatal(err)
		}
		a.Close()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v, want all %d", len(got), err, len(data))
		}
	})
}

// TestReset: the peer of an end that is closed with unread data, closed hard, or written to after Close, gets
// ECONNRESET, whether it reads or writes.
func TestReset(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, a, b *simnet.Conn){
		"unread": func(t *testing.T, a, b *simnet.Conn) {
			a.Write([]byte("x"))
			time.Sleep(time.Second)
			b.Write(noise(1, 100_000))
			b.Close()
		},
		"linger 0": func(t *testing.T, a, b *simnet.Conn) {
			b.Write([]byte("never read"))
			b.SetLinger(0)
			b.Close()
		},
		"written to": func(t *testing.T, a, b *simnet.Conn) {
			b.Close()
			if _, err := a.Write([]byte("x")); err != nil {
				t.Errorf("the write that provokes the reset: %v", err)
			}
			time.Sleep(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			modes(t, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
				a, b := pair(t, h[0], h[1])
				end(t, a, b)
				wantError(t, a, syscall.ECONNRESET)
				if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("write: %v, want ECONNRESET", err)
				}
				if err := a.SetDeadline(time.Now()); err != nil {
					t.Errorf("SetDeadline after a reset: %v", err)
				}
				if err := a.Close(); err != nil {
					t.Errorf("Close after a reset: %v", err)
				}
				wantError(t, a, net.ErrClosed)
			})
		})
	}
}

// TestCloseWakes: calls that wait at the closed end return at once, as do those at the other after the latency.
func TestCloseWakes(t *testing.T) {
	modes(t, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		var wg sync.WaitGroup
		wg.Go(func() { wantError(t, a, net.ErrClosed) })
		wg.Go(func() {
			if _, err := io.Copy(a, endless{}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write: %v", err)
			}
		})
		c, d := pair(t, h[0], h[1])
		wg.Go(func() {
			if _, err := io.Copy(d, endless{}); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("peer's write: %v", err)
			}
		})
		time.Sleep(time.Minute) // the writers have filled the buffers
		synctest.Wait()
		start := time.Now()
		a.Close()
		c.Close()
		wg.Wait()
		if took := time.Since(start); took > 20*time.Millisecond {
			t.Errorf("the peer heard of it after %v", took)
		}
		wantError(t, b, io.EOF) // what had been written is delivered
	})
}

// endless is zeros without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestBackPressure: a writer gets as far as the buffer and no further, and goes on when a quarter is free.
func TestBackPressure(t *testing.T) {
	modes(t, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		var written int
		go func() {
			for {
				m, err := a.Write(make([]byte, 1000))
				written += m
				if err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		buffered := simnet.DefaultBuffer / 1000 * 1000
		if written != buffered {
			t.Fatalf("%d bytes were accepted with nobody reading, want %d", written, buffered)
		}
		if _, err := io.ReadFull(b, make([]byte, simnet.DefaultBuffer/4-1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if written != buffered {
			t.Error("the writer was woken before a quarter was free")
		}
		b.Read(make([]byte, 1))
		synctest.Wait()
		if want := (simnet.DefaultBuffer * 5 / 4) / 1000 * 1000; written != want {
			t.Errorf("%d bytes were accepted after a quarter was read, want %d", written, want)
		}
		n.Close()
		synctest.Wait()
	})
}

// TestWritesDoNotMix: what concurrent writers write stays together although the buffer is smaller.
func TestWritesDoNotMix(t *testing.T) {
	cfg := simnet.Config{Buffer: 1000, Default: simnet.LinkParams{Latency: time.Millisecond}}
	bubble(t, cfg, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		const writers, size = 8, 10_000
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() { a.Write(bytes.Repeat([]byte{byte(i)}, size)) })
		}
		buf := make([]byte, size)
		for range writers {
			if _, err := io.ReadFull(b, buf); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf, bytes.Repeat(buf[:1], size)) {
				t.Fatal("two writes are mixed")
			}
		}
		wg.Wait()
	})
}

func TestDeadlineIsExact(t *testing.T) {
	modes(t, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		start := time.Now()
		a.SetReadDeadline(start.Add(time.Second))
		time.AfterFunc(500*time.Millisecond, func() { a.SetReadDeadline(start.Add(3 * time.Second)) })
		_, err := a.Read(make([]byte, 1))
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v", err)
		}
		equalTime(t, "the moved deadline", time.Since(start), 3*time.Second)
		a.SetReadDeadline(time.Time{})
		transfer(t, b, a, []byte("still works"))
	})
}

func TestAddresses(t *testing.T) {
	bubble(t, simnet.Config{}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], "10.0.0.2:443")
		a := dial(t, h[0], l.Addr())
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		local := a.LocalAddr().(*net.TCPAddr)
		if !local.IP.Equal(net.IPv4(10, 0, 0, 1)) || local.Port < 32768 {
			t.Errorf("dialling end is %v", local)
		}
		if b.RemoteAddr().String() != local.String() || a.RemoteAddr().String() != "10.0.0.2:443" || b.LocalAddr().String() != "10.0.0.2:443" {
			t.Errorf("%v-%v and %v-%v", a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
		}
		if a.LocalAddr().Network() != "tcp" {
			t.Error("not tcp")
		}
	})
}

func TestDialErrors(t *testing.T) {
	const latency = 10 * time.Millisecond
	bubble(t, simnet.Config{Default: simnet.LinkParams{Latency: latency}}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		canceled, cancel := context.WithCancel(context.Background())
		cancel()
		listen(t, h[1], "127.0.0.1:5")
		for _, c := range []struct {
			ctx              context.Context
			network, address string
			took             time.Duration
			want             error
		}{
			{t.Context(), "tcp", "10.0.0.2:1", 2 * latency, syscall.ECONNREFUSED},
			{t.Context(), "tcp", "10.0.0.2:5", 2 * latency, syscall.ECONNREFUSED}, // loopback is private
			{t.Context(), "tcp", "127.0.0.1:5", 0, syscall.ECONNREFUSED},
			{t.Context(), "tcp", "10.0.0.9:1", 0, syscall.EHOSTUNREACH},
			{t.Context(), "tcp", "[2001:db8::1]:1", 0, syscall.EHOSTUNREACH},
			{canceled, "tcp", "10.0.0.2:1", 0, context.Canceled},
			{t.Context(), "udp", "10.0.0.2:1", 0, net.UnknownNetworkError("udp")},
			{t.Context(), "tcp6", "10.0.0.2:1", 0, nil},
			{t.Context(), "tcp", "name:1", 0, nil},
			{t.Context(), "tcp", "10.0.0.2", 0, nil},
			{t.Context(), "tcp", "10.0.0.2:70000", 0, nil},
		} {
			start := time.Now()
			conn, err := h[0].Dial(c.ctx, c.network, c.address)
			var op *net.OpError
			if conn != nil || !errors.As(err, &op) || op.Op != "dial" {
				t.Errorf("%s: %v, %v", c.address, conn, err)
			}
			var bad *net.AddrError
			if c.want != nil && !errors.Is(err, c.want) || c.want == nil && !errors.As(err, &bad) {
				t.Errorf("%s: %v, want %v", c.address, err, c.want)
			}
			equalTime(t, c.address, time.Since(start), c.took)
		}
	})
}
