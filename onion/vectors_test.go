package onion_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/onion"
)

// The file in testdata is made by makevectors_test.go from the reference, never by the code it tests:
//
//	go test ./onion -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// hexBytes is written as a hex string.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is testdata/onion.json.
type vectors struct {
	About              string              `json:"about"`
	Addresses          []addressVector     `json:"addresses"`
	AddressFailures    []addressFailure    `json:"address_failures"`
	Periods            []periodVector      `json:"periods"`
	Rings              []ringVector        `json:"rings"`
	Clients            []clientVector      `json:"clients"`
	ClientFailures     []clientFailure     `json:"client_failures"`
	Descriptors        []descriptorVector  `json:"descriptors"`
	DescriptorFailures []descriptorFailure `json:"descriptor_failures"`
	ContentFailures    []contentFailure    `json:"content_failures"`
	Handshakes         []handshakeVector   `json:"handshakes"`
	HandshakeFailures  []handshakeFailure  `json:"handshake_failures"`
}

type addressVector struct {
	Key     hexBytes `json:"key"`
	Address string   `json:"address"`
	Hosts   []string `json:"hosts"` // other names of it
}

type addressFailure struct {
	Name  string `json:"name"`
	Host  string `json:"host"`
	Error string `json:"error"`
}

// periodVector is what a service is in one period, from its seed.
type periodVector struct {
	Seed          hexBytes         `json:"seed"` // RFC 8032's private key
	Address       string           `json:"address"`
	Network       string           `json:"network"`
	Period        uint64           `json:"period"`
	Factor        hexBytes         `json:"factor"` // reduced, little-endian
	Blinded       hexBytes         `json:"blinded"`
	Subcredential hexBytes         `json:"subcredential"`
	SigningSeed   hexBytes         `json:"signing_seed"`
	NotBefore     int64            `json:"not_before"`
	NotAfter      int64            `json:"not_after"`
	Certificate   hexBytes         `json:"certificate"`
	Revisions     []revisionVector `json:"revisions"`
	Bundle        hexBytes         `json:"bundle"`
}

type revisionVector struct {
	Since    int64  `json:"since_ms"` // after the period's beginning, which lasts a day
	Revision uint64 `json:"revision"`
}

type ringVector struct {
	Network     string     `json:"network"`
	Period      uint64     `json:"period"`
	Random      hexBytes   `json:"random"`
	Relays      []hexBytes `json:"relays"`
	Places      []hexBytes `json:"places"` // of the relays
	Blinded     hexBytes   `json:"blinded"`
	Replicas    []hexBytes `json:"replicas"` // their places
	Spread      int        `json:"spread"`
	Responsible []hexBytes `json:"responsible"`
}

type clientVector struct {
	Secret     hexBytes `json:"secret"`
	Public     hexBytes `json:"public"`
	SecretText string   `json:"secret_text"`
	PublicText string   `json:"public_text"`
}

type clientFailure struct {
	Name string `json:"name"`
	Text string `json:"text"` // neither a public nor a secret key
}

type pointVector struct {
	Relay        hexBytes `json:"relay"`
	Key          hexBytes `json:"key"`
	SealSeed     hexBytes `json:"seal_seed"` // X-Wing's private key
	Effort       uint32   `json:"effort"`
	Seed         hexBytes `json:"seed"`
	PreviousSeed hexBytes `json:"previous_seed"`
}

// descriptorVector is a descriptor in the period of the entry of periods that Base counts, from 0.
type descriptorVector struct {
	Name       string        `json:"name"`
	Base       int           `json:"base"`
	Revision   uint64        `json:"revision"`
	Suite      uint8         `json:"suite"`
	SingleHop  bool          `json:"single_hop"`
	Lifetime   uint32        `json:"lifetime"`
	Points     []pointVector `json:"points"`
	Clients    []hexBytes    `json:"clients"` // public keys
	Secrets    []hexBytes    `json:"secrets"` // of some of them
	Random     hexBytes      `json:"random"`
	OuterKey   hexBytes      `json:"outer_key"`
	InnerKey   hexBytes      `json:"inner_key"`
	Outer      hexBytes      `json:"outer"` // up to the inner layer
	Descriptor hexBytes      `json:"descriptor"`
}

// change is bytes of something replaced by others.
type change struct {
	At    int      `json:"at"`
	Bytes hexBytes `json:"bytes"`
}

