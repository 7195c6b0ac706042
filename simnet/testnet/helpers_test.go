package testnet_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"cepa/client"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// soak runs the tests of TestSoak… with their full counts.
var soak = flag.Bool("soak", false, "run the long tests in full")

// within is how long anything may take, in virtual or real time, that should
// take much less: so that what hangs fails and is explained.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// onSimnet boots a network in virtual time and runs f in its bubble. When f
// returns, everything is closed and nothing may be left: no cell, no buffer, and,
// as the bubble checks, no goroutine.
func onSimnet(t *testing.T, sim simnet.Config, cfg testnet.Config, f func(t *testing.T, n *testnet.Net)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { boot(t, sim, cfg, f) })
}

// boot is onSimnet inside a bubble, where a Config.Dir must be opened.
func boot(t *testing.T, sim simnet.Config, cfg testnet.Config, f func(t *testing.T, n *testnet.Net)) {
	t.Helper()
	cfg.Sim = simnet.New(sim)
	if cfg.Interval == 0 {
		cfg.Interval = time.Hour // hardly any directory traffic in a test of minutes
	}
	n := testnet.New(t, cfg)
	f(t, n)
	n.Close()
	if err := n.Leaks(); err != nil {
		t.Error(err)
	}
}

// newClient starts a client and waits until it is ready.
func newClient(t *testing.T, n *testnet.Net, cfg client.Config) *client.Client {
	t.Helper()
	c, err := n.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// dial opens a stream that ends with the test.
func dial(t *testing.T, c *client.Client, addr string) net.Conn {
	t.Helper()
	conn, err := c.Dial(within(t, time.Minute), "tcp", addr)
	if err != nil {
		t.Fatalf("dialling %s: %v", addr, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// serveTCP runs f for each connection to a site, until the network closes.
func serveTCP(t *testing.T, n *testnet.Net, name string, port uint16, f func(net.Conn)) {
	t.Helper()
	ln, err := n.ListenSite(name, port)
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
				f(c)
			}()
		}
	}()
}

// echo sends back what comes, to the end.
func echo(c net.Conn) {
	io.Copy(c, c)
	c.(interface{ CloseWrite() error }).CloseWrite()
}

// halfClose ends the writing half.
func halfClose(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// roundTrip sends text through an echo and reads it back.
func roundTrip(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	if string(b) != text {
		return errors.New("other bytes came back")
	}
	return nil
}
