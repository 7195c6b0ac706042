package directory

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
)

func TestDescriptor(t *testing.T) {
	for i := range 2 {
		d := testDescriptor(t, i)
		p := newParty(t, "relay "+string(rune('0'+i)), identity.PurposeDescriptor)
		b, err := SignDescriptor(d, p.key, p.cert)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseDescriptor(b, epoch)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Raw(), b) || got.Digest() == [32]byte{} {
			t.Error("the parsed descriptor does not know its document")
		}
		b[0] ^= 1
		if bytes.Equal(got.Raw(), b) {
			t.Error("the parsed descriptor keeps the caller's bytes")
		}
		got.raw, got.digest = nil, [32]byte{}
		if !reflect.DeepEqual(got, d) {
			t.Errorf("parsed\n%+v, want\n%+v", got, d)
		}
	}
}

// TestDescriptorMutations: whatever byte is changed, added or removed, the descriptor is refused.
func TestDescriptorMutations(t *testing.T) {
	p := newParty(t, "relay 1", identity.PurposeDescriptor)
	b, err := SignDescriptor(testDescriptor(t, 1), p.key, p.cert)
	if err != nil {
		t.Fatal(err)
	}
	refuseMutations(t, b, func(b []byte) error { _, err := ParseDescriptor(b, epoch); return err })
}

// refuseMutations changes each byte of a document, cuts it everywhere and appends to it.
func refuseMutations(t *testing.T, doc []byte, parse func([]byte) error) {
	t.Helper()
	if err := parse(doc); err != nil {
		t.Fatalf("the document itself: %v", err)
	}
	check := func(what string, i int, b []byte) {
		t.Helper()
		if err := parse(b); err == nil {
			t.Errorf("%s byte %d: accepted", what, i)
		} else if _, ok := err.(*Error); !ok {
			t.Errorf("%s byte %d: error %v is no *Error", what, i, err)
		}
	}
	for i := range doc {
		b := bytes.Clone(doc)
		b[i] ^= 1 << (i % 8)
		check("flipping a bit of", i, b)
	}
	for i := 0; i < len(doc); i += 7 {
		check("cutting before", i, doc[:i])
	}
	for _, c := range []byte{0, 0x40, 0xf6, 0xff} {
		check("appending after", len(doc), append(bytes.Clone(doc), c))
	}
}

func TestDescriptorTimes(t *testing.T) {
	p := newPartyAt(t, "relay 0", identity.PurposeDescriptor, epoch.Add(-24*time.Hour), epoch.Add(24*time.Hour))
	d := testDescriptor(t, 0)
	d.Published = epoch
	b, err := SignDescriptor(d, p.key, p.cert)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now    time.Time
		reason error
	}{
		{epoch, nil},
		{epoch.Add(-MaxClockSkew), nil},
		{epoch.Add(-MaxClockSkew - 1), ErrFuture},
		{epoch.Add(24 * time.Hour), nil},
		{epoch.Add(24*time.Hour + 1), ErrExpired}, // its certificate
		{epoch.Add(DescriptorLifetime + 1), ErrExpired},
		{epoch.Add(10 * 365 * 24 * time.Hour), ErrExpired},
		{time.Unix(0, 0), ErrFuture},
	} {
		_, err := ParseDescriptor(b, c.now)
		if c.reason == nil && err != nil {
			t.Errorf("at %v: %v", c.now, err)
		} else if c.reason != nil {
			wantReason(t, err, c.reason)
		}
	}
	if _, err := VerifyDescriptor(b); err != nil {
		t.Errorf("an old descriptor does not verify: %v", err)
	}
	long := newPartyAt(t, "relay 0", identity.PurposeDescriptor, epoch.Add(-24*time.Hour), epoch.Add(1000*time.Hour))
	if b, err = SignDescriptor(d, long.key, long.cert); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDescriptor(b, epoch.Add(DescriptorLifetime)); err != nil {
		t.Errorf("after its lifetime, to the second: %v", err)
	}
	_, err = ParseDescriptor(b, epoch.Add(DescriptorLifetime+1))
	wantReason(t, err, ErrExpired)
}

