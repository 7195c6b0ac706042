package directory

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
)

// testDocuments returns one document of each kind, and the network that they are of.
func testDocuments(t testing.TB) (map[Kind][]byte, *Network, []party) {
	t.Helper()
	network, parties := testNetwork(t, 4)
	c := testConsensus(t, network, parties, 4)
	relay := newParty(t, "relay 1", identity.PurposeDescriptor)
	descriptor, err := SignDescriptor(testDescriptor(t, 1), relay.key, relay.cert)
	if err != nil {
		t.Fatal(err)
	}
	vote, err := SignVote(testVote(network, parties[0], testDescriptors(t, 4)), parties[0].key, parties[0].cert)
	if err != nil {
		t.Fatal(err)
	}
	s, err := SignConsensus(c, parties[1].key, parties[1].cert)
	if err != nil {
		t.Fatal(err)
	}
	return map[Kind][]byte{
		KindDescriptor: descriptor, KindVote: vote, KindConsensus: sealConsensus(c.body, parties), KindSignature: s.Raw(),
		KindCertificate: identity.EncodeCertificateFile(parties[0].cert), KindNetwork: network.AppendTOML(nil),
	}, network, parties
}

// TestInspect: each kind is known as what it is, plain and compressed, and is good in its network and in no other.
func TestInspect(t *testing.T) {
	documents, network, parties := testDocuments(t)
	documents["raw certificate"] = parties[0].cert.AppendTo(nil)
	other, _ := testNetwork(t, 4)
	other.Name = "other"
	other.Authorities = []Authority{{Nickname: "x", Identity: testKey(t, "x").ID(), Address: "127.0.0.1:1"}}
	signers := map[Kind]int{KindDescriptor: 1, KindVote: 1, KindConsensus: 4, KindSignature: 1, KindCertificate: 1, "raw certificate": 1, KindNetwork: 0}
	for kind, b := range documents {
		for _, form := range [][]byte{b, Compress(b)} {
			plain, err := Unpack(form)
			if err != nil {
				t.Fatal(err)
			}
			d, err := Inspect(plain)
			if err != nil {
				t.Errorf("%s: %v", kind, err)
				continue
			}
			if !strings.HasSuffix(string(kind), string(d.Kind)) || len(d.Signers) != signers[kind] {
				t.Errorf("%s is taken for a %s with %d signers", kind, d.Kind, len(d.Signers))
			}
			for _, s := range d.Signers {
				if s.Problem != nil {
					t.Errorf("%s: a signature is not good: %v", kind, s.Problem)
				}
			}
			if err := d.Verify(network, epoch); err != nil {
				t.Errorf("%s in its network: %v", kind, err)
			}
			if err := d.Verify(other, epoch); err == nil {
				t.Errorf("%s is good in another network", kind)
			}
		}
	}
	for _, kind := range []Kind{KindDescriptor, KindConsensus, KindCertificate} {
		d, err := Inspect(documents[kind])
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []time.Time{epoch.Add(-90 * 24 * time.Hour), epoch.Add(90 * 24 * time.Hour)} {
			if err := d.Verify(network, at); err == nil {
				t.Errorf("%s is good at %v", kind, at)
			}
		}
	}
}

// TestInspectBadSignature: a consensus with a bad signature is shown, with whose it is, and is not good; of others nothing is shown.
func TestInspectBadSignature(t *testing.T) {
	documents, network, parties := testDocuments(t)
	env, _, err := open(kindConsensus, "consensus", documents[KindConsensus], MaxConsensusSize)
	if err != nil {
		t.Fatal(err)
	}
	env.Signatures[2].Signature[5] ^= 1
	d, err := Inspect(encode(env))
	if err != nil {
		t.Fatal(err)
	}
	bad := 0
	for i, s := range d.Signers {
		if s.Problem != nil {
			bad++
			if i != 2 {
				t.Errorf("signature %d is said to be bad: %v", i, s.Problem)
			}
		}
	}
	wantReason(t, d.Verify(network, epoch), ErrBadSignature)
	if bad != 1 || len(d.Consensus.Relays) != 4 {
		t.Errorf("%d bad signatures, %d relays", bad, len(d.Consensus.Relays))
	}
	// One that two of four have signed, all well.
	d, err = Inspect(sealConsensus(env.Body, parties[:2]))
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, d.Verify(network, epoch), ErrUndersigned)
	for _, kind := range []Kind{KindDescriptor, KindVote, KindSignature} {
		b := bytes.Clone(documents[kind])
		b[len(b)-1] ^= 1
		if d, err := Inspect(b); err == nil {
			t.Errorf("a %s with a bad signature is shown: %+v", kind, d)
		}
	}
}

