package testnet_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// opens records who opens connections to whom.
type opens struct {
	mu   sync.Mutex
	list []simnet.TapEvent
}

func watchOpens(n *testnet.Net) *opens {
	o := new(opens)
	n.Sim().Tap(func(e simnet.TapEvent) {
		if e.Kind == simnet.TapOpen {
			o.mu.Lock()
			o.list = append(o.list, e)
			o.mu.Unlock()
		}
	})
	return o
}

// take returns what was opened from an address since the last call.
func (o *opens) take(from netip.Addr) (to []netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = slices.DeleteFunc(o.list, func(e simnet.TapEvent) bool {
		if e.From.Addr() == from {
			to = append(to, e.To)
			return true
		}
		return false
	})
	return to
}

// addressAsIdentity is what an EXTEND of other protocols could smuggle in.
func addressAsIdentity(a netip.AddrPort) identity.ID {
	var id identity.ID
	b, _ := a.MarshalBinary() // it does not fail
	copy(id[:], b)
	return id
}

// TestExtendOpensNothing: a relay connects to where its consensus says that a
// relay is, and nowhere else, whatever it is asked for.
func TestExtendOpensNothing(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "victim.test", 22, echo)
		victim := netip.AddrPortFrom(n.Sites.Add("victim.test"), 22)
		h, ctx := n.NewHost("mallory"), within(t, time.Hour)
		first, second, third := n.Relays[0], n.Relays[1], n.Relays[2]
		seen := watchOpens(n)
		stranger, err := identity.Generate(nil)
		if err != nil {
			t.Fatal(err)
		}
		// ask builds a circuit of so many of the first relays and asks its end.
		ask := func(name string, hops int, to target, want cell.ExtendError) {
			t.Helper()
			l := linkTo(t, n, h, first)
			defer l.Close()
			o := newOutsider(t, n, l)
			if err := o.create(ctx, first, 1, 1); err != nil {
				t.Fatal(err)
			}
			if hops == 2 {
				if err := o.extend(ctx, n, targetOf(second)); err != nil {
					t.Fatal(err)
				}
			}
			asked := n.Relays[hops-1]
			seen.take(asked.Addr.Addr())
			if err := o.extend(ctx, n, to); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
			time.Sleep(30 * time.Second) // virtual: nor does it later
			if to := seen.take(asked.Addr.Addr()); len(to) > 0 {
				t.Errorf("%s: the relay opened connections to %v", name, to)
			}
			// The circuit lives, and a lawful hop is opened where that relay is.
			if err := o.extend(ctx, n, targetOf(third)); err != nil {
				t.Errorf("%s: extending lawfully afterwards: %v", name, err)
			}
			for _, a := range seen.take(asked.Addr.Addr()) {
				if a != third.Addr {
					t.Errorf("%s: the relay opened a connection to %v", name, a)
				}
			}
		}
		ask("itself", 1, targetOf(first), cell.ExtendNotAllowed)
		ask("itself, at hop 2", 2, targetOf(second), cell.ExtendNotAllowed)
		ask("its predecessor", 2, targetOf(first), cell.ExtendNotAllowed)
		ask("a stranger", 1, target{identity: stranger.ID()}, cell.ExtendUnknownRelay)
		ask("a stranger, at hop 2", 2, target{identity: stranger.ID()}, cell.ExtendUnknownRelay)
		ask("an authority", 1, target{identity: n.Authorities[0].Identity}, cell.ExtendUnknownRelay)
		ask("no identity", 1, target{}, cell.ExtendUnknownRelay)
		ask("an address", 1, target{identity: addressAsIdentity(victim)}, cell.ExtendUnknownRelay)
	})
}

// TestExtendMisuse: what a circuit may not ask destroys it, and what the next
// relay refuses is told.
func TestExtendMisuse(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		h, ctx := n.NewHost("mallory"), within(t, time.Minute)
		first, second := n.Relays[0], n.Relays[1]
		start := func() *outsider {
			o := newOutsider(t, n, linkTo(t, n, h, first))
			if err := o.create(ctx, first, 1, 1); err != nil {
				t.Fatal(err)
			}
			return o
		}
		o := start()
		if err := o.extend(ctx, n, target{identity: second.Identity(), keyID: [8]byte{1}}); !errors.Is(err, cell.ExtendRefused) {
			t.Errorf("another onion key's ID: %v, want %v", err, cell.ExtendRefused)
		}
		to := targetOf(second)
		to.made = 3 // a client that hopes for more hops
		if err := o.extend(ctx, n, to); !errors.Is(err, cell.ExtendRefused) {
			t.Errorf("a handshake for another hop index: %v, want %v", err, cell.ExtendRefused)
		}
		second.Stop()
		if err := o.extend(ctx, n, targetOf(second)); !errors.Is(err, cell.ExtendConnect) {
			t.Errorf("a relay that is down: %v, want %v", err, cell.ExtendConnect)
		}
		if err := second.Start(); err != nil {
			t.Fatal(err)
		}
		if err := o.extend(ctx, n, targetOf(second)); err != nil {
			t.Errorf("the same relay restarted: %v", err)
		}

		// Twice at one hop: the circuit is destroyed and nobody is connected.
		seen := watchOpens(n)
		if err := o.send(1, cell.Extend, 0, make([]byte, cell.ExtendSize)); err != nil {
			t.Fatal(err)
		}
		var ended endedError
		if _, err := o.receive(ctx, 1); !errors.As(err, &ended) || ended.reason != cell.ReasonProtocol {
			t.Errorf("EXTEND of a circuit that is extended: %v, want it destroyed for a protocol violation", err)
		}
		// And so is one that is too short.
		o = start()
		if err := o.send(1, cell.Extend, 0, make([]byte, cell.ExtendSize-1)); err != nil {
			t.Fatal(err)
		}
		if _, err := o.receive(ctx, 1); !errors.As(err, &ended) || ended.reason != cell.ReasonProtocol {
			t.Errorf("a short EXTEND: %v, want it destroyed for a protocol violation", err)
		}
		time.Sleep(30 * time.Second)
		if to := seen.take(first.Addr.Addr()); len(to) > 0 {
			t.Errorf("the relay opened connections to %v", to)
		}
	})
}

