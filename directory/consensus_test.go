package directory

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
)

func TestConsensus(t *testing.T) {
	network, parties := testNetwork(t, 4)
	computed := testConsensus(t, network, parties, 9)
	doc := sealConsensus(computed.body, parties)
	c, err := ParseConsensus(doc, network, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c.Relays, computed.Relays) || len(c.Relays) != 9 {
		t.Errorf("parsed %+v, want %+v", c.Relays, computed.Relays)
	}
	if c.Digest() != computed.Digest() || !bytes.Equal(c.Raw(), doc) || len(c.Signers) != 4 {
		t.Error("digest, document or signers differ")
	}
	if !c.ValidAfter.Equal(epoch) || !c.FreshUntil.Equal(epoch.Add(time.Hour)) || !c.ValidUntil.Equal(epoch.Add(24*time.Hour)) {
		t.Errorf("valid from %v, fresh until %v, valid until %v", c.ValidAfter, c.FreshUntil, c.ValidUntil)
	}
	for i := range c.Relays {
		if r, ok := c.Lookup(c.Relays[i].Identity); !ok || r != &c.Relays[i] {
			t.Errorf("relay %d is not found", i)
		}
		plain := &Consensus{Relays: c.Relays}
		if r, ok := plain.Lookup(c.Relays[i].Identity); !ok || r != &c.Relays[i] {
			t.Errorf("relay %d is not found without an index", i)
		}
	}
	for _, c := range []*Consensus{c, {Relays: c.Relays}} {
		if _, ok := c.Lookup(testKey(t, "stranger").ID()); ok {
			t.Error("a stranger is found")
		}
	}
}

// TestConsensusMutations: whatever byte is changed, added or removed, the consensus is refused, even where the signatures that
// remain good would suffice.
func TestConsensusMutations(t *testing.T) {
	network, parties := testNetwork(t, 4)
	doc := sealConsensus(testConsensus(t, network, parties, 2).body, parties)
	refuseMutations(t, doc, func(b []byte) error { _, err := ParseConsensus(b, network, epoch); return err })
}

func TestConsensusTimes(t *testing.T) {
	network, parties := testNetwork(t, 4)
	doc := sealConsensus(testConsensus(t, network, parties, 2).body, parties)
	for _, c := range []struct {
		offset time.Duration
		reason error
		fresh  bool
	}{
		{0, nil, true},
		{-MaxClockSkew, nil, true},
		{-MaxClockSkew - 1, ErrFuture, true},
		{-4 * time.Hour, ErrFuture, true},
		{-30 * 24 * time.Hour, ErrFuture, true},
		{time.Hour - 1, nil, true},
		{time.Hour, nil, false},
		{24*time.Hour - 1, nil, false},
		{24 * time.Hour, ErrExpired, false},
		{365 * 24 * time.Hour, ErrExpired, false},
	} {
		got, err := ParseConsensus(doc, network, epoch.Add(c.offset))
		if c.reason != nil {
			wantReason(t, err, c.reason)
		} else if err != nil || got.Fresh(epoch.Add(c.offset)) != c.fresh {
			t.Errorf("%v after its start: %v, fresh is not %v", c.offset, err, c.fresh)
		}
	}
	if _, err := VerifyConsensus(doc, network); err != nil {
		t.Errorf("VerifyConsensus minds the time: %v", err)
	}
}