func TestIdentifyRefuses(t *testing.T) {
	key, err := identity.EncodeKeyFile(identity.KindIdentity, [identity.SecretSize]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
		says string
	}{
		"nothing":             {nil, ErrNoDocument, "empty"},
		"a key file":          {key, ErrSecret, "keep it secret"},
		"a signing key":       {append(bytes.Clone(key), "cepa certificate 1\n"...), ErrSecret, "keep it secret"},
		"onion keys":          {[]byte("cepa onion keys 1\nkey 01\n"), ErrSecret, "keep it secret"},
		"an ELF file":         {[]byte("\x7fELF\x02\x01\x01\x00"), ErrNoDocument, "does not begin as one"},
		"a later kind":        {append([]byte{0x83, 0x78, 30}, "cepa/2 something of the future"...), ErrNoDocument, "this version does not know"},
		"a text that is long": {append([]byte{0x83, 0x7b}, bytes.Repeat([]byte{0xff}, 8)...), ErrNoDocument, "does not begin as one"},
		"a text that is cut":  {append([]byte{0x83, 0x6f}, "cepa/1"...), ErrNoDocument, "does not begin as one"},
	} {
		_, err := Identify(c.b)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want %v that says %q", name, err, c.want, c.says)
		}
		if d, err := Inspect(c.b); err == nil {
			t.Errorf("%s: inspected as %+v", name, d)
		}
	}
	// A bomb: 64 MiB and some of zeros in a few bytes.
	if _, err := Unpack(Compress(make([]byte, MaxDocumentSize+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a bomb: %v", err)
	}
	if _, err := Unpack([]byte(zstdMagic + "nonsense")); !errors.Is(err, ErrMalformed) {
		t.Errorf("no zstd behind its mark: %v", err)
	}
}

func TestCertificatesOfDocuments(t *testing.T) {
	documents, _, parties := testDocuments(t)
	for kind, want := range map[Kind]int{KindDescriptor: 1, KindVote: 1, KindConsensus: 4, KindSignature: 1} {
		got, err := Certificates(documents[kind])
		if err != nil || len(got) != want {
			t.Errorf("%s: %d certificates, error %v, want %d", kind, len(got), err, want)
		}
	}
	if got, _ := Certificates(documents[KindSignature]); *got[0] != *parties[1].cert {
		t.Error("the certificate of a signature is another one")
	}
	for _, kind := range []Kind{KindCertificate, KindNetwork} {
		if _, err := Certificates(documents[kind]); err == nil {
			t.Errorf("a %s has certificates beside signatures", kind)
		}
	}
}

func TestCompareRelays(t *testing.T) {
	network, parties := testNetwork(t, 4)
	before, after := testConsensus(t, network, parties, 6), testConsensus(t, network, parties, 6)
	if c := CompareRelays(before.Relays, after.Relays); c.Same != 6 || len(c.Came)+len(c.Went)+len(c.Changed) != 0 {
		t.Fatalf("equal lists differ: %+v", c)
	}
	gone := after.Relays[0]
	after.Relays = append(after.Relays[:0:0], after.Relays[1:]...)
	r := &after.Relays[2]
	r.Flags |= FlagStable
	r.Weight, r.OnionKey, r.Version, r.Family = 77, [32]byte{9}, "9.9", []FamilyID{{1}}
	came := after.Relays[0]
	came.Identity = identity.ID{31: 0xff}
	came.Identity[0] = 0xff
	after.Relays = append(after.Relays, came)
	c := CompareRelays(before.Relays, after.Relays)
	if len(c.Went) != 1 || c.Went[0].Identity != gone.Identity || len(c.Came) != 1 || c.Came[0].Identity != came.Identity || c.Same != 4 {
		t.Errorf("went %v, came %v, same %d", c.Went, c.Came, c.Same)
	}
	if len(c.Changed) != 1 || c.Changed[0].Identity != r.Identity {
		t.Fatalf("changed: %+v", c.Changed)
	}
	var fields []string
	for _, f := range c.Changed[0].Fields {
		fields = append(fields, f.Field)
		if f.Field == "weight" && f.New != "77" {
			t.Errorf("weight from %q to %q", f.Old, f.New)
		}
	}
	if got := strings.Join(fields, ","); got != "flags,weight,onion key,families,version" {
		t.Errorf("changed fields: %s", got)
	}
}

func TestCompareParams(t *testing.T) {
	got := CompareParams(Params{"a": 1, "b": 2, "d": 0}, Params{"a": 1, "b": 3, "c": 4})
	want := []FieldChange{{"b", "2", "3"}, {"c", "", "4"}, {"d", "0", ""}}
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got[i], want[i])
		}
	}
	if got := CompareParams(nil, nil); len(got) != 0 {
		t.Errorf("nothing and nothing differ: %v", got)
	}
}

// FuzzInspect: whatever is in a file, it is parsed within bounds or refused; what is shown as good by itself is what its own parser accepts.
func FuzzInspect(f *testing.F) {
	documents, _, _ := testDocuments(f)
	for _, b := range documents {
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Add(Compress(documents[KindDescriptor]))
	f.Add([]byte{0x83, 0x60})
	f.Fuzz(func(t *testing.T, b []byte) {
		b, err := Unpack(b)
		if err != nil {
			return
		}
		d, err := Inspect(b)
		if err != nil {
			return
		}
		_ = d.Verify(&Network{Name: "test", Interval: time.Hour}, epoch)
		switch d.Kind {
		case KindDescriptor:
			if !bytes.Equal(d.Descriptor.Raw(), b) {
				t.Error("the descriptor is another one")
			}
		case KindConsensus:
			if again, _, err := open(kindConsensus, "consensus", b, MaxConsensusSize); err != nil || !bytes.Equal(encode(d.Consensus.wire()), again.Body) {
				t.Errorf("the consensus is another one, error %v", err)
			}
		case KindCertificate:
			if identity.IsCertificateFile(b) {
				b, _ = Unpack(identity.EncodeCertificateFile(d.Certificate))
			}
			if again, err := Inspect(b); err != nil || *again.Certificate != *d.Certificate {
				t.Errorf("the certificate is another one, error %v", err)
			}
		}
	})
}