// TestHopIndex: a client says where a circuit begins, and only that.
func TestHopIndex(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{}, func(t *testing.T, n *testnet.Net) {
		h, ctx, r := n.NewHost("mallory"), within(t, time.Minute), n.Relays[0]
		l := linkTo(t, n, h, r)
		var ended endedError
		for _, index := range []uint8{2, 3, 8} {
			if err := newOutsider(t, n, l).create(ctx, r, index, index); !errors.As(err, &ended) || ended.reason != cell.ReasonRefused {
				t.Errorf("CREATE with index %d: %v, want it refused", index, err)
			}
		}
		if err := newOutsider(t, n, l).create(ctx, r, 1, 2); !errors.As(err, &ended) {
			t.Errorf("a handshake for index 2 in a CREATE with index 1: %v, want the circuit destroyed", err)
		}
		if err := newOutsider(t, n, l).create(ctx, r, 1, 1); err != nil {
			t.Errorf("CREATE with index 1 on the same link: %v", err)
		}
		for _, index := range []uint8{0, 9, 255} {
			l := linkTo(t, n, h, r)
			if err := newOutsider(t, n, l).create(ctx, r, index, 1); !errors.As(err, &ended) || ended.reason != cell.ReasonLinkLost {
				t.Errorf("CREATE with index %d: %v, want the link closed", index, err)
			}
		}
	})
}

// TestNinthHop builds the longest circuit over real relays, uses it, and asks
// its end for one hop more.
func TestNinthHop(t *testing.T) {
	t.Parallel()
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 10, Exits: 3}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "hello.test", 80, echo)
		h, ctx := n.NewHost("mallory"), within(t, time.Minute)
		last := n.Relays[len(n.Relays)-1] // an exit
		way := append(slices.Clone(n.Relays[:cell.MaxHops-1]), last)
		ninth := n.Relays[cell.MaxHops-1]
		seen := watchOpens(n)

		o := newOutsider(t, n, linkTo(t, n, h, way[0]))
		if err := o.create(ctx, way[0], 1, 1); err != nil {
			t.Fatal(err)
		}
		for i, r := range way[1:] {
			if err := o.extend(ctx, n, targetOf(r)); err != nil {
				t.Fatalf("hop %d: %v", i+2, err)
			}
		}
		begin := cell.BeginBody{Port: 80, Host: "hello.test"}
		seen.take(last.Addr.Addr())
		// EXTEND does not fit a message there: what fits of it is malformed.
		var ended endedError
		if err := o.extend(ctx, n, targetOf(ninth)); !errors.As(err, &ended) {
			t.Errorf("a ninth hop: %v, want the circuit destroyed", err)
		}
		synctest.Wait()
		if to := seen.take(last.Addr.Addr()); len(to) > 0 {
			t.Errorf("the relay at hop 8 opened connections to %v", to)
		}

		// The same with the origin that clients use.
		l := linkTo(t, n, h, way[0])
		origin := circuit.NewOrigin(circuit.OriginConfig{Pool: n.Pool})
		out, err := l.Open(origin)
		if err != nil {
			t.Fatal(err)
		}
		origin.Attach(out)
		defer origin.Close()
		for i, r := range way {
			if err := origin.Extend(ctx, specOf(r)); err != nil {
				t.Fatalf("hop %d: %v", i+1, err)
			}
		}
		if err := origin.Extend(ctx, specOf(ninth)); err == nil {
			t.Error("an origin made a ninth hop")
		}
		if err := echoOver(ctx, origin, begin); err != nil {
			t.Errorf("a stream over 8 hops: %v", err)
		}
		// One hop is no way to the internet.
		l = linkTo(t, n, h, last)
		alone := circuit.NewOrigin(circuit.OriginConfig{Pool: n.Pool})
		if out, err = l.Open(alone); err != nil {
			t.Fatal(err)
		}
		alone.Attach(out)
		defer alone.Close()
		if err := alone.Extend(ctx, specOf(last)); err != nil {
			t.Fatal(err)
		}
		if err := echoOver(ctx, alone, begin); !errors.Is(err, cell.EndPolicy) {
			t.Errorf("a stream at hop 1: %v, want %v", err, cell.EndPolicy)
		}
	})
}

func specOf(r *testnet.Relay) circuit.HopSpec {
	return circuit.HopSpec{Identity: r.Identity(), OnionKey: r.OnionKey.Public(), Suite: layer.AES256GCM}
}

// echoOver opens a stream on a circuit and uses it.
func echoOver(ctx context.Context, o *circuit.Origin, b cell.BeginBody) error {
	s, err := o.Mux().Open(b)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Connected(ctx); err != nil {
		return err
	}
	return roundTrip(s, "there and back")
}