func TestConsensusSigners(t *testing.T) {
	network, parties := testNetwork(t, 4)
	body := testConsensus(t, network, parties, 2).body
	other, _ := testNetwork(t, 4)
	other.Name = "other"
	faster, _ := testNetwork(t, 4)
	faster.Interval = time.Minute
	larger, _ := testNetwork(t, 7)
	stranger := newParty(t, "stranger", identity.PurposeConsensus)
	wrongPurpose := newParty(t, "authority 3", identity.PurposeDescriptor)
	expired := newPartyAt(t, "authority 3", identity.PurposeConsensus, epoch.Add(-48*time.Hour), epoch.Add(-time.Second))
	early := newPartyAt(t, "authority 3", identity.PurposeConsensus, epoch.Add(time.Second), epoch.Add(time.Hour))
	forged := party{parties[3].id, stranger.key, parties[3].cert}
	swapped := sealConsensus(body, parties[:3])
	env, digest, err := open(kindConsensus, "consensus", swapped, MaxConsensusSize)
	if err != nil {
		t.Fatal(err)
	}
	env.Signatures[0], env.Signatures[1] = env.Signatures[1], env.Signatures[0]
	swapped = encode(env)
	env.Signatures[1] = env.Signatures[0]
	twice := encode(env)
	env.Signatures = nil
	unsigned := encode(env)
	signAs := func(kind string) []byte {
		env.Signatures = nil
		for _, p := range parties[:3] {
			env.Signatures = append(env.Signatures, signer{p.key, p.cert}.sign(kind, digest))
		}
		return encode(env)
	}
	for _, c := range []struct {
		name    string
		network *Network
		doc     []byte
		reason  error
	}{
		{"all", network, sealConsensus(body, parties), nil},
		{"threshold", network, sealConsensus(body, parties[1:]), nil},
		{"one too few", network, sealConsensus(body, parties[:2]), ErrUndersigned},
		{"none", network, unsigned, ErrUndersigned},
		{"three of another one's seven", larger, sealConsensus(body, parties), ErrUndersigned},
		{"stranger besides", network, sealConsensus(body, append(parties[:3:3], stranger)), ErrUnknownSigner},
		{"stranger instead", network, sealConsensus(body, append(parties[:2:2], stranger)), ErrUnknownSigner},
		{"key for descriptors", network, sealConsensus(body, append(parties[:3:3], wrongPurpose)), ErrBadSignature},
		{"expired certificate", network, sealConsensus(body, append(parties[:3:3], expired)), ErrBadSignature},
		{"early certificate", network, sealConsensus(body, append(parties[:3:3], early)), ErrBadSignature},
		{"key without certificate", network, sealConsensus(body, append(parties[:3:3], forged)), ErrBadSignature},
		{"unsorted", network, swapped, ErrMalformed},
		{"one twice", network, twice, ErrMalformed},
		{"five of four", network, sealConsensus(body, append(parties[:4:4], parties[0])), ErrMalformed},
		{"signed as votes", network, signAs(kindVote), ErrBadSignature},
		{"signed for another period", network, signAs(consensusKind(network.Period(epoch) + 1)), ErrBadSignature},
		{"other name", other, sealConsensus(body, parties), ErrWrongNetwork},
		{"other interval", faster, sealConsensus(body, parties), ErrWrongNetwork},
		{"large", network, make([]byte, MaxConsensusSize+1), ErrTooLarge},
		{"descriptor", network, testDescriptors(t, 1)[0].Raw(), ErrMalformed},
	} {
		_, err := ParseConsensus(c.doc, c.network, epoch)
		if c.reason == nil && err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.reason != nil {
			if wantReason(t, err, c.reason); err == nil {
				t.Errorf("%s: accepted", c.name)
			}
		}
	}
}

