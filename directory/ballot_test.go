package directory

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"cepa/crypto/identity"
)

// signedVote returns the parsed vote of a party.
func signedVote(t testing.TB, network *Network, p party, descriptors []*Descriptor, change func(*Vote)) *Vote {
	t.Helper()
	v := testVote(network, p, descriptors)
	if change != nil {
		change(v)
	}
	b, err := SignVote(v, p.key, p.cert)
	if err != nil {
		t.Fatal(err)
	}
	if v, err = ParseVote(b, network, nil); err != nil {
		t.Fatal(err)
	}
	return v
}

// testBallot returns heads of all parties' votes, each endorsed by those after it, and two heads of the first.
func testBallot(t testing.TB, network *Network, parties []party) *Ballot {
	t.Helper()
	b := &Ballot{Period: network.Period(epoch)}
	for i, p := range parties {
		h := signedVote(t, network, p, nil, nil).Head()
		for _, e := range parties[i+1:] {
			h.Endorsements = append(h.Endorsements, h.Endorse(network.Name, b.Period, e.key, e.cert))
		}
		b.Heads = append(b.Heads, h)
	}
	b.Heads = append(b.Heads, signedVote(t, network, parties[0], nil, func(v *Vote) { v.Params = Params{"x": 1} }).Head())
	return b
}

func TestBallot(t *testing.T) {
	network, parties := testNetwork(t, 4)
	want := testBallot(t, network, parties)
	b := EncodeBallot(network.Name, want)
	got, err := ParseBallot(b, network)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("parsed %+v, %v, want %+v", got, err, want)
	}
	refuseMutations(t, b, func(b []byte) error { _, err := ParseBallot(b, network); return err })
	// Who knows the signatures already, in another ballot, comes to the same and does not verify them again.
	var warm Verified
	for _, h := range want.Heads {
		if _, err := warm.ParseBallot(EncodeBallot(network.Name, &Ballot{Period: want.Period, Heads: []Head{h}}), network); err != nil {
			t.Fatal(err)
		}
	}
	known := len(warm.good)
	if got, err := warm.ParseBallot(b, network); err != nil || !reflect.DeepEqual(got, want) || len(warm.good) != known || known == 0 {
		t.Errorf("parsed %+v, %v; %d signatures known, then %d", got, err, known, len(warm.good))
	}
	refuseMutations(t, b, func(b []byte) error { _, err := warm.ParseBallot(b, network); return err })
	for name, c := range map[string]struct {
		change func(*Ballot)
		reason error
	}{
		"no head":      {func(b *Ballot) { b.Heads = nil }, nil},
		"other period": {func(b *Ballot) { b.Period++ }, ErrBadSignature},
		"three of one": {func(b *Ballot) {
			b.Heads = append(b.Heads, signedVote(t, network, parties[0], nil, func(v *Vote) { v.Params = Params{"x": 2} }).Head())
		}, ErrMalformed},
		"a head twice": {func(b *Ballot) { b.Heads = append(b.Heads, b.Heads[0]) }, ErrMalformed},
		"endorsed by itself": {func(b *Ballot) {
			h := &b.Heads[0]
			i := slices.IndexFunc(parties, func(p party) bool { return p.id == h.Authority })
			h.Endorsements = []Endorsement{h.Endorse(network.Name, b.Period, parties[i].key, parties[i].cert)}
		}, ErrMalformed},
		"another's endorsement": {func(b *Ballot) {
			for i := range b.Heads {
				if len(b.Heads[i].Endorsements) > 0 {
					b.Heads[i].Endorsements[0] = b.Heads[(i+1)%len(b.Heads)].Endorse(network.Name, b.Period, parties[3].key, parties[3].cert)
					return
				}
			}
		}, ErrBadSignature},
	} {
		b := testBallot(t, network, parties)
		c.change(b)
		_, err := ParseBallot(EncodeBallot(network.Name, b), network)
		switch {
		case c.reason == nil && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.reason != nil:
			if wantReason(t, err, c.reason); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	}
	fewer, _ := testNetwork(t, 3)
	_, err = ParseBallot(b, fewer)
	if wantReason(t, err, ErrUnknownSigner); err == nil {
		t.Error("a stranger's signature is accepted")
	}
}