// descriptorFailure is what must be refused: a descriptor of its own, or that of Base with changes and of another length.
type descriptorFailure struct {
	Name       string     `json:"name"`
	Base       string     `json:"base"`
	Error      string     `json:"error"`
	Descriptor hexBytes   `json:"descriptor,omitempty"`
	Changes    []change   `json:"changes,omitempty"`
	Length     *int       `json:"length,omitempty"`
	Network    string     `json:"network,omitempty"` // in which it is opened
	Period     *uint64    `json:"period,omitempty"`
	Address    string     `json:"address,omitempty"`
	Now        *int64     `json:"now,omitempty"`
	Secrets    []hexBytes `json:"secrets,omitempty"`
}

// contentFailure is a content, without the zeros behind, that no descriptor may have.
type contentFailure struct {
	Name    string   `json:"name"`
	Content hexBytes `json:"content"`
	Length  int      `json:"length"`
}

// handshakeVector is a handshake in the period of the entry of periods that Base counts, from its randomness to its keys.
type handshakeVector struct {
	Name         string      `json:"name"`
	Base         int         `json:"base"`
	Point        pointVector `json:"point"`
	Cookie       hexBytes    `json:"cookie"`
	Rendezvous   hexBytes    `json:"rendezvous"`
	ClientRandom hexBytes    `json:"client_random"` // X25519 secret, X-Wing (ML-KEM m, X25519 secret), ML-KEM m
	HostRandom   hexBytes    `json:"host_random"`   // X25519 secret, ML-KEM d || z
	Info         hexBytes    `json:"info"`
	Sealed       hexBytes    `json:"sealed"`
	Export       hexBytes    `json:"export"`
	DH           hexBytes    `json:"dh"`
	Reply        hexBytes    `json:"reply"`
	Ciphertext   hexBytes    `json:"ciphertext"`
	KEMSecret    hexBytes    `json:"kem_secret"`
	Confirmation hexBytes    `json:"confirmation"`
	First        hexBytes    `json:"first"`
	Forward      hexBytes    `json:"forward"`
	Backward     hexBytes    `json:"backward"`
}

// handshakeFailure is the handshake of Base with one thing replaced, and the step at which it must die.
type handshakeFailure struct {
	Name   string    `json:"name"`
	Base   string    `json:"base"`
	Step   string    `json:"step"`
	Error  string    `json:"error"`
	Seal   *hexBytes `json:"seal,omitempty"` // public key of the point
	Period *uint64   `json:"period,omitempty"`
	Key    *hexBytes `json:"key,omitempty"` // introduction key, at the service
	Sealed *hexBytes `json:"sealed,omitempty"`
	Reply  *hexBytes `json:"reply,omitempty"`
	First  *hexBytes `json:"first,omitempty"`
}

func sentinel(name string) error {
	return map[string]error{
		"ErrNotAddress": onion.ErrNotAddress, "ErrOtherNetwork": onion.ErrOtherNetwork, "ErrAddressLength": onion.ErrAddressLength,
		"ErrAddressDigits": onion.ErrAddressDigits, "ErrAddressVersion": onion.ErrAddressVersion, "ErrAddressCheck": onion.ErrAddressCheck,
		"ErrAddressKey": onion.ErrAddressKey, "ErrInvalid": onion.ErrInvalid, "ErrWrongNetwork": onion.ErrWrongNetwork,
		"ErrAuthNeeded": onion.ErrAuthNeeded, "ErrAuthWrong": onion.ErrAuthWrong, "ErrLength": onion.ErrLength,
		"ErrAuthentication": onion.ErrAuthentication, "ErrLowOrder": onion.ErrLowOrder, "ErrKEMKey": onion.ErrKEMKey,
		"ErrConfirmation": onion.ErrConfirmation, "ErrBinding": onion.ErrBinding,
	}[name]
}

