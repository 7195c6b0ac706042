package testnet_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/onion/service"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// serveOnion runs a service whose streams go to f, on a client of its own, and returns when clients find it.
func serveOnion(t *testing.T, n *testnet.Net, cfg client.OnionConfig, f func(net.Conn)) *client.OnionListener {
	t.Helper()
	c := newClient(t, n, client.Config{})
	if cfg.Identity == nil && cfg.Keys == nil {
		var err error
		if cfg.Identity, err = identity.Generate(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	return listenOnion(t, c, cfg, f)
}

// listenOnion is serveOnion on a client that there is.
func listenOnion(t *testing.T, c *client.Client, cfg client.OnionConfig, f func(net.Conn)) *client.OnionListener {
	t.Helper()
	l, err := c.Listen(within(t, 3*time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f(conn)
		}
	}()
	return l
}

// TestOnionService: a service publishes, a client finds it by its address, and a megabyte goes both ways.
func TestOnionService(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		seen := make(chan net.Conn, 1)
		l := serveOnion(t, n, client.OnionConfig{}, func(c net.Conn) {
			select {
			case seen <- c:
			default:
			}
			echo(c)
		})
		bob := newClient(t, n, client.Config{})
		conn := dial(t, bob, l.Address().String()+":8080")
		payload := make([]byte, 1<<20)
		rand.Read(payload)
		go func() {
			conn.Write(payload)
			conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("of 1 MB, %d bytes came back: %v", len(got), err)
		}
		served := <-seen
		if got, want := served.LocalAddr().String(), l.Address().String()+":8080"; got != want {
			t.Errorf("the stream's local address is %s, want %s", got, want)
		}
		if p, ok := served.RemoteAddr().(service.Peer); !ok || p.Circuit == 0 {
			t.Errorf("the stream's remote address is %v, want the number of a circuit", served.RemoteAddr())
		}
		if err := l.Test(within(t, time.Minute)); err != nil {
			t.Errorf("a test through the network: %v", err)
		}
		st := l.Status()
		if !st.Ready || len(st.Points) != 3 || st.Load.Joined != 2 || st.Load.Streams != 1 || st.Test == nil || st.Test.Problem != "" {
			t.Errorf("status: %+v", st)
		}
	})
}

var _ context.Context
