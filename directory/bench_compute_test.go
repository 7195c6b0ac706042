package directory

import (
	"fmt"
	"testing"
	"time"

	"cepa/crypto/identity"
)

// votesOn returns the votes of all parties on relays, with small differences in weight. The relays get other identities, and no families.
func votesOn(t testing.TB, network *Network, parties []party, relays []Relay) []*Vote {
	t.Helper()
	key := testKey(t, "signing key of all")
	var list []*Descriptor
	for i, r := range relays {
		id := testKey(t, fmt.Sprint("relay of a large network ", i))
		c, err := id.Certify(identity.PurposeDescriptor, key.ID(), epoch.Add(-24*time.Hour), epoch.Add(48*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		b, err := SignDescriptor(&Descriptor{
			Network: network.Name, Identity: id.ID(), Sequence: 1, Published: epoch.Add(-time.Hour), OnionKey: r.OnionKey, Suite: r.Suite, Nickname: r.Nickname,
			Addresses: r.Addresses, Version: r.Version, BandwidthRate: max(r.Weight, 1), ExitPolicy: r.Exit,
		}, key, c)
		if err != nil {
			t.Fatal(err)
		}
		d, err := VerifyDescriptor(b)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
	var votes []*Vote
	for i, p := range parties {
		v := testVote(network, p, list)
		for j := range v.Entries {
			v.Entries[j].Weight += uint64(i * j % 7)
		}
		votes = append(votes, v)
	}
	return votes
}

// BenchmarkComputeSizes is the consensus from 9 votes, for both sizes of a network.
//
//	go test ./directory -run '^$' -bench ComputeSizes -benchtime 3x
func BenchmarkComputeSizes(b *testing.B) {
	for _, n := range bigSizes {
		network, parties := testNetwork(b, 9)
		votes := votesOn(b, network, parties, manyRelays(b, n))
		b.Run(fmt.Sprintf("relays=%d", n), func(b *testing.B) {
			cpu := cpuOf(b)
			for b.Loop() {
				if _, err := Compute(votes, network); err != nil {
					b.Fatal(err)
				}
			}
			cpu()
		})
	}
}