// TestBallotSize: the largest ballot that honest authorities send is within the bound, whatever certificates the others have.
func TestBallotSize(t *testing.T) {
	for _, n := range []int{1, 3, 4, 9, MaxAuthorities} {
		network, parties := testNetwork(t, n)
		b := &Ballot{Period: network.Period(epoch)}
		for i, p := range parties {
			for k := range MaxHeads {
				h := signedVote(t, network, p, nil, func(v *Vote) { v.Params = Params{"x": int64(k)} }).Head()
				for j := range min(network.faults()+2, n-1) {
					e := parties[(i+1+j)%n]
					// Each with a certificate of its own.
					to := epoch.Add(time.Duration(1000*i+10*j+k) * time.Second)
					cert, err := testKey(t, fmt.Sprint("authority ", (i+1+j)%n)).Certify(identity.PurposeConsensus, e.key.ID(), epoch.Add(-time.Hour), to.Add(time.Hour))
					if err != nil {
						t.Fatal(err)
					}
					h.Endorsements = append(h.Endorsements, h.Endorse(network.Name, b.Period, e.key, cert))
				}
				b.Heads = append(b.Heads, h)
			}
		}
		if size := len(EncodeBallot(network.Name, b)); size > network.MaxBallotSize() {
			t.Errorf("%d authorities: %d bytes, at most %d are allowed", n, size, network.MaxBallotSize())
		} else {
			t.Logf("%d authorities: at most %d bytes, %d are allowed", n, size, network.MaxBallotSize())
		}
	}
}

func TestEvidence(t *testing.T) {
	network, parties := testNetwork(t, 4)
	period := network.Period(epoch)
	head := func(i int, x int64) Head {
		return signedVote(t, network, parties[i], nil, func(v *Vote) { v.Params = Params{"x": x} }).Head()
	}
	e := VoteEvidence(network.Name, period, head(0, 1), head(0, 2))
	same := VoteEvidence(network.Name, period, head(0, 2), head(0, 1))
	got, err := ParseEvidence(e.Raw())
	if err != nil || !reflect.DeepEqual(got, e) || !reflect.DeepEqual(same, e) || got.Authority != parties[0].id || got.What != EvidenceVote {
		t.Errorf("parsed %+v, %v, want %+v", got, err, e)
	}
	refuseMutations(t, e.Raw(), func(b []byte) error { _, err := ParseEvidence(b); return err })
	if VoteEvidence(network.Name, period, head(0, 1), head(0, 1)) != nil || VoteEvidence(network.Name, period, head(0, 1), head(1, 2)) != nil {
		t.Error("evidence of nothing")
	}
	_, err = ParseEvidence(VoteEvidence(network.Name, period+1, head(0, 1), head(0, 2)).Raw())
	wantReason(t, err, ErrBadSignature) // of another period

	var sigs []*Signature
	for i := range 2 {
		s, err := SignConsensus(testConsensus(t, network, parties, i), parties[2].key, parties[2].cert)
		if err != nil {
			t.Fatal(err)
		}
		sigs = append(sigs, s)
	}
	e = ConsensusEvidence(sigs[0], sigs[1])
	if got, err = ParseEvidence(e.Raw()); err != nil || got.What != EvidenceConsensus || got.Authority != parties[2].id {
		t.Errorf("parsed %+v, %v", got, err)
	}
	if ConsensusEvidence(sigs[0], sigs[0]) != nil {
		t.Error("evidence of nothing")
	}
}

func TestDescriptorBatch(t *testing.T) {
	list := testDescriptors(t, 3)
	b := EncodeDescriptors(list)
	got, err := ParseDescriptors(b, func(digest [32]byte) bool { return digest != list[1].Digest() })
	if err != nil || len(got) != 2 || !bytes.Equal(got[1].Raw(), list[2].Raw()) {
		t.Errorf("%d descriptors, %v", len(got), err)
	}
	bad := bytes.Clone(b)
	bad[len(bad)-1] ^= 1
	if _, err := ParseDescriptors(bad, func([32]byte) bool { return true }); err == nil {
		t.Error("a changed descriptor is accepted")
	}
	_, err = ParseDescriptors(make([]byte, MaxBatchSize+1), nil)
	wantReason(t, err, ErrTooLarge)
	_, err = ParseDescriptors(EncodeDescriptors(slices.Repeat(list[:1], MaxBatch+1)), nil)
	wantReason(t, err, ErrMalformed)
	full := EncodeDescriptors(slices.Repeat(list[:1], MaxBatch))
	if got, err := ParseDescriptors(full, func([32]byte) bool { return false }); err != nil || len(got) != 0 {
		t.Errorf("%d unwanted descriptors, %v", len(got), err)
	}
	digests := [][32]byte{list[0].Digest(), list[1].Digest()}
	back, err := ParseDigests(EncodeDigests(digests))
	if err != nil || !slices.Equal(back, digests) {
		t.Errorf("%x, %v", back, err)
	}
	_, err = ParseDigests(make([]byte, 33))
	wantReason(t, err, ErrMalformed)
	_, err = ParseDigests(make([]byte, 32*(MaxBatch+1)))
	wantReason(t, err, ErrTooLarge)
}

