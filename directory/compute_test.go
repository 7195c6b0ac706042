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

func TestComputeIsPure(t *testing.T) {
	network, parties := testNetwork(t, 4)
	descriptors := testDescriptors(t, 5)
	var votes []*Vote
	for i, p := range parties {
		v := testVote(network, p, descriptors[:5-i%2])
		v.Params = Params{ParamLinkPadding: int64(i % 2), "x": int64(i)}
		for j := range v.Entries {
			v.Entries[j].Weight += uint64(i * j)
		}
		votes = append(votes, v)
	}
	want, err := Compute(votes, network)
	if err != nil {
		t.Fatal(err)
	}
	random := &testRand{}
	for range 20 {
		for i := len(votes) - 1; i > 0; i-- {
			j := random.intn(i + 1)
			votes[i], votes[j] = votes[j], votes[i]
		}
		got, err := Compute(votes, network)
		if err != nil || got.Digest() != want.Digest() || !reflect.DeepEqual(got.Relays, want.Relays) {
			t.Fatalf("the order of the votes matters (%v)", err)
		}
	}
	// Through the wire it is the same.
	for i, v := range votes {
		p := parties[slices.IndexFunc(parties, func(p party) bool { return p.id == v.Authority })]
		b, err := SignVote(v, p.key, p.cert)
		if err != nil {
			t.Fatal(err)
		}
		if votes[i], err = ParseVote(b, network, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Compute(votes, network); err != nil || got.Digest() != want.Digest() {
		t.Fatalf("parsed votes give another consensus (%v)", err)
	}
}

func TestComputeMembership(t *testing.T) {
	network, parties := testNetwork(t, 4)
	d := testDescriptors(t, 1)[0]
	for _, c := range []struct {
		name  string
		flags []Flags // 0: does not list the relay
		want  Flags   // 0: not in the consensus
	}{
		{"all", []Flags{3, 3, 3, 3}, 3},
		{"majority of four is three", []Flags{3, 3, 3, 0}, 3},
		{"half is not", []Flags{3, 3, 0, 0}, 0},
		{"one alone adds nothing", []Flags{0, 0, 0, AllFlags}, 0},
		{"one alone removes nothing", []Flags{3, 3, 3, FlagValid}, 3},
		{"one absent", []Flags{3, 3, 3}, 3},
		{"one absent, one against", []Flags{3, 3, 0}, 0},
		{"not running", []Flags{FlagValid, FlagValid, 3, 3}, 0},
		{"not valid", []Flags{FlagRunning, FlagRunning, 3, 3}, 0},
		{"flags are voted one by one", []Flags{3 | FlagGuard, 3 | FlagGuard | FlagFast, 3 | FlagGuard, 3 | FlagFast}, 3 | FlagGuard},
	} {
		var votes []*Vote
		for i, f := range c.flags {
			v := testVote(network, parties[i], nil)
			if f != 0 {
				v.Entries = []VoteEntry{{Descriptor: d, Flags: f, Weight: 7}}
			}
			votes = append(votes, v)
		}
		got, err := Compute(votes, network)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if (len(got.Relays) > 0) != (c.want != 0) || c.want != 0 && got.Relays[0].Flags != c.want {
			t.Errorf("%s: %+v, want flags %v", c.name, got.Relays, c.want)
		}
	}
}

// TestComputeWeightRange: whatever f < n/3 say about the weight, and whether they list the relay, it stays within what
// the others say (an honest authority that does not list it says 0).
func TestComputeWeightRange(t *testing.T) {
	random := &testRand{}
	for _, n := range []int{4, 7, 10, 13, 31} {
		network, parties := testNetwork(t, n)
		d := testDescriptors(t, 1)[0]
		faults := (n - 1) / 3
		for range 300 {
			var votes []*Vote
			lo, hi, lists := uint64(MaxWeight), uint64(0), 0
			likely := random.intn(9) // of 8: how likely an honest authority lists it
			lie := []uint64{0, 1, 1_000_000, MaxWeight}[random.intn(4)]
			absent := random.intn(faults + 1) // of the malicious
			for i, p := range parties {
				v := testVote(network, p, nil)
				weight := uint64(100 + random.intn(100))
				listed := random.intn(8) < likely
				if i < faults {
					listed, weight = true, lie
					if i < absent {
						continue
					}
				} else {
					if !listed {
						weight = 0
					}
					lo, hi = min(lo, weight), max(hi, weight)
				}
				if listed {
					lists++
					v.Entries = []VoteEntry{{Descriptor: d, Flags: FlagRunning | FlagValid, Weight: weight}}
				}
				votes = append(votes, v)
			}
			c, err := Compute(votes, network)
			if err != nil {
				t.Fatal(err)
			}
			if (len(c.Relays) == 1) != (lists >= network.Majority()) {
				t.Fatalf("n=%d: %d of %d list it, and the consensus has %d relays", n, lists, len(votes), len(c.Relays))
			}
			if len(c.Relays) == 1 && (c.Relays[0].Weight < lo || c.Relays[0].Weight > hi) {
				t.Fatalf("n=%d: weight %d is outside %d…%d", n, c.Relays[0].Weight, lo, hi)
			}
		}
	}
}

func TestComputeDescriptor(t *testing.T) {
	network, parties := testNetwork(t, 4)
	versions := make([]*Descriptor, 4)
	for i := range versions {
		d := testDescriptor(t, 0)
		d.Sequence = uint64(10 + i)
		d.Nickname = fmt.Sprintf("v%d", i)
		versions[i] = signedDescriptor(t, d, "relay 0")
	}
	for _, c := range []struct {
		have []int
		want string
	}{
		{[]int{0, 0, 0, 0}, "v0"},
		{[]int{0, 0, 0, 3}, "v0"}, // news that only one has
		{[]int{0, 3, 3, 3}, "v3"}, // one clings to the past
		{[]int{0, 1, 2, 3}, "v1"}, // three have it or surpassed it
		{[]int{1, 1, 3, 3}, "v1"},
		{[]int{2, 3, 3}, "v2"},
	} {
		var votes []*Vote
		for i, k := range c.have {
			votes = append(votes, testVote(network, parties[i], versions[k:k+1]))
		}
		got, err := Compute(votes, network)
		if err != nil || len(got.Relays) != 1 || got.Relays[0].Nickname != c.want {
			t.Errorf("%v: got %+v, %v, want %s", c.have, got.Relays, err, c.want)
		}
	}
}

func TestComputeParams(t *testing.T) {
	network, parties := testNetwork(t, 4)
	for _, c := range []struct {
		stated []int64 // -1: states none
		want   int64   // -1: absent
	}{
		{[]int64{5, 5, 5, 5}, 5},
		{[]int64{1, 2, 3, 4}, 2}, // the lower one of the middle
		{[]int64{5, 5, 5, 1000}, 5},
		{[]int64{5, 6, 7, -1}, 6},
		{[]int64{5, 5, -1, -1}, -1},
		{[]int64{1000, 5, 6}, 6},
	} {
		var votes []*Vote
		for i, value := range c.stated {
			v := testVote(network, parties[i], nil)
			if value >= 0 {
				v.Params = Params{"x": value}
			}
			votes = append(votes, v)
		}
		got, err := Compute(votes, network)
		if err != nil {
			t.Fatal(err)
		}
		value, ok := got.Params["x"]
		if ok != (c.want >= 0) || ok && value != c.want {
			t.Errorf("%v: %v, want %d", c.stated, got.Params, c.want)
		}
	}
}

func TestComputeAddressLimit(t *testing.T) {
	network, parties := testNetwork(t, 4)
	var descriptors []*Descriptor
	for i := range 12 {
		d := testDescriptor(t, i)
		d.Addresses = addrs(fmt.Sprintf("192.0.2.1:%d", 1000+i))
		if i == 11 {
			d.Addresses = addrs("192.0.2.2:1000") // alone
		}
		if i == 0 { // the lightest of all, and at two addresses: stays out because of one of them
			d.Addresses = addrs("192.0.2.1:1000", "192.0.2.2:1001")
		}
		descriptors = append(descriptors, signedDescriptor(t, d, fmt.Sprintf("relay %d", i)))
	}
	var votes []*Vote
	for _, p := range parties {
		votes = append(votes, testVote(network, p, descriptors))
	}
	c, err := Compute(votes, network)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, r := range c.Relays {
		kept = append(kept, r.Nickname)
	}
	slices.Sort(kept)
	want := []string{"relay10", "relay11", "relay3", "relay4", "relay5", "relay6", "relay7", "relay8", "relay9"}
	if !slices.Equal(kept, want) {
		t.Errorf("kept %v, want the 8 heaviest at one address and the one elsewhere: %v", kept, want)
	}
	if !slices.IsSortedFunc(c.Relays, func(a, b Relay) int { return a.Identity.Compare(b.Identity) }) {
		t.Error("relays are no longer sorted")
	}
}

func TestComputeRefuses(t *testing.T) {
	network, parties := testNetwork(t, 4)
	vote := func(i int) *Vote { return testVote(network, parties[i], nil) }
	stranger := testVote(network, newParty(t, "stranger", identity.PurposeConsensus), nil)
	later := vote(2)
	later.Period++
	other := vote(2)
	other.Network = "other"
	for name, c := range map[string]struct {
		votes  []*Vote
		reason error
	}{
		"none":         {nil, ErrTooFewVotes},
		"two of four":  {[]*Vote{vote(0), vote(1)}, ErrTooFewVotes},
		"one twice":    {[]*Vote{vote(0), vote(1), vote(1)}, ErrMalformed},
		"stranger":     {[]*Vote{vote(0), vote(1), stranger}, ErrMalformed},
		"other period": {[]*Vote{vote(0), vote(1), later}, ErrMalformed},
		"other name":   {[]*Vote{vote(0), vote(1), other}, ErrMalformed},
	} {
		_, err := Compute(c.votes, network)
		if wantReason(t, err, c.reason); err == nil {
			t.Errorf("%s: computed", name)
		}
	}
}

func TestVote(t *testing.T) {
	network, parties := testNetwork(t, 4)
	v := testVote(network, parties[1], testDescriptors(t, 3))
	v.Params = Params{"x": -5}
	b, err := SignVote(v, parties[1].key, parties[1].cert)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseVote(b, network, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Raw(), b) || got.Digest() == [32]byte{} {
		t.Error("the parsed vote does not know its document")
	}
	got.raw, got.digest = nil, [32]byte{}
	if !reflect.DeepEqual(got, v) {
		t.Errorf("parsed\n%+v, want\n%+v", got, v)
	}
	// Descriptors that are known are not verified again.
	asked := 0
	got, err = ParseVote(b, network, func(digest [32]byte) *Descriptor {
		for _, e := range v.Entries {
			if e.Descriptor.Digest() == digest {
				asked++
				return e.Descriptor
			}
		}
		return nil
	})
	if err != nil || asked != 3 || got.Entries[0].Descriptor != v.Entries[0].Descriptor {
		t.Errorf("known descriptors are not used: %v, asked %d times", err, asked)
	}
	refuseMutations(t, b, func(b []byte) error { _, err := ParseVote(b, network, nil); return err })
}

func TestVoteRefuses(t *testing.T) {
	network, parties := testNetwork(t, 4)
	p := parties[0]
	descriptors := testDescriptors(t, 3)
	foreign := testDescriptor(t, 3)
	foreign.Network = "other"
	foreign = signedDescriptor(t, foreign, "relay 3")
	for name, c := range map[string]struct {
		change func(*Vote)
		reason error
	}{
		"other network":  {func(v *Vote) { v.Network = "other"; v.Entries = nil }, ErrWrongNetwork},
		"other interval": {func(v *Vote) { v.Interval = 2 * time.Hour; v.Period /= 2 }, ErrWrongNetwork},
		"another's name": {func(v *Vote) { v.Authority = parties[1].id }, ErrUnknownSigner},
		"unsorted":       {func(v *Vote) { v.Entries[0], v.Entries[1] = v.Entries[1], v.Entries[0] }, ErrMalformed},
		"twice":          {func(v *Vote) { v.Entries[1] = v.Entries[0] }, ErrMalformed},
		"unknown flag":   {func(v *Vote) { v.Entries[0].Flags = AllFlags + 1 }, ErrMalformed},
		"heavy":          {func(v *Vote) { v.Entries[0].Weight = MaxWeight + 1 }, ErrMalformed},
		"other's relay":  {func(v *Vote) { v.Entries = []VoteEntry{{Descriptor: foreign, Flags: 3, Weight: 1}} }, ErrMalformed},
		"no descriptor":  {func(v *Vote) { v.Entries[0].Descriptor = &Descriptor{Network: "test"} }, ErrMalformed},
		"forged descriptor": {func(v *Vote) {
			v.Entries[0].Descriptor = &Descriptor{Network: "test", raw: append(descriptors[0].raw[:len(descriptors[0].raw)-1:len(descriptors[0].raw)-1], 7)}
		}, ErrMalformed},
		"parameter": {func(v *Vote) { v.Params = Params{"A": 1} }, ErrMalformed},
	} {
		v := testVote(network, p, descriptors)
		c.change(v)
		_, err := ParseVote(seal(kindVote, encode(v.wire()), signer{p.key, p.cert}), network, nil)
		if wantReason(t, err, c.reason); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := SignVote(testVote(network, parties[1], nil), p.key, p.cert); err == nil {
		t.Error("SignVote signs in another's name")
	}
	stranger := newParty(t, "stranger", identity.PurposeConsensus)
	v := testVote(network, stranger, nil)
	_, err := ParseVote(seal(kindVote, encode(v.wire()), signer{stranger.key, stranger.cert}), network, nil)
	wantReason(t, err, ErrUnknownSigner)
}

func TestAssemble(t *testing.T) {
	network, parties := testNetwork(t, 4)
	c := testConsensus(t, network, parties, 3)
	other := testConsensus(t, network, parties, 2)
	var sigs []*Signature
	for _, p := range parties {
		s, err := SignConsensus(c, p.key, p.cert)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParseSignature(s.Raw(), network)
		if err != nil || !reflect.DeepEqual(parsed, s) {
			t.Fatalf("parsed %+v, %v, want %+v", parsed, err, s)
		}
		sigs = append(sigs, parsed)
	}
	doc, err := AssembleConsensus(c, sigs, network)
	if err != nil || !bytes.Equal(doc, sealConsensus(c.body, parties)) {
		t.Fatalf("assembled something else (%v)", err)
	}
	wrong, err := SignConsensus(other, parties[3].key, parties[3].cert)
	if err != nil {
		t.Fatal(err)
	}
	doc, err = AssembleConsensus(c, []*Signature{sigs[0], wrong, sigs[2], sigs[1], sigs[1]}, network)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseConsensus(doc, network, epoch); err != nil || len(got.Signers) != 3 {
		t.Errorf("%v, %v", got, err)
	}
	_, err = AssembleConsensus(c, []*Signature{sigs[0], wrong, sigs[2], sigs[2]}, network)
	wantReason(t, err, ErrUndersigned)
	refuseMutations(t, sigs[0].Raw(), func(b []byte) error { _, err := ParseSignature(b, network); return err })
	otherNetwork := *network
	otherNetwork.Name = "other"
	_, err = ParseSignature(sigs[0].Raw(), &otherNetwork)
	wantReason(t, err, ErrWrongNetwork)
	if _, err := SignConsensus(c, parties[0].key, parties[1].cert); err == nil {
		t.Error("signed with a key that is not certified")
	}
}

// FuzzVote: bodies, signed so that they get past the signature. What is accepted is written again as the same bytes.
func FuzzVote(f *testing.F) {
	network, parties := testNetwork(f, 1)
	p := parties[0]
	for i := range 3 {
		v := testVote(network, p, testDescriptors(f, i))
		v.Params = Params{"x": int64(i)}
		f.Add(encode(v.wire()))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := ParseVote(seal(kindVote, body, signer{p.key, p.cert}), network, nil)
		if err != nil {
			return
		}
		if !bytes.Equal(encode(v.wire()), body) {
			t.Fatalf("written again as %x", encode(v.wire()))
		}
		if _, err := Compute([]*Vote{v}, network); err != nil {
			t.Fatalf("no consensus from an accepted vote: %v", err)
		}
	})
}

// FuzzSignature: what is accepted has one form.
func FuzzSignature(f *testing.F) {
	network, parties := testNetwork(f, 1)
	s, err := SignConsensus(testConsensus(f, network, parties, 1), parties[0].key, parties[0].cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Raw())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseSignature(b, network); err == nil && !bytes.Equal(s.encode(), b) {
			t.Fatal("an accepted signature has another form")
		}
	})
}
