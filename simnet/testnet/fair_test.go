package testnet_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"cepa/client"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// capped is a network whose only exit has a rate; the others have none.
func capped(rate int64) testnet.Config {
	return testnet.Config{Exits: 1, Tune: func(_ int, cfg *relay.Config) {
		if cfg.Exit != nil {
			cfg.Rate = rateOf(rate)
		}
	}}
}

// bulk is a download that never ends, on a circuit of its own.
type bulk struct{ got atomic.Int64 }

// startBulk starts one from drip.test.
func startBulk(t *testing.T, c *client.Client, key string) *bulk {
	t.Helper()
	b, err := tryBulk(t, c, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tryBulk(t *testing.T, c *client.Client, key string) (*bulk, error) {
	t.Helper()
	b := new(bulk)
	conn, err := c.DialTarget(within(t, 10*time.Minute), client.Target{Host: "drip.test", Port: 80, Isolation: key})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 16<<10)
		for {
			n, err := conn.Read(buf)
			if b.got.Add(int64(n)); err != nil {
				return
			}
		}
	}()
	return b, nil
}

// jain is Jain's index of fairness: 1 when all are equal, 1/n when one has all.
func jain(x []float64) float64 {
	var sum, squares float64
	for _, v := range x {
		sum += v
		squares += v * v
	}
	return sum * sum / (float64(len(x)) * squares)
}

// exitOf returns the only exit.
func exitOf(n *testnet.Net) *testnet.Relay { return n.Relays[len(n.Relays)-1] }

// writtenPerSecond counts what a machine writes, second by second.
func writtenPerSecond(n *testnet.Net, at netip.Addr, seconds int) []atomic.Int64 {
	began, out := time.Now(), make([]atomic.Int64, seconds)
	n.Sim().Tap(func(e simnet.TapEvent) {
		if s := int(e.Sent.Sub(began) / time.Second); e.From.Addr() == at && s >= 0 && s < seconds {
			out[s].Add(int64(len(e.Data)))
		}
	})
	return out
}

// TestFairShares: 50 downloads through a relay with a rate use all of it and no
// more, second by second, and come to equal shares.
func TestFairShares(t *testing.T) {
	t.Parallel()
	const circuits = 50
	rates := []int64{relay.MinRate, 100_000}
	if *soak {
		rates = append(rates, 1_000_000, 10_000_000)
	}
	for _, rate := range rates {
		link := simnet.LinkParams{Latency: 10 * time.Millisecond}
		onSimnet(t, simnet.Config{Default: link}, capped(rate), func(t *testing.T, n *testnet.Net) {
			serveTCP(t, n, "drip.test", 80, drip)
			var all []*bulk
			for i := range 5 {
				c := newClient(t, n, client.Config{})
				for k := range circuits / 5 {
					all = append(all, startBulk(t, c, fmt.Sprint(i, k)))
				}
			}
			// A round of the slowest takes as long as all windows need to pass.
			time.Sleep(time.Minute)
			lasts := 30 * time.Second
			if rate == relay.MinRate {
				lasts = 2 * time.Minute // 34 cells each
			}
			before := make([]int64, len(all))
			for i, b := range all {
				before[i] = b.got.Load()
			}
			out := writtenPerSecond(n, exitOf(n).Addr.Addr(), int(lasts/time.Second))
			begun := exitOf(n).Status().Usage
			time.Sleep(lasts)
			var shares []float64
			total := 0.0
			for i, b := range all {
				shares = append(shares, float64(b.got.Load()-before[i]))
				total += shares[i]
			}
			for i := range out {
				if n := out[i].Load(); n > rate+max(rate, relay.DefaultBurst) {
					t.Errorf("%d bytes/s: %d bytes written in second %d", rate, n, i)
				}
			}
			usage := exitOf(n).Status().Usage
			written := float64(usage.TodayWritten-begun.TodayWritten) / (float64(rate) * lasts.Seconds())
			read := float64(usage.TodayRead-begun.TodayRead) / (float64(rate) * lasts.Seconds())
			if written > 1.02 || read > 1.02 || max(written, read) < 0.98 {
				t.Errorf("%d bytes/s: %.3f of the rate is used in writing, %.3f in reading", rate, written, read)
			}
			t.Logf("%d bytes/s: %.3f of the rate is used in writing, %.3f in reading", rate, written, read)
			mean := total / circuits
			t.Logf("%d bytes/s: Jain %.3f, the smallest share is %.2f of the mean, payload %.3f of the rate", rate, jain(shares), slices.Min(shares)/mean, total/(float64(rate)*lasts.Seconds()))
			if jain(shares) <= 0.95 || slices.Min(shares) < 0.7*mean {
				t.Errorf("%d bytes/s: Jain %.3f, the smallest share is %.2f of the mean", rate, jain(shares), slices.Min(shares)/mean)
			}
		})
	}
}

