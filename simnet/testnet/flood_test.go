package testnet_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/crypto/handshake"
	"cepa/link"
	"cepa/simnet/testnet"
)

// flooder counts what becomes of its CREATEs.
type flooder struct {
	open, built atomic.Int64
	done        chan *link.Circuit
}

// flooded is one CREATE.
type flooded struct {
	f *flooder
	c *link.Circuit
}

func (x *flooded) Receive(cell.Command, []byte) {
	x.f.built.Add(1)
	x.f.open.Add(-1)
	x.f.done <- x.c // ended by who may: this is called on the link's reader
}
func (x *flooded) Flush()             {}
func (x *flooded) Kick()              {}
func (x *flooded) Closed(cell.Reason) { x.f.open.Add(-1) }

// TestFloodThroughput measures what a flood of lawful CREATEs, always as many under
// way as the relay takes in from two links, leaves of a download through the same
// relay, when all share the cores of this machine. A campaign: it depends on the
// machine, and proves nothing in little time.
func TestFloodThroughput(t *testing.T) {
	if !*soak {
		t.Skip("a measurement; run with -args -soak")
	}
	n := testnet.New(t, testnet.Config{Authorities: 4, Relays: 3, Exits: 1, Interval: 10 * time.Minute})
	serveTCP(t, n, "drip.test", 80, drip)
	b := startBulk(t, newClient(t, n, client.Config{}), "bulk")
	r := exitOf(n)
	speed := func() float64 {
		time.Sleep(time.Second)
		before, began := b.got.Load(), time.Now()
		time.Sleep(10 * time.Second)
		return float64(b.got.Load()-before) / 1e6 / time.Since(began).Seconds()
	}
	hi, err := handshake.NewHopInitiator(handshake.HopParams{Identity: r.Identity(), OnionKey: r.OnionKey.Public(), Index: 1, Suite: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := cell.CreateBody{Index: 1, KeyID: r.OnionKey.ID(), Suite: 1, Message1: hi.Message1()}
	body := m.AppendTo(nil)

	alone := speed()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := &flooder{done: make(chan *link.Circuit, 1000)}
	go func() {
		for {
			select {
			case c := <-f.done:
				c.Destroy(cell.ReasonFinished)
			case <-ctx.Done():
				return
			}
		}
	}()
	for range 2 {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		l, err := link.Client(ctx, conn, r.Identity(), &link.Config{Pool: n.Pool})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		go func() {
			for ctx.Err() == nil {
				<-tick.C
				for f.open.Load() < 200 {
					x := &flooded{f: f}
					var err error
					if x.c, err = l.Open(x); err != nil {
						break
					}
					f.open.Add(1)
					c := n.Pool.Get()
					c.SetCommand(cell.Create)
					c.SetBody(body)
					var list cell.List
					list.Push(c)
					if x.c.Send(&list) == nil {
						x.c.Kick()
					}
				}
			}
		}()
	}
	built := f.built.Load()
	under := speed()
	rate := float64(f.built.Load()-built) / 11
	t.Logf("alone %.1f MB/s, under a flood %.1f MB/s (%.2f of it); the relay did %.0f handshakes a second for the flood", alone, under, under/alone, rate)
}
