package testnet_test

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"testing"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/client"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/visit"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// stalker speaks the messages of onion services by hand, over real circuits.
type stalker struct {
	*testing.T
	n *testnet.Net
	c *client.Client
	v *visit.Visitor
}

func newStalker(t *testing.T, n *testnet.Net) *stalker {
	c := newClient(t, n, client.Config{})
	return &stalker{T: t, n: n, c: c, v: visit.New(visit.Config{Network: c})}
}

// descriptor fetches and opens that of a service.
func (a *stalker) descriptor(address string) (onion.Address, *onion.Descriptor) {
	a.Helper()
	who, err := onion.ParseAddress(address)
	if err != nil {
		a.Fatal(err)
	}
	d, err := a.v.Descriptor(within(a.T, time.Minute), who)
	if err != nil {
		a.Fatal(err)
	}
	return who, d
}

// period is the present one.
func (a *stalker) period() uint64 {
	run, _ := directory.RandomRun(a.n.Authorities[0].Consensus().Period)
	return run
}

// binding is what an introduction to a point is bound to.
func (a *stalker) binding(who onion.Address, p onion.Point, period uint64) onion.Binding {
	a.Helper()
	blinded, err := onion.Blind(who, a.n.Network.Name, period)
	if err != nil {
		a.Fatal(err)
	}
	return onion.Binding{Address: who, Blinded: blinded, Period: period, Key: p.Key}
}

// meeting is a rendezvous that is waited for.
type meeting struct {
	relay  identity.ID
	cookie [onion.CookieSize]byte
	o      *circuit.Origin
	joined <-chan []byte
}

// wait goes to a relay that is to be the rendezvous point; with a cookie that was used
// before, or a new one.
func (a *stalker) wait(relay identity.ID, cookie *[onion.CookieSize]byte) *meeting {
	a.Helper()
	m := &meeting{relay: relay}
	if cookie != nil {
		m.cookie = *cookie
	} else {
		_, _ = rand.Read(m.cookie[:]) // never fails
	}
	ctx := within(a.T, time.Minute)
	var err error
	if m.o, err = a.c.VanguardCircuit(ctx, relay, false, nil); err != nil {
		a.Fatalf("a circuit to the rendezvous point: %v", err)
	}
	if m.joined, err = m.o.EstablishRendezvous(ctx, m.cookie[:]); err != nil {
		a.Fatalf("establishing the rendezvous: %v", err)
	}
	return m
}

// came tells whether the service has come, after some patience.
func (m *meeting) came(patience time.Duration) []byte {
	select {
	case reply := <-m.joined:
		return reply
	case <-time.After(patience):
		return nil
	}
}

// introduce sends one introduction to a point and returns what it said.
func (a *stalker) introduce(p onion.Point, sealed []byte) (cell.IntroduceAckBody, error) {
	b := cell.IntroduceBody{Key: p.Key}
	copy(b.Sealed[:], sealed)
	return a.send(p.Relay, b.AppendTo(nil))
}

// send sends a payload of INTRODUCE to a relay.
func (a *stalker) send(relay identity.ID, payload []byte) (ack cell.IntroduceAckBody, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o, err := a.c.VanguardCircuit(ctx, relay, true, nil)
	if err != nil {
		return ack, err
	}
	defer o.Close()
	answer, err := o.Introduce(ctx, payload)
	if err != nil {
		return ack, err
	}
	return cell.ParseIntroduceAck(answer)
}