// TestQuietFirst: beside 49 downloads that fill a relay's rate, a circuit with one
// cell a second is hardly held up.
func TestQuietFirst(t *testing.T) {
	t.Parallel()
	for rate, most := range map[int64]time.Duration{100_000: 100 * time.Millisecond, relay.MinRate: 500 * time.Millisecond} {
		link := simnet.LinkParams{Latency: 10 * time.Millisecond}
		onSimnet(t, simnet.Config{Default: link}, capped(rate), func(t *testing.T, n *testnet.Net) {
			serveTCP(t, n, "drip.test", 80, drip)
			serveTCP(t, n, "echo.test", 80, echo)
			quiet := newClient(t, n, client.Config{})
			conn := dial(t, quiet, "echo.test:80")
			ping := func() time.Duration {
				began := time.Now()
				if err := roundTrip(conn, "x"); err != nil {
					t.Fatal(err)
				}
				return time.Since(began)
			}
			time.Sleep(10 * time.Second)
			alone := ping()
			for i := range 7 {
				c := newClient(t, n, client.Config{})
				for k := range 7 {
					startBulk(t, c, fmt.Sprint(i, k))
				}
			}
			time.Sleep(30 * time.Second)
			var added []time.Duration
			for range 60 {
				added = append(added, ping()-alone)
				time.Sleep(time.Second)
			}
			slices.Sort(added)
			p95 := added[len(added)*95/100]
			t.Logf("%d bytes/s: %v alone, and %v to %v more beside 49 downloads, p95 %v", rate, alone, added[0], added[len(added)-1], p95)
			if p95 > most {
				t.Errorf("%d bytes/s: p95 of the added delay is %v, want %v at most", rate, p95, most)
			}
		})
	}
}

// TestGreedyClient: a client with 40 circuits (200 in a campaign) gets no more of its
// guard's rate than one of five others with one circuit each.
func TestGreedyClient(t *testing.T) {
	t.Parallel()
	const rate = 100_000
	greedy := 40
	if *soak {
		greedy = 200
	}
	link := simnet.LinkParams{Latency: 10 * time.Millisecond}
	cfg := testnet.Config{Relays: 3, Exits: 2, Tune: func(i int, cfg *relay.Config) {
		if i == 0 {
			cfg.Rate = rateOf(rate)
		}
	}}
	onSimnet(t, simnet.Config{Default: link}, cfg, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "drip.test", 80, drip)
		var behind []*client.Client // whose guard has the rate: they reach no other
		for i := range 6 {
			h := n.NewHost(fmt.Sprint("behind", i))
			behind = append(behind, newClient(t, n, client.Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				for _, r := range n.Relays[1:] {
					if addr == r.Addr.String() {
						return nil, errors.New("not this one")
					}
				}
				return h.Dial(ctx, network, addr)
			}}))
		}
		var modest, many []*bulk
		for _, c := range behind[:5] {
			modest = append(modest, startBulk(t, c, "one"))
		}
		for i := range greedy {
			// What it asks for too much of, it does not get.
			if b, err := tryBulk(t, behind[5], fmt.Sprint(i)); err == nil {
				many = append(many, b)
			}
		}
		if len(many) < greedy/2 {
			t.Fatalf("the greedy client has only %d circuits", len(many))
		}
		time.Sleep(30 * time.Second)
		sum := func(of []*bulk) (n int64) {
			for _, b := range of {
				n += b.got.Load()
			}
			return n
		}
		few, lot := sum(modest), sum(many)
		time.Sleep(time.Minute)
		few, lot = sum(modest)-few, sum(many)-lot
		fair := float64(few+lot) / 6
		t.Logf("the greedy client has %.2f of a fair share, the others %.2f on average", float64(lot)/fair, float64(few)/5/fair)
		if float64(lot) > 1.2*fair {
			t.Errorf("many circuits have %.2f of a fair share", float64(lot)/fair)
		}
	})
}

// TestRateOnSockets: the same on this machine's own network, where buffers and
// wake-ups are the system's: a relay's rate is kept, second by second, and shared.
// How much of it is used depends on the machine, so only a campaign asks.
func TestRateOnSockets(t *testing.T) {
	t.Parallel()
	rate, circuits, seconds := int64(2_000_000), 8, 3
	if *soak {
		rate, circuits, seconds = 50_000_000, 50, 20
	}
	cfg := capped(rate)
	cfg.Authorities, cfg.Relays, cfg.Interval = 4, 3, 10*time.Minute
	n := testnet.New(t, cfg)
	serveTCP(t, n, "drip.test", 80, drip)
	var all []*bulk
	var c *client.Client
	for i := range circuits {
		if i%10 == 0 {
			c = newClient(t, n, client.Config{})
		}
		all = append(all, startBulk(t, c, fmt.Sprint(i)))
	}
	usage := func() (read, written uint64) {
		u := exitOf(n).Status().Usage
		return u.TodayRead, u.TodayWritten
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	// What was saved up for a burst goes first, and all circuits find their pace.
	for range 3 {
		<-tick.C
	}
	before := make([]int64, circuits)
	for i, b := range all {
		before[i] = b.got.Load()
	}
	began := time.Now()
	read, written := usage()
	most := float64(max(rate, relay.DefaultBurst))
	last, lastRead, lastWritten := began, read, written
	for range seconds {
		<-tick.C
		now := time.Now()
		r, w := usage()
		if limit := float64(rate)*now.Sub(last).Seconds() + most; float64(r-lastRead) > limit || float64(w-lastWritten) > limit {
			t.Errorf("in %v %d bytes were read and %d written, want %.0f at most", now.Sub(last), r-lastRead, w-lastWritten, limit)
		}
		last, lastRead, lastWritten = now, r, w
	}
	whole := float64(rate) * last.Sub(began).Seconds()
	used := max(float64(lastRead-read), float64(lastWritten-written)) / whole
	var shares []float64
	payload := 0.0
	for i, b := range all {
		shares = append(shares, float64(b.got.Load()-before[i]))
		payload += shares[i]
	}
	t.Logf("%d bytes/s, %d circuits: %.3f of the rate is used, payload %.3f of it, Jain %.3f", rate, circuits, used, payload/whole, jain(shares))
	if *soak && (used < 0.98 || used > 1.02 || jain(shares) <= 0.95) {
		t.Errorf("%.3f of the rate is used, Jain %.3f", used, jain(shares))
	}
}
