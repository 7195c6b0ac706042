package simnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cepa/simnet"
)

func TestListen(t *testing.T) {
	bubble(t, simnet.Config{}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		refused := func(address string, want error) {
			t.Helper()
			if _, err := h[0].Listen("tcp", address); !errors.Is(err, want) {
				t.Errorf("Listen %s: %v, want %v", address, err, want)
			}
		}
		all := listen(t, h[0], ":80")
		refused("10.0.0.1:80", syscall.EADDRINUSE)
		refused("0.0.0.0:80", syscall.EADDRINUSE)
		refused("10.0.0.2:81", syscall.EADDRNOTAVAIL)
		one, two := listen(t, h[0], "10.0.0.1:81"), listen(t, h[0], "127.0.0.1:81")
		refused(":81", syscall.EADDRINUSE)
		refused("127.0.0.1:81", syscall.EADDRINUSE)
		if all.Addr().String() != "10.0.0.1:80" || one.Addr().String() != "10.0.0.1:81" || two.Addr().String() != "127.0.0.1:81" {
			t.Errorf("listening on %v, %v and %v", all.Addr(), one.Addr(), two.Addr())
		}
		listen(t, h[1], ":80") // another host's ports are its own

		// A host reaches itself, by its address and by loopback, and tells the two apart.
		for _, l := range []net.Listener{one, two} {
			a := dial(t, h[0], l.Addr())
			b, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			transfer(t, a, b, []byte(l.Addr().String()))
		}
		any1, any2 := listen(t, h[0], ":0"), listen(t, h[0], "127.0.0.1:0")
		if any1.Addr().(*net.TCPAddr).Port == any2.Addr().(*net.TCPAddr).Port {
			t.Error("port 0 gave the same port twice")
		}

		// A closed port is free again.
		all.Close()
		if err := all.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		if _, err := all.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		listen(t, h[0], ":80")
	})
}

// TestListenerCloseResets: who was not accepted is told, and a waiting Accept returns.
func TestListenerCloseResets(t *testing.T) {
	modes(t, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], ":1")
		a := dial(t, h[0], l.Addr())
		time.Sleep(time.Second)
		l.Close()
		wantError(t, a, syscall.ECONNRESET)

		l = listen(t, h[1], ":1")
		time.AfterFunc(time.Second, func() { l.Close() })
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
	})
}

// TestBacklog: a listener that nobody accepts from refuses at some point.
func TestBacklog(t *testing.T) {
	bubble(t, simnet.Config{}, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], ":1")
		for i := range 5000 {
			c, err := h[0].Dial(context.Background(), "tcp", l.Addr().String())
			if err != nil {
				if i != 4096 || !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial %d: %v", i, err)
				}
				return
			}
			defer c.Close()
		}
		t.Error("the queue has no end")
	})
}

func TestPortsRunOut(t *testing.T) {
	bubble(t, simnet.Config{}, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], ":1")
		go func() {
			for {
				if _, err := l.Accept(); err != nil {
					return
				}
			}
		}()
		var last net.Conn
		for i := range 1 << 15 {
			last = dial(t, h[0], l.Addr())
			if i%1000 == 0 {
				synctest.Wait() // let Accept keep up
			}
		}
		if _, err := h[0].Dial(context.Background(), "tcp", l.Addr().String()); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("with all ports in use: %v", err)
		}
		last.(*simnet.Conn).SetLinger(0)
		last.Close()
		dial(t, h[0], l.Addr())
		n.Close()
	})
}

func TestCrash(t *testing.T) {
	modes(t, 3, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[0], ":9")
		_, in := pair(t, h[0], h[1])
		out, own := pair(t, h[2], h[0])
		bystander1, bystander2 := pair(t, h[1], h[2])
		var wg sync.WaitGroup
		wg.Go(func() { wantError(t, in, syscall.ECONNRESET) })
		wg.Go(func() { wantError(t, out, syscall.ECONNRESET) })
		wg.Go(func() { wantError(t, own, net.ErrClosed) })
		wg.Go(func() {
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
		})
		synctest.Wait()
		h[0].Crash()
		wg.Wait()
		if _, err := h[1].Dial(context.Background(), "tcp", "10.0.0.1:9"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialling the crashed host: %v", err)
		}
		transfer(t, bystander1, bystander2, noise(1, 10_000))
		a, b := pair(t, h[1], h[0]) // restarted
		transfer(t, a, b, noise(1, 10_000))
	})
}

