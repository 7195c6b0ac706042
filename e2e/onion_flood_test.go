//go:build e2e && linux

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/client"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/link"
	"cepa/onion"
	"cepa/onion/visit"
)

// cpuSeconds is how much time of processors a process has taken.
func cpuSeconds(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const user, system, tick = 11, 12, 100 // proc(5), without the first two; ticks a second
	sum := 0.0
	for _, i := range []int{user, system} {
		n, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n / tick
	}
	return sum
}

// TestOnionFloodLoad: ten times as many introductions as a service can answer, which it
// asks no work for: its points let so few through that it uses no more than half of a
// processor. A campaign: it depends on the machine.
func TestOnionFloodLoad(t *testing.T) {
	if !*soak {
		t.Skip("a measurement; run with -args -soak")
	}
	n := startRoles(t, onLoopback, time.Minute)
	h := onLoopback(t, "service", 55)
	service := n.role("onion", "service", h, "--port", "80:"+n.web.http)
	service.start(t)
	var address string
	await(t, readyTimeout, "address", func() error {
		if address = addressPattern.FindString(service.stdout.String()); address == "" {
			return fmt.Errorf("none in %q", service.stdout.String())
		}
		return nil
	})
	text, err := os.ReadFile(n.file)
	if err != nil {
		t.Fatal(err)
	}
	network, err := directory.ParseNetwork(text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Network: network, AllowPrivateAddresses: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	v := visit.New(visit.Config{Network: c})
	defer v.Close()
	who, err := onion.ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	d, err := v.Descriptor(ctx, who)
	if err != nil {
		t.Fatal(err)
	}
	cons, err := c.Consensus(ctx)
	if err != nil {
		t.Fatal(err)
	}
	period, _ := directory.RandomRun(cons.Period)
	blinded, err := onion.Blind(who, network.Name, period)
	if err != nil {
		t.Fatal(err)
	}
	links := map[identity.ID]*link.Link{}
	pool := new(cell.Pool)
	for i := range cons.Relays {
		r := &cons.Relays[i]
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.Addresses[0].String())
		if err != nil {
			t.Fatal(err)
		}
		l, err := link.Client(ctx, conn, r.Identity, &link.Config{Pool: pool, QueueCells: circuit.QueueCells})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		links[r.Identity] = l
	}
	var acks [4]atomic.Int64
	var lost atomic.Int64
	one := func(i int) error {
		p := d.Points[i%len(d.Points)]
		guard := &cons.Relays[i%len(cons.Relays)]
		if guard.Identity == p.Relay {
			guard = &cons.Relays[(i+1)%len(cons.Relays)]
		}
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		o := circuit.NewOrigin(circuit.OriginConfig{Pool: pool})
		out, err := links[guard.Identity].Open(o)
		if err != nil {
			return err
		}
		o.Attach(out)
		defer o.Close()
		point, _ := cons.Lookup(p.Relay)
		for _, r := range []*directory.Relay{guard, point} {
			if err := o.Extend(ctx, circuit.HopSpec{Identity: r.Identity, OnionKey: r.OnionKey, Suite: layer.Suite(r.Suite)}); err != nil {
				return err
			}
		}
		var cookie [onion.CookieSize]byte
		_, _ = rand.Read(cookie[:]) // never fails
		in, err := onion.Introduce(onion.Binding{Address: who, Blinded: blinded, Period: period, Key: p.Key}, p.Seal, cookie, cons.Relays[(i/3)%len(cons.Relays)].Identity, rand.Reader)
		if err != nil {
			return err
		}
		b := cell.IntroduceBody{Key: p.Key}
		copy(b.Sealed[:], in.Sealed())
		answer, err := o.Introduce(ctx, b.AppendTo(nil))
		if err != nil {
			return err
		}
		ack, err := cell.ParseIntroduceAck(answer)
		if err == nil {
			acks[ack.Status].Add(1)
		}
		return err
	}
	var all sync.WaitGroup
	busy := make(chan struct{}, 200)
	flood := func(lasts time.Duration) (share float64) {
		began, before := time.Now(), cpuSeconds(t, service.cmd.Process.Pid)
		tick := time.NewTicker(time.Second / 250)
		defer tick.Stop()
		for i := 0; time.Since(began) < lasts; i++ {
			<-tick.C
			busy <- struct{}{}
			all.Go(func() {
				if err := one(i); err != nil {
					lost.Add(1)
				}
				<-busy
			})
		}
		return (cpuSeconds(t, service.cmd.Process.Pid) - before) / time.Since(began).Seconds()
	}
	flood(15 * time.Second) // what the points let through at once is used up
	for i := range acks {
		acks[i].Store(0)
	}
	const lasts = 30 * time.Second
	share := flood(lasts)
	all.Wait()
	t.Logf("a flood of %.0f introductions a second (%.0f passed on, %.0f not: full; %d lost): the service takes %.0f %% of a processor",
		float64(acks[0].Load()+acks[2].Load())/lasts.Seconds(), float64(acks[0].Load())/lasts.Seconds(), float64(acks[2].Load())/lasts.Seconds(), lost.Load(), 100*share)
	if share > 0.5 {
		t.Errorf("the service takes %.0f %% of a processor", 100*share)
	}
	if acks[2].Load() < acks[0].Load() {
		t.Errorf("the points let most of the flood through: it was none")
	}
}
