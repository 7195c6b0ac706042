package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"cepa/socket"
)

// loopback is the two ends of a TCP connection.
func loopback(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// plainConn is a connection that offers nothing beside net.Conn.
type plainConn struct{ net.Conn }

// TestCountedOffers: a counted connection can what the one below it can, and nothing else.
func TestCountedOffers(t *testing.T) {
	t.Parallel()
	a, _ := loopback(t)
	m := newTally()
	for _, c := range []net.Conn{socket.Wrap(a), a, plainConn{a}} {
		counted := m.traffic(c)
		_, tries := c.(tryWriter)
		_, lingers := c.(lingerer)
		_, tries2 := counted.(tryWriter)
		_, lingers2 := counted.(lingerer)
		if tries != tries2 || lingers != lingers2 {
			t.Errorf("%T: TryWrite %v, now %v; SetLinger %v, now %v", c, tries, tries2, lingers, lingers2)
		}
	}
	if err := m.traffic(plainConn{a}).(interface{ CloseWrite() error }).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite: %v", err)
	}
}

// TestCounted: each byte counts once, in its direction, whichever way it goes.
func TestCounted(t *testing.T) {
	t.Parallel()
	a, b := loopback(t)
	m := newTally()
	c := m.traffic(socket.Wrap(a))
	w := io.Writer(c)
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if try, ok := c.(tryWriter); ok {
		if n, err := try.TryWrite(make([]byte, 500)); n != 500 || err != nil {
			t.Fatal(n, err)
		}
	} else if _, err := w.Write(make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(b, b, 1500); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 700)); err != nil {
		t.Fatal(err)
	}
	if r, w := m.read.Load(), m.written.Load(); r != 700 || w != 1500 || m.held.Load() != 0 {
		t.Errorf("read %d, written %d, held %d", r, w, m.held.Load())
	}
	// An end that is there: nothing goes beyond it, and it is told once.
	m.trafficEnd.Store(m.total() + 100)
	if n, err := c.Write(make([]byte, 101)); n != 0 || !errors.Is(err, errQuota) {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
	if n, err := c.Write(make([]byte, 100)); n != 100 || err != nil {
		t.Errorf("up to the end: %d, %v", n, err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errQuota) {
		t.Errorf("reading beyond the end: %d, %v", n, err)
	}
	select {
	case <-m.poke:
	default:
		t.Error("nobody was told")
	}
	if !m.full.Load() || m.held.Load() != 0 {
		t.Errorf("full %v, held %d", m.full.Load(), m.held.Load())
	}
	if n, err := m.directory(a).Write([]byte("x")); n != 1 || err != nil {
		t.Errorf("the directory has another end: %d, %v", n, err)
	}
}

// slow is a connection whose reads and writes move part of what they are given.
type slow struct{ net.Conn }

func (slow) Read(p []byte) (int, error)  { return (len(p) + 1) / 2, nil }
func (slow) Write(p []byte) (int, error) { return len(p) / 3, io.ErrShortWrite }

// TestEnd: any number of sockets at once never pass an end, and come close to it.
func TestEnd(t *testing.T) {
	t.Parallel()
	m := newTally()
	const end = 10_000_000
	m.trafficEnd.Store(end)
	m.alarm.Store(end / 2)
	var wg sync.WaitGroup
	var over atomic.Bool
	for range 8 {
		wg.Go(func() {
			c := m.traffic(slow{})
			buf := make([]byte, 3000)
			for {
				_, err := c.Read(buf)
				if _, e := c.Write(buf[:1000]); e == errQuota || err == errQuota {
					return
				}
				if m.total() > end {
					over.Store(true)
					return
				}
			}
		})
	}
	wg.Wait()
	if over.Load() || m.total() > end || m.total() < end-50_000 || m.held.Load() != 0 || m.alarm.Load() != noEnd {
		t.Errorf("%d bytes of %d, %d held", m.total(), end, m.held.Load())
	}
}

func TestCountedAllocs(t *testing.T) {
	a, b := loopback(t)
	for _, end := range []uint64{noEnd, 1 << 40} {
		m := newTally()
		m.trafficEnd.Store(end)
		m.alarm.Store(end)
		x, y := m.traffic(socket.Wrap(a)), m.traffic(socket.Wrap(b))
		try, ok := x.(tryWriter)
		buf := make([]byte, 1000)
		if n := testing.AllocsPerRun(100, func() {
			if ok {
				try.TryWrite(buf)
			}
			x.Write(buf)
			io.ReadFull(y, buf)
			if ok {
				io.ReadFull(y, buf)
			}
		}); n != 0 {
			t.Errorf("end %d: %v allocations", end, n)
		}
	}
}

// BenchmarkCounted is what counting costs a write, apart from the write.
func BenchmarkCounted(b *testing.B) {
	for name, end := range map[string]uint64{"without a quota": noEnd, "with a quota": 1 << 60} {
		b.Run(name, func(b *testing.B) {
			m := newTally()
			m.trafficEnd.Store(end)
			c := m.traffic(slow{})
			buf := make([]byte, 1426)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c.Write(buf)
				}
			})
		})
	}
}