// TestCrashDuringDial: the dial fails at the crashed host, at either end.
func TestCrashDuringDial(t *testing.T) {
	cfg := simnet.Config{Default: simnet.LinkParams{Latency: time.Second}}
	for who, want := range []error{net.ErrClosed, syscall.ECONNREFUSED} {
		bubble(t, cfg, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
			listen(t, h[1], ":1")
			time.AfterFunc(500*time.Millisecond, h[who].Crash)
			_, err := h[0].Dial(context.Background(), "tcp", "10.0.0.2:1")
			if !errors.Is(err, want) && !(who == 1 && errors.Is(err, syscall.ECONNRESET)) {
				t.Errorf("got %v, want %v", err, want)
			}
		})
	}
}

// TestNetworkClose: everything that waits comes back, and the network is unusable afterwards.
func TestNetworkClose(t *testing.T) {
	modes(t, 2, func(t *testing.T, n *simnet.Network, h []*simnet.Host) {
		a, _ := pair(t, h[0], h[1])
		_, idle := pair(t, h[0], h[1])
		l := listen(t, h[1], ":1")
		var wg sync.WaitGroup
		wg.Go(func() { wantError(t, idle, net.ErrClosed) })
		wg.Go(func() {
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
		})
		wg.Go(func() {
			if _, err := io.Copy(a, endless{}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write: %v", err)
			}
		})
		a.SetDeadline(time.Now().Add(time.Hour))
		time.Sleep(time.Second)
		n.Close()
		n.Close()
		wg.Wait()
		if _, err := h[0].Listen("tcp", ":2"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Listen: %v", err)
		}
		if _, err := h[0].Dial(context.Background(), "tcp", "10.0.0.2:1"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Dial: %v", err)
		}
	})
}

// TestThousandConns moves data over 1,000 connections of one link at once, each way; the time is the link's.
func TestThousandConns(t *testing.T) {
	const conns, size, rate = 1000, 14_480, 10_000_000
	cfg := simnet.Config{Default: simnet.LinkParams{Latency: 10 * time.Millisecond, Bandwidth: rate}}
	bubble(t, cfg, 2, func(t *testing.T, _ *simnet.Network, h []*simnet.Host) {
		l := listen(t, h[1], ":1")
		var wg sync.WaitGroup
		ready := make(chan struct{})
		for i := range conns {
			wg.Go(func() {
				a := dial(t, h[0], l.Addr())
				defer a.Close()
				<-ready
				data := noise(uint64(i), size)
				transfer(t, a, a, data) // the other end echoes
			})
			wg.Go(func() {
				b, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer b.Close()
				io.Copy(b, b)
			})
		}
		time.Sleep(time.Second)
		start := time.Now()
		close(ready)
		wg.Wait()
		least := 20*time.Millisecond + time.Duration(int64(conns)*size*1e9/rate)
		if took := time.Since(start); took < least || took > least+50*time.Millisecond {
			t.Errorf("took %v, want little more than %v", took, least)
		}
	})
}

func TestMisusePanics(t *testing.T) {
	n, h := network(t, simnet.Config{}, 2)
	for name, f := range map[string]func(){
		"address taken":    func() { n.Host("again", netip.MustParseAddr("10.0.0.1")) },
		"address loopback": func() { n.Host("x", netip.MustParseAddr("127.0.0.1")) },
		"no address":       func() { n.Host("x", netip.Addr{}) },
		"link to itself":   func() { n.SetLink(h[0], h[0], simnet.LinkParams{}) },
		"loss above 1":     func() { n.SetLink(h[0], h[1], simnet.LinkParams{Loss: 1.1}) },
		"negative latency": func() { simnet.New(simnet.Config{Default: simnet.LinkParams{Latency: -1}}) },
		"negative rate":    func() { h[0].SetBandwidth(-1, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: accepted", name)
				}
			}()
			f()
		}()
	}
}
