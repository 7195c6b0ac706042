//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip netns keeps a file for each namespace.
const netnsDir = "/run/netns"

// host is a machine of a test network: a network namespace with an address of
// its own, or a loopback address of this machine.
type host struct {
	name string
	ns   string // its namespace; empty: this machine
	addr netip.Addr
}

// ground is where the hosts of a network are. It makes one with the given name,
// whose address is in a /16 of its own, the number of which is n.
type ground func(t *testing.T, name string, n byte) *host

// onLoopback puts hosts on 127.(100+n).0.1: no namespaces, and so no privileges.
func onLoopback(_ *testing.T, name string, n byte) *host {
	return &host{name: name, addr: netip.AddrFrom4([4]byte{127, 100 + n, 0, 1})}
}

// command returns a command that runs on the host, and that dies with the tests.
func (h *host) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if h.ns != "" {
		// ip becomes the program: the process is the one to signal.
		name, args = "ip", append([]string{"netns", "exec", h.ns, name}, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second // children of a killed program may hold its pipes
	return cmd
}

// in calls f on a thread that is in the host's namespace: sockets that f opens
// itself, and not in other goroutines, are the host's from then on.
func (h *host) in(f func() error) error {
	if h.ns == "" {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	away, err := os.Open(filepath.Join(netnsDir, h.ns))
	if err != nil {
		return err
	}
	defer away.Close()
	if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering namespace %s: %w", h.ns, err)
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("a thread cannot leave namespace %s: %v", h.ns, err)) // all that follows would be in the wrong place
		}
	}()
	return f()
}

// listen opens a TCP listener on the host, on a free port when port is 0. It is
// closed with the test.
func (h *host) listen(t *testing.T, port uint16) net.Listener {
	t.Helper()
	var ln net.Listener
	err := h.in(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(h.addr, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// listenPacket opens a UDP socket on the host. It is closed with the test.
func (h *host) listenPacket(t *testing.T, port uint16) net.PacketConn {
	t.Helper()
	var pc net.PacketConn
	err := h.in(func() (err error) {
		pc, err = net.ListenPacket("udp", netip.AddrPortFrom(h.addr, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc
}

// freePort returns an address of the host on which nobody listens at this moment.
func (h *host) freePort(t *testing.T) string { return h.freePortAt(t, h.addr) }

// freePortAt is freePort for another address of the host.
func (h *host) freePortAt(t *testing.T, addr netip.Addr) string {
	t.Helper()
	var found string
	err := h.in(func() error {
		ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return err
		}
		found = ln.Addr().String()
		return ln.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// dial connects from the host to an address in text form.
func (h *host) dial(addr string, timeout time.Duration) (c *net.TCPConn, err error) {
	err = h.in(func() error {
		conn, err := net.DialTimeout("tcp", addr, timeout) // one address: the socket is opened by this goroutine
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

// await calls f until it returns nil, and fails the test when that takes longer
// than limit. It returns how long it took.
func await(t *testing.T, limit time.Duration, what string, f func() error) time.Duration {
	t.Helper()
	took, err := within(limit, f)
	if err != nil {
		t.Fatalf("%s: not within %v: %v", what, limit, err)
	}
	return took
}

// within calls f until it returns nil or limit is over. It returns how long it
// took and the last error.
func within(limit time.Duration, f func() error) (time.Duration, error) {
	began := time.Now()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := f()
		if took := time.Since(began); err == nil || took > limit {
			return took, err
		}
		<-tick.C
	}
}
