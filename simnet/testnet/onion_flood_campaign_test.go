package testnet_test

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/client"
	"cepa/crypto/layer"
	"cepa/link"
	"cepa/onion"
	"cepa/onion/work"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// introFlood sends introductions over circuits as short as a point accepts, to meet
// nobody: which costs the attacker little and the service a circuit each.
type introFlood struct {
	*stalker
	links []*link.Link // to relays, by their number
	sent  atomic.Int64
	acks  [4]atomic.Int64 // by status
	lost  atomic.Int64    // no circuit, or no answer
}

func newIntroFlood(a *stalker, links int) *introFlood {
	f := &introFlood{stalker: a}
	h := a.n.NewHost("flooder")
	for i := range links {
		r := a.n.Relays[i]
		ctx := within(a.T, 20*time.Second)
		conn, err := h.Dial(ctx, "tcp", r.Addr.String())
		if err != nil {
			a.Fatal(err)
		}
		l, err := link.Client(ctx, conn, r.Identity(), &link.Config{Pool: a.n.Pool, QueueCells: circuit.QueueCells})
		if err != nil {
			a.Fatal(err)
		}
		f.links = append(f.links, l)
	}
	return f
}

func (f *introFlood) close() {
	for _, l := range f.links {
		l.Close()
	}
}

// one sends one introduction, without work, and counts what the point says.
func (f *introFlood) one(ctx context.Context, who onion.Address, p onion.Point, period uint64) {
	f.sent.Add(1)
	ack, err := f.try(ctx, who, p, period)
	if err != nil {
		f.lost.Add(1)
		return
	}
	f.acks[ack.Status].Add(1)
}

func (f *introFlood) try(ctx context.Context, who onion.Address, p onion.Point, period uint64) (ack cell.IntroduceAckBody, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	n := int(f.sent.Load()) % len(f.links)
	if f.n.Relays[n].Identity() == p.Relay {
		n = (n + 1) % len(f.links)
	}
	o := circuit.NewOrigin(circuit.OriginConfig{Pool: f.n.Pool})
	out, err := f.links[n].Open(o)
	if err != nil {
		return ack, err
	}
	o.Attach(out)
	defer o.Close()
	for _, hop := range []*testnet.Relay{f.n.Relays[n], f.n.Relay(p.Relay)} {
		if err := o.Extend(ctx, circuit.HopSpec{Identity: hop.Identity(), OnionKey: hop.OnionKey.Public(), Suite: layer.AES256GCM}); err != nil {
			return ack, err
		}
	}
	var cookie [onion.CookieSize]byte
	_, _ = rand.Read(cookie[:]) // never fails
	i, err := onion.Introduce(f.binding(who, p, period), p.Seal, cookie, f.n.Relays[n].Identity(), rand.Reader)
	if err != nil {
		return ack, err
	}
	b := cell.IntroduceBody{Key: p.Key}
	copy(b.Sealed[:], i.Sealed())
	answer, err := o.Introduce(ctx, b.AppendTo(nil))
	if err != nil {
		return ack, err
	}
	return cell.ParseIntroduceAck(answer)
}

// TestOnionFlood: while ten times as many introductions come as a service can answer,
// who does the work that it asks for gets in, and that is not too much work. Where none
// is asked for, who comes honestly is one of many at a point that is full.
func TestOnionFlood(t *testing.T) {
	t.Parallel()
	capacity, calm, honest, lasts, least := 1.0, 4*time.Second, 10, 10*time.Second, 0.4 // of few
	if *soak {
		capacity, calm, honest, lasts, least = 20, 30*time.Second, 100, 100*time.Second, 0.9
	}
	rate, err := work.Measure(context.Background(), 50, 1)
	if err != nil {
		t.Fatal(err)
	}
	share := map[bool]float64{}
	ways := []bool{true}
	if *soak {
		ways = append(ways, false)
	}
	for _, asked := range ways {
		name := map[bool]string{true: "with work", false: "without"}[asked]
		onSimnet(t, simnet.Config{Default: simnet.LinkParams{Latency: 20 * time.Millisecond}}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
			s := hostOnion(t, n, client.OnionConfig{
				Work: asked, Capacity: capacity, IntroRate: int(capacity*1.25 + 0.5), IntroBurst: int(10 * capacity),
			}, echo)
			a := newStalker(t, n)
			defer a.v.Close()
			who, d := a.descriptor(s.Address)
			f := newIntroFlood(a, 4)
			visitors := []*client.Client{newClient(t, n, client.Config{}), newClient(t, n, client.Config{}), newClient(t, n, client.Config{})}
			ctx, stop := context.WithCancel(context.Background())
			var all, inside sync.WaitGroup
			all.Go(func() {
				tick := time.NewTicker(time.Duration(float64(time.Second) / (10 * capacity)))
				defer tick.Stop()
				for i := 0; ; i++ {
					select {
					case <-tick.C:
						all.Go(func() { f.one(ctx, who, d.Points[i%len(d.Points)], a.period()) })
					case <-ctx.Done():
						return
					}
				}
			})
			time.Sleep(calm)
			var most uint32
			var in atomic.Int64
			var waits []time.Duration
			var mu sync.Mutex
			for range honest {
				inside.Go(func() {
					began := time.Now()
					err := knock(visitors[onionVisits.Load()%uint64(len(visitors))], s.Address, "", time.Minute)
					if err == nil {
						in.Add(1)
					} else if !errors.Is(err, context.DeadlineExceeded) {
						t.Logf("%s: a visitor: %v", name, err)
					}
					mu.Lock()
					waits = append(waits, time.Since(began))
					mu.Unlock()
				})
				time.Sleep(lasts / time.Duration(honest))
				most = max(most, s.l.Status().Load.Effort)
			}
			inside.Wait()
			stop()
			all.Wait()
			f.close()
			load := s.l.Status().Load
			share[asked] = float64(in.Load()) / float64(honest)
			took := rate.Time(most + most/8)
			t.Logf("%s: %d introductions of the flood (%d passed on, %d not: full, %d not: work, %d lost); %d of %d visitors in, after %v (median), %v (p95); effort at most %d, which is %v of one core; the service: %+v",
				name, f.sent.Load(), f.acks[cell.IntroducePassed].Load(), f.acks[cell.IntroduceFull].Load(), f.acks[cell.IntroduceWork].Load(), f.lost.Load(),
				in.Load(), honest, percentile(waits, 0.5).Round(time.Millisecond), percentile(waits, 0.95).Round(time.Millisecond), most, took.Round(time.Millisecond), load)
			if asked && share[asked] < least {
				t.Errorf("%d of %d visitors got in", in.Load(), honest)
			}
			if asked && took > 10*time.Second {
				t.Errorf("visitors are asked for %v of work", took)
			}
			s.stop(false)
		})
	}
	if *soak && share[false] >= share[true] {
		t.Errorf("with work %.2f of the visitors get in, without %.2f: the flood is none, or the work is of no use", share[true], share[false])
	}
}
