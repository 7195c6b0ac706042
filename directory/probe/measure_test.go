package probe_test

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/directory/probe"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// measureNet boots relays with capacities in KB/s, every second of which is held to it by its own rate, the others by their machine's connection, of which
// they know nothing: they state 1 Gbit/s. It returns when the authorities have measured and agreed.
func measureNet(t *testing.T, authorities int, capacity []int64, wait time.Duration, tune func(i int, cfg *relay.Config), f func(n *testnet.Net, weight func(i int) uint64)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sim := simnet.New(simnet.Config{Default: simnet.LinkParams{Latency: 20 * time.Millisecond}})
		n := testnet.New(t, testnet.Config{
			Sim: sim, Authorities: authorities, Relays: len(capacity), Exits: 1, Interval: time.Hour,
			Measure: &probe.Measure{Rate: 100_000_000},
			Tune: func(i int, cfg *relay.Config) {
				if i%2 == 0 {
					cfg.Rate = relay.Rate{BytesPerSecond: capacity[i] * 1000}
				}
				if tune != nil {
					tune(i, cfg)
				}
			},
		})
		for i, r := range n.Relays {
			if i%2 == 1 {
				r.Host.SetBandwidth(capacity[i]*1000, capacity[i]*1000)
			}
		}
		time.Sleep(wait)
		synctest.Wait()
		c := n.Authorities[0].Consensus()
		f(n, func(i int) uint64 {
			entry, ok := c.Lookup(n.Relays[i].Identity())
			if !ok {
				t.Fatalf("relay %d is not in the consensus", i)
			}
			return entry.Weight
		})
		n.Close()
		if err := n.Leaks(); err != nil {
			t.Error(err)
		}
	})
}

// capacities draws n, from low to high, evenly by their logarithm.
func capacities(n int, low, high float64) []int64 {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	list := make([]int64, n)
	for i := range list {
		list[i] = int64(low * math.Exp(random.Float64()*math.Log(high/low)))
	}
	return list
}

// checkMeasured counts how many weights are within 15 % of the capacity.
func checkMeasured(t *testing.T, capacity []int64, weight func(i int) uint64) {
	t.Helper()
	good := 0
	for i, c := range capacity {
		off := float64(weight(i))/float64(c) - 1
		if math.Abs(off) <= 0.15 {
			good++
		}
		t.Logf("relay %d: %d KB/s, weight %d: %+.1f %%", i, c, weight(i), 100*off)
	}
	if need := len(capacity) * 95 / 100; good < need {
		t.Errorf("%d of %d weights are within 15 %% of the capacity, want %d", good, len(capacity), need)
	}
}

// TestMeasured: measured weights come close to what relays can carry, whatever they state.
func TestMeasured(t *testing.T) {
	capacity := capacities(12, 40, 120)
	measureNet(t, 1, capacity, 2*time.Hour, nil, func(n *testnet.Net, weight func(i int) uint64) {
		checkMeasured(t, capacity, weight)
	})
}

// TestSoakMeasured: a hundred relays of very different capacity.
func TestSoakMeasured(t *testing.T) {
	if !*soak {
		t.Skip("needs -soak")
	}
	capacity := capacities(100, 50, 8000)
	measureNet(t, 1, capacity, 3*time.Hour, nil, func(n *testnet.Net, weight func(i int) uint64) {
		checkMeasured(t, capacity, weight)
	})
}

// TestSoakMeasuredByFour: authorities take turns, so that they do not measure each other's measurements.
func TestSoakMeasuredByFour(t *testing.T) {
	if !*soak {
		t.Skip("needs -soak")
	}
	capacity := capacities(8, 100, 600)
	measureNet(t, 4, capacity, 2*time.Hour, nil, func(n *testnet.Net, weight func(i int) uint64) {
		checkMeasured(t, capacity, weight)
		for _, a := range n.Authorities {
			if s := a.Prober().Status(); s.Measured != len(capacity) {
				t.Errorf("%s has measured %d of %d relays", a.Nickname, s.Measured, len(capacity))
			}
		}
	})
}

