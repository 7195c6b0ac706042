package testnet_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// wan is a link of 20 Mbit/s, 100 in a campaign; four of them make a path of 150
// ms, there and back. Its sockets hold little more than such a link has under way.
func wan() simnet.Config {
	perSecond := int64(2_500_000)
	if *soak {
		perSecond *= 5
	}
	return simnet.Config{
		Buffer:  int(perSecond / 20),
		Default: simnet.LinkParams{Latency: 18750 * time.Microsecond, Bandwidth: perSecond},
	}
}

// TestLongPath: on a long and fast path one download is fast within seconds, ten
// share it, and what is asked on another circuit meanwhile is not held up for long.
func TestLongPath(t *testing.T) {
	t.Parallel()
	for _, circuits := range []int{1, 10} {
		onSimnet(t, wan(), testnet.Config{Relays: 3, Exits: 1}, func(t *testing.T, n *testnet.Net) {
			serveTCP(t, n, "drip.test", 80, drip)
			serveTCP(t, n, "echo.test", 80, echo)
			// The path through the relays is the bottleneck, and not how fast the site is.
			near := wan().Default
			near.Bandwidth *= 4
			n.Sim().SetLink(n.SiteHost("drip.test"), exitOf(n).Host, near)
			c := newClient(t, n, client.Config{})
			conn := dial(t, c, "echo.test:80")
			ping := func() time.Duration {
				began := time.Now()
				if err := roundTrip(conn, "x"); err != nil {
					t.Fatal(err)
				}
				return time.Since(began)
			}
			alone := ping()
			var all []*bulk
			for i := range circuits {
				all = append(all, startBulk(t, c, fmt.Sprint(i)))
			}
			time.Sleep(5 * time.Second)
			before := make([]int64, circuits)
			for i, b := range all {
				before[i] = b.got.Load()
			}
			began := time.Now()
			var added []time.Duration
			for time.Since(began) < 10*time.Second {
				added = append(added, ping()-alone)
				time.Sleep(50 * time.Millisecond)
			}
			var shares []float64
			total := 0.0
			for i, b := range all {
				shares = append(shares, float64(b.got.Load()-before[i]))
				total += shares[i]
			}
			slices.Sort(added)
			p95 := added[len(added)*95/100]
			share := total / time.Since(began).Seconds() / float64(wan().Default.Bandwidth)
			t.Logf("%d circuits: %.3f of the bottleneck in payload, Jain %.3f, p95 of the added delay %v", circuits, share, jain(shares), p95)
			// At 20 Mbit/s a batch of cells stands for 26 ms, and a tenth of the path
			// holds few cells: the small instance is coarse.
			fair, most := 0.8, 200*time.Millisecond
			if *soak {
				fair, most = 0.9, 100*time.Millisecond
			}
			if share < 0.85 || jain(shares) < fair || p95 > most {
				t.Errorf("%d circuits: %.3f of the bottleneck, want 0.85; Jain %.3f, want %v; p95 of the added delay %v, want %v", circuits, share, jain(shares), fair, p95, most)
			}
		})
	}
}

// TestLossyLink: where one link loses 1 % of its segments, a circuit gets at least
// half (in the small instance, 40 %) of what a bare connection gets there.
func TestLossyLink(t *testing.T) {
	t.Parallel()
	lasts := 20 * time.Second
	if *soak {
		lasts = time.Minute
	}
	lossy := wan()
	lossy.Seed = 5
	bare := func() (got float64) {
		synctest.Test(t, func(t *testing.T) {
			sim := simnet.New(lossy)
			a, b := sim.Host("a", netip.MustParseAddr("10.0.0.1")), sim.Host("b", netip.MustParseAddr("10.0.0.2"))
			p := lossy.Default
			p.Loss = 0.01
			sim.SetLink(a, b, p)
			ln, err := b.Listen("tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if c, err := ln.Accept(); err == nil {
					drip(c)
				}
			}()
			c, err := a.Dial(context.Background(), "tcp", net.JoinHostPort(b.Addr().String(), "80"))
			if err != nil {
				t.Fatal(err)
			}
			got = received(c, lasts)
			c.Close()
			ln.Close()
			sim.Close()
		})
		return got
	}()
	onSimnet(t, lossy, testnet.Config{Relays: 3, Exits: 1}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "drip.test", 80, drip)
		c := newClient(t, n, client.Config{})
		conn := dial(t, c, "drip.test:80") // its circuit is up before the loss
		way := busyPath(t, n, c)
		p := lossy.Default
		p.Loss = 0.01
		n.Sim().SetLink(way[0].Host, way[1].Host, p)
		got := received(conn, lasts)
		t.Logf("a circuit gets %.2f of a bare connection's %.2f MB/s", got/bare, bare/1e6)
		least := 0.4
		if *soak {
			least = 0.5
		}
		if got < least*bare {
			t.Errorf("a circuit gets %.2f MB/s, a bare connection %.2f", got/1e6, bare/1e6)
		}
	})
}

// received reads for a time and returns bytes a second.
func received(c net.Conn, lasts time.Duration) float64 {
	c.SetReadDeadline(time.Now().Add(lasts))
	n, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
	return float64(n) / lasts.Seconds()
}
