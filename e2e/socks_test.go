//go:build e2e

package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// SOCKS5 replies (RFC 1928, section 6).
const (
	replyOK                = 0
	replyNotAllowed        = 2
	replyHostUnreachable   = 4
	replyConnectionRefused = 5
)

// Those about onion services, which Tor added.
const (
	replyOnionNotFound = 0xf0
	replyOnionAddress  = 0xf6
)

// socksTimeout is for one SOCKS conversation.
const socksTimeout = 30 * time.Second

// socksDial asks the SOCKS port for a connection, by hand, and returns it with
// the reply. The connection is nil unless the reply is replyOK.
func socksDial(proxy, host string, port uint16) (*net.TCPConn, byte, error) {
	return socksDialWithin(socksTimeout, proxy, host, port)
}

// socksDialWithin is socksDial with a deadline for the whole connection.
func socksDialWithin(timeout time.Duration, proxy, host string, port uint16) (*net.TCPConn, byte, error) {
	c, err := net.DialTimeout("tcp", proxy, timeout)
	if err != nil {
		return nil, 0, err
	}
	ok := false
	defer func() {
		if !ok {
			c.Close()
		}
	}()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, 0, err
	}
	req := []byte{5, 1, 0, 5, 1, 0} // greeting without authentication, then CONNECT
	switch ip, err := netip.ParseAddr(host); {
	case err != nil:
		req = append(append(req, 3, byte(len(host))), host...)
	case ip.Is4():
		req = append(append(req, 1), ip.AsSlice()...)
	default:
		req = append(append(req, 4), ip.AsSlice()...)
	}
	if _, err := c.Write(binary.BigEndian.AppendUint16(req, port)); err != nil {
		return nil, 0, err
	}
	answer := make([]byte, 2+4)
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, 0, fmt.Errorf("reply: %w", err)
	}
	if answer[0] != 5 || answer[1] != 0 || answer[2] != 5 {
		return nil, 0, fmt.Errorf("not SOCKS5 without authentication: % x", answer)
	}
	rest := map[byte]int{1: 4 + 2, 4: 16 + 2}[answer[5]]
	if rest == 0 {
		return nil, 0, fmt.Errorf("address type %d in the reply", answer[5])
	}
	if _, err := io.ReadFull(c, make([]byte, rest)); err != nil {
		return nil, 0, fmt.Errorf("reply's address: %w", err)
	}
	if answer[3] != replyOK {
		if n, err := c.Read(answer); n > 0 || err != io.EOF {
			return nil, answer[3], fmt.Errorf("after a refusal: %d bytes, %v; want the end", n, err)
		}
		return nil, answer[3], nil
	}
	ok = true
	return c.(*net.TCPConn), replyOK, nil
}

// socksReply returns the reply to a CONNECT.
func socksReply(proxy, host string, port uint16) (byte, error) {
	c, reply, err := socksDial(proxy, host, port)
	if c != nil {
		c.Close()
	}
	return reply, err
}

// testHalfClose ends one direction of a connection before the answer has come:
// the other must go on.
func (n *network) testHalfClose(t *testing.T) {
	c, reply, err := socksDial(n.Socks, "demo.test", 80)
	if err != nil || reply != replyOK {
		t.Fatalf("reply %d, %v", reply, err)
	}
	defer c.Close()
	const size = 3_000_000
	if _, err := fmt.Fprintf(c, "GET /bytes/%d HTTP/1.1\r\nHost: demo.test\r\nConnection: close\r\n\r\n", size); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 ") || len(body) < size {
		t.Errorf("got %d bytes of body after %q, want %d", len(body), head, size)
	}
}
