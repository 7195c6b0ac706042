package onion_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/onion"
)

var (
	testFrom = time.Unix(vectorFrom, 0)
	testTo   = time.Unix(vectorTo, 0)
)

func newKey(t testing.TB, service, network string, period uint64) *onion.PeriodKey {
	t.Helper()
	id, err := identity.FromSeed(bytesOf(service, 32))
	if err != nil {
		t.Fatal(err)
	}
	k, err := onion.NewPeriodKey(id, network, period, testFrom, testTo, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func addressOf(service string) onion.Address { return onion.Address(publicOf(bytesOf(service, 32))) }

func TestBlind(t *testing.T) {
	seen := map[identity.ID]string{}
	for _, service := range []string{"one", "two"} {
		for _, network := range []string{"main", "mai", "n"} {
			for _, period := range []uint64{0, 1, 1 << 40} {
				name := fmt.Sprint(service, network, period)
				id, err := onion.Blind(addressOf(service), network, period)
				if err != nil || seen[id] != "" {
					t.Errorf("%s is blinded as %s: %v", name, seen[id], err)
				}
				seen[id] = name
				if k := newKey(t, service, network, period); k.Blinded != id {
					t.Errorf("%s: the key of the period is another", name)
				}
			}
		}
	}
	for _, network := range []string{"", "Main", "a b", strings.Repeat("a", 33), "n\x00"} {
		if _, err := onion.Blind(addressOf("one"), network, 0); !errors.Is(err, onion.ErrNetworkName) {
			t.Errorf("%q: %v", network, err)
		}
	}
	if _, err := onion.Blind(onion.Address{}, "main", 0); !errors.Is(err, identity.ErrWeakKey) {
		t.Errorf("zeros: %v", err)
	}
}

func TestPeriodKeyRefused(t *testing.T) {
	id, err := identity.FromSeed(bytesOf("one", 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := onion.NewPeriodKey(id, "Main", 1, testFrom, testTo, nil); !errors.Is(err, onion.ErrNetworkName) {
		t.Error(err)
	}
	if _, err := onion.NewPeriodKey(id, "main", 1, testTo, testFrom, nil); err == nil {
		t.Error("a period that ends before it begins")
	}
	if _, err := onion.NewPeriodKey(id, "main", 1, testFrom, testTo, bytes.NewReader(nil)); err == nil {
		t.Error("a key without randomness")
	}
}

// A service that starts anew has another signing key and goes on with its revisions.
func TestRevision(t *testing.T) {
	const day = 24 * time.Hour
	k, again := newKey(t, "one", "main", 5), newKey(t, "one", "main", 5)
	if k.Signing.ID() == again.Signing.ID() {
		t.Fatal("the signing keys are equal, so this test shows nothing")
	}
	var last uint64
	for since := -30 * time.Hour; since < 80*time.Hour; since += 3617 * time.Second {
		r := onion.Revision(k, since, day)
		if r != onion.Revision(again, since, day) {
			t.Fatal("starting anew changes revisions")
		}
		if r < last || since > -day && since < 3*day && r <= last {
			t.Fatalf("%v: %d after %d", since, r, last)
		}
		last = r
	}
	// A step later is greater, also in a short period.
	for _, length := range []time.Duration{day, 10 * time.Second} {
		for n := range 10 {
			at := time.Duration(n) * length / 8
			if onion.Revision(k, at+length/65536+1, length) <= onion.Revision(k, at, length) {
				t.Errorf("%v of %v: a step does not count", at, length)
			}
		}
	}
	if a, b := onion.Revision(k, 0, 0), onion.Revision(k, -day, day); a != b {
		t.Errorf("a period without length: %d, want the first, %d", a, b)
	}
	// What services say at one time tells nothing: it is all over the place.
	var quarters [4]int
	for n := range 60 {
		quarters[min(onion.Revision(newKey(t, fmt.Sprint("revision ", n), "main", 5), 0, day)>>38, 3)]++
	}
	for _, n := range quarters {
		if n < 5 {
			t.Errorf("the revisions of 60 services at the beginning of the period: %v", quarters)
		}
	}
}

func TestRing(t *testing.T) {
	var relays []identity.ID
	for n := range 200 {
		relays = append(relays, identity.ID(hash(be(uint64(n), 8))))
	}
	random := [32]byte(bytesOf("random", 32))
	ring := onion.NewRing(relays, "main", 5, random)
	mixed := slices.Concat(relays[100:], relays[:150])
	again := onion.NewRing(mixed, "main", 5, random)
	count := map[identity.ID]int{}
	differ := 0
	for n := range 250 {
		blinded := identity.ID(hash([]byte("service"), be(uint64(n), 8)))
		got := ring.Responsible(blinded, 2, 4)
		if len(got) != 8 || !slices.Equal(got, again.Responsible(blinded, 2, 4)) {
			t.Fatalf("%d relays; their order or doubles count", len(got))
		}
		wide := ring.Responsible(blinded, 2, 8)
		for i, id := range got {
			if slices.Contains(got[:i], id) {
				t.Fatal("a relay is there twice")
			}
			if !slices.Contains(wide, id) {
				t.Fatal("a relay that is responsible is not with a greater spread")
			}
			count[id]++
		}
		if first := ring.Responsible(blinded, 2, 1)[0]; first != got[0] {
			t.Fatal("the nearest is not the first")
		}
		for _, other := range []*onion.Ring{
			onion.NewRing(relays, "niam", 5, random), onion.NewRing(relays, "main", 6, random), onion.NewRing(relays, "main", 5, [32]byte{}),
		} {
			if !slices.Equal(got, other.Responsible(blinded, 2, 4)) {
				differ++
			}
		}
	}
	if differ != 750 {
		t.Errorf("network, period or randomness do not count: %d of 750 differ", differ)
	}
	// 2,000 descriptors on 200 relays: 10 each on average.
	for id, n := range count {
		if n > 80 {
			t.Errorf("%s has %d descriptors", id.Short(), n)
		}
	}
	if len(count) < 180 {
		t.Errorf("only %d relays have a descriptor", len(count))
	}
	for _, v := range [][2]int{{0, 4}, {2, 0}, {-1, 4}, {2, -1}} {
		if got := ring.Responsible(relays[0], v[0], v[1]); len(got) != 0 {
			t.Errorf("%v: %d relays", v, len(got))
		}
	}
	small := onion.NewRing(relays[:3], "main", 5, random).Responsible(relays[9], 2, 4)
	if len(small) != 3 {
		t.Errorf("a ring of 3 has %d", len(small))
	}
}

func TestKeyBundle(t *testing.T) {
	b := &onion.KeyBundle{Network: "main", Address: addressOf("one")}
	for n := range uint64(5) {
		b.Keys = append(b.Keys, newKey(t, "one", "main", 10+2*n))
	}
	data := b.Encode()
	got, err := onion.ParseKeyBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	if got.Network != b.Network || got.Address != b.Address || len(got.Keys) != 5 || !bytes.Equal(got.Encode(), data) {
		t.Errorf("read as %v", got)
	}
	for period := uint64(9); period < 20; period++ {
		k, found := got.Key(period)
		if found != (period%2 == 0 && period >= 10 && period < 20) || found && k.Period != period {
			t.Errorf("period %d: %v, %v", period, k, found)
		}
		if !found {
			continue
		}
		want, _ := b.Key(period)
		if onion.Revision(k, time.Hour, 24*time.Hour) != onion.Revision(want, time.Hour, 24*time.Hour) {
			t.Error("revisions change on the way")
		}
		d := newDescriptor(3)
		made, err := d.Encode("main", b.Address, k, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := onion.OpenDescriptor(made, "main", b.Address, period, testFrom, nil); err != nil {
			t.Errorf("a descriptor by the bundle: %v", err)
		}
	}
	s := newRefService(bytesOf("one", 32), "main", 10)
	for name, secret := range map[string][]byte{
		"the identity": s.seed, "its scalar": hash512(s.seed)[:32], "a blinded key": littleEndian(s.scalar), "its prefix": s.prefix,
	} {
		if bytes.Contains(data, secret) {
			t.Errorf("the secret of %s is in the bundle", name)
		}
	}
}

// Damage is noticed at each byte, and what was put together wrongly even if the checksum fits.
func TestKeyBundleRefused(t *testing.T) {
	one := &onion.KeyBundle{Network: "main", Address: addressOf("one"), Keys: []*onion.PeriodKey{newKey(t, "one", "main", 10)}}
	data := one.Encode()
	refused := func(name string, b []byte) {
		t.Helper()
		if got, err := onion.ParseKeyBundle(b); !errors.Is(err, onion.ErrBundle) || got != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	sum := func(b []byte) []byte { return cat(b[:len(b)-8], hash(b[:len(b)-8])[:8]) }
	// From the end: checksum 8, certificate 146, secret of the revisions 32, which may be anything.
	free := len(data) - 8 - 146 - 32
	for i := range data {
		b := bytes.Clone(data)
		b[i] ^= 1
		refused(fmt.Sprint("byte ", i), b)
		if i < free || i >= free+32 && i < len(data)-8 {
			refused(fmt.Sprint("byte ", i, ", with the checksum made anew"), sum(b))
		}
		refused(fmt.Sprint("cut off at ", i), data[:i])
	}
	refused("something behind", append(bytes.Clone(data), 0))
	refused("longer than any", make([]byte, onion.MaxBundleSize+1))
	for name, keys := range map[string][]*onion.PeriodKey{
		"no period":           {},
		"a period twice":      {one.Keys[0], one.Keys[0]},
		"periods falling":     {newKey(t, "one", "main", 11), one.Keys[0]},
		"of another service":  {newKey(t, "two", "main", 10)},
		"of another network":  {newKey(t, "one", "niam", 10)},
		"another signing key": {{Period: 10, Blinded: one.Keys[0].Blinded, Signing: newKey(t, "one", "main", 10).Signing, Certificate: one.Keys[0].Certificate}},
		"certificate of another period": {{
			Period: 10, Blinded: one.Keys[0].Blinded, Signing: one.Keys[0].Signing, Certificate: newKey(t, "one", "main", 11).Certificate,
		}},
	} {
		refused(name, (&onion.KeyBundle{Network: "main", Address: one.Address, Keys: keys}).Encode())
	}
}

func FuzzParseAddress(f *testing.F) {
	good := addressOf("one").String()
	for _, s := range []string{good, "www." + strings.ToUpper(good) + ".", good[1:], "a" + good, strings.TrimSuffix(good, ".cepa.alt") + ".onion", "", ".", ".cepa.alt"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		a, err := onion.ParseAddress(host)
		if err != nil {
			var typed *onion.AddressError
			if !errors.As(err, &typed) || a != (onion.Address{}) {
				t.Fatalf("%v, %v", a, err)
			}
			return
		}
		text := a.String()
		if !strings.HasSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), text) || !onion.IsAddress(host) {
			t.Fatalf("read as %s", text)
		}
		if again, err := onion.ParseAddress(text); err != nil || again != a {
			t.Fatalf("%v: %v", again, err)
		}
	})
}

func FuzzParseKeyBundle(f *testing.F) {
	k := newKey(f, "one", "main", 10)
	data := (&onion.KeyBundle{Network: "main", Address: addressOf("one"), Keys: []*onion.PeriodKey{k}}).Encode()
	f.Add(data)
	f.Add(data[:100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, cat(b, hash(b)[:8])} {
			got, err := onion.ParseKeyBundle(b)
			if err == nil && !bytes.Equal(got.Encode(), b) {
				t.Fatalf("written as %x", got.Encode())
			}
		}
	})
}

func FuzzParseClient(f *testing.F) {
	s := must(onion.NewClientSecret(bytes.NewReader(bytesOf("client", 32))))
	f.Add(s.String())
	f.Add(s.Key().String())
	f.Add(" " + s.Key().String() + "\n")
	f.Add("cepa-onion-auth:")
	f.Fuzz(func(t *testing.T, text string) {
		if k, err := onion.ParseClientKey(text); err == nil {
			if again, err := onion.ParseClientKey(k.String()); err != nil || again != k || !strings.EqualFold(strings.TrimSpace(text), k.String()) {
				t.Fatalf("%v: %v", again, err)
			}
		}
		if k, err := onion.ParseClientSecret(text); err == nil {
			if again, err := onion.ParseClientSecret(k.String()); err != nil || *again != *k || !strings.EqualFold(strings.TrimSpace(text), k.String()) {
				t.Fatalf("%v: %v", again, err)
			}
		}
	})
}
