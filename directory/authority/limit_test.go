package authority

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"cepa/directory"
	"cepa/directory/mirror"
)

// TestConnectionsPerAddress: one address gets so many connections, what is beyond is closed, others get theirs, and places come back.
func TestConnectionsPerAddress(t *testing.T) {
	inBubble(t, 1, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0)
		other := c.sim.Host("other", netip.MustParseAddr("10.0.9.9"))
		open := func(dial mirror.DialFunc) net.Conn {
			t.Helper()
			conn, err := dial(context.Background(), "tcp", c.network.Authorities[0].Address)
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
		refused := func(conn net.Conn) bool {
			if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			_, err := conn.Read(make([]byte, 1))
			return err != nil && !strings.Contains(err.Error(), "timeout")
		}
		var all []net.Conn
		for range maxAddressConns {
			all = append(all, open(c.client.Dial))
		}
		for _, beyond := range []struct {
			conn net.Conn
			want bool
		}{{all[0], false}, {all[len(all)-1], false}, {open(c.client.Dial), true}, {open(other.Dial), false}} {
			if refused(beyond.conn) != beyond.want {
				t.Errorf("refused is not %v", beyond.want)
			}
			defer beyond.conn.Close()
		}
		for _, conn := range all {
			conn.Close()
		}
		time.Sleep(time.Second)
		conn := open(c.client.Dial)
		defer conn.Close()
		if refused(conn) {
			t.Error("places do not come back")
		}
	})
	for text, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::", "127.0.0.1:5": "invalid IP", "[::1]:5": "invalid IP",
	} {
		if got := addressOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text))).String(); got != want {
			t.Errorf("%s counts as %s, want %s", text, got, want)
		}
	}
}

// TestServesDifferences: authorities serve differences from the consensuses that they have published, also after a restart.
func TestServesDifferences(t *testing.T) {
	inBubble(t, 4, interval, nil, func(t *testing.T, c *cluster) {
		c.start(0, 1, 2, 3)
		c.publish(0, 12)
		start := c.network.Period(time.Now()) + 1
		time.Sleep(time.Until(c.network.PeriodStart(start).Add(time.Second)))
		old := c.agreed(start)
		time.Sleep(time.Until(c.network.PeriodStart(start + 1).Add(time.Second)))
		check := func() {
			t.Helper()
			next := c.agreed(start + 1)
			digest := old.Digest()
			resp, body := c.do(http.MethodGet, mirror.PathDifference+hex.EncodeToString(digest[:]), "", nil)
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			got, err := directory.ApplyDiff(old, []byte(body), c.network, time.Now())
			if err != nil || got.Digest() != next.Digest() {
				t.Errorf("it makes another consensus: %v", err)
			}
		}
		check()
		c.stop(0)
		c.start(0)
		check()
	})
}
