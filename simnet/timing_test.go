package simnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/simnet"
)

// TestExactTimes is the promise of the package: dialling takes 2 L, the connection is accepted at 3 L, and size bytes
// take size/B + L.
func TestExactTimes(t *testing.T) {
	const latency = 37 * time.Millisecond
	cfg := simnet.Config{Default: simnet.LinkParams{Latency: latency, Bandwidth: 1_000_000}}
	bubble(t, cfg, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], ":443")
		start := time.Now()
		a := dial(t, h[0], l.Addr())
		equalTime(t, "Dial", time.Since(start), 2*latency)
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		equalTime(t, "Accept", time.Since(start), 3*latency)
		for _, size := range []int{1, 1000, 1448, 1449, 100_000, 1_000_000} {
			want := latency + time.Duration(size)*time.Microsecond
			equalTime(t, "one way", transfer(t, a, b, noise(1, size)), want)
			equalTime(t, "the other way", transfer(t, b, a, noise(2, size)), want)
		}
		start = time.Now()
		a.Close()
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read: %v, want EOF", err)
		}
		equalTime(t, "the end", time.Since(start), latency)
	})
}

// TestBandwidthDoesNotDrift sends through a rate that does not divide: roundings of single segments must not add up.
func TestBandwidthDoesNotDrift(t *testing.T) {
	bubble(t, simnet.Config{Default: simnet.LinkParams{Bandwidth: 20_011}}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		const size = 3_000_000
		equalTime(t, "transfer", transfer(t, a, b, noise(1, size)), time.Duration(int64(size)*1e9/20_011))
	})
}

// TestBandwidthIsShared lets three connections use one link: each gets a third, and together all of it.
func TestBandwidthIsShared(t *testing.T) {
	const rate, size = 300_000, 144_800 // 100 segments each
	bubble(t, simnet.Config{Default: simnet.LinkParams{Bandwidth: rate}}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		var wg sync.WaitGroup
		start := time.Now()
		ends := make([]time.Duration, 3)
		for i := range ends {
			a, b := pair(t, h[0], h[1])
			wg.Go(func() {
				transfer(t, a, b, noise(uint64(i), size))
				ends[i] = time.Since(start)
			})
		}
		wg.Wait()
		slices.Sort(ends)
		all := time.Duration(int64(3*size) * 1e9 / rate)
		equalTime(t, "all three", ends[2], all)
		if segment := time.Duration(int64(1448) * 1e9 / rate); ends[0] < all-3*segment {
			t.Errorf("one was done after %v of %v: the link is not shared evenly", ends[0], all)
		}
	})
}

// TestOneByteDoesNotWaitForABulkTransfer: a link serves its connections in turn.
func TestOneByteDoesNotWaitForABulkTransfer(t *testing.T) {
	bubble(t, simnet.Config{Default: simnet.LinkParams{Bandwidth: 1_448_000}}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		bulk, _ := pair(t, h[0], h[1])
		a, b := pair(t, h[0], h[1])
		if _, err := bulk.Write(noise(1, 200_000)); err != nil {
			t.Fatal(err)
		}
		if took := transfer(t, a, b, []byte{1}); took > 2*time.Millisecond {
			t.Errorf("one byte took %v behind a bulk transfer, want at most 2 segments", took)
		}
	})
}

