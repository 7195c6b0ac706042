package testnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/crypto/layer"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

func rateOf(n int64) relay.Rate { return relay.Rate{BytesPerSecond: n} }

// TestStopStart: nodes end and begin again, and what is asked twice or too late
// is refused.
func TestStopStart(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{Interval: 20 * time.Second}, func(t *testing.T, n *testnet.Net) {
		r, a := n.Relays[0], n.Authorities[0]
		if err := r.Start(); err == nil {
			t.Error("a relay that runs was started")
		}
		if err := a.Start(); err == nil {
			t.Error("an authority that runs was started")
		}
		for _, end := range []func(){r.Stop, r.Crash, a.Stop, a.Crash} {
			if !r.Running() || !a.Running() {
				t.Fatal("a node does not run")
			}
			end()
			end() // again, which does nothing
			if r.Running() == a.Running() {
				t.Fatal("want one of both to run")
			}
			node := interface{ Start() error }(r)
			if r.Running() {
				node = a
			}
			if err := node.Start(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) // virtual: three consensuses
		if err := n.AwaitConsensus(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		if n.Relay(r.Identity()) != r || n.Relay(a.Identity) != nil {
			t.Error("Relay does not find by identity")
		}
		select {
		case err := <-n.Err():
			t.Errorf("what was stopped on purpose counts as failed: %v", err)
		default:
		}
		// One that ends on its own is told of.
		r.Host.Crash()
		if err := <-n.Err(); !strings.HasPrefix(err.Error(), r.Nickname+":") {
			t.Errorf("%v, want the failure of %s", err, r.Nickname)
		}
		n.Close()
		if err := r.Start(); !errors.Is(err, testnet.ErrClosed) {
			t.Errorf("starting after Close: %v", err)
		}
		if _, err := n.NewClient(client.Config{}); !errors.Is(err, testnet.ErrClosed) {
			t.Errorf("a client after Close: %v", err)
		}
		if _, err := n.ListenSite("late.test", 80); !errors.Is(err, testnet.ErrClosed) {
			t.Errorf("a site after Close: %v", err)
		}
	})
}

// TestBootAnyTime: a network comes up within seconds, wherever in a period it
// starts.
func TestBootAnyTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ interval, offset time.Duration }{
		{testnet.DefaultInterval, 9 * time.Second},
		{testnet.DefaultInterval, testnet.DefaultInterval - time.Second},
		{time.Hour, 20 * time.Minute},
		{time.Hour, 52 * time.Minute},
		{time.Hour, time.Hour - 100*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(c.offset) // virtual; a bubble begins at midnight
			start := time.Now()
			boot(t, simnet.Config{}, testnet.Config{Interval: c.interval}, func(t *testing.T, n *testnet.Net) {
				newClient(t, n, client.Config{})
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("%v into an interval of %v: ready after %v", c.offset, c.interval, took)
				}
			})
		})
	}
}

// TestCloseBusy: Close in the middle of everything ends everything.
func TestCloseBusy(t *testing.T) {
	t.Parallel()
	link := simnet.LinkParams{Latency: 10 * time.Millisecond, Loss: 0.01}
	onSimnet(t, simnet.Config{Seed: 2, Default: link}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "drip.test", 80, drip)
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		var conns []net.Conn
		for i := range 9 {
			conn := dial(t, c, []string{"drip.test:80", "echo.test:80"}[i%2])
			conns = append(conns, conn)
			go drip(conn)
			if i%3 > 0 {
				go io.Copy(io.Discard, conn) // the others leave unread what comes
			}
		}
		time.Sleep(200 * time.Millisecond)
		start := time.Now()
		n.Close()
		if took := time.Since(start); took > time.Second {
			t.Errorf("Close took %v", took)
		}
		for _, conn := range conns {
			if _, err := conn.Write([]byte("x")); err == nil {
				t.Error("a stream outlives the network")
			}
			if _, err := io.Copy(io.Discard, conn); err == nil {
				t.Error("a stream that was cut looks complete")
			}
			conn.Close()
		}
	})
}

// TestTune: each relay can be given a configuration of its own; a circuit goes
// through relays of both suites.
func TestTune(t *testing.T) {
	t.Parallel()
	cfg := testnet.Config{Relays: 3, Exits: 1, Tune: func(i int, cfg *relay.Config) {
		if i == 1 {
			cfg.Suite = layer.ChaCha20Poly1305
		}
	}}
	onSimnet(t, simnet.Config{}, cfg, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		thereAndBack(t, dial(t, c, "echo.test:80"), random(1, 100_000))
	})
}

