package client

import (
	"net/netip"
	"testing"
	"time"

	"cepa/cell"
)

// TestPrivateAddresses: literal addresses that lead nowhere from an exit do not get to
// one.
func TestPrivateAddresses(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		w.site("9.9.9.9", 80, echo)
		w.small(exit("9.9.9.9"))
		c := w.readyClient(nil)
		for _, host := range []string{
			"10.0.0.1", "127.0.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "224.0.0.1", "0.0.0.0", "::1", "[::1]", "fe80::1", "fc00::1",
			"::ffff:127.0.0.1", "[::ffff:10.1.2.3]", "localhost", "LocalHost.", "x.localhost",
		} {
			conn, err := c.DialTarget(w.within(time.Minute), Target{Host: host, Port: 80})
			if conn != nil {
				conn.Close()
			}
			wantError(t, err, PartyClient, cell.EndPolicy)
			_, err = c.Resolve(w.within(time.Minute), host, "")
			wantError(t, err, PartyClient, cell.EndPolicy)
		}
		for _, x := range table(c) {
			if x.assigned {
				t.Error("a circuit was used for that")
			}
		}
		w.must(roundTrip(w.dial(c, "9.9.9.9:80"), "hello"))
		w.must(roundTrip(w.dial(c, "[::ffff:9.9.9.9]:80"), "hello"))
	})
}

// TestResolveCache: an answer is used again for its time and on its circuit alone.
func TestResolveCache(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		r := &resolver{addr: "9.9.9.9"}
		w.small(exitWith(r, ports(t, "80,443")))
		c := w.readyClient(nil)
		ask := func(name, key string, asked int64) {
			t.Helper()
			before := r.calls.Load()
			got, err := c.Resolve(w.within(time.Minute), name, key)
			w.must(err)
			if len(got.Addrs) != 1 || got.Addrs[0] != netip.MustParseAddr("9.9.9.9") || got.TTL == 0 || got.TTL > 60 {
				t.Errorf("%v", got)
			}
			got.Addrs[0] = netip.Addr{} // which is the caller's
			if n := r.calls.Load() - before; n != asked {
				t.Errorf("%s for %q: the exit was asked %d times, want %d", name, key, n, asked)
			}
		}
		ask("example.org", "a", 1)
		ask("example.org", "a", 0)
		ask("EXAMPLE.org.", "a", 0)
		ask("www.example.org", "a", 1)
		ask("example.org", "b", 1) // another circuit, though it may be the same exit
		time.Sleep(59 * time.Second)
		ask("example.org", "a", 0)
		time.Sleep(2 * time.Second)
		ask("example.org", "a", 1)
		time.Sleep(maxDirty) // its circuit is not used for new streams any more
		ask("example.org", "a", 1)
	})
}

// TestAnswerIsCleaned: what a hostile exit answers has bounds.
func TestAnswerIsCleaned(t *testing.T) {
	t.Parallel()
	c := &Client{}
	bad := cell.ResolvedBody{TTL: 1 << 31, Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("::ffff:10.0.0.1")}}
	got := c.clean(bad)
	if len(got.Addrs) != 1 || got.Addrs[0].String() != "8.8.8.8" || got.TTL != uint32(maxTTL/time.Second) {
		t.Errorf("%v", got)
	}
	if got := c.clean(cell.ResolvedBody{}); got.TTL != uint32(minTTL/time.Second) {
		t.Errorf("a TTL of 0 is %d", got.TTL)
	}
	x := &circ{}
	for i := range 10 * maxNames {
		c.remember(x, string(rune('a'+i)), got)
		if len(x.names) > maxNames {
			t.Fatalf("%d names are kept", len(x.names))
		}
	}
}