// TestHostBandwidth caps a host's uplink and downlink over all its links.
func TestHostBandwidth(t *testing.T) {
	const size = 144_800
	bubble(t, simnet.Config{}, 3, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		h[0].SetBandwidth(1_448_000, 2_896_000) // 1,000 segments a second up, 2,000 down
		a1, b1 := pair(t, h[0], h[1])
		a2, b2 := pair(t, h[0], h[2])
		equalTime(t, "up", transfer(t, a1, b1, noise(1, size)), 100*time.Millisecond)
		equalTime(t, "down", transfer(t, b1, a1, noise(1, size)), 50*time.Millisecond)

		var wg sync.WaitGroup
		start := time.Now()
		wg.Go(func() { transfer(t, a1, b1, noise(1, size)) })
		wg.Go(func() { transfer(t, a2, b2, noise(2, size)) })
		wg.Wait()
		equalTime(t, "up to two hosts", time.Since(start), 200*time.Millisecond)

		h[0].SetBandwidth(0, 0)
		equalTime(t, "without a cap", transfer(t, a1, b1, noise(1, size)), 0)
		h[0].SetBandwidth(1_448_000, 0)
		h[1].SetBandwidth(0, 1_448_000) // a second queue adds the time of one segment
		equalTime(t, "through two queues", transfer(t, a1, b1, noise(1, size)), 101*time.Millisecond)
	})
}

// TestSetLinkWhileInUse: what is under way keeps its arrival, order holds, later data see the new link.
func TestSetLinkWhileInUse(t *testing.T) {
	bubble(t, simnet.Config{}, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		equalTime(t, "ideal", transfer(t, a, b, noise(1, 5000)), 0)
		n.SetLink(h[0], h[1], simnet.LinkParams{Latency: time.Second})
		equalTime(t, "slow", transfer(t, a, b, noise(1, 5000)), time.Second)
		a.Write([]byte("first"))
		n.SetLink(h[0], h[1], simnet.LinkParams{Latency: time.Millisecond})
		a.Write([]byte("second"))
		start := time.Now()
		got := make([]byte, 11)
		if _, err := io.ReadFull(b, got); err != nil || string(got) != "firstsecond" {
			t.Errorf("got %q, %v", got, err)
		}
		equalTime(t, "the old way", time.Since(start), time.Second)
		n.SetLink(h[0], h[1], simnet.LinkParams{})
		equalTime(t, "ideal again", transfer(t, a, b, noise(1, 5000)), 0)
	})
}

// TestLoss counts late segments: their share is the configured one, each is late by exactly one timeout, nothing is
// lost for good or out of order, and the same seed loses the same segments.
func TestLoss(t *testing.T) {
	const latency, loss, segments = 10 * time.Millisecond, 0.1, 4000
	run := func(t *testing.T, seed uint64) (late int, when []time.Duration) {
		cfg := simnet.Config{Seed: seed, Default: simnet.LinkParams{Latency: latency, Loss: loss}}
		bubble(t, cfg, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
			a, b := pair(t, h[0], h[1])
			for range segments {
				took := transfer(t, a, b, []byte{7})
				switch took {
				case latency:
				case latency + 200*time.Millisecond:
					late++
				default:
					t.Fatalf("a segment took %v", took)
				}
				when = append(when, took)
			}
		})
		return late, when
	}
	late, when := run(t, 1)
	if sigma := math.Sqrt(segments * loss * (1 - loss)); math.Abs(float64(late)-segments*loss) > 5*sigma {
		t.Errorf("%d of %d segments were lost, want about %v", late, segments, segments*loss)
	}
	if _, again := run(t, 1); !slices.Equal(when, again) {
		t.Error("the same seed gave other losses")
	}
	if _, other := run(t, 2); slices.Equal(when, other) {
		t.Error("another seed gave the same losses")
	}
}

// TestLossBlocksTheHeadOfTheLine: data after a lost segment wait for it, and the timeout grows with the round trip.
func TestLossBlocksTheHeadOfTheLine(t *testing.T) {
	bubble(t, simnet.Config{}, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		const latency = 100 * time.Millisecond
		n.SetLink(h[0], h[1], simnet.LinkParams{Latency: latency, Loss: 1})
		a.Write([]byte("lost"))
		n.SetLink(h[0], h[1], simnet.LinkParams{Latency: latency})
		a.Write([]byte("late"))
		start := time.Now()
		if m, err := b.Read(make([]byte, 9)); m != 8 || err != nil {
			t.Errorf("read %d, %v, want both segments at once", m, err)
		}
		equalTime(t, "what follows a loss", time.Since(start), latency+400*time.Millisecond)
		equalTime(t, "what comes later", transfer(t, a, b, []byte{1}), latency)
	})
}

