package directory

import (
	"encoding/csv"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"cepa/crypto/identity"
)

// realRelays returns the relays of a real Tor consensus (testdata/README.md), with keys, addresses, names and families
// drawn from a fixed seed.
func realRelays(t testing.TB) []Relay {
	t.Helper()
	f, err := os.Open("../testdata/relays-2024-05-17.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	random := &testRand{}
	nets16, nets24 := map[string][2]byte{}, map[string]byte{}
	hosts := map[string]byte{}
	policies := []PortPolicy{AllPorts()}
	for _, text := range []string{"80,443", "20-23,43,53,79-81,88,110,143,194,220,389,443,464,531,543-544,554,563,636,706,749,873,902-904,981,989-995,1194,1220,1293,1500,1533,1677,1723,1755,1863,2082-2083,2086-2087,2095-2096,2102-2104,3128,3389,3690,4321,4643,5050,5190,5222-5223,5228,5900,6660-6669,6679,6697,8000,8008,8074,8080,8082,8087-8088,8232-8233,8332-8333,8443,8888,9418,9999-10000,11371,19294,19638,50002,64738", "80,443,8080/none", "1-24,26-65535"} {
		p, err := ParsePortPolicy(text)
		if err != nil {
			t.Fatal(err)
		}
		policies = append(policies, p)
	}
	const maxFamily = 600
	var families [maxFamily]FamilyID
	var relays []Relay
	names := []string{"nobody"}
	for _, row := range rows[1:] {
		// Half of the names are new, the rest come in series, as operators with many relays choose them.
		name := names[random.intn(len(names))]
		if random.intn(2) == 0 {
			name = strconv.FormatUint(random.uint64()>>20, 36)
			names = append(names, name)
		} else {
			name = fmt.Sprintf("%s%02d", name, random.intn(40))
		}
		net16, ok := nets16[row[1]]
		if !ok {
			net16 = [2]byte{byte(1 + random.intn(223)), byte(random.intn(256))}
			nets16[row[1]] = net16
		}
		net24, ok := nets24[row[2]]
		if !ok {
			net24 = byte(random.intn(256))
			nets24[row[2]] = net24
		}
		host, ok := hosts[row[3]]
		if !ok {
			host = byte(random.intn(256))
			hosts[row[3]] = host
		}
		port, _ := strconv.ParseUint(row[4], 10, 16)
		weight, _ := strconv.ParseUint(row[6], 10, 64)
		v4 := netip.AddrFrom4([4]byte{net16[0], net16[1], net24, host})
		if v4.Is4() && v4.IsMulticast() {
			t.Fatal("multicast")
		}
		r := Relay{
			Identity: random.bytes32(), OnionKey: random.bytes32(), Suite: SuiteAESGCM,
			Nickname:  name,
			Addresses: []netip.AddrPort{netip.AddrPortFrom(v4, uint16(port))},
			Weight:    weight, Version: []string{"0.4.8.11", "0.4.8.10", "0.4.7.16", "0.4.9.0-alpha"}[min(random.intn(8), 3)],
		}
		if row[5] == "1" {
			// Usual: a provider's /32, the rest chosen by the operator, often mostly zeros.
			ip := [16]byte{0x2a, 0x01 + net16[0]%4, net16[0], net16[1], net24, host}
			ip[15] = byte(1 + random.intn(3))
			r.Addresses = append(r.Addresses, netip.AddrPortFrom(netip.AddrFrom16(ip), uint16(port)))
		}
		for _, word := range slices.Sorted(slices.Values(splitFlags(row[7]))) {
			if f, err := ParseFlags(word); err == nil {
				r.Flags |= f
			}
		}
		r.Flags |= FlagRunning | FlagValid
		if r.Flags.Has(FlagExit) {
			r.Exit = policies[min(random.intn(8), len(policies)-1)]
		}
		if random.intn(2) == 0 { // about half are in a family: some 600, few of them large
			x := random.intn(maxFamily)
			n := x * x / maxFamily
			if families[n] == (FamilyID{}) {
				families[n] = random.bytes32()
			}
			r.Family = []FamilyID{families[n]}
		}
		relays = append(relays, r)
	}
	slices.SortFunc(relays, func(a, b Relay) int { return a.Identity.Compare(b.Identity) })
	return relays
}

func splitFlags(s string) []string {
	var words []string
	start := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == ' ' {
			words = append(words, s[start:i])
			start = i + 1
		}
	}
	return words
}

