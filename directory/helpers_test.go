package directory

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"cepa/crypto/identity"
)

// epoch is the time of all tests: the start of an hour.
var epoch = time.Unix(1_700_000_000/3600*3600, 0).UTC()

// testKey returns the key that a name stands for.
func testKey(t testing.TB, name string) *identity.Key {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	key, err := identity.FromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// party is an identity with a certified signing key.
type party struct {
	id   identity.ID
	key  *identity.Key
	cert *identity.Certificate
}

func newParty(t testing.TB, name string, purpose identity.Purpose) party {
	t.Helper()
	return newPartyAt(t, name, purpose, epoch.Add(-30*24*time.Hour), epoch.Add(30*24*time.Hour))
}

func newPartyAt(t testing.TB, name string, purpose identity.Purpose, from, to time.Time) party {
	t.Helper()
	id, key := testKey(t, name), testKey(t, name+" signing")
	cert, err := id.Certify(purpose, key.ID(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return party{id.ID(), key, cert}
}

// testNetwork returns a network of n authorities and their keys.
func testNetwork(t testing.TB, n int) (*Network, []party) {
	t.Helper()
	network := &Network{Name: "test", Interval: time.Hour}
	var parties []party
	for i := range n {
		p := newParty(t, fmt.Sprintf("authority %d", i), identity.PurposeConsensus)
		parties = append(parties, p)
		network.Authorities = append(network.Authorities, Authority{
			Nickname: fmt.Sprintf("auth%d", i), Identity: p.id, Address: fmt.Sprintf("127.0.0.%d:7000", i+1),
		})
	}
	return network, parties
}

// testDescriptor returns the descriptor of relay i.
func testDescriptor(t testing.TB, i int) *Descriptor {
	t.Helper()
	onion := sha256.Sum256(fmt.Append(nil, "onion key", i))
	d := &Descriptor{
		Network:       "test",
		Identity:      testKey(t, fmt.Sprintf("relay %d", i)).ID(),
		Sequence:      uint64(1000 + i),
		Published:     epoch.Add(-time.Hour),
		OnionKey:      onion,
		Suite:         SuiteAESGCM,
		Nickname:      fmt.Sprintf("relay%d", i),
		Addresses:     []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 9001)},
		Version:       "0.1.0",
		BandwidthRate: uint64(100 * (i + 1)),
		Uptime:        time.Duration(i) * time.Hour,
		Contact:       "operator <op@example.org>",
	}
	if i%2 == 1 {
		d.ExitPolicy = AllPorts()
		d.Addresses = append(d.Addresses, netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%x]:443", i+1)))
		d.Memberships = testMemberships(t, d.Identity, fmt.Sprint("family ", i%4), "family of all")
		d.Suite = SuiteChaCha
	}
	return d
}

// testMemberships takes a relay into the families of the names.
func testMemberships(t testing.TB, member identity.ID, names ...string) []*identity.Certificate {
	t.Helper()
	var list []*identity.Certificate
	for _, name := range names {
		c, err := Membership(testKey(t, name), member, epoch.Add(-30*24*time.Hour), epoch.Add(30*24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return SortMemberships(list)
}

// signedDescriptor returns a descriptor that nobody can tell from a received one.
func signedDescriptor(t testing.TB, d *Descriptor, name string) *Descriptor {
	t.Helper()
	p := newParty(t, name, identity.PurposeDescriptor)
	b, err := SignDescriptor(d, p.key, p.cert)
	if err != nil {
		t.Fatal(err)
	}
	d, err = VerifyDescriptor(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testDescriptors(t testing.TB, n int) []*Descriptor {
	t.Helper()
	var list []*Descriptor
	for i := range n {
		list = append(list, signedDescriptor(t, testDescriptor(t, i), fmt.Sprintf("relay %d", i)))
	}
	return list
}

// testVote returns the vote of an authority that lists everything with full flags.
func testVote(network *Network, p party, descriptors []*Descriptor) *Vote {
	v := &Vote{Network: network.Name, Interval: network.Interval, Period: network.Period(epoch), Authority: p.id}
	for _, d := range descriptors {
		flags := FlagRunning | FlagValid | FlagGuard | FlagFast
		if !d.ExitPolicy.IsZero() {
			flags |= FlagExit
		}
		v.Entries = append(v.Entries, VoteEntry{Descriptor: d, Flags: flags, Weight: d.BandwidthRate})
	}
	sortEntries(v)
	return v
}

func sortEntries(v *Vote) {
	slices.SortFunc(v.Entries, func(a, b VoteEntry) int { return a.Descriptor.Identity.Compare(b.Descriptor.Identity) })
}

// testConsensus returns a computed consensus of n relays.
func testConsensus(t testing.TB, network *Network, parties []party, n int) *Consensus {
	t.Helper()
	var votes []*Vote
	descriptors := testDescriptors(t, n)
	for _, p := range parties {
		votes = append(votes, testVote(network, p, descriptors))
	}
	c, err := Compute(votes, network)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sealConsensus signs a body with the given keys, whatever it holds.
func sealConsensus(body []byte, parties []party) []byte {
	var head consensusBody
	_ = decodingBig.Unmarshal(body, &head) // the period stays 0 when there is none
	env := envelope{Kind: kindConsensus, Body: body}
	sorted := slices.Clone(parties)
	slices.SortFunc(sorted, func(a, b party) int { return a.id.Compare(b.id) })
	for _, p := range sorted {
		env.Signatures = append(env.Signatures, signer{p.key, p.cert}.sign(consensusKind(head.Period), sha256.Sum256(body)))
	}
	return encode(env)
}

// wantReason fails the test unless err is an *Error with the reason.
func wantReason(t testing.TB, err, reason error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, reason) {
		t.Errorf("error is %v, want *Error with %q", err, reason)
	}
}

// testRand is a stream of reproducible numbers.
type testRand struct{ state [32]byte }

func (r *testRand) uint64() uint64 {
	r.state = sha256.Sum256(r.state[:])
	return binary.BigEndian.Uint64(r.state[:])
}

func (r *testRand) intn(n int) int { return int(r.uint64() % uint64(n)) }

func (r *testRand) bytes32() [32]byte {
	r.uint64()
	return sha256.Sum256(append([]byte("x"), r.state[:]...))
}