func TestDelta(t *testing.T) {
	random := &testRand{}
	var base []byte
	for range 5000 {
		b := random.bytes32()
		base = append(base, b[:]...)
	}
	changed := bytes.Clone(base)
	copy(changed[70_000:], "something else")
	for _, c := range [][2][]byte{{changed, base}, {base, nil}, {nil, base}, {[]byte("short"), []byte("another")}, {base, base}} {
		packed := CompressDelta(c[0], c[1])
		got, err := DecompressDelta(packed, c[1], 1<<20)
		if err != nil || !bytes.Equal(got, c[0]) {
			t.Errorf("%d bytes against %d: %v", len(c[0]), len(c[1]), err)
		}
		if _, err := DecompressDelta(packed, []byte("not that"), 1<<20); err == nil {
			t.Error("another base is taken")
		}
	}
	if n := len(CompressDelta(changed, base)); n > 300 {
		t.Errorf("a small change of %d bytes takes %d", len(base), n)
	}
	if _, err := DecompressDelta(CompressDelta(changed, base), base, len(base)-1); err == nil {
		t.Error("more than the limit comes out")
	}
	if _, err := DecompressDelta(CompressDelta(make([]byte, 32<<20), base), base, 1<<20); err == nil {
		t.Error("a bomb goes off")
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		version, least string
		below          bool
	}{
		{"0.1.0", "0.2.0", true},
		{"0.2.0", "0.2.0", false},
		{"0.2", "0.2.0", false},
		{"0.2", "0.2.1", true},
		{"0.10.0", "0.9.9", false},
		{"v0.1.9-3-gabcdef", "0.2", true},
		{"v0.2.0-3-gabcdef-dirty", "0.2", false},
		{"0.1.0+build", "0.1.1", true},
		{"1.2.3.4", "1.2.3.5", true},
		{"1.2.3.4.5", "1.2.3.5", false}, // five numbers are no version
		{"devel", "99.0", false},
		{"1b35944", "99.0", false}, // a commit
		{"1234567", "99.0", false},
		{"0.1.0", "", false},
		{"0.1.0rc1", "99.0", false},
		{"", "99.0", false},
	} {
		if got := VersionBelow(c.version, c.least); got != c.below {
			t.Errorf("%q below %q: %v", c.version, c.least, got)
		}
	}
	network, parties := testNetwork(t, 4)
	for _, c := range []struct {
		stated []string
		want   string
	}{
		{[]string{"0.2", "0.2", "0.2", "0.2"}, "0.2"},
		{[]string{"0.9", "0.10", "0.11", "0.2"}, "0.9"},
		{[]string{"99.0", "0.2", "0.2", ""}, "0.2"},
		{[]string{"0.2", "0.2", "", ""}, ""},
		{[]string{"0.1", "0.2.0", "0.2"}, "0.2"},
	} {
		var votes []*Vote
		for i, s := range c.stated {
			v := testVote(network, parties[i], nil)
			v.Versions = Versions{Recommended: s, Required: s}
			votes = append(votes, v)
		}
		got, err := Compute(votes, network)
		if err != nil || got.Versions != (Versions{c.want, c.want}) {
			t.Errorf("%v: %+v, %v, want %s", c.stated, got.Versions, err, c.want)
		}
	}
}

func TestSharedRandom(t *testing.T) {
	network, parties := testNetwork(t, 4)
	value := func(n int, change func(c, s map[identity.ID]RandomValue)) RandomValue {
		c, s := map[identity.ID]RandomValue{}, map[identity.ID]RandomValue{}
		for i, p := range parties[:n] {
			s[p.id] = RandomValue{1, byte(i)}
			c[p.id] = Commitment(7, p.id, s[p.id])
		}
		if change != nil {
			change(c, s)
		}
		return SharedRandom(network, 7, RandomValue{9}, c, s)
	}
	first := parties[0].id
	all := value(4, nil)
	if all == (RandomValue{}) || all != value(4, nil) {
		t.Error("not a function of what is told")
	}
	if v := value(4, func(_, s map[identity.ID]RandomValue) { delete(s, first) }); v == all || v == (RandomValue{}) {
		t.Error("without one secret it is another value")
	}
	if value(4, func(_, s map[identity.ID]RandomValue) { s[first] = RandomValue{8} }) != value(4, func(_, s map[identity.ID]RandomValue) { delete(s, first) }) {
		t.Error("a secret that does not fit its commitment counts")
	}
	if value(1, nil) != (RandomValue{}) || value(2, nil) == (RandomValue{}) {
		t.Error("the secrets of one are not enough, those of two are")
	}
	for period, want := range map[uint64]struct {
		run     uint64
		commits bool
	}{0: {0, true}, 11: {0, true}, 12: {0, false}, 23: {0, false}, 24: {1, true}} {
		if run, commits := RandomRun(period); run != want.run || commits != want.commits {
			t.Errorf("period %d: run %d, %v", period, run, commits)
		}
	}
	// Three of four must state a value.
	for n, want := range map[int]RandomValue{2: {}, 3: {5}, 4: {5}} {
		var votes []*Vote
		for i, p := range parties {
			v := testVote(network, p, nil)
			if i < n {
				v.Random.Current = RandomValue{5}
			}
			votes = append(votes, v)
		}
		if c, err := Compute(votes, network); err != nil || c.Random.Current != want {
			t.Errorf("%d state it: %x, %v", n, c.Random.Current, err)
		}
	}
}

