package testnet_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"testing"

	"cepa/client"
	"cepa/crypto/identity"
)

// BenchmarkOnionDownload is one stream of 100 MB from an onion service, on loopback in
// one process: nine links, and a layer end to end.
func BenchmarkOnionDownload(b *testing.B) {
	const size = 100_000_000
	n := newBenchNet(b)
	host, err := n.NewClient(client.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { host.Close() })
	key, err := identity.Generate(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	l, err := host.Listen(b.Context(), client.OnionConfig{Identity: key})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go sendZeros(l)
	b.SetBytes(size)
	before := cpuSeconds()
	for b.Loop() {
		conn, err := n.client.Dial(b.Context(), "tcp", fmt.Sprintf("%s:80", l.Address()))
		if err != nil {
			b.Fatal(err)
		}
		fmt.Fprintln(conn, size)
		if got, err := io.Copy(io.Discard, conn); err != nil || got != size {
			b.Fatal(got, err)
		}
		conn.Close()
	}
	b.ReportMetric((cpuSeconds()-before)/(float64(b.N)*size/1e9), "CPU-s/GB")
}

// sendZeros serves as many bytes as each client asks for.
func sendZeros(ln net.Listener) {
	zeros := make([]byte, 256<<10)
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			var left int
			if _, err := fmt.Fscanln(conn, &left); err != nil {
				return
			}
			for left > 0 {
				k, err := conn.Write(zeros[:min(left, len(zeros))])
				if err != nil {
					return
				}
				left -= k
			}
		}()
	}
}