// TestBandwidthChanges: a new bandwidth holds from the next segment on, and no bandwidth at all lets everything go.
func TestBandwidthChanges(t *testing.T) {
	cfg := simnet.Config{Segment: 1000, Default: simnet.LinkParams{Bandwidth: 1000}}
	bubble(t, cfg, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		time.AfterFunc(4500*time.Millisecond, func() { n.SetLink(h[0], h[1], simnet.LinkParams{Bandwidth: 2000}) })
		equalTime(t, "5 slow and 5 fast segments", transfer(t, a, b, noise(1, 10_000)), 7500*time.Millisecond)

		start, data := time.Now(), noise(2, 10_000)
		a.Write(data[:5000])
		time.Sleep(750 * time.Millisecond)
		n.SetLink(h[0], h[1], simnet.LinkParams{})
		a.Write(data[5000:]) // must queue behind the segment being sent
		got := make([]byte, len(data))
		if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, data) {
			t.Errorf("other bytes arrived than were sent (%v)", err)
		}
		equalTime(t, "2 fast segments", time.Since(start), time.Second)
		a.Close()
		if rest, err := io.ReadAll(b); len(rest) > 0 || err != nil {
			t.Errorf("%d bytes too many, %v", len(rest), err)
		}
	})
}

// TestSameInstant: what happens at one instant happens in the order in which it was sent.
func TestSameInstant(t *testing.T) {
	bubble(t, simnet.Config{Default: simnet.LinkParams{Latency: time.Second}}, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		conns := make([]*simnet.Conn, 100)
		for i := range conns {
			conns[i], _ = pair(t, h[0], h[1])
		}
		var got []byte
		n.Tap(func(ev simnet.TapEvent) { got = append(got, ev.Data...) })
		for i, c := range conns {
			c.Write([]byte{byte(i)})
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(got) != len(conns) || !slices.IsSorted(got) {
			t.Errorf("arrived as %v", got)
		}
	})
}

func TestJitterKeepsOrder(t *testing.T) {
	cfg := simnet.Config{Default: simnet.LinkParams{Latency: 10 * time.Millisecond, Jitter: 10 * time.Millisecond}}
	bubble(t, cfg, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		seen := map[time.Duration]bool{}
		for range 50 {
			took := transfer(t, a, b, []byte{1})
			if took < 10*time.Millisecond || took > 20*time.Millisecond {
				t.Errorf("a segment took %v", took)
			}
			seen[took] = true
		}
		if len(seen) < 40 {
			t.Errorf("50 segments took only %d different times", len(seen))
		}
		arrivals := map[time.Time]bool{}
		n.Tap(func(ev simnet.TapEvent) { arrivals[ev.Time] = true })
		if took := transfer(t, a, b, noise(3, 200_000)); took > 20*time.Millisecond {
			t.Errorf("139 segments at once took %v", took)
		}
		if len(arrivals) < 2 {
			t.Error("139 segments drew one jitter together")
		}
	})
}

// TestPartition: nothing passes while the link is cut, and everything one latency after it heals.
func TestPartition(t *testing.T) {
	const latency = 50 * time.Millisecond
	for name, cut := range map[string]func(*simnet.Network, []*simnet.Host, bool){
		"link": func(n *simnet.Network, h []*simnet.Host, cut bool) { n.Partition(h[1], h[0], cut) },
		"host": func(n *simnet.Network, h []*simnet.Host, cut bool) { n.Isolate(h[1], cut) },
	} {
		for _, rate := range []int64{0, 1_000_000_000} {
			t.Run(name, func(t *testing.T) {
				cfg := simnet.Config{Default: simnet.LinkParams{Latency: latency, Bandwidth: rate}}
				bubble(t, cfg, 3, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
					a, b := pair(t, h[0], h[1])
					other, end := pair(t, h[0], h[2])
					a.Write([]byte("on the way "))
					time.Sleep(latency / 2)
					cut(n, h, true)
					a.Write([]byte("not yet sent"))
					a.CloseWrite()
					b.SetReadDeadline(time.Now().Add(time.Hour))
					if m, err := b.Read(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("read %d bytes, %v through a cut link", m, err)
					}
					if took := transfer(t, other, end, []byte("x")); took > latency+time.Microsecond {
						t.Errorf("another link is affected: %v", took)
					}
					b.SetReadDeadline(time.Time{})
					start := time.Now()
					cut(n, h, false)
					got, err := io.ReadAll(b)
					if err != nil || string(got) != "on the way not yet sent" {
						t.Errorf("after healing: %q, %v", got, err)
					}
					if took := time.Since(start); took < latency || took > latency+time.Microsecond {
						t.Errorf("healing took %v, want %v", took, latency)
					}
				})
			})
		}
	}
}

