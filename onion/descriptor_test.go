package onion_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/onion"
)

var soak = flag.Bool("soak", false, "run the long campaigns: each byte of a descriptor, and 1,000 services")

func newDescriptor(points int) *onion.Descriptor {
	d := &onion.Descriptor{Revision: 1000, Suite: 1, Lifetime: 3 * time.Hour}
	for i := range points {
		d.Points = append(d.Points, onion.Point{
			Relay: identity.ID(publicOf(bytesOf(fmt.Sprint("relay ", i), 32))), Key: identity.ID(publicOf(bytesOf(fmt.Sprint("key ", i), 32))),
			Seal: [onion.SealKeySize]byte(bytesOf(fmt.Sprint("seal ", i), onion.SealKeySize)), Effort: uint32(i), Seed: [32]byte(bytesOf("seed", 32)),
		})
	}
	return d
}

func newClients(n int) (secrets []*onion.ClientSecret, keys []onion.ClientKey) {
	for i := range n {
		s := must(onion.NewClientSecret(bytes.NewReader(bytesOf(fmt.Sprint("client ", i), 32))))
		secrets, keys = append(secrets, s), append(keys, s.Key())
	}
	return secrets, keys
}

func TestDescriptor(t *testing.T) {
	k, a := newKey(t, "one", "main", 5), addressOf("one")
	secrets, keys := newClients(onion.MaxClients)
	stranger := []*onion.ClientSecret{must(onion.NewClientSecret(nil)), must(onion.NewClientSecret(nil))}
	for _, points := range []int{1, 3, onion.MaxPoints} {
		sizes := map[int]int{}
		for _, clients := range []int{0, 1, 16, 17, onion.MaxClients} {
			d := newDescriptor(points)
			b, err := d.Encode("main", a, k, keys[:clients], nil)
			if err != nil {
				t.Fatal(err)
			}
			sizes[clients] = len(b)
			if len(b) > onion.MaxDescriptor {
				t.Errorf("%d points, %d clients: %d bytes", points, clients, len(b))
			}
			open := func(auth []*onion.ClientSecret) (*onion.Descriptor, error) {
				return onion.OpenDescriptor(b, "main", a, 5, testFrom, auth)
			}
			if clients == 0 {
				for _, auth := range [][]*onion.ClientSecret{nil, stranger} {
					if got, err := open(auth); err != nil || fmt.Sprint(got) != fmt.Sprint(d) {
						t.Errorf("%d points: %v", points, err)
					}
				}
				continue
			}
			if got, err := open(nil); err != onion.ErrAuthNeeded || got != nil {
				t.Errorf("no secret: %v, %v", got, err)
			}
			for _, auth := range [][]*onion.ClientSecret{stranger, secrets[clients:]} {
				if got, err := open(auth); len(auth) > 0 && (err != onion.ErrAuthWrong || got != nil) {
					t.Errorf("secrets of others: %v, %v", got, err)
				}
			}
			for _, i := range []int{0, clients / 2, clients - 1} {
				if got, err := open(append(stranger[:2:2], secrets[i])); err != nil || fmt.Sprint(got) != fmt.Sprint(d) {
					t.Errorf("client %d of %d: %v", i, clients, err)
				}
			}
		}
		if sizes[0] != sizes[1] || sizes[0] != sizes[16] {
			t.Errorf("%d points: 0, 1 and 16 clients have %d, %d and %d bytes", points, sizes[0], sizes[1], sizes[16])
		}
		t.Logf("%d points: bytes by number of clients %v", points, sizes)
	}
}

