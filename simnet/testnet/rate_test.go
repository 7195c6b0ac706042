package testnet_test

import (
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"cepa/client"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

const (
	// socketBuffer is that of each connection in these tests, in bytes.
	socketBuffer = 16 << 10
	// rateWindow is how long traffic is counted.
	rateWindow = 30 * time.Second
)

// traffic is what went over the wire of one machine, in bytes.
type traffic struct{ in, out atomic.Int64 }

// countTraffic counts by address for rateWindow from now on.
func countTraffic(n *testnet.Net) map[netip.Addr]*traffic {
	end, all := time.Now().Add(rateWindow), map[netip.Addr]*traffic{}
	for _, r := range n.Relays {
		all[r.Addr.Addr()] = new(traffic)
	}
	n.Sim().Tap(func(e simnet.TapEvent) {
		if tr := all[e.From.Addr()]; tr != nil && !e.Sent.After(end) {
			tr.out.Add(int64(len(e.Data)))
		}
		if tr := all[e.To.Addr()]; tr != nil && !e.Time.After(end) {
			tr.in.Add(int64(len(e.Data)))
		}
	})
	return all
}

// checkRate checks that a relay kept its rate. The burst is one second's worth.
// What it has not read yet lies in the buffer of its socket: on the wire it has
// passed.
func checkRate(t *testing.T, what string, tr *traffic, rate int64) {
	t.Helper()
	most := int64(float64(rate) * (rateWindow.Seconds() + 1) * 1.02)
	if in, out := tr.in.Load(), tr.out.Load(); in > most+socketBuffer || out > most {
		t.Errorf("%s got %d bytes and sent %d in %v, with a rate of %d bytes/s", what, in, out, rateWindow, rate)
	}
}

// TestRate: relays keep their volunteers' promise on the wire, and what they
// carry within it is nearly all payload.
func TestRate(t *testing.T) {
	t.Parallel()
	// At the lowest rate a window has a few cells, and every second or third is
	// acknowledged by one.
	for rate, least := range map[int64]float64{relay.MinRate: 0.6, 100_000: 0.65, 1_000_000: 0.8} {
		onSimnet(t, simnet.Config{Buffer: socketBuffer}, testnet.Config{Rate: rateOf(rate)}, func(t *testing.T, n *testnet.Net) {
			serveTCP(t, n, "drip.test", 80, drip)
			serveTCP(t, n, "echo.test", 80, echo)
			c := newClient(t, n, client.Config{})
			up := dial(t, c, "echo.test:80")
			thereAndBack(t, up, random(1, 20_000))
			up.Close()
			conn := dial(t, c, "drip.test:80")
			var got atomic.Int64
			go func() {
				b := make([]byte, 4096)
				for {
					k, err := conn.Read(b)
					if got.Add(int64(k)); err != nil {
						return
					}
				}
			}()
			time.Sleep(10 * time.Second) // the burst is spent

			counts, before, way := countTraffic(n), got.Load(), busyPath(t, n, c)
			time.Sleep(rateWindow)
			payload := got.Load() - before
			for _, r := range n.Relays {
				checkRate(t, r.Nickname, counts[r.Addr.Addr()], rate)
			}
			for _, r := range way {
				if sent, most := counts[r.Addr.Addr()].out.Load(), int64(least*float64(rate)*rateWindow.Seconds()); sent < most {
					t.Errorf("%s sent %d bytes in %v with a rate of %d, want %d", r.Nickname, sent, rateWindow, rate, most)
				}
			}
			share := float64(payload) / (float64(rate) * rateWindow.Seconds())
			if share < least || share > 1 {
				t.Errorf("%d bytes/s: the payload has %.0f %% of the rate, want %.0f to 100", rate, 100*share, 100*least)
			}
			t.Logf("%d bytes/s: the payload has %.1f %% of the rate", rate, 100*share)
			conn.Close()
		})
	}
}

// TestRateOneWay: reading and writing are limited each for itself. A site that
// sends single bytes makes an exit write much more than it reads, and a client
// that does so makes it read much more than it writes; the other relays have no
// rate that would hold them up.
func TestRateOneWay(t *testing.T) {
	t.Parallel()
	const rate = relay.MinRate
	cfg := testnet.Config{Exits: 1, Tune: func(_ int, cfg *relay.Config) {
		if cfg.Exit != nil {
			cfg.Rate = rateOf(rate)
		}
	}}
	trickle := func(c net.Conn) {
		for {
			if _, err := c.Write([]byte{1}); err != nil {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	onSimnet(t, simnet.Config{Buffer: socketBuffer}, cfg, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "trickle.test", 80, trickle)
		serveTCP(t, n, "sink.test", 80, func(c net.Conn) { io.Copy(io.Discard, c) })
		c := newClient(t, n, client.Config{Ready: 1})
		exit := n.Relays[len(n.Relays)-1]
		for _, site := range []string{"trickle.test", "sink.test"} {
			// On a circuit of its own: the queue of the other is long.
			conn, err := c.DialTarget(within(t, time.Minute), client.Target{Host: site, Port: 80, Isolation: site})
			if err != nil {
				t.Fatalf("dialling %s: %v", site, err)
			}
			t.Cleanup(func() { conn.Close() })
			if site == "sink.test" {
				go trickle(conn)
			} else {
				go io.Copy(io.Discard, conn)
			}
			time.Sleep(20 * time.Second) // the burst is spent, and the buffers are full
			tr := countTraffic(n)[exit.Addr.Addr()]
			time.Sleep(rateWindow)
			checkRate(t, "the exit, with "+site, tr, rate)
			if most := max(tr.in.Load(), tr.out.Load()); most < int64(0.9*rate*rateWindow.Seconds()) {
				t.Errorf("%s: the exit moved only %d bytes in %v: the test does not reach its rate", site, most, rateWindow)
			}
			conn.Close()
			time.Sleep(10 * time.Millisecond) // virtual: trickle notices, after which nothing sleeps
		}
	})
}