// TestDescriptorSigners: keys that are not entitled to sign.
func TestDescriptorSigners(t *testing.T) {
	d := testDescriptor(t, 0)
	good := newParty(t, "relay 0", identity.PurposeDescriptor)
	stranger := newParty(t, "stranger", identity.PurposeDescriptor)
	link := newParty(t, "relay 0", identity.PurposeLink)
	old := newPartyAt(t, "relay 0", identity.PurposeDescriptor, epoch.Add(-48*time.Hour), epoch.Add(-2*time.Hour))
	for _, c := range []struct {
		name   string
		key    *identity.Key
		cert   *identity.Certificate
		reason error
	}{
		{"stranger", stranger.key, stranger.cert, ErrUnknownSigner},
		{"key for links", link.key, link.cert, ErrBadSignature},
		{"certificate that ended before", old.key, old.cert, ErrBadSignature},
		{"key without certificate", stranger.key, good.cert, ErrBadSignature},
	} {
		if _, err := SignDescriptor(d, c.key, c.cert); err == nil {
			t.Errorf("%s: SignDescriptor signs", c.name)
		}
		_, err := ParseDescriptor(seal(kindDescriptor, encode(d.wire()), signer{c.key, c.cert}), epoch)
		wantReason(t, err, c.reason)
	}
	// A signature over the same bytes, made for another kind of document.
	s := signer{good.key, good.cert}
	env, _, err := open(kindVote, "vote", seal(kindVote, encode(d.wire()), s), MaxVoteSize)
	if err != nil {
		t.Fatal(err)
	}
	env.Kind = kindDescriptor
	_, err = ParseDescriptor(encode(env), epoch)
	wantReason(t, err, ErrBadSignature)
	// Two signatures.
	env.Signatures = append(env.Signatures, env.Signatures[0])
	_, err = ParseDescriptor(encode(env), epoch)
	wantReason(t, err, ErrMalformed)
}