func realConsensus(t testing.TB, network *Network, parties []party) []byte {
	c := &Consensus{Network: network.Name, Interval: network.Interval, Period: network.Period(epoch), Relays: realRelays(t)}
	return sealConsensus(encode(c.wire()), parties)
}

// TestRealSize guards the size of what every client downloads.
func TestRealSize(t *testing.T) {
	network, parties := testNetwork(t, 9)
	doc := realConsensus(t, network, parties)
	c, err := ParseConsensus(doc, network, epoch)
	if err != nil {
		t.Fatal(err)
	}
	packed := c.Compressed()
	t.Logf("%d relays: %d bytes, %d compressed, %.1f a relay", len(c.Relays), len(doc), len(packed), float64(len(packed))/float64(len(c.Relays)))
	if len(c.Relays) != 7195 {
		t.Fatalf("%d relays, want 7195", len(c.Relays))
	}
	if len(packed) > 600_000 {
		t.Errorf("compressed consensus has %d bytes, want at most 600000", len(packed))
	}
	back, err := Decompress(packed, MaxConsensusSize)
	if err != nil || string(back) != string(doc) {
		t.Errorf("decompression gives something else: %v", err)
	}
}

func BenchmarkParseConsensus(b *testing.B) {
	network, parties := testNetwork(b, 9)
	doc := realConsensus(b, network, parties)
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseConsensus(doc, network, epoch); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecompressConsensus(b *testing.B) {
	network, parties := testNetwork(b, 9)
	packed := Compress(realConsensus(b, network, parties))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decompress(packed, MaxConsensusSize); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	network, parties := testNetwork(b, 4)
	c, err := ParseConsensus(realConsensus(b, network, parties), network, epoch)
	if err != nil {
		b.Fatal(err)
	}
	ids := make([]identity.ID, 1024)
	for i := range ids {
		ids[i] = c.Relays[i*7].Identity
	}
	for i := 0; b.Loop(); i++ {
		if _, ok := c.Lookup(ids[i%len(ids)]); !ok {
			b.Fatal("missing")
		}
	}
}

// realVotes returns the votes of n authorities that agree on the real relays but for small differences in weight.
func realVotes(t testing.TB, network *Network, parties []party) []*Vote {
	t.Helper()
	var list []*Descriptor
	familySeeds := func(families []FamilyID) (names []string) {
		for _, f := range families {
			names = append(names, f.String())
		}
		return names
	}
	for i, r := range realRelays(t) {
		id, key := testKey(t, fmt.Sprint("real relay ", i)), testKey(t, fmt.Sprint("real relay key ", i))
		c, err := id.Certify(identity.PurposeDescriptor, key.ID(), epoch.Add(-24*time.Hour), epoch.Add(48*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		d := &Descriptor{
			Network: network.Name, Identity: id.ID(), Sequence: 1, Published: epoch.Add(-time.Hour), OnionKey: r.OnionKey, Suite: r.Suite, Nickname: r.Nickname,
			Addresses: r.Addresses, Memberships: testMemberships(t, id.ID(), familySeeds(r.Family)...), Version: r.Version, BandwidthRate: max(r.Weight, 1), ExitPolicy: r.Exit,
		}
		b, err := SignDescriptor(d, key, c)
		if err != nil {
			t.Fatal(err)
		}
		if d, err = VerifyDescriptor(b); err != nil {
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

// BenchmarkComputeConsensus is the consensus of 7,195 relays from 9 votes.
func BenchmarkComputeConsensus(b *testing.B) {
	network, parties := testNetwork(b, 9)
	votes := realVotes(b, network, parties)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compute(votes, network); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseVote is a vote of 7,195 relays whose descriptors are known, and one whose descriptors are all new.
func BenchmarkParseVote(b *testing.B) {
	network, parties := testNetwork(b, 4)
	v := realVotes(b, network, parties[:1])[0]
	doc, err := SignVote(v, parties[0].key, parties[0].cert)
	if err != nil {
		b.Fatal(err)
	}
	known := map[[32]byte]*Descriptor{}
	for _, e := range v.Entries {
		known[e.Descriptor.Digest()] = e.Descriptor
	}
	b.Run("known", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		for b.Loop() {
			if _, err := ParseVote(doc, network, func(digest [32]byte) *Descriptor { return known[digest] }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		for b.Loop() {
			if _, err := ParseVote(doc, network, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
