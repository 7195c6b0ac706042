//go:build e2e && linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The flood.
const (
	floodConns   = 10_000
	floodFiles   = 256 // descriptors of the relay: ulimit -n
	floodDialers = 64  // connections that are being opened at once
	floodTimeout = 20 * time.Second
	floodAgain   = 2 * time.Millisecond // between attempts to open one again that was ended: 500 a second
	honestLimit  = 10 * time.Second     // for the link
	usefulLimit  = 20 * time.Second     // for a circuit over it
)

// TestFlood opens 10,000 links to a relay that may have 256 files, and leaves them
// half open. It must not end, and a client that has it for its only guard must get
// a link to it within 10 s.
func TestFlood(t *testing.T) {
	n := startRoles(t, onLoopback, killInterval)
	victim := n.relays[0]
	victim.stop(t)
	victim.under = []string{"prlimit", fmt.Sprintf("--nofile=%d", floodFiles), "--"}
	victim.start(t)
	await(t, n.listedTimeout(), victim.name, victim.up)
	id, err := victim.identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		sources int // addresses that connections come from
		send    int // bytes of the first message, of 2 + 1,216
	}{
		{"silent, from one address", 1, 0},
		{"broken off, from one address", 1, 700},
		{"broken off, from 10,000 addresses", floodConns, 700},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := startFlood(t, listenAddr(t, victim).String(), c.sources, c.send)
			f.waitOpen()
			t.Logf("%d of %d connections open, %d refused", f.open.Load(), floodConns, f.refused.Load())
			n.honest(t, id)
			if !victim.running() {
				t.Fatalf("the relay has ended: %s", tail(victim.stderr.String()))
			}
			t.Logf("%d connections in all", f.open.Load())
			f.close()
			await(t, n.listedTimeout(), victim.name+" after the flood", victim.up)
		})
	}
	if err := n.fetch(); err != nil {
		t.Error(err)
	}
}

// honest starts a new client that has the relay id for its guard, and wants it to
// get a link, and then a circuit.
func (n *rolesNet) honest(t *testing.T, id string) {
	t.Helper()
	socks := n.client.host.freePortAt(t, netip.MustParseAddr("127.0.0.1"))
	name := fmt.Sprintf("honest%d", time.Now().UnixNano())
	r := n.role("client", name, n.client.host, "--socks", socks, "--allow-private-addresses")
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// It has the consensus already: only the link is in question.
	text, err := os.ReadFile(filepath.Join(n.client.dir, "consensus"))
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{
		"consensus":   text,
		"guards.json": fmt.Appendf(nil, "{\"version\": 1, \"data\": {\"guards\": [%q]}}\n", id),
	} {
		if err := os.WriteFile(filepath.Join(r.dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.start(t)
	linked, err := within(honestLimit, func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		for _, l := range s.Client.Links {
			if l.Peer == id {
				return nil
			}
		}
		return fmt.Errorf("it has links to %v; %s", s.Client.Links, s.Client.Bootstrap.Problem)
	})
	if err != nil {
		t.Fatalf("an honest client got no link within %v: %v", honestLimit, err)
	}
	ready, err := within(usefulLimit, r.up)
	if err != nil {
		t.Errorf("an honest client got no circuit within %v: %v", linked+ready, err)
	}
	t.Logf("honest client: link after %v, ready after %v", linked.Round(time.Millisecond), (linked + ready).Round(time.Millisecond))
	r.stop(t)
}

// flood is many connections on which a handshake does not go on.
type flood struct {
	target  string
	sources int
	send    int
	stop    chan struct{}
	all     sync.WaitGroup
	tried   chan struct{} // closed when all were opened once
	open    atomic.Int64  // ever opened
	refused atomic.Int64
	once    sync.Once
}

// startFlood opens connections as fast as it can, and later slowly opens another
// one for each that the other side ends, until close or the end of the test.
func startFlood(t *testing.T, target string, sources, send int) *flood {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	held := floodConns
	if limit.Cur < floodConns+1000 {
		held = int(limit.Cur) - 1000
		t.Logf("only %d at once: this process may have no more files", held)
	}
	f := &flood{target: target, sources: sources, send: send, stop: make(chan struct{}), tried: make(chan struct{})}
	slots := make(chan struct{}, held)
	var next atomic.Int64
	again := time.NewTicker(floodAgain)
	for range floodDialers {
		f.all.Go(func() {
			for {
				select {
				case <-f.stop:
					return
				case slots <- struct{}{}:
				}
				i := next.Add(1)
				if i == floodConns {
					close(f.tried)
				}
				if i > floodConns {
					select {
					case <-f.stop:
						return
					case <-again.C:
					}
				}
				c, err := f.dial(int(i))
				if err != nil {
					f.refused.Add(1)
					<-slots
					continue
				}
				f.open.Add(1)
				f.all.Go(func() {
					defer func() { <-slots }()
					f.hold(c)
				})
			}
		})
	}
	t.Cleanup(func() {
		f.close()
		again.Stop()
	})
	return f
}

// waitOpen waits until all connections were opened, or floodTimeout.
func (f *flood) waitOpen() {
	select {
	case <-f.tried:
	case <-time.After(floodTimeout):
	}
}

// dial opens the i-th connection and sends the beginning of a handshake.
func (f *flood) dial(i int) (net.Conn, error) {
	i %= f.sources
	from := netip.AddrFrom4([4]byte{127, 66, byte(1 + i/250), byte(1 + i%250)})
	d := net.Dialer{Timeout: time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	c, err := d.Dial("tcp", f.target)
	if err != nil {
		return nil, err
	}
	if f.send > 0 {
		message := make([]byte, f.send)
		message[0], message[1] = 1216>>8, 1216&0xff
		if _, err := c.Write(message); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// hold keeps a connection until the other side or the flood ends.
func (f *flood) hold(c net.Conn) {
	defer c.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var b [1]byte
		for {
			if _, err := c.Read(b[:]); err != nil {
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-f.stop:
		c.Close()
		<-ended
	}
}

// close ends the flood.
func (f *flood) close() {
	f.once.Do(func() { close(f.stop) })
	f.all.Wait()
}
