package socket

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnsent: to a peer that reads nothing, little waits in the system beyond what
// the peer's own buffer has taken, however much there is room for.
func TestUnsent(t *testing.T) {
	a, b := tcpPair(t)
	if err := a.SetWriteBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	if err := b.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	const piece = 16 << 10
	const slack = 64 << 10 // it looks when it begins a segment, and these are large
	wrapped := Wrap(a).(interface{ TryWrite([]byte) (int, error) })
	for range 1000 {
		n, err := wrapped.TryWrite(make([]byte, piece))
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	if got := unsent(t, a); got == 0 || got > Unsent+slack {
		t.Errorf("%d bytes wait to be sent, want %d at most", got, Unsent+slack)
	}
}

// unsent is what the system has taken of a connection and not sent.
func unsent(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const siocoutqnsd = 0x894b // linux/sockios.h
	if err := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), siocoutqnsd) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