// TestConsensusContent: unlawful content is refused although all authorities signed it.
func TestConsensusContent(t *testing.T) {
	network, parties := testNetwork(t, 4)
	base := testConsensus(t, network, parties, 4)
	for name, change := range map[string]func(*Consensus){
		"unsorted":     func(c *Consensus) { c.Relays[0], c.Relays[1] = c.Relays[1], c.Relays[0] },
		"twice":        func(c *Consensus) { c.Relays[1] = c.Relays[0] },
		"not running":  func(c *Consensus) { c.Relays[2].Flags &^= FlagRunning },
		"not valid":    func(c *Consensus) { c.Relays[2].Flags &^= FlagValid },
		"unknown flag": func(c *Consensus) { c.Relays[2].Flags |= AllFlags + 1 },
		"weight":       func(c *Consensus) { c.Relays[2].Weight = MaxWeight + 1 },
		"nickname":     func(c *Consensus) { c.Relays[2].Nickname = "a\nb" },
		"suite":        func(c *Consensus) { c.Relays[2].Suite = 0 },
		"no address":   func(c *Consensus) { c.Relays[2].Addresses = nil },
		"address":      func(c *Consensus) { c.Relays[2].Addresses = addrs("[::ffff:1.2.3.4]:1") },
		"version":      func(c *Consensus) { c.Relays[2].Version = "" },
		"family":       func(c *Consensus) { c.Relays[2].Family = []FamilyID{{9}, {8}} },
		"parameter":    func(c *Consensus) { c.Params = Params{"X": 1} },
		"parameters": func(c *Consensus) {
			c.Params = Params{}
			for i := range MaxParams + 1 {
				c.Params["p"+strings.Repeat("x", i%40)+string(rune('a'+i/40))] = 1
			}
		},
	} {
		c := *base
		c.Relays = append([]Relay(nil), base.Relays...)
		change(&c)
		_, err := ParseConsensus(sealConsensus(encode(c.wire()), parties), network, epoch)
		if wantReason(t, err, ErrMalformed); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestConsensusColumns: columns that do not fit together are refused although all authorities signed them.
func TestConsensusColumns(t *testing.T) {
	network, parties := testNetwork(t, 4)
	base := testConsensus(t, network, parties, 4)
	for name, change := range map[string]func(*columns){
		"same":                func(*columns) {},
		"identities":          func(c *columns) { c.Identities = c.Identities[1:] },
		"onion keys":          func(c *columns) { c.OnionKeys = append(c.OnionKeys, 0) },
		"suites":              func(c *columns) { c.Suites = c.Suites[1:] },
		"names":               func(c *columns) { c.Names += "x" },
		"name sizes":          func(c *columns) { c.NameSizes[0]++ },
		"addresses":           func(c *columns) { c.AddrCounts[0]++ },
		"address kinds":       func(c *columns) { c.AddrCounts[0] += 15 },
		"IPv4":                func(c *columns) { c.IPv4 = c.IPv4[1:] },
		"IPv6":                func(c *columns) { c.IPv6 = nil },
		"ports":               func(c *columns) { c.Ports = append(c.Ports, 1, 1) },
		"flags":               func(c *columns) { c.Flags = c.Flags[1:] },
		"weights":             func(c *columns) { c.Weights = append(c.Weights, 1) },
		"policy index":        func(c *columns) { c.Policy[0] = 1 << 31 },
		"policy text":         func(c *columns) { c.Policies[0] = "x" },
		"policy form":         func(c *columns) { c.Policies[0] = "1-65535" },
		"policy unused":       func(c *columns) { c.Policies = append(c.Policies, "zzz") },
		"version index":       func(c *columns) { c.Version[0] = 1 },
		"version unused":      func(c *columns) { c.Versions = append(c.Versions, "9") },
		"version twice":       func(c *columns) { c.Versions = append(c.Versions, c.Versions[0]); c.Version[0] = 1 },
		"family index":        func(c *columns) { c.Family[0] = 99 },
		"family sizes":        func(c *columns) { c.FamilySizes[0] = 255 },
		"family table":        func(c *columns) { c.Families = c.Families[1:] },
		"family table unused": func(c *columns) { c.Families = append(c.Families, bytes.Repeat([]byte{0xff}, 32)...) },
	} {
		cols := toColumns(base.Relays)
		change(cols)
		body := base.wire()
		body.Relays = encode(cols)
		_, err := ParseConsensus(sealConsensus(encode(body), parties), network, epoch)
		if name == "same" {
			if err != nil {
				t.Errorf("unchanged: %v", err)
			}
			continue
		}
		if wantReason(t, err, ErrMalformed); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestAliasing: what a caller does with one relay's slices must not reach its neighbour's.
func TestAliasing(t *testing.T) {
	network, parties := testNetwork(t, 4)
	doc := sealConsensus(testConsensus(t, network, parties, 6).body, parties)
	c, err := ParseConsensus(doc, network, epoch)
	if err != nil {
		t.Fatal(err)
	}
	before := c.Relays[1].Addresses[0]
	_ = append(c.Relays[0].Addresses, netip.AddrPort{})
	if c.Relays[1].Addresses[0] != before {
		t.Error("appending to one relay's addresses changes the next relay's")
	}
}

// FuzzConsensus: bodies, signed so that they get past the signatures. What is accepted is written again as the same bytes.
func FuzzConsensus(f *testing.F) {
	network, parties := testNetwork(f, 1)
	for i := range 4 {
		c := testConsensus(f, network, parties, i)
		c.Params = Params{"x": int64(i)}
		f.Add(encode(c.wire()))
	}
	f.Add([]byte{0x87, 0x64, 't', 'e', 's', 't', 0x19, 0x0e, 0x10, 0, 0xa0, 0x82, 0x60, 0x60, 0x82, 0x40, 0x40, 0x80})
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := VerifyConsensus(sealConsensus(body, parties), network)
		if err != nil {
			return
		}
		if !bytes.Equal(encode(c.wire()), body) {
			t.Fatalf("written again as %x", encode(c.wire()))
		}
		for i := range c.Relays {
			if r, ok := c.Lookup(c.Relays[i].Identity); !ok || r != &c.Relays[i] {
				t.Fatalf("relay %d is not found", i)
			}
		}
	})
}
