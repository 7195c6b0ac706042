package probe_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

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
	if need := (len(capacity)*95 + 99) / 100; good < need {
		t.Errorf("%d of %d weights are within 15 %% of the capacity, want %d", good, len(capacity), need)
	}
}

// TestMeasured: measured weights come close to what relays can carry, whatever they state.
func TestMeasured(t *testing.T) {
	capacity := capacities(12, 100, 1000)
	measureNet(t, 1, capacity, 2*time.Hour, nil, func(n *testnet.Net, weight func(i int) uint64) {
		checkMeasured(t, capacity, weight)
	})
}
