package testnet_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// publish signs a descriptor and publishes it to all authorities, as its relay would.
func publish(t *testing.T, n *testnet.Net, key *identity.Key, d directory.Descriptor) {
	t.Helper()
	signing, err := identity.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	cert, err := key.Certify(identity.PurposeDescriptor, signing.ID(), now.Add(-time.Hour), now.Add(100*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	d.Network, d.Identity, d.Published = n.Network.Name, key.ID(), now
	if d.Sequence == 0 {
		d.Sequence = uint64(now.UnixMilli()) + 1
	}
	if d.Suite == 0 {
		d.Suite = directory.SuiteAESGCM
	}
	d.Version = "1"
	b, err := directory.SignDescriptor(&d, signing, cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := mirror.Publish(context.Background(), n.Network, n.NewHost(fmt.Sprint("publisher of ", d.Nickname)).Dial, b); err != nil {
		t.Fatal(err)
	}
}

// TestUnreachableIsNotListed: a consensus lists no relay that the authorities do not reach with its identity and its onion key.
func TestUnreachableIsNotListed(t *testing.T) {
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 4, Exits: 1}, func(t *testing.T, n *testnet.Net) {
		key := func(name string) *identity.Key {
			seed := sha256.Sum256([]byte(name))
			k, err := identity.FromSeed(seed[:])
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		honest := directory.Descriptor{OnionKey: n.Relays[0].OnionKey.Public(), BandwidthRate: 1000}
		with := func(name string, at netip.AddrPort) directory.Descriptor {
			d := honest
			d.Nickname, d.Addresses = name, []netip.AddrPort{at}
			return d
		}
		publish(t, n, key("nobody there"), with("nobody", netip.MustParseAddrPort("10.77.0.1:9001")))
		publish(t, n, key("other identity"), with("other", n.Relays[0].Addr))
		closed := n.NewHost("closed")
		publish(t, n, key("no listener"), with("closed", netip.AddrPortFrom(closed.Addr(), 9001)))
		// One with an onion key that it does not have: it was listed, and says this now.
		wrong := with("relay2", n.Relays[1].Addr)
		wrong.OnionKey[0] ^= 1
		publish(t, n, n.Relays[1].Key, wrong)
		for hour := range 4 {
			time.Sleep(time.Hour)
			c := n.Authorities[0].Consensus()
			if err := c.CheckTime(time.Now()); err != nil {
				t.Fatal(err)
			}
			entry, ok := c.Lookup(n.Relays[1].Identity())
			switch {
			case hour < 2 && ok: // later it has noticed, and published again what is true
				t.Fatal("a relay with a wrong onion key is listed")
			case ok && entry.OnionKey != n.Relays[1].OnionKey.Public():
				t.Fatal("the wrong onion key is listed")
			case ok && len(c.Relays) != 4, !ok && len(c.Relays) != 3:
				t.Fatalf("%d relays are listed", len(c.Relays))
			}
		}
	})
}

// TestDeadIsDropped: a relay that dies leaves the consensus within two intervals, and is back in the second one after its return at the latest.
func TestDeadIsDropped(t *testing.T) {
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 6, Exits: 1}, func(t *testing.T, n *testnet.Net) {
		mortal := n.Relays[1]
		listed := func() bool {
			c := n.Authorities[2].Consensus()
			if c.CheckTime(time.Now()) != nil {
				t.Fatal("there is no valid consensus")
			}
			_, ok := c.Lookup(mortal.Identity())
			return ok
		}
		await := func(want bool, limit time.Duration) {
			t.Helper()
			began := time.Now()
			for listed() != want {
				if time.Sleep(time.Minute); time.Since(began) > limit {
					t.Fatalf("listed is still %v after %v", !want, limit)
				}
			}
			t.Logf("listed is %v after %v", want, time.Since(began))
		}
		time.Sleep(17 * time.Minute)
		if !listed() {
			t.Fatal("a relay that works is not listed")
		}
		mortal.Crash()
		await(false, 2*time.Hour+10*time.Minute)
		time.Sleep(2 * time.Hour)
		if listed() {
			t.Fatal("it is listed again, and dead")
		}
		if err := mortal.Start(); err != nil {
			t.Fatal(err)
		}
		await(true, 2*time.Hour)
	})
}

// TestLowRateIsReached: even a relay with the lowest rate and all it has in use passes its tests.
func TestLowRateIsReached(t *testing.T) {
	cfg := testnet.Config{Relays: 4, Exits: 1, Tune: func(i int, cfg *relay.Config) {
		if i == 0 {
			cfg.Rate = rateOf(relay.MinRate)
		}
	}}
	onSimnet(t, simnet.Config{Default: simnet.LinkParams{Latency: 150 * time.Millisecond, Loss: 0.01}}, cfg, func(t *testing.T, n *testnet.Net) {
		time.Sleep(2 * time.Hour)
		if c := n.Authorities[0].Consensus(); len(c.Relays) != 4 {
			t.Errorf("%d of 4 relays are listed", len(c.Relays))
		}
	})
}
