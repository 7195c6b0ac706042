package simnet_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"cepa/simnet"
)

// network makes a network with count hosts 10.0.0.1, 10.0.0.2 and so on, which ends with the test. In a bubble a
// goroutine or timer that outlives it fails the test.
func network(t testing.TB, cfg simnet.Config, count int) (*simnet.Network, []*simnet.Host) {
	t.Helper()
	n := simnet.New(cfg)
	t.Cleanup(func() { n.Close() })
	hosts := make([]*simnet.Host, count)
	for i := range hosts {
		hosts[i] = n.Host(fmt.Sprintf("h%d", i+1), netip.AddrFrom4([4]byte{10, 0, byte((i + 1) >> 8), byte(i + 1)}))
	}
	return n, hosts
}

func listen(t testing.TB, h *simnet.Host, address string) net.Listener {
	t.Helper()
	l, err := h.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dial(t testing.TB, h *simnet.Host, to net.Addr) *simnet.Conn {
	t.Helper()
	c, err := h.Dial(context.Background(), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	return c.(*simnet.Conn)
}

// pair connects a to b and returns both ends.
func pair(t testing.TB, a, b *simnet.Host) (*simnet.Conn, *simnet.Conn) {
	t.Helper()
	l := listen(t, b, ":0")
	defer l.Close()
	ca := dial(t, a, l.Addr())
	cb, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return ca, cb.(*simnet.Conn)
}

// noise is size bytes that nobody expects.
func noise(seed uint64, size int) []byte {
	p := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

// transfer writes data at one end, reads it at the other, checks it, and returns how long that took.
func transfer(t testing.TB, from, to net.Conn, data []byte) time.Duration {
	t.Helper()
	start := time.Now()
	failed := make(chan error, 1)
	go func() {
		_, err := from.Write(data)
		failed <- err
	}()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Errorf("read: %v", err)
	}
	took := time.Since(start)
	if err := <-failed; err != nil {
		t.Errorf("write: %v", err)
	}
	if !bytes.Equal(got, data) {
		t.Error("other bytes arrived than were sent")
	}
	return took
}

// bubble runs f in virtual time, with a network that is closed at the end.
func bubble(t *testing.T, cfg simnet.Config, hosts int, f func(t *testing.T, n *simnet.Network, h []*simnet.Host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n, h := network(t, cfg, hosts)
		f(t, n, h)
	})
}

func equalTime(t testing.TB, what string, got, want time.Duration) {
	t.Helper()
	if got != want {
		t.Errorf("%s took %v, want exactly %v", what, got, want)
	}
}
