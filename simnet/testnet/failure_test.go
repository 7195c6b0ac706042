package testnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/directory"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// drip sends without end.
func drip(c net.Conn) {
	b := make([]byte, 10_000)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// busyPath returns the hops of the one circuit that carries streams.
func busyPath(t *testing.T, n *testnet.Net, c *client.Client) (hops []*testnet.Relay) {
	t.Helper()
	for _, x := range c.Status().Circuits {
		if x.Streams == 0 {
			continue
		}
		if hops != nil {
			t.Fatal("two circuits carry streams, want one")
		}
		for _, h := range x.Hops {
			hops = append(hops, n.Relay(h.Identity))
		}
	}
	if hops == nil {
		t.Fatal("no circuit carries a stream")
	}
	return hops
}

// TestRelayFails: whichever relay of a circuit goes away in the middle of a
// download, and however, the stream fails and never just ends, and the next one
// works within seconds.
func TestRelayFails(t *testing.T) {
	t.Parallel()
	const soon = 10 * time.Second
	link := simnet.LinkParams{Latency: 10 * time.Millisecond}
	onSimnet(t, simnet.Config{Default: link}, testnet.Config{Relays: 12, Exits: 6}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "drip.test", 80, drip)
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		for i, role := range []string{"guard", "middle", "exit"} {
			for how, end := range map[string]func(*testnet.Relay){"stops": (*testnet.Relay).Stop, "crashes": (*testnet.Relay).Crash} {
				conn := dial(t, c, "drip.test:80")
				if _, err := io.CopyN(io.Discard, conn, 300_000); err != nil {
					t.Fatalf("before the %s %s: %v", role, how, err)
				}
				victim := busyPath(t, n, c)[i]
				n.Trace().Note("the %s, %s, %s", role, victim.Nickname, how)
				start := time.Now()
				end(victim)
				if _, err := io.Copy(io.Discard, conn); err == nil {
					t.Errorf("the %s %s: the stream looks complete", role, how)
				}
				if took := time.Since(start); took > soon {
					t.Errorf("the %s %s: the stream fails after %v", role, how, took)
				}
				conn.Close()
				start = time.Now()
				next := dial(t, c, "echo.test:80")
				if err := roundTrip(next, "hello again"); err != nil {
					t.Errorf("after the %s %s: %v", role, how, err)
				}
				if took := time.Since(start); took > soon {
					t.Errorf("after the %s %s: the next stream took %v", role, how, took)
				}
				next.Close()
				if err := victim.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute) // virtual: it may be chosen again
			}
		}
	})
}

// TestAllRelaysGone: Dial says so within its time, and works again once they are
// back.
func TestAllRelaysGone(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		open := dial(t, c, "echo.test:80")
		if err := roundTrip(open, "hello"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, r := range n.Relays {
			wg.Go(r.Crash)
		}
		wg.Wait()
		if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a stream of before reads %v, want a failure", err)
		}
		checkClear(t, "without relays", c)
		for _, r := range n.Relays {
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		again, err := c.Dial(within(t, 2*time.Minute), "tcp", "echo.test:80")
		if err != nil {
			t.Fatalf("with all relays back: %v", err)
		}
		defer again.Close()
		t.Logf("works %v after the relays came back", time.Since(start))
		if err := roundTrip(again, "hello"); err != nil {
			t.Error(err)
		}
	})
}

// checkClear checks that Dial fails within its time, and says more than that the
// time is over.
func checkClear(t *testing.T, when string, c *client.Client) {
	t.Helper()
	const timeout = 20 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	start := time.Now()
	conn, err := c.Dial(ctx, "tcp", "echo.test:80")
	if err == nil {
		conn.Close()
		t.Errorf("%s: Dial succeeded", when)
		return
	}
	if took := time.Since(start); took > timeout+time.Second {
		t.Errorf("%s: Dial took %v, and had %v", when, took, timeout)
	}
	if err.Error() == context.DeadlineExceeded.Error() {
		t.Errorf("%s: Dial says only %q", when, err)
	}
	t.Logf("%s: %v", when, err)
}

// TestAuthoritiesGone: clients live on the consensus that they have as long as
// it is valid, and not a moment longer.
func TestAuthoritiesGone(t *testing.T) {
	t.Parallel()
	const interval = 10 * time.Second
	test := func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		for _, a := range n.Authorities {
			a.Stop()
		}
		until := c.Status().ConsensusUntil
		if left := time.Until(until); left < (directory.ValidPeriods-2)*interval {
			t.Fatalf("the consensus is valid for %v only", left)
		}
		for time.Until(until) > 2*interval {
			conn := dial(t, c, "echo.test:80")
			if err := roundTrip(conn, "hello"); err != nil {
				t.Errorf("%v before the consensus expires: %v", time.Until(until), err)
			}
			conn.Close()
			time.Sleep(4 * interval)
			until = c.Status().ConsensusUntil
		}
		time.Sleep(time.Until(until) + time.Second)
		checkClear(t, "with an expired consensus", c)
		if late, err := n.NewClient(client.Config{}); err != nil {
			t.Error(err)
		} else if err := late.Ready(within(t, time.Minute)); err == nil {
			t.Error("a new client is ready without a valid consensus")
		} else {
			t.Logf("a new client: %v", err)
		}

		for _, a := range n.Authorities {
			if err := a.Start(); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.AwaitConsensus(within(t, 5*time.Minute)); err != nil {
			t.Fatalf("with the authorities back: %v", err)
		}
		again, err := c.Dial(within(t, time.Minute), "tcp", "echo.test:80")
		if err != nil {
			t.Fatalf("with the authorities back: %v", err)
		}
		defer again.Close()
		if err := roundTrip(again, "hello"); err != nil {
			t.Error(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		// Authorities keep what they know.
		dir := openDir(t, filepath.Join(t.TempDir(), "network"))
		boot(t, simnet.Config{}, testnet.Config{Interval: interval, Dir: dir}, test)
	})
}

// TestAuthoritiesForget: authorities that come back without what they knew hear
// of the relays again, and the network with them.
func TestAuthoritiesForget(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{Interval: 20 * time.Second}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		for _, a := range n.Authorities {
			a.Stop()
		}
		for _, a := range n.Authorities {
			if err := a.Start(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		if err := n.AwaitConsensus(within(t, 10*time.Minute)); err != nil {
			t.Error(err)
		}
		if err := roundTrip(dial(t, c, "echo.test:80"), "hello"); err != nil {
			t.Error(err)
		}
	})
}