// TestDescriptorContent: unlawful content is refused although it is signed.
func TestDescriptorContent(t *testing.T) {
	p := newParty(t, "relay 0", identity.PurposeDescriptor)
	for name, change := range map[string]func(*Descriptor){
		"network":         func(d *Descriptor) { d.Network = "" },
		"sequence 0":      func(d *Descriptor) { d.Sequence = 0 },
		"sequence":        func(d *Descriptor) { d.Sequence = math.MaxInt64 + 1 },
		"onion key":       func(d *Descriptor) { d.OnionKey = [32]byte{} },
		"suite":           func(d *Descriptor) { d.Suite = 9 },
		"nickname":        func(d *Descriptor) { d.Nickname = "a b" },
		"no address":      func(d *Descriptor) { d.Addresses = nil },
		"address":         func(d *Descriptor) { d.Addresses = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:80")} },
		"version":         func(d *Descriptor) { d.Version = "\n" },
		"no rate":         func(d *Descriptor) { d.BandwidthRate = 0 },
		"rate":            func(d *Descriptor) { d.BandwidthRate = MaxWeight + 1 },
		"uptime":          func(d *Descriptor) { d.Uptime = (maxUptime + 1) * time.Second },
		"long contact":    func(d *Descriptor) { d.Contact = strings.Repeat("x", MaxContact+1) },
		"contact escapes": func(d *Descriptor) { d.Contact = "\x1b]0;x\x07" },
		"contact bidi":    func(d *Descriptor) { d.Contact = "a\u202eb" },
		"policy":          func(d *Descriptor) { d.ExitPolicy.IPv4 = []PortRange{{5, 4}} },
		"long history":    func(d *Descriptor) { d.Extra.History = make([]DayUse, MaxHistory+1) },
		"first day":       func(d *Descriptor) { d.Extra.FirstDay = 1 },
		"last day":        func(d *Descriptor) { d.Extra = Extra{FirstDay: maxDay, History: make([]DayUse, 1)} },
		"use of a day":    func(d *Descriptor) { d.Extra = Extra{FirstDay: 1, History: []DayUse{{0, maxDayUnits + 1}}} },
	} {
		d := testDescriptor(t, 0)
		change(d)
		if _, err := SignDescriptor(d, p.key, p.cert); err == nil {
			t.Errorf("%s: SignDescriptor signs", name)
		}
		_, err := ParseDescriptor(seal(kindDescriptor, d.encode(), signer{p.key, p.cert}), epoch)
		wantReason(t, err, ErrMalformed)
	}
	for name, change := range map[string]func(*descriptorBody){
		"address of 5 bytes": func(w *descriptorBody) { w.Addresses[0].IP = []byte{1, 2, 3, 4, 5} },
		"published":          func(w *descriptorBody) { w.Published = math.MaxUint64 },
		"uptime":             func(w *descriptorBody) { w.Uptime = math.MaxUint64 },
		"policy not in form": func(w *descriptorBody) { w.ExitPolicy = "443,80" },
		"policy":             func(w *descriptorBody) { w.ExitPolicy = "x" },
	} {
		w := testDescriptor(t, 0).wire()
		change(w)
		_, err := ParseDescriptor(seal(kindDescriptor, encode(w), signer{p.key, p.cert}), epoch)
		if wantReason(t, err, ErrMalformed); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestDescriptorSize: the longest lawful descriptor fits, and what is longer is not looked at.
func TestDescriptorSize(t *testing.T) {
	d := testDescriptor(t, 0)
	d.Network = strings.Repeat("n", MaxNetworkName)
	d.Nickname = strings.Repeat("n", MaxNickname)
	d.Version = strings.Repeat("9", MaxVersion)
	d.Contact = strings.Repeat("c", MaxContact)
	d.Sequence, d.BandwidthRate = math.MaxInt64, MaxWeight
	d.Addresses = addrs("1.1.1.1:60000", "[2001:db8::1]:60000", "[2001:db8::2]:60000", "[2001:db8::3]:60000")
	d.Memberships = testMemberships(t, d.Identity, "a", "b", "c", "d")
	for i := range uint16(MaxPortRanges) {
		d.ExitPolicy.IPv4 = append(d.ExitPolicy.IPv4, PortRange{10000 + 10*i, 10001 + 10*i})
		d.ExitPolicy.IPv6 = append(d.ExitPolicy.IPv6, PortRange{10000 + 10*i, 10002 + 10*i})
	}
	p := newParty(t, "relay 0", identity.PurposeDescriptor)
	b, err := SignDescriptor(d, p.key, p.cert)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDescriptor(b, epoch); err != nil {
		t.Fatal(err)
	}
	t.Logf("the longest descriptor has %d bytes", len(b))
	_, err = ParseDescriptor(make([]byte, MaxDescriptorSize+1), epoch)
	wantReason(t, err, ErrTooLarge)
}

// TestStrictCBOR: encodings that some decoder would take for the same.
func TestStrictCBOR(t *testing.T) {
	p := newParty(t, "relay 0", identity.PurposeDescriptor)
	body := encode(testDescriptor(t, 0).wire())
	text := func(s string) []byte { return encode(s) }
	for name, b := range map[string][]byte{
		"indefinite array":    append(append([]byte{0x9f}, body[1:]...), 0xff),
		"one element too few": {0x81, 0x00},
		"tag":                 append([]byte{0xc1}, body...),
		"trailing bytes":      append(bytes.Clone(body), 0),
		"long length":         append([]byte{0x98, 14}, body[1:]...),
		"null":                {0xf6},
		"empty":               {},
		"map":                 {0xa0},
		"duplicate keys":      append(append(append(append([]byte{0xa2}, text("a")...), 1), text("a")...), 1),
		"deep":                bytes.Repeat([]byte{0x81}, 2000),
		"huge array":          {0x9a, 0x7f, 0xff, 0xff, 0xff},
		"huge string":         {0x8e, 0x7b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		_, err := ParseDescriptor(seal(kindDescriptor, b, signer{p.key, p.cert}), epoch)
		if wantReason(t, err, ErrMalformed); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestStrictEnvelope: the outer form has one encoding too, although no signature covers it.
func TestStrictEnvelope(t *testing.T) {
	network, parties := testNetwork(t, 4)
	c := testConsensus(t, network, parties, 2)
	vote, err := SignVote(testVote(network, parties[0], nil), parties[0].key, parties[0].cert)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := SignConsensus(c, parties[0].key, parties[0].cert)
	if err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]struct {
		doc   []byte
		parse func([]byte) error
	}{
		"descriptor": {testDescriptors(t, 1)[0].Raw(), func(b []byte) error { _, err := VerifyDescriptor(b); return err }},
		"vote":       {vote, func(b []byte) error { _, err := ParseVote(b, network, nil); return err }},
		"consensus":  {sealConsensus(c.body, parties), func(b []byte) error { _, err := VerifyConsensus(b, network); return err }},
		"signature":  {signature.Raw(), func(b []byte) error { _, err := ParseSignature(b, network); return err }},
	} {
		if err := kind.parse(kind.doc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The outer array begins with its length in the initial byte; here it takes one more byte, or is left open.
		long := append([]byte{0x98, kind.doc[0] & 0x1f}, kind.doc[1:]...)
		open := append(append([]byte{0x9f}, kind.doc[1:]...), 0xff)
		tagged := append([]byte{0xd9, 0xd9, 0xf7}, kind.doc...)
		for _, b := range [][]byte{long, open, tagged} {
			if err := kind.parse(b); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s in another encoding: %v", name, err)
			}
		}
	}
}

// FuzzDescriptor: bodies, signed so that they get past the signature. What is accepted is written again as the same bytes.
func FuzzDescriptor(f *testing.F) {
	p := newParty(f, "relay 0", identity.PurposeDescriptor)
	d := testDescriptor(f, 0)
	f.Add(encode(d.wire()))
	d.ExitPolicy, d.Memberships = AllPorts(), testMemberships(f, d.Identity, "family")
	f.Add(encode(d.wire()))
	d.Extra = Extra{Hibernating: true, FirstDay: 20_000, History: []DayUse{{1, 2}, {0, 3}}}
	f.Add(d.encode())
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, body []byte) {
		doc := seal(kindDescriptor, body, signer{p.key, p.cert})
		d, err := VerifyDescriptor(doc)
		if err != nil {
			return
		}
		if !bytes.Equal(d.encode(), body) {
			t.Fatalf("written again as %x", d.encode())
		}
		again, err := SignDescriptor(d, p.key, p.cert)
		if err != nil || !bytes.Equal(again, doc) {
			t.Fatalf("signed again as %x, %v", again, err)
		}
	})
}

// FuzzEnvelope: whole documents of any kind, mostly with bad signatures, never panic.
func FuzzEnvelope(f *testing.F) {
	network, parties := testNetwork(f, 4)
	c := testConsensus(f, network, parties, 2)
	f.Add(sealConsensus(c.body, parties))
	f.Add(testDescriptors(f, 1)[0].Raw())
	vote, err := SignVote(testVote(network, parties[0], nil), parties[0].key, parties[0].cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(vote)
	sig, err := SignConsensus(c, parties[0].key, parties[0].cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sig.Raw())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := VerifyConsensus(b, network); err == nil && !bytes.Equal(sealConsensus(encode(c.wire()), parties), b) && len(c.Signers) == 4 {
			t.Fatal("an accepted consensus has another form")
		}
		if d, err := VerifyDescriptor(b); err == nil && !bytes.Equal(d.Raw(), b) {
			t.Fatal("an accepted descriptor has another form")
		}
		if v, err := ParseVote(b, network, nil); err == nil && !bytes.Equal(v.Raw(), b) {
			t.Fatal("an accepted vote has another form")
		}
		if s, err := ParseSignature(b, network); err == nil && !bytes.Equal(s.Raw(), b) {
			t.Fatal("an accepted signature has another form")
		}
	})
}