func TestRules(t *testing.T) {
	id := testKey(t, "relay 0").ID().String()
	rules, err := ParseRules([]byte("# nobody\n[relays]\n" + id + " = \"bad-exit\" # lies\n"))
	if err != nil || len(rules) != 1 {
		t.Fatalf("%v, %v", rules, err)
	}
	if rules, err = ParseRules(nil); err != nil || len(rules) != 0 {
		t.Errorf("no rules: %v, %v", rules, err)
	}
	for text, want := range map[string]string{
		"[relays]\nabc = \"reject\"\n":                                 "line 2",
		"[relays]\n" + id + " = \"ban\"\n":                             `"ban" is no rule`,
		"[relay]\n" + id + " = \"reject\"\n":                           "unknown key",
		"[relays]\n" + id + " = 1\n":                                   "line 2",
		"[relays\n":                                                    "line 2",
		"[relays]\n" + id + " = \"reject\"\n" + id + " = \"reject\"\n": "line 3",
	} {
		_, err := ParseRules([]byte(text))
		wantReason(t, err, ErrMalformed)
		if err != nil && !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%q: error is %v, want %q in it", text, err, want)
		}
	}
	_, err = ParseRules(make([]byte, MaxRulesFile+1))
	wantReason(t, err, ErrTooLarge)
}

// FuzzBallot: what is accepted has one form.
func FuzzBallot(f *testing.F) {
	network, parties := testNetwork(f, 4)
	b := testBallot(f, network, parties)
	f.Add(EncodeBallot(network.Name, b))
	f.Add(EncodeBallot(network.Name, &Ballot{}))
	f.Add(EncodeBallot(network.Name, &Ballot{Period: b.Period, Heads: b.Heads[:1]}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ballot, err := ParseBallot(b, network); err == nil && !bytes.Equal(EncodeBallot(network.Name, ballot), b) {
			t.Fatal("an accepted ballot has another form")
		}
	})
}

// FuzzEvidence: what is accepted has one form.
func FuzzEvidence(f *testing.F) {
	network, parties := testNetwork(f, 4)
	a, b := signedVote(f, network, parties[0], nil, nil), signedVote(f, network, parties[0], nil, func(v *Vote) { v.Params = Params{"x": 1} })
	f.Add(VoteEvidence(network.Name, network.Period(epoch), a.Head(), b.Head()).Raw())
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := ParseEvidence(b); err == nil && (!bytes.Equal(e.encode(), b) || e.Digests[0] == e.Digests[1]) {
			t.Fatal("accepted evidence has another form, or proves nothing")
		}
	})
}

// FuzzDescriptors: what is accepted, and all wanted, is written again as the same bytes.
func FuzzDescriptors(f *testing.F) {
	f.Add(EncodeDescriptors(testDescriptors(f, 2)))
	f.Add(EncodeDescriptors(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := ParseDescriptors(b, func([32]byte) bool { return true }); err == nil && !bytes.Equal(EncodeDescriptors(list), b) {
			t.Fatal("an accepted batch has another form")
		}
		if digests, err := ParseDigests(b); err == nil && !bytes.Equal(EncodeDigests(digests), b) {
			t.Fatal("accepted digests have another form")
		}
	})
}

// FuzzDelta: nothing that comes as a difference takes more memory than it may.
func FuzzDelta(f *testing.F) {
	base := bytes.Repeat([]byte("a document that both have "), 40)
	f.Add(CompressDelta([]byte("another document that both have"), base))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := DecompressDelta(b, base, 4096); err == nil && len(out) > 4096 {
			t.Fatal("more than the limit")
		}
	})
}

// FuzzRules: whatever is accepted has only rules that there are.
func FuzzRules(f *testing.F) {
	f.Add([]byte("[relays]\n" + testKey(f, "relay 0").ID().String() + " = \"middle-only\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rules, err := ParseRules(b)
		for id, rule := range rules {
			if err != nil || rule < RuleReject || rule > RuleMiddleOnly {
				t.Fatalf("%v has rule %d, error %v", id, rule, err)
			}
		}
	})
}
