package testnet_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cepa/client"
	"cepa/simnet/testnet"
)

// benchNet is a whole network on loopback with a client and a server that
// sends as many bytes as it is asked for.
type benchNet struct {
	*testnet.Net
	client *client.Client
	origin string
}

func newBenchNet(b *testing.B) *benchNet {
	n, err := testnet.Start(b.Context(), testnet.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { n.Close() })
	c, err := n.NewClient(client.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	if err := c.Ready(b.Context()); err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go sendZeros(ln)
	return &benchNet{n, c, ln.Addr().String()}
}

// fetch downloads size bytes over a circuit of the isolation key.
func (n *benchNet) fetch(b *testing.B, key string, size int) {
	host, port, _ := net.SplitHostPort(n.origin)
	var p uint16
	fmt.Sscan(port, &p)
	conn, err := n.client.DialTarget(context.Background(), client.Target{Host: host, Port: p, Isolation: key})
	if err != nil {
		b.Error(err)
		return
	}
	defer conn.Close()
	fmt.Fprintln(conn, size)
	if got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 64<<10)); err != nil || got != int64(size) {
		b.Errorf("%d of %d bytes came, error %v", got, size, err)
	}
}

func cpuSeconds() float64 {
	var r unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

// BenchmarkDownload moves 64 MB an operation over 1 or 8 circuits; the whole
// network, its client and the origin are in this process.
func BenchmarkDownload(b *testing.B) {
	for _, circuits := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d", circuits), func(b *testing.B) {
			n := newBenchNet(b)
			size := 64_000_000 / circuits
			fetchAll := func() {
				var wg sync.WaitGroup
				for i := range circuits {
					wg.Go(func() { n.fetch(b, fmt.Sprint(i), size) })
				}
				wg.Wait()
			}
			fetchAll()
			b.SetBytes(int64(circuits * size))
			before := cpuSeconds()
			ops := 0
			for b.Loop() {
				fetchAll()
				ops++
			}
			b.ReportMetric((cpuSeconds()-before)/(float64(ops*circuits*size)/1e9), "CPU-s/GB")
		})
	}
}

// BenchmarkReady opens a stream on a ready circuit, and fetches one byte.
func BenchmarkReady(b *testing.B) {
	n := newBenchNet(b)
	n.fetch(b, "", 1)
	before, ops := cpuSeconds(), 0
	for b.Loop() {
		n.fetch(b, "", 1)
		ops++
	}
	b.ReportMetric((cpuSeconds()-before)/float64(ops)*1e3, "CPU-ms/op")
}

// BenchmarkFresh does the same on a circuit of its own, 16 at a time.
func BenchmarkFresh(b *testing.B) {
	n := newBenchNet(b)
	n.fetch(b, "", 1)
	before := cpuSeconds()
	b.SetParallelism(8) // of 2 cores
	var mu sync.Mutex
	next := 0
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			next++
			key := fmt.Sprint(next)
			mu.Unlock()
			n.fetch(b, key, 1)
		}
	})
	b.ReportMetric((cpuSeconds()-before)/float64(next)*1e3, "CPU-ms/op")
}
