package testnet_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"cepa/client"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// random returns bytes that compress to nothing and repeat nowhere.
func random(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

// thereAndBack sends data through an echo site and compares what comes back.
func thereAndBack(t *testing.T, conn io.ReadWriter, data []byte) {
	t.Helper()
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		failed <- err
	}()
	got := make([]byte, len(data))
	if n, err := io.ReadFull(conn, got); err != nil {
		t.Errorf("reading, after %d of %d bytes: %v", n, len(data), err)
	} else if !bytes.Equal(got, data) {
		t.Error("other bytes came back")
	}
	if err := <-failed; err != nil {
		t.Errorf("writing: %v", err)
	}
}

// TestSlowLinks: 50 ms on every link and 1 % loss cost time and nothing else.
func TestSlowLinks(t *testing.T) {
	t.Parallel()
	link := simnet.LinkParams{Latency: 50 * time.Millisecond, Loss: 0.01}
	onSimnet(t, simnet.Config{Seed: 3, Default: link}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		start := time.Now()
		c := newClient(t, n, client.Config{})
		t.Logf("ready after %v", time.Since(start))
		start = time.Now()
		conn := dial(t, c, "echo.test:80")
		// Three links and the exit's connection, with its handshake: 0.5 s, and
		// some lost segments.
		if took := time.Since(start); took < 400*time.Millisecond || took > 3*time.Second {
			t.Errorf("dialling took %v", took)
		}
		start = time.Now()
		thereAndBack(t, conn, random(1, 2_000_000))
		// A window of 512 cells in 300 ms and more of round trip: some MB/s less loss.
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("2 MB there and back took %v", took)
		}
	})
}

// TestPartition: a cut link holds everything up, and when it heals all goes on
// where it was.
func TestPartition(t *testing.T) {
	t.Parallel()
	link := simnet.LinkParams{Latency: 10 * time.Millisecond}
	onSimnet(t, simnet.Config{Default: link}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		h := n.NewHost("alice")
		c := newClient(t, n, client.Config{Dial: h.Dial})
		for i, name := range []string{"at the client", "behind the guard", "before the exit"} {
			conn := dial(t, c, "echo.test:80")
			if err := roundTrip(conn, "first"); err != nil {
				t.Fatal(err)
			}
			way := busyPath(t, n, c)
			near, far := h, way[0].Host
			if i > 0 {
				near, far = way[i-1].Host, way[i].Host
			}
			const cut = 30 * time.Second
			time.AfterFunc(50*time.Millisecond, func() { n.Sim().Partition(near, far, true) })
			time.AfterFunc(cut, func() { n.Sim().Partition(near, far, false) })
			start := time.Now()
			thereAndBack(t, conn, random(2, 1_500_000))
			if took := time.Since(start); took < cut || took > cut+10*time.Second {
				t.Errorf("cut %s: took %v, want little more than the %v of the cut", name, took, cut)
			}
			conn.Close()
			time.Sleep(time.Second)
		}
	})
}

// TestUnreachableGuard: a guard that falls silent, without a word, is given up
// for another one, also by a client that starts then.
func TestUnreachableGuard(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "echo.test", 80, echo)
		path := t.TempDir() + "/client"
		d := openDir(t, path)
		c := newClient(t, n, client.Config{Files: d})
		guard := guardOf(t, c)
		c.Close()
		n.Sim().Isolate(n.Relay(guard).Host, true)
		start := time.Now()
		c = newClient(t, n, client.Config{Files: d})
		if got := guardOf(t, c); got == guard {
			t.Error("circuits go through a guard that cannot be reached")
		}
		t.Logf("ready after %v", time.Since(start))
		if err := roundTrip(dial(t, c, "echo.test:80"), "hello"); err != nil {
			t.Error(err)
		}
		c.Close()

		// Back, it is the guard again.
		n.Sim().Isolate(n.Relay(guard).Host, false)
		c = newClient(t, n, client.Config{Files: d})
		if got := guardOf(t, c); got != guard {
			t.Error("the client does not return to its first guard")
		}
	})
}