// TestPartitionFillsTheBuffer: a writer into a cut link waits; it goes on after healing.
func TestPartitionFillsTheBuffer(t *testing.T) {
	bubble(t, simnet.Config{Buffer: 10_000}, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		a, b := pair(t, h[0], h[1])
		n.Partition(h[0], h[1], true)
		data := noise(1, 50_000)
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		m, err := a.Write(data)
		if m != 10_000 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d, %v, want the 10,000 bytes of the buffer and a timeout", m, err)
		}
		a.SetWriteDeadline(time.Time{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := a.Write(data[m:]); err != nil {
				t.Error(err)
			}
			a.Close()
		}()
		synctest.Wait()
		n.Partition(h[0], h[1], false)
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v, want all %d", len(got), err, len(data))
		}
		<-done
	})
}

// TestDialGivenUp: a dial whose context ends while the acceptance is on its way leaves nothing.
func TestDialGivenUp(t *testing.T) {
	const latency = time.Second
	bubble(t, simnet.Config{Default: simnet.LinkParams{Latency: latency}}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], ":1")
		ctx, cancel := context.WithTimeout(context.Background(), latency*3/2)
		defer cancel()
		if _, err := h[0].Dial(ctx, "tcp", "10.0.0.2:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		time.Sleep(time.Minute)
		a := dial(t, h[0], l.Addr())
		b, err := l.Accept()
		if err != nil || b.RemoteAddr().String() != a.LocalAddr().String() {
			t.Errorf("accepted %v, %v, want only the second connection", b, err)
		}
	})
}

// TestDialThroughPartition: a dial waits, and ends by healing, by its context, or by the system's limit.
func TestDialThroughPartition(t *testing.T) {
	const latency = time.Millisecond
	cfg := simnet.Config{Default: simnet.LinkParams{Latency: latency}}
	bubble(t, cfg, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], ":1")
		n.Isolate(h[0], true)
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := h[0].Dial(ctx, "tcp", "10.0.0.2:1")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		equalTime(t, "the context", time.Since(start), time.Second)

		start = time.Now()
		_, err = h[0].Dial(context.Background(), "tcp", "10.0.0.2:1")
		var limit interface{ Timeout() bool }
		if !errors.Is(err, syscall.ETIMEDOUT) || !errors.As(err, &limit) || !limit.Timeout() {
			t.Errorf("got %v, want ETIMEDOUT", err)
		}
		equalTime(t, "giving up", time.Since(start), 127*time.Second)

		start = time.Now()
		time.AfterFunc(time.Minute, func() { n.Isolate(h[0], false) })
		c := dial(t, h[0], l.Addr())
		equalTime(t, "a dial through healing", time.Since(start), time.Minute+2*latency)
		// The two dials that were given up left nothing but requests that were taken back.
		for range 3 {
			b, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if b.RemoteAddr().String() == c.LocalAddr().String() {
				transfer(t, c, b, []byte("hello"))
				return
			}
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("an abandoned connection reads %v, want ECONNRESET", err)
			}
		}
		t.Error("the connection that healed was not accepted")
	})
}