func TestVectors(t *testing.T) {
	const path = "testdata/onion.json"
	made, err := json.MarshalIndent(makeVectors(), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, made) {
		t.Errorf("%s is not what the reference makes", path)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	v := new(vectors)
	if err := dec.Decode(v); err != nil {
		t.Fatal(err)
	}
	for what, n := range map[string]int{
		"addresses": len(v.Addresses), "failures of addresses": len(v.AddressFailures) - 12, "periods": len(v.Periods) - 3,
		"rings": len(v.Rings) - 2, "clients": len(v.Clients), "failures of clients": len(v.ClientFailures) - 4,
		"descriptors": len(v.Descriptors) - 3, "failures of descriptors": len(v.DescriptorFailures) - 20,
		"failures of contents": len(v.ContentFailures) - 8, "handshakes": len(v.Handshakes), "failures of handshakes": len(v.HandshakeFailures) - 15,
	} {
		if n <= 0 {
			t.Errorf("too few %s: %d below the least", what, 1-n)
		}
	}
	each(t, "address", v.Addresses, func(a addressVector) string { return a.Address[:8] }, addressVector.check)
	each(t, "address failure", v.AddressFailures, func(a addressFailure) string { return a.Name }, addressFailure.check)
	each(t, "period", v.Periods, func(p periodVector) string { return fmt.Sprint(p.Network, p.Period) }, periodVector.check)
	each(t, "ring", v.Rings, func(r ringVector) string { return fmt.Sprint(len(r.Relays), "of", r.Spread) }, ringVector.check)
	each(t, "client", v.Clients, func(c clientVector) string { return c.PublicText }, clientVector.check)
	each(t, "client failure", v.ClientFailures, func(c clientFailure) string { return c.Name }, clientFailure.check)
	each(t, "descriptor", v.Descriptors, func(d descriptorVector) string { return d.Name }, func(d descriptorVector, t *testing.T) { d.check(t, v) })
	each(t, "descriptor failure", v.DescriptorFailures, func(d descriptorFailure) string { return d.Name }, func(d descriptorFailure, t *testing.T) { d.check(t, v) })
	each(t, "handshake", v.Handshakes, func(h handshakeVector) string { return h.Name }, func(h handshakeVector, t *testing.T) { h.check(t, v) })
	each(t, "handshake failure", v.HandshakeFailures, func(h handshakeFailure) string { return h.Name }, func(h handshakeFailure, t *testing.T) { h.check(t, v) })
}

func each[T any](t *testing.T, kind string, list []T, name func(T) string, check func(T, *testing.T)) {
	for _, v := range list {
		t.Run(kind+"/"+name(v), func(t *testing.T) { check(v, t) })
	}
}

func (v addressVector) check(t *testing.T) {
	if got := onion.AddressOf(identity.ID(v.Key)).String(); got != v.Address {
		t.Errorf("the key's address is %s", got)
	}
	for _, host := range append(v.Hosts, v.Address) {
		if a, err := onion.ParseAddress(host); err != nil || a != onion.Address(v.Key) || !onion.IsAddress(host) {
			t.Errorf("%s: %v, %v", host, a, err)
		}
	}
}

func (v addressFailure) check(t *testing.T) {
	_, err := onion.ParseAddress(v.Host)
	var typed *onion.AddressError
	if !errors.As(err, &typed) || !errors.Is(err, sentinel(v.Error)) {
		t.Errorf("%v, want %s", err, v.Error)
	}
	if err != nil && len(v.Host) > 20 && strings.Contains(err.Error(), v.Host[:20]) {
		t.Error("the error repeats the address")
	}
}

// key makes the period's key with the code under test.
func (v periodVector) key(t *testing.T) *onion.PeriodKey {
	t.Helper()
	id, err := identity.FromSeed(v.Seed)
	if err != nil {
		t.Fatal(err)
	}
	k, err := onion.NewPeriodKey(id, v.Network, v.Period, time.Unix(v.NotBefore, 0), time.Unix(v.NotAfter, 0), bytes.NewReader(v.SigningSeed))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (v periodVector) address() onion.Address { return must(onion.ParseAddress(v.Address)) }

func (v periodVector) check(t *testing.T) {
	a := v.address()
	blinded, err := onion.Blind(a, v.Network, v.Period)
	if err != nil || blinded != identity.ID(v.Blinded) {
		t.Errorf("blinded as %v: %v", blinded, err)
	}
	if got := onion.Subcredential(a, blinded); got != [32]byte(v.Subcredential) {
		t.Errorf("subcredential %x", got)
	}
	k := v.key(t)
	if k.Blinded != blinded || k.Period != v.Period || !bytes.Equal(k.Certificate.AppendTo(nil), v.Certificate) {
		t.Errorf("certificate %x", k.Certificate.AppendTo(nil))
	}
	for _, r := range v.Revisions {
		if got := onion.Revision(k, time.Duration(r.Since)*time.Millisecond, 24*time.Hour); got != r.Revision {
			t.Errorf("revision after %d ms is %d, want %d", r.Since, got, r.Revision)
		}
	}
	bundle := &onion.KeyBundle{Network: v.Network, Address: a, Keys: []*onion.PeriodKey{k}}
	if got := bundle.Encode(); !bytes.Equal(got, v.Bundle) {
		t.Errorf("bundle %x", got)
	}
	read, err := onion.ParseKeyBundle(v.Bundle)
	if err != nil || !bytes.Equal(read.Encode(), v.Bundle) || bytes.Contains(v.Bundle, v.Seed) {
		t.Errorf("bundle: %v", err)
	}
}

func (v ringVector) check(t *testing.T) {
	relays, want := make([]identity.ID, 0, len(v.Relays)), make([]identity.ID, 0, len(v.Responsible))
	for _, r := range v.Relays {
		relays = append(relays, identity.ID(r))
	}
	for _, r := range v.Responsible {
		want = append(want, identity.ID(r))
	}
	got := onion.NewRing(relays, v.Network, v.Period, [32]byte(v.Random)).Responsible(identity.ID(v.Blinded), len(v.Replicas), v.Spread)
	if !slices.Equal(got, want) {
		t.Errorf("responsible are %v, want %v", got, want)
	}
}

func (v clientVector) check(t *testing.T) {
	s, err := onion.NewClientSecret(bytes.NewReader(v.Secret))
	if err != nil || s.Key() != onion.ClientKey(v.Public) || s.String() != v.SecretText || s.Key().String() != v.PublicText {
		t.Fatalf("%s, %s: %v", s.String(), s.Key(), err)
	}
	if again, err := onion.ParseClientSecret(" " + v.SecretText + "\n"); err != nil || *again != *s {
		t.Errorf("read as %v: %v", again, err)
	}
	if k, err := onion.ParseClientKey(v.PublicText + "\n"); err != nil || k != s.Key() {
		t.Errorf("read as %v: %v", k, err)
	}
}

func (v clientFailure) check(t *testing.T) {
	_, err1 := onion.ParseClientKey(v.Text)
	_, err2 := onion.ParseClientSecret(v.Text)
	for _, err := range []error{err1, err2} {
		if !errors.Is(err, onion.ErrAuthText) || len(v.Text) > 30 && strings.Contains(err.Error(), v.Text[24:]) {
			t.Errorf("got %v", err)
		}
	}
}

func (v pointVector) point(t *testing.T) (onion.Point, *onion.SealKey) {
	t.Helper()
	key, err := onion.NewSealKey(bytes.NewReader(v.SealSeed))
	if err != nil {
		t.Fatal(err)
	}
	return onion.Point{
		Relay: identity.ID(v.Relay), Key: identity.ID(v.Key), Seal: key.Public(),
		Effort: v.Effort, Seed: [32]byte(v.Seed), PreviousSeed: [32]byte(v.PreviousSeed),
	}, key
}

func secretsOf(list []hexBytes) (secrets []*onion.ClientSecret) {
	for _, s := range list {
		secrets = append(secrets, must(onion.NewClientSecret(bytes.NewReader(s))))
	}
	return secrets
}

func (v descriptorVector) value(t *testing.T) (*onion.Descriptor, []onion.ClientKey) {
	t.Helper()
	d := &onion.Descriptor{Revision: v.Revision, Suite: v.Suite, SingleHop: v.SingleHop, Lifetime: time.Duration(v.Lifetime) * time.Second}
	for _, p := range v.Points {
		point, _ := p.point(t)
		d.Points = append(d.Points, point)
	}
	var clients []onion.ClientKey
	for _, c := range v.Clients {
		clients = append(clients, onion.ClientKey(c))
	}
	return d, clients
}

func (v descriptorVector) check(t *testing.T, all *vectors) {
	p := all.Periods[v.Base]
	d, clients := v.value(t)
	b, err := d.Encode(p.Network, p.address(), p.key(t), clients, bytes.NewReader(v.Random))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, v.Descriptor) {
		t.Error("made otherwise")
	}
	for _, now := range []int64{p.NotBefore, p.NotAfter} {
		got, err := onion.OpenDescriptor(v.Descriptor, p.Network, p.address(), p.Period, time.Unix(now, 0), secretsOf(v.Secrets))
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(d) {
			t.Error("opened as another")
		}
	}
	e, err := onion.ParseEnvelope(v.Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	if e.Network != p.Network || e.Period != p.Period || e.Revision != v.Revision || e.Blinded != identity.ID(p.Blinded) {
		t.Errorf("envelope %+v", e)
	}
	if !bytes.Equal(e.AppendTo(nil), v.Descriptor) {
		t.Error("the envelope is written otherwise")
	}
}

func (v descriptorFailure) check(t *testing.T, all *vectors) {
	i := slices.IndexFunc(all.Descriptors, func(d descriptorVector) bool { return d.Name == v.Base })
	base := all.Descriptors[i]
	p := all.Periods[base.Base]
	b := slices.Clone(base.Descriptor)
	if v.Descriptor != nil {
		b = v.Descriptor
	}
	for _, c := range v.Changes {
		copy(b[c.At:], c.Bytes)
	}
	if v.Length != nil {
		b = append(b, make([]byte, max(*v.Length-len(b), 0))...)[:*v.Length]
	}
	network, period, address, now := p.Network, p.Period, p.address(), time.Unix(p.NotBefore, 0)
	if v.Network != "" {
		network = v.Network
	}
	if v.Period != nil {
		period = *v.Period
	}
	if v.Address != "" {
		address = must(onion.ParseAddress(v.Address))
	}
	if v.Now != nil {
		now = time.Unix(*v.Now, 0)
	}
	d, err := onion.OpenDescriptor(b, network, address, period, now, secretsOf(v.Secrets))
	if want := sentinel(v.Error); want == nil || !errors.Is(err, want) || d != nil {
		t.Errorf("%v, want %s", err, v.Error)
	}
}

func (v handshakeVector) binding(all *vectors) onion.Binding {
	p := all.Periods[v.Base]
	return onion.Binding{Address: p.address(), Blinded: identity.ID(p.Blinded), Period: p.Period, Key: identity.ID(v.Point.Key)}
}

func (v handshakeVector) check(t *testing.T, all *vectors) {
	point, key := v.Point.point(t)
	b := v.binding(all)
	random := bytes.NewReader(v.ClientRandom)
	client, err := onion.Introduce(b, point.Seal, [onion.CookieSize]byte(v.Cookie), identity.ID(v.Rendezvous), random)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(client.Sealed(), v.Sealed) {
		t.Error("sealed otherwise")
	}
	host, err := onion.OpenIntroduction(b, key, v.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(host.Cookie[:], v.Cookie) || host.Rendezvous != identity.ID(v.Rendezvous) {
		t.Errorf("opened as %x, %v", host.Cookie, host.Rendezvous)
	}
	reply, waiting, err := host.Reply(bytes.NewReader(v.HostRandom))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(reply, v.Reply) {
		t.Error("replied otherwise")
	}
	keys, first, err := client.Finish(v.Reply, random)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, v.First) {
		t.Error("another first cell")
	}
	again, err := waiting.Finish(v.First)
	if err != nil {
		t.Fatal(err)
	}
	if keys != again || !bytes.Equal(keys.Forward[:], v.Forward) || !bytes.Equal(keys.Backward[:], v.Backward) {
		t.Error("other keys")
	}
	if random.Len() != 0 {
		t.Errorf("%d random bytes were not read", random.Len())
	}
}

func (v handshakeFailure) check(t *testing.T, all *vectors) {
	base := all.Handshakes[slices.IndexFunc(all.Handshakes, func(h handshakeVector) bool { return h.Name == v.Base })]
	step, err := v.run(t, base, all)
	var typed *onion.Error
	if want := sentinel(v.Error); want == nil || !errors.Is(err, want) || !errors.As(err, &typed) {
		t.Fatalf("%v, want %s", err, v.Error)
	}
	if step != v.Step || typed.Step.String() != v.Step {
		t.Errorf("died at %s (%v), want %s", step, typed.Step, v.Step)
	}
}

// run goes through the handshake until it dies, and says where.
func (v handshakeFailure) run(t *testing.T, base handshakeVector, all *vectors) (string, error) {
	point, key := base.Point.point(t)
	b := base.binding(all)
	random := bytes.NewReader(base.ClientRandom)
	if v.Seal != nil {
		point.Seal = [onion.SealKeySize]byte(*v.Seal)
	}
	client, err := onion.Introduce(b, point.Seal, [onion.CookieSize]byte(base.Cookie), identity.ID(base.Rendezvous), random)
	if err != nil {
		return "client: introduce", err
	}
	sealed, reply, first := client.Sealed(), base.Reply, base.First
	if v.Sealed != nil {
		sealed = *v.Sealed
	}
	if v.Period != nil {
		b.Period = *v.Period
	}
	if v.Key != nil {
		b.Key = identity.ID(*v.Key)
	}
	host, err := onion.OpenIntroduction(b, key, sealed)
	if err != nil {
		return "service: open introduction", err
	}
	_, waiting, err := host.Reply(bytes.NewReader(base.HostRandom))
	if err != nil {
		return "service: reply", err
	}
	if v.Reply != nil {
		reply = *v.Reply
	}
	if _, _, err := client.Finish(reply, random); err != nil {
		return "client: read reply", err
	}
	if v.First != nil {
		first = *v.First
	}
	_, err = waiting.Finish(first)
	return "service: read first cell", err
}
