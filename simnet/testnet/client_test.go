package testnet_test

import (
	"io"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/simnet"
	"cepa/simnet/testnet"
	"cepa/state"
)

// openDir opens a state directory that ends with the test.
func openDir(t *testing.T, path string) *state.Dir {
	t.Helper()
	d, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// guardOf returns the first hop of all of a client's circuits.
func guardOf(t *testing.T, c *client.Client) (id identity.ID) {
	t.Helper()
	for _, x := range c.Status().Circuits {
		if !id.IsZero() && x.Hops[0].Identity != id {
			t.Errorf("circuits begin at %s and at %s", id.Short(), x.Hops[0].Nickname)
		}
		id = x.Hops[0].Identity
	}
	return id
}

// TestRestartClient: a client that is started five times keeps its guard, asks
// no authority again while its consensus is fresh, and leaves nothing behind.
func TestRestartClient(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "hello.test", 80, echo)
		path, h, seen := filepath.Join(t.TempDir(), "client"), n.NewHost("alice"), watchOpens(n)
		cells := n.Pool.Outstanding()
		var guard identity.ID
		for run := range 5 {
			d, err := state.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			c := newClient(t, n, client.Config{Files: d, Dial: h.Dial})
			conn := dial(t, c, "hello.test:80")
			if err := roundTrip(conn, "hello"); err != nil {
				t.Errorf("run %d: %v", run, err)
			}
			switch got := guardOf(t, c); {
			case run == 0:
				guard = got
			case got != guard:
				t.Errorf("run %d has the guard %s, and the first had %s", run, got.Short(), guard.Short())
			}
			for _, to := range seen.take(h.Addr()) {
				if to != n.Relay(guard).Addr && run > 0 {
					t.Errorf("run %d: the client connected to %v, which is not its guard", run, to)
				}
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("run %d: a stream of a closed client reads %v", run, err)
			}
			conn.Close()
			if _, err := c.Dial(t.Context(), "tcp", "hello.test:80"); err == nil {
				t.Errorf("run %d: a closed client dials", run)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second) // virtual: the relays hear of it
			synctest.Wait()
			if now := n.Pool.Outstanding(); now != cells {
				t.Errorf("run %d: %d cells out after Close, %d before", run, now, cells)
			}
		}
		for _, r := range n.Relays {
			if s := r.Status(); s.Circuits != 0 || s.Streams != 0 {
				t.Errorf("%s still has %d circuits and %d streams", r.Nickname, s.Circuits, s.Streams)
			}
		}
	})
}

// TestTwoClients: clients in one process share nothing, and the end of one does
// not touch the other.
func TestTwoClients(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "hello.test", 80, echo)
		dir := t.TempDir()
		one := newClient(t, n, client.Config{Files: openDir(t, filepath.Join(dir, "one"))})
		two := newClient(t, n, client.Config{Files: openDir(t, filepath.Join(dir, "two"))})
		first, second := dial(t, one, "hello.test:80"), dial(t, two, "hello.test:80")
		if err := roundTrip(first, "one"); err != nil {
			t.Error(err)
		}
		if err := roundTrip(second, "two"); err != nil {
			t.Error(err)
		}
		if got := len(one.Status().Links); got != 1 {
			t.Errorf("a client has %d links, want the one to its guard", got)
		}
		one.Close()
		if err := roundTrip(second, "two again"); err != nil {
			t.Errorf("after the other client's end: %v", err)
		}
		if err := roundTrip(dial(t, two, "hello.test:80"), "anew"); err != nil {
			t.Errorf("after the other client's end: %v", err)
		}
	})
}