// Of two descriptors the later one has the greater revision, in the envelope and inside; the older one opens all the same, and
// whoever holds both compares.
func TestDescriptorRevisions(t *testing.T) {
	k, a := newKey(t, "one", "main", 5), addressOf("one")
	var last uint64
	for _, since := range []time.Duration{time.Hour, time.Hour + 2*time.Second, 5 * time.Hour} {
		d := newDescriptor(1)
		d.Revision = onion.Revision(k, since, 24*time.Hour)
		b, err := d.Encode("main", a, k, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		e, err := onion.ParseEnvelope(b)
		if err != nil || e.Revision <= last || e.Revision != d.Revision {
			t.Fatalf("revision %d after %d: %v", e.Revision, last, err)
		}
		if got, err := onion.OpenDescriptor(b, "main", a, 5, testFrom, nil); err != nil || got.Revision != d.Revision {
			t.Fatalf("opened with revision %v: %v", got, err)
		}
		last = e.Revision
	}
}

func TestDescriptorRefusedWhenMade(t *testing.T) {
	k, a := newKey(t, "one", "main", 5), addressOf("one")
	_, keys := newClients(onion.MaxClients + 1)
	for _, v := range []struct {
		name, network string
		address       onion.Address
		points        int
		clients       []onion.ClientKey
		want          error
	}{
		{"no points", "main", a, 0, nil, onion.ErrContent},
		{"21 points", "main", a, onion.MaxPoints + 1, nil, onion.ErrContent},
		{"another network", "niam", a, 1, nil, onion.ErrPeriodKey},
		{"another address", "main", addressOf("two"), 1, nil, onion.ErrPeriodKey},
		{"no network", "", a, 1, nil, onion.ErrNetworkName},
		{"257 clients", "main", a, 1, keys, onion.ErrClients},
		{"a client twice", "main", a, 1, []onion.ClientKey{keys[0], keys[1], keys[0]}, onion.ErrClients},
		{"a client of zeros", "main", a, 1, []onion.ClientKey{{}}, onion.ErrClients},
	} {
		if b, err := newDescriptor(v.points).Encode(v.network, v.address, k, v.clients, nil); !errors.Is(err, v.want) || b != nil {
			t.Errorf("%s: %v", v.name, err)
		}
	}
	for _, n := range []int{0, 31, 32, 64, 95, 96, 500} {
		if b, err := newDescriptor(1).Encode("main", a, k, nil, bytes.NewReader(make([]byte, n))); !errors.Is(err, onion.ErrRandom) || b != nil {
			t.Errorf("%d random bytes: %v", n, err)
		}
	}
	for name, bad := range map[string]*onion.PeriodKey{
		"nothing": {Period: 5}, "no certificate": {Period: 5, Blinded: k.Blinded, Signing: k.Signing},
	} {
		if _, err := newDescriptor(1).Encode("main", a, bad, nil, nil); !errors.Is(err, onion.ErrPeriodKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each byte of a descriptor is changed in turn: nobody accepts it, neither a relay nor a client. Of the sealed part, which the
// signature covers as a whole, it is every eighth without -soak; TestLayersRefuseFlips has all of it.
func TestDescriptorRefusesFlips(t *testing.T) {
	k, a := newKey(t, "one", "main", 5), addressOf("one")
	b, err := newDescriptor(1).Encode("main", a, k, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	check := func() error {
		e, err := onion.ParseEnvelope(b)
		if err == nil {
			err = e.Verify("main", testFrom)
		}
		return err
	}
	accepted, tried := 0, 0
	for i := range b {
		if !*soak && i >= 320 && i < len(b)-80 && i%8 != 0 {
			continue
		}
		tried++
		// Clients do what relays do first, and then more: a part of the bytes is enough.
		b[i] ^= 1 << (i % 8)
		if err := check(); err == nil {
			accepted++
		} else if !errors.Is(err, onion.ErrInvalid) && !errors.Is(err, onion.ErrWrongNetwork) {
			t.Errorf("byte %d: %v", i, err)
		}
		if i%64 == 0 {
			if _, err := onion.OpenDescriptor(b, "main", a, 5, testFrom, nil); err == nil {
				t.Errorf("byte %d: a client accepts it", i)
			}
		}
		b[i] ^= 1 << (i % 8)
	}
	if err := check(); err != nil {
		t.Fatalf("unaltered: %v", err)
	}
	if accepted != 0 {
		t.Errorf("%d of %d altered ones were accepted", accepted, tried)
	}
	t.Logf("%d of %d altered ones were accepted", accepted, tried)
}

// What a relay stores says nothing of whose it is: of 1,000 services (with -soak), none is found by its address, its keys, its subcredential
// or its introduction points, and what it stores in one period has nothing in common with what it stores in the next.
func TestEnvelopesTellNothing(t *testing.T) {
	services := 50
	if *soak {
		services = 1000
	}
	found, linked := 0, 0
	d := newDescriptor(1)
	_, clients := newClients(1)
	for n := range services {
		service := fmt.Sprint("service ", n)
		a := addressOf(service)
		var stored [2][]byte
		for i := range stored {
			k := newKey(t, service, "main", uint64(5+i))
			d.Revision = onion.Revision(k, time.Hour, 24*time.Hour)
			b, err := d.Encode("main", a, k, clients, nil)
			if err != nil {
				t.Fatal(err)
			}
			stored[i] = b
			subcredential := onion.Subcredential(a, k.Blinded)
			seed := k.Signing.Seed()
			for _, secret := range [][]byte{
				a[:8], []byte(a.String()[:12]), subcredential[:8], seed[:8], d.Points[0].Relay[:8], d.Points[0].Key[:8], d.Points[0].Seal[:8], clients[0][:8],
			} {
				if bytes.Contains(b, secret) {
					found++
				}
			}
		}
		one, two := must(onion.ParseEnvelope(stored[0])), must(onion.ParseEnvelope(stored[1]))
		if one.Blinded == two.Blinded || one.Revision == two.Revision || one.Certificate.Subject == two.Certificate.Subject || common(stored[0], stored[1]) {
			linked++
		}
	}
	if found != 0 || linked != 0 {
		t.Errorf("of %d services, %d were found and %d linked", services, found, linked)
	}
	t.Logf("of %d services, %d were found and %d linked", services, found, linked)
}

// common tells whether two descriptors share any 8 bytes beyond what is everybody's: version, beginning of the period, version and
// purpose and times of the certificate, and the name of the network.
func common(a, b []byte) bool {
	private := func(b []byte) [][]byte { return [][]byte{b[9:17], b[17+18 : 17+146], b[163:195], b[200:]} }
	seen := map[[8]byte]bool{}
	for _, part := range private(a) {
		for i := range len(part) - 7 {
			seen[[8]byte(part[i:])] = true
		}
	}
	for _, part := range private(b) {
		for i := range len(part) - 7 {
			if seen[[8]byte(part[i:])] {
				return true
			}
		}
	}
	return false
}

func FuzzParseEnvelope(f *testing.F) {
	k := newKey(f, "one", "main", 5)
	b, err := newDescriptor(1).Encode("main", addressOf("one"), k, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(b[:300])
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := onion.ParseEnvelope(in)
		if err != nil {
			if !errors.Is(err, onion.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(e.AppendTo(nil), in) {
			t.Fatalf("written as %x", e.AppendTo(nil))
		}
		if e.Verify("main", testFrom) == nil && !bytes.Equal(in, b) {
			t.Fatal("a forged descriptor is accepted")
		}
		if _, err := onion.OpenDescriptor(in, "main", addressOf("one"), 5, testFrom, nil); (err == nil) != bytes.Equal(in, b) {
			t.Fatal(err)
		}
	})
}