// TestLiar: a relay that states a hundred times what it has, and that it carried that yesterday, gets at most a third more than an honest one.
func TestLiar(t *testing.T) {
	capacity := []int64{60, 60, 60, 60}
	measureNet(t, 1, capacity, 2*time.Hour, nil, func(n *testnet.Net, weight func(i int) uint64) {
		honest := weight(1)
		liar := n.Relays[1]
		d := directory.Descriptor{
			Nickname: liar.Nickname, Addresses: []netip.AddrPort{liar.Addr}, OnionKey: liar.OnionKey.Public(),
			BandwidthRate: 100 * 60, Extra: directory.Extra{FirstDay: 1, History: []directory.DayUse{{Read: 1 << 20, Written: 1 << 20}}},
		}
		publish(t, n, liar.Key, d)
		time.Sleep(time.Hour)
		entry, ok := n.Authorities[0].Consensus().Lookup(liar.Identity())
		if !ok {
			t.Fatal("the liar is not listed any more, and so tells nothing")
		}
		gain := float64(entry.Weight) / float64(honest)
		t.Logf("weight %d, honest %d: %.3f", entry.Weight, honest, gain)
		if gain > 4.0/3 || gain < 1.3 {
			t.Errorf("the liar has %.3f of its honest weight, want up to 1.33, which it can have", gain)
		}
	})
}

// TestSoakMeasuredBusy: relays that carry the traffic of clients which want all that they can get are measured at less, but not at little: the
// only exit, which all eight clients use, at a third of what it has at least.
func TestSoakMeasuredBusy(t *testing.T) {
	if !*soak {
		t.Skip("needs -soak")
	}
	capacity := capacities(12, 200, 1500)
	measureNet(t, 1, capacity, 0, nil, func(n *testnet.Net, _ func(i int) uint64) {
		ln, err := n.ListenSite("zeros.test", 80)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 16<<10)
					for {
						if _, err := c.Write(b); err != nil {
							return
						}
					}
				}()
			}
		}()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var got atomic.Int64
		for i := range 8 {
			c, err := n.NewClient(client.Config{})
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				for ctx.Err() == nil {
					conn, err := c.DialTarget(ctx, client.Target{Host: "zeros.test", Port: 80, Isolation: fmt.Sprint(i, time.Now())})
					if err != nil {
						time.Sleep(time.Second)
						continue
					}
					end := time.AfterFunc(30*time.Second, func() { conn.Close() })
					k, _ := io.Copy(io.Discard, conn)
					got.Add(k)
					end.Stop()
					conn.Close()
				}
			})
		}
		before := got.Load()
		time.Sleep(20 * time.Minute)
		t.Logf("clients get %d KB/s in all", (got.Load()-before)/1200/1000)
		cancel()
		wg.Wait()
		time.Sleep(time.Hour)
		c, close := n.Authorities[0].Consensus(), 0
		for i, r := range n.Relays {
			entry, ok := c.Lookup(r.Identity())
			if !ok {
				t.Fatalf("relay %d is not listed", i)
			}
			share := float64(entry.Weight) / float64(capacity[i])
			t.Logf("relay %d: %d KB/s, weight %d: %+.1f %%", i, capacity[i], entry.Weight, 100*(share-1))
			if share > 1.15 || share < 1.0/3 {
				t.Errorf("relay %d is measured at %.2f of what it has", i, share)
			}
			if share >= 0.8 {
				close++
			}
		}
		if close < 9 {
			t.Errorf("only %d of 12 are measured at 80 %% or more of what they have", close)
		}
	})
}

// publish publishes what a relay of the network says of itself.
func publish(t *testing.T, n *testnet.Net, key *identity.Key, d directory.Descriptor) {
	t.Helper()
	signing, err := identity.Generate(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	cert, err := key.Certify(identity.PurposeDescriptor, signing.ID(), now.Add(-time.Hour), now.Add(100*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	d.Network, d.Identity, d.Published, d.Sequence = n.Network.Name, key.ID(), now, uint64(now.UnixMilli())+1
	d.Suite, d.Version = directory.SuiteAESGCM, "1"
	b, err := directory.SignDescriptor(&d, signing, cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := mirror.Publish(context.Background(), n.Network, n.NewHost("publisher").Dial, b); err != nil {
		t.Fatal(err)
	}
}