// TestOnionForgeries: introductions that are replayed, changed in a bit, for another
// service, another point or another period, or from before, bring nobody to the
// rendezvous; the genuine one does, before and after.
func TestOnionForgeries(t *testing.T) {
	t.Parallel()
	flips := 30
	if *soak {
		flips = 8 * onion.SealedSize // every bit
	}
	const patience = 30 * time.Second
	onSimnet(t, simnet.Config{Default: simnet.LinkParams{Latency: 5 * time.Millisecond}}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		// No more than a point lets through, so that it is the service that refuses.
		const pace = time.Second / 20
		s, foreign := hostOnion(t, n, client.OnionConfig{}, echo), hostOnion(t, n, client.OnionConfig{}, echo)
		a := newStalker(t, n)
		defer a.v.Close()
		who, d := a.descriptor(s.Address)
		other, dOther := a.descriptor(foreign.Address)
		p, elsewhere := d.Points[0], d.Points[1]
		rendezvous := func() identity.ID { // any but the point, of which an attacker has both anyway
			for {
				if r := n.Relays[mathrand.IntN(len(n.Relays))].Identity(); r != p.Relay {
					return r
				}
			}
		}
		make := func(b onion.Binding, seal [onion.SealKeySize]byte, m *meeting) *onion.Introducer {
			i, err := onion.Introduce(b, seal, m.cookie, m.relay, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return i
		}
		passedOn := func(what string, p onion.Point, sealed []byte) {
			t.Helper()
			if ack, err := a.introduce(p, sealed); err != nil || ack.Status != cell.IntroducePassed {
				t.Errorf("%s: the point says %v, %v; it is to pass it on", what, ack.Status, err)
			}
		}
		now := a.period()
		accepted := 0
		refused := func(what string, m *meeting) {
			t.Helper()
			if m.came(patience) != nil {
				accepted++
				t.Errorf("%s: the service came to the rendezvous", what)
			}
			m.o.Close()
		}

		// The genuine one, all of the way.
		m := a.wait(rendezvous(), nil)
		genuine := make(a.binding(who, p, now), p.Seal, m)
		passedOn("genuine", p, genuine.Sealed())
		reply := m.came(patience)
		if reply == nil {
			t.Fatal("the service did not come for a genuine introduction")
		}
		keys, first, err := genuine.Finish(reply, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		mux, err := m.o.Join(circuit.JoinConfig{Suite: layer.Suite(d.Suite), Forward: keys.Forward, Backward: keys.Backward}, first)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := mux.Open(cell.BeginBody{Port: 80, Host: "service"})
		if err != nil {
			t.Fatal(err)
		}
		if err := echoes(stream, 5000); err != nil {
			t.Fatalf("over the circuit that was joined by hand: %v", err)
		}
		stream.Close()
		m.o.Close()
		time.Sleep(time.Second)

		// Again, to the same place, with the same cookie.
		for range 3 {
			again := a.wait(m.relay, &m.cookie)
			passedOn("replay", p, genuine.Sealed())
			refused("a replay", again)
		}

		// With a bit flipped. The one that they were made of works in the end.
		before := s.l.Status().Load
		m = a.wait(rendezvous(), nil)
		whole := make(a.binding(who, p, now), p.Seal, m)
		rng := mathrand.New(mathrand.NewPCG(5, 5))
		for i := range flips {
			bit := i
			if !*soak {
				bit = rng.IntN(8 * onion.SealedSize)
			}
			bent := append([]byte{}, whole.Sealed()...)
			bent[bit/8] ^= 1 << (bit % 8)
			passedOn(fmt.Sprintf("bit %d", bit), p, bent)
			if bit%997 == 0 || i%100 == 99 {
				m = a.alive(t, m, &accepted)
			}
			time.Sleep(pace)
		}
		time.Sleep(patience)
		after := s.l.Status().Load
		if bad := after.Bad - before.Bad; bad != uint64(flips) {
			t.Errorf("of %d introductions with a bit flipped, the service refused %d", flips, bad)
		}
		if after.Met != before.Met {
			t.Errorf("the service went to meet %d", after.Met-before.Met)
		}
		select {
		case <-m.joined:
			accepted++
			t.Error("a bit flipped: the service came to the rendezvous")
		default:
		}
		last := make(a.binding(who, p, now), p.Seal, m)
		passedOn("genuine, after those", p, last.Sealed())
		if m.came(patience) == nil {
			t.Error("the service does not come any more")
		}
		m.o.Close()

		// Not for this service, this point, or this period.
		for what, f := range map[string]struct {
			who    onion.Address
			of, to onion.Point
			period uint64
		}{
			"for another point of the service":     {who, elsewhere, p, now},
			"for another service":                  {other, dOther.Points[0], p, now},
			"sealed to this, bound to another":     {other, p, p, now},
			"of a period that is yet to come":      {who, p, p, now + 1},
			"of a period that was":                 {who, p, p, now - 3},
			"of a period that is not of this time": {who, p, p, now + 1_000_000},
		} {
			m := a.wait(rendezvous(), nil)
			passedOn(what, f.to, make(a.binding(f.who, f.of, f.period), f.of.Seal, m).Sealed())
			refused(what, m)
		}

		// Of before the service was started again: its points are others, and so are their keys.
		m = a.wait(rendezvous(), nil)
		old := make(a.binding(who, p, now), p.Seal, m)
		s.stop(true)
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		if err := s.l.Ready(within(t, 5*time.Minute)); err != nil {
			t.Fatal(err)
		}
		// Ready does not mean that every relay has the new descriptor.
		stale := d.Revision
		for deadline := time.Now().Add(5 * time.Minute); d.Revision == stale && time.Now().Before(deadline); {
			time.Sleep(time.Second) // of virtual time
			a.v.NewIdentity()
			_, d = a.descriptor(s.Address)
		}
		for _, point := range d.Points {
			if point.Key == p.Key || point.Seal == p.Seal {
				t.Error("a point has a key of before the start")
			}
			_, _ = a.introduce(point, old.Sealed()) // whatever it says
		}
		refused("of before the service was started again", m)
		if accepted > 0 {
			t.Errorf("%d forgeries were accepted", accepted)
		}
		if err := knock(a.c, s.Address, "", time.Minute); err != nil {
			t.Errorf("after all that: %v", err)
		}
		s.stop(false)
		foreign.stop(false)
	})
}

// alive replaces a meeting that has waited for long by a new one at the same place, and
// counts when the service had come to it.
func (a *stalker) alive(t *testing.T, m *meeting, accepted *int) *meeting {
	select {
	case <-m.joined:
		*accepted++
		t.Error("a bit flipped: the service came to the rendezvous")
	default:
	}
	m.o.Close()
	time.Sleep(time.Second)
	return a.wait(m.relay, &m.cookie)
}
