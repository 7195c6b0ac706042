package testnet_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cepa/client"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// killSize is the length of a download, in bytes.
const killSize = 120_000

// pattern is what byte i of a download is.
func pattern(b []byte, from int) {
	for i := range b {
		b[i] = byte((from + i) * 7 / 3)
	}
}

// serveDownload tells its length first, and then pauses between pieces, so that it lasts
// for seconds.
func serveDownload(c net.Conn) {
	b := make([]byte, killSize/40)
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, killSize)); err != nil {
		return
	}
	for from := 0; from < killSize; from += len(b) {
		pattern(b, from)
		if _, err := c.Write(b); err != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var errTruncated = errors.New("the stream ended as if it were complete")

// download reads one to its end. begun is called when it has begun.
func download(conn net.Conn, begun func()) error {
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return errTruncated
		}
		begun()
		return err
	}
	begun()
	want, got := make([]byte, 32<<10), make([]byte, 32<<10)
	for at := 0; ; {
		n, err := conn.Read(got)
		pattern(want[:n], at)
		if !bytes.Equal(want[:n], got[:n]) {
			return fmt.Errorf("bytes %d to %d are others than were sent: %w", at, at+n, errTruncated)
		}
		at += n
		switch {
		case err == io.EOF && at < int(binary.BigEndian.Uint32(size[:])):
			return errTruncated
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// TestKillInDownloads: whichever relays go in the middle of many downloads, those fail or
// are complete, and none hangs; new streams of all identities work within seconds.
func TestKillInDownloads(t *testing.T) {
	t.Parallel()
	relays, downloads := 12, 30
	if *soak {
		relays, downloads = 32, 200
	}
	const (
		identities = 20
		soon       = 5 * time.Second
		longest    = time.Minute // from the kill to the end of the last download
	)
	link := simnet.LinkParams{Latency: 20 * time.Millisecond}
	onSimnet(t, simnet.Config{Default: link}, testnet.Config{Relays: relays, Exits: relays / 2}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "big.test", 80, serveDownload)
		serveTCP(t, n, "echo.test", 80, echo)
		c := newClient(t, n, client.Config{})
		rng := rand.New(rand.NewPCG(3, 4))
		open := func(ctx context.Context, host string, i int) (net.Conn, error) {
			return c.DialTarget(ctx, client.Target{Host: host, Port: 80, Isolation: fmt.Sprint(i % identities)})
		}
		for _, what := range []string{"guard", "middle", "exit", "half"} {
			for _, how := range []string{"stops", "crashes"} {
				var wg sync.WaitGroup
				var failed, complete, truncated atomic.Int64
				begun := make(chan struct{}, downloads)
				for i := range downloads {
					wg.Go(func() {
						conn, err := open(within(t, time.Minute), "big.test", i)
						if err != nil {
							t.Errorf("download %d: %v", i, err)
							begun <- struct{}{}
							return
						}
						defer conn.Close()
						switch err := download(conn, func() { begun <- struct{}{} }); {
						case err == nil:
							complete.Add(1)
						case errors.Is(err, errTruncated):
							truncated.Add(1)
							t.Errorf("the %s %s, download %d: %v", what, how, i, err)
						default:
							failed.Add(1)
						}
					})
				}
				for range downloads {
					<-begun
				}
				victims := killed(n, c, what, rng)
				start := time.Now()
				for _, v := range victims {
					if how == "stops" {
						v.Stop()
					} else {
						v.Crash()
					}
				}
				var slowest atomic.Int64
				var fresh sync.WaitGroup
				for i := range identities {
					fresh.Go(func() {
						began := time.Now()
						conn, err := open(within(t, time.Minute), "echo.test", i)
						if err == nil {
							err = roundTrip(conn, "hello again")
							conn.Close()
						}
						took := time.Since(began)
						if err != nil || took > soon {
							t.Errorf("the %s %s: a new stream of identity %d after %v: %v", what, how, i, took, err)
						}
						for old := slowest.Load(); int64(took) > old && !slowest.CompareAndSwap(old, int64(took)); old = slowest.Load() {
						}
					})
				}
				fresh.Wait()
				wg.Wait()
				if took := time.Since(start); took > longest {
					t.Errorf("the %s %s: the last download ended after %v", what, how, took)
				}
				if failed.Load() == 0 {
					t.Errorf("the %s %s: no download noticed", what, how)
				}
				t.Logf("%s %s (%d relays): of %d downloads %d failed, %d complete, %d truncated; slowest new stream %v", what, how, len(victims), downloads,
					failed.Load(), complete.Load(), truncated.Load(), time.Duration(slowest.Load()).Round(time.Millisecond))
				for _, v := range victims {
					if err := v.Start(); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(3 * time.Minute) // virtual: they may be chosen again
			}
		}
	})
}

// killed returns the relays that are to go: the busiest in a position, or half of all,
// among them the busiest middle.
func killed(n *testnet.Net, c *client.Client, what string, rng *rand.Rand) []*testnet.Relay {
	count := map[*testnet.Relay]int{} // streams by relay in the position
	position := map[string]int{"guard": 0, "middle": 1, "exit": 2, "half": 1}[what]
	for _, x := range c.Status().Circuits {
		count[n.Relay(x.Hops[position].Identity)] += x.Streams
	}
	var most *testnet.Relay
	for _, r := range n.Relays {
		if most == nil || count[r] > count[most] {
			most = r
		}
	}
	if what != "half" {
		return []*testnet.Relay{most}
	}
	out := []*testnet.Relay{most}
	// A client never tries more than a few guards: one of those that it has used stays.
	var stays *testnet.Relay
	for _, g := range c.Status().Guards {
		if r := n.Relay(g.Relay); g.Tried != 0 && r != most {
			stays = r
		}
	}
	// Each position keeps half of its relays.
	for _, exit := range []bool{false, true} {
		var all []*testnet.Relay
		for _, r := range n.Relays {
			if r.Exit == exit {
				all = append(all, r)
			}
		}
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		left := len(all) / 2
		if most.Exit == exit {
			left--
		}
		for _, r := range all {
			if r != most && r != stays && left > 0 {
				out = append(out, r)
				left--
			}
		}
	}
	return out
}
