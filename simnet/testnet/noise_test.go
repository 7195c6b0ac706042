package testnet_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"cepa/client"
	"cepa/crypto/handshake"
	"cepa/link"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// TestNoise: strangers who send what they like, or nothing, to a relay or to an
// authority are cut off within seconds, and everybody else is served.
func TestNoise(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		h := n.NewHost("mallory")
		open := func(to netip.AddrPort) net.Conn {
			conn, err := h.Dial(context.Background(), "tcp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		init, err := handshake.NewLinkInitiator(nil)
		if err != nil {
			t.Fatal(err)
		}
		greeting := append([]byte{handshake.LinkMessage1Size >> 8, handshake.LinkMessage1Size & 0xff}, init.Message1()...)
		inputs := map[string][]byte{
			"nothing":              nil,
			"one byte":             {0},
			"zeros":                make([]byte, 5000),
			"random":               random(5, 20_000),
			"HTTP":                 []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
			"a length without end": {0xff, 0xff},
			"half a greeting":      greeting[:600],
			"a greeting":           greeting,
			"a greeting and noise": append(greeting[:len(greeting):len(greeting)], random(6, 50_000)...),
			"a greeting with a bad KEM key": append(append([]byte(nil), greeting[:34]...), func() []byte {
				b := make([]byte, len(greeting)-34)
				for i := range b {
					b[i] = 0xff
				}
				return b
			}()...),
			"a low-order point": append([]byte{4, 0xc0}, make([]byte, handshake.LinkMessage1Size)...),
		}
		for i, r := range n.Relays[:3] {
			for name, b := range inputs {
				conn := open(r.Addr)
				go conn.Write(b) // may be cut off
				checkCutOff(t, fmt.Sprintf("%s to relay %d", name, i), conn, link.HandshakeTimeout+time.Second)
			}
		}
		for i := range uint64(100) {
			conn := open(n.Relays[3].Addr)
			conn.Write(random(i, 10+int(i)*37))
			conn.(*simnet.Conn).CloseWrite()
		}
		// An authority speaks HTTP, and cuts off who does not finish a request.
		for name, text := range map[string]string{
			"nothing": "", "noise": string(random(7, 10_000)), "half a head": "GET /cepa/v1/consensus HTTP/1.1\r\nHost:",
			"a head without end": "GET / HTTP/1.1\r\n" + strings.Repeat("X-A: b\r\n", 100_000),
			"a long body":        "POST /cepa/v1/descriptor HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + string(random(8, 300_000)),
			"a bad descriptor":   "POST /cepa/v1/descriptor HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n" + string(random(9, 1000)),
			"no such page":       "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		} {
			conn := open(n.Authorities[0].Addr)
			go io.WriteString(conn, text)
			checkCutOff(t, name+" to an authority", conn, 3*time.Minute)
		}
		for _, r := range n.Relays {
			if s := r.Status(); s.Circuits != 0 {
				t.Errorf("%s has %d circuits after noise", r.Nickname, s.Circuits)
			}
		}
		c := newClient(t, n, client.Config{})
		for i := range 8 { // so that every relay has its turn
			conn, err := c.DialTarget(within(t, time.Minute), client.Target{Host: "echo.test", Port: 80, Isolation: fmt.Sprint(i)})
			if err != nil {
				t.Fatal(err)
			}
			if err := roundTrip(conn, "hello"); err != nil {
				t.Error(err)
			}
			conn.Close()
		}
	})
}

// checkCutOff reads until the peer ends the connection, which it must do in time.
func checkCutOff(t *testing.T, what string, conn net.Conn, limit time.Duration) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(limit))
	n, err := io.Copy(io.Discard, conn)
	if os.IsTimeout(err) {
		t.Errorf("%s: still connected after %v", what, limit)
	}
	if n > 10_000 {
		t.Errorf("%s: it was answered with %d bytes", what, n)
	}
	conn.Close()
}

// TestHalfOpen: more silent strangers than a relay takes handshakes at a time
// keep others away for as long as a handshake may take, and no longer.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		h, r := n.NewHost("mallory"), n.Relays[0]
		for range 400 {
			conn, err := h.Dial(context.Background(), "tcp", r.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}
		start := time.Now()
		for {
			conn, err := h.Dial(context.Background(), "tcp", r.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			l, err := link.Client(context.Background(), conn, r.Identity(), &link.Config{Pool: n.Pool})
			if err == nil {
				l.Close()
				break
			}
			time.Sleep(100 * time.Millisecond)
			if time.Since(start) > link.HandshakeTimeout+time.Second {
				t.Fatalf("no link after %v: %v", time.Since(start), err)
			}
		}
		t.Logf("a link after %v", time.Since(start))
	})
}