// TestSites: sites end with their listeners, and a name is one site.
func TestSites(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		c := newClient(t, n, client.Config{})
		ln, err := n.ListenSite("one.test", 80)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.ListenSite("ONE.test.", 80); err == nil {
			t.Error("one port of a site has two listeners")
		}
		if n.SiteHost("one.test") != n.SiteHost("One.test") || n.SiteHost("one.test") == n.SiteHost("two.test") {
			t.Error("a name is not one machine")
		}
		ln.Close()
		if conn, err := c.Dial(within(t, time.Minute), "tcp", "one.test:80"); err == nil {
			conn.Close()
			t.Error("a closed site answers")
		}
		serveTCP(t, n, "one.test", 80, echo)
		if err := roundTrip(dial(t, c, "one.test:80"), "hello"); err != nil {
			t.Error(err)
		}
		got, err := c.Resolve(within(t, time.Minute), "one.test", "")
		if err != nil || len(got.Addrs) != 1 || got.Addrs[0] != n.Sites.Add("one.test") {
			t.Errorf("resolved to %v, %v", got.Addrs, err)
		}
	})
}

// fakeT is a test that fails.
type fakeT struct {
	*testing.T
	failed   bool
	logged   strings.Builder
	cleanups []func()
}

func (f *fakeT) Failed() bool                      { return f.failed }
func (f *fakeT) Log(args ...any)                   { fmt.Fprintln(&f.logged, args...) }
func (f *fakeT) Cleanup(c func())                  { f.cleanups = append(f.cleanups, c) }
func (f *fakeT) Errorf(format string, args ...any) { f.failed = true }
func (f *fakeT) Fatalf(format string, args ...any) { f.failed = true }

func (f *fakeT) end() {
	for len(f.cleanups) > 0 {
		last := f.cleanups[len(f.cleanups)-1]
		f.cleanups = f.cleanups[:len(f.cleanups)-1]
		last()
	}
}

// TestTrace: a test that fails shows who spoke with whom, in order and by name,
// and nothing of what they said.
func TestTrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeT{T: t}
		link := simnet.LinkParams{Latency: 10 * time.Millisecond}
		n := testnet.New(f, testnet.Config{Sim: simnet.New(simnet.Config{Default: link})})
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		n.Trace().Note("now the %s", "dial")
		conn := dial(t, c, "echo.test:80")
		if err := roundTrip(conn, "a secret text"); err != nil {
			t.Error(err)
		}
		conn.Close()
		exit := busyPathOrExit(n, c)
		exit.Crash()
		time.Sleep(time.Second)
		f.Errorf("something went wrong")
		f.end()
		chart := f.logged.String()
		at := 0
		for _, want := range []string{
			"# now the dial\n",
			exit.Nickname + " --> echo.test", " open\n",
			"echo.test --> " + exit.Nickname, " 13 bytes in 1 segments\n",
			exit.Nickname + " --> ", " reset\n",
		} {
			i := strings.Index(chart[at:], want)
			if i < 0 {
				t.Errorf("after byte %d the chart has no %q:\n%s", at, want, chart)
				return
			}
			at += i
		}
		if strings.Contains(chart, "secret text") {
			t.Error("the chart shows content")
		}
		if !strings.Contains(chart, "earlier events are not shown") {
			t.Error("a long story was not cut")
		}
	})
}

// busyPathOrExit returns the exit of the circuit in use.
func busyPathOrExit(n *testnet.Net, c *client.Client) *testnet.Relay {
	for _, x := range c.Status().Circuits {
		if x.Used {
			return n.Relay(x.Hops[2].Identity)
		}
	}
	return nil
}

// TestPasses: a test that does not fail is not told anything.
func TestPasses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeT{T: t}
		testnet.New(f, testnet.Config{Sim: simnet.New(simnet.Config{}), Relays: 3})
		f.end()
		if f.failed || f.logged.Len() > 0 {
			t.Errorf("failed: %v, logged %q", f.failed, f.logged.String())
		}
	})
}

// A program that uses cepa is tested on a network of its own. Inside
// synctest.Test the same takes no time at all.
func ExampleStart() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sim := simnet.New(simnet.Config{})
	defer sim.Close()
	n, err := testnet.Start(ctx, testnet.Config{Sim: sim})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()

	n.ServeSite("hello.test", 80, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello from behind three relays")
	}))
	c, err := n.NewClient(client.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	web := &http.Client{Transport: &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}}
	resp, err := web.Get("http://hello.test/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	io.Copy(os.Stdout, resp.Body)
	// Output: hello from behind three relays
}
