package simnet_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/simnet"
)

// TestChaos moves data over many connections, both ways, while everything about the links changes all the time: at the
// end all of it has arrived, in order and once.
func TestChaos(t *testing.T) {
	for seed := range uint64(6) {
		cfg := simnet.Config{Seed: seed, Buffer: 20_000}
		bubble(t, cfg, 3, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
			random := rand.New(rand.NewPCG(seed, 0))
			var wg sync.WaitGroup
			for i := range 12 {
				a, b := pair(t, h[i%3], h[(i+1)%3])
				both := func(k uint64) {
					var each sync.WaitGroup
					each.Go(func() { transfer(t, a, b, noise(k, 30_000)) })
					each.Go(func() { transfer(t, b, a, noise(k+1, 30_000)) })
					each.Wait()
				}
				wg.Go(func() {
					for k := range uint64(20) {
						both(100*uint64(i) + 2*k)
						time.Sleep(10 * time.Millisecond)
					}
				})
			}
			done := make(chan struct{})
			go func() {
				wg.Wait()
				close(done)
			}()
			pause := func(most time.Duration) { time.Sleep(time.Duration(random.Int64N(int64(most)))) }
			for step := 0; ; step++ {
				synctest.Wait()
				select {
				case <-done:
					if step < 20 {
						t.Errorf("all was over after %d changes", step)
					}
					return
				default:
				}
				a := random.IntN(3)
				x, y := h[a], h[(a+1)%3]
				switch random.IntN(6) {
				case 0:
					n.SetLink(x, y, simnet.LinkParams{})
				case 1, 2:
					n.SetLink(x, y, simnet.LinkParams{
						Latency:   time.Duration(random.IntN(3)) * 10 * time.Millisecond,
						Jitter:    time.Duration(random.IntN(3)) * 10 * time.Millisecond,
						Bandwidth: random.Int64N(3) * 300_000,
						Loss:      float64(random.IntN(2)) / 10,
					})
				case 3:
					n.Partition(x, y, true)
					pause(100 * time.Millisecond)
					n.Partition(x, y, false)
				case 4:
					n.Isolate(x, true)
					pause(100 * time.Millisecond)
					n.Isolate(x, false)
				case 5:
					x.SetBandwidth(100_000+random.Int64N(2)*400_000, random.Int64N(2)*500_000)
				}
				pause(20 * time.Millisecond)
			}
		})
	}
}
