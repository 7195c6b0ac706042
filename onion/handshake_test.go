package onion_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"

	"cepa/crypto/identity"
	"cepa/onion"
)

// ends is what a handshake needs on both sides.
type ends struct {
	binding    onion.Binding
	seal       *onion.SealKey
	cookie     [onion.CookieSize]byte
	rendezvous identity.ID
}

func newEnds(t testing.TB) *ends {
	t.Helper()
	a := onion.Address(publicOf(bytesOf("service", 32)))
	blinded, err := onion.Blind(a, "main", 7)
	if err != nil {
		t.Fatal(err)
	}
	seal, err := onion.NewSealKey(bytes.NewReader(bytesOf("seal", 32)))
	if err != nil {
		t.Fatal(err)
	}
	return &ends{
		onion.Binding{Address: a, Blinded: blinded, Period: 7, Key: identity.ID(publicOf(bytesOf("introduction key", 32)))},
		seal, [onion.CookieSize]byte(bytesOf("cookie", 20)), identity.ID(publicOf(bytesOf("rendezvous", 32))),
	}
}

func (e *ends) introduce(t testing.TB, random io.Reader) *onion.Introducer {
	t.Helper()
	i, err := onion.Introduce(e.binding, e.seal.Public(), e.cookie, e.rendezvous, random)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (e *ends) reply(t testing.TB, sealed []byte, random io.Reader) ([]byte, *onion.Waiting) {
	t.Helper()
	i, err := onion.OpenIntroduction(e.binding, e.seal, sealed)
	if err != nil {
		t.Fatal(err)
	}
	reply, w, err := i.Reply(random)
	if err != nil {
		t.Fatal(err)
	}
	return reply, w
}

func TestHandshake(t *testing.T) {
	e := newEnds(t)
	seen := map[onion.Keys]bool{}
	for range 20 {
		client := e.introduce(t, nil)
		host, err := onion.OpenIntroduction(e.binding, e.seal, client.Sealed())
		if err != nil || host.Cookie != e.cookie || host.Rendezvous != e.rendezvous {
			t.Fatalf("%+v: %v", host, err)
		}
		reply, waiting, err := host.Reply(nil)
		if err != nil {
			t.Fatal(err)
		}
		keys, first, err := client.Finish(reply, nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := waiting.Finish(first)
		if err != nil || keys != again {
			t.Fatalf("keys differ: %v", err)
		}
		if keys.Forward == keys.Backward || seen[keys] {
			t.Fatal("keys repeat")
		}
		seen[keys] = true

		if _, _, err := host.Reply(nil); !errors.Is(err, onion.ErrSpent) {
			t.Errorf("a second reply: %v", err)
		}
		if _, _, err := client.Finish(reply, nil); !errors.Is(err, onion.ErrSpent) {
			t.Errorf("a second reply read: %v", err)
		}
		if _, err := waiting.Finish(first); !errors.Is(err, onion.ErrSpent) {
			t.Errorf("a second first cell: %v", err)
		}
	}
}

// Two replies to one introduction have nothing in common: what is sent twice gives other keys, and neither side takes one for
// the other.
func TestReplayedIntroductionHasOtherKeys(t *testing.T) {
	e := newEnds(t)
	client := e.introduce(t, nil)
	reply1, waiting1 := e.reply(t, client.Sealed(), nil)
	_, waiting2 := e.reply(t, client.Sealed(), nil)
	_, first, err := client.Finish(reply1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := waiting2.Finish(first); !errors.Is(err, onion.ErrAuthentication) {
		t.Errorf("the second answer takes the client's cell: %v", err)
	}
	if _, err := waiting1.Finish(first); err != nil {
		t.Error(err)
	}
}

// Each byte of each message is changed in turn, and nobody accepts it.
func TestHandshakeRefusesFlips(t *testing.T) {
	e := newEnds(t)
	clientRandom, hostRandom := bytesOf("client", 128), bytesOf("host", 96)
	client := func() (*onion.Introducer, io.Reader) {
		r := bytes.NewReader(clientRandom)
		return e.introduce(t, r), r
	}
	c, r := client()
	sealed := bytes.Clone(c.Sealed())
	reply, _ := e.reply(t, sealed, bytes.NewReader(hostRandom))
	_, first, err := c.Finish(reply, r)
	if err != nil {
		t.Fatal(err)
	}
	flips := func(what string, message []byte, open func([]byte) error) {
		accepted := 0
		for i := range message {
			message[i] ^= 1 << (i % 8)
			switch err := open(message); {
			case err == nil:
				accepted++
			case !errors.Is(err, onion.ErrAuthentication):
				t.Errorf("%s: byte %d: %v", what, i, err)
			}
			message[i] ^= 1 << (i % 8)
		}
		if err := open(message); err != nil {
			t.Fatalf("%s, unaltered: %v", what, err)
		}
		if accepted != 0 {
			t.Errorf("%s: %d of %d altered ones were accepted", what, accepted, len(message))
		}
	}
	flips("introduction", sealed, func(b []byte) error {
		_, err := onion.OpenIntroduction(e.binding, e.seal, b)
		return err
	})
	flips("reply", reply, func(b []byte) error {
		c, r := client()
		_, _, err := c.Finish(b, r)
		return err
	})
	flips("first cell", first, func(b []byte) error {
		_, w := e.reply(t, sealed, bytes.NewReader(hostRandom))
		_, err := w.Finish(b)
		return err
	})
}

// A service opens what was sealed for exactly this address, period and introduction point.
func TestIntroductionIsBound(t *testing.T) {
	e := newEnds(t)
	sealed := e.introduce(t, nil).Sealed()
	other := onion.Address(publicOf(bytesOf("other service", 32)))
	for name, change := range map[string]func(*onion.Binding){
		"address":            func(b *onion.Binding) { b.Address = other },
		"blinded key":        func(b *onion.Binding) { b.Blinded = must(onion.Blind(b.Address, "main", 8)) },
		"network":            func(b *onion.Binding) { b.Blinded = must(onion.Blind(b.Address, "niam", 7)) },
		"period":             func(b *onion.Binding) { b.Period = 8 },
		"introduction point": func(b *onion.Binding) { b.Key = e.rendezvous },
	} {
		b := e.binding
		change(&b)
		if _, err := onion.OpenIntroduction(b, e.seal, sealed); !errors.Is(err, onion.ErrAuthentication) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	seal, err := onion.NewSealKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := onion.OpenIntroduction(e.binding, seal, sealed); !errors.Is(err, onion.ErrAuthentication) {
		t.Errorf("another seal: %v", err)
	}
	if _, err := onion.OpenIntroduction(e.binding, e.seal, sealed); err != nil {
		t.Error(err)
	}
}

func (e *ends) info() []byte {
	s := onion.Subcredential(e.binding.Address, e.binding.Blinded)
	return cat([]byte("cepa/1 introduce"), e.binding.Blinded[:], be(e.binding.Period, 8), e.binding.Key[:], s[:])
}

// Ours is circl's HPKE, X-Wing, ML-KEM and X25519; the standard library opens what it seals, and the reverse.
func TestHPKEAgreesWithStandardLibrary(t *testing.T) {
	e := newEnds(t)
	kem := hpke.MLKEM768X25519()
	private, err := kem.NewPrivateKey(bytesOf("seal", 32))
	if err != nil {
		t.Fatal(err)
	}
	if public := e.seal.Public(); !bytes.Equal(private.PublicKey().Bytes(), public[:]) {
		t.Fatal("the seed gives another key")
	}
	for range 50 {
		sealed := e.introduce(t, nil).Sealed()
		r, err := hpke.NewRecipient(sealed[:1120], private, hpke.HKDFSHA256(), hpke.AES256GCM(), e.info())
		if err != nil {
			t.Fatal(err)
		}
		plain, err := r.Open(e.binding.Key[:], sealed[1120:])
		if err != nil || !bytes.HasPrefix(plain, cat(e.cookie[:], e.rendezvous[:])) || len(plain) != 84 {
			t.Fatalf("opened as %x: %v", plain, err)
		}

		enc, s, err := hpke.NewSender(private.PublicKey(), hpke.HKDFSHA256(), hpke.AES256GCM(), e.info())
		if err != nil {
			t.Fatal(err)
		}
		secret, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		box, err := s.Seal(e.binding.Key[:], cat(e.cookie[:], e.rendezvous[:], secret.PublicKey().Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		export, err := s.Export("cepa/1 rendezvous", 32)
		if err != nil {
			t.Fatal(err)
		}
		reply, _ := e.reply(t, cat(enc, box), nil)
		dh := x25519(secret.Bytes(), reply[:32])
		key := kdf(cat(export, dh), hash(e.binding.Key[:], enc, box, reply[:1216]), "cepa/1 rendezvous mac", 32)
		if !bytes.Equal(mac(key, []byte("cepa/1 rendezvous"))[:16], reply[1216:]) {
			t.Fatal("the reply has another MAC than the export of the standard library gives")
		}
	}
}

// A client that is the reference in all of its parts, with randomness of its own each time, meets our service.
func TestHandshakeAgreesWithReference(t *testing.T) {
	s := newRefService(bytesOf("service", 32), "main", 7)
	for i := range 10 {
		p := newRefPoint(fmt.Sprint("point ", i), 0)
		client, host := make([]byte, 128), make([]byte, 96)
		_, _ = rand.Read(client)
		_, _ = rand.Read(host)
		h := newRefHandshake(s, p, bytesOf("cookie", 20), publicOf(bytesOf("rendezvous", 32)), client, host)
		seal, err := onion.NewSealKey(bytes.NewReader(p.sealSeed))
		if err != nil {
			t.Fatal(err)
		}
		b := onion.Binding{Address: onion.Address(s.address), Blinded: identity.ID(s.blinded), Period: 7, Key: identity.ID(p.key)}
		in, err := onion.OpenIntroduction(b, seal, h.sealed)
		if err != nil {
			t.Fatal(err)
		}
		reply, w, err := in.Reply(bytes.NewReader(host))
		if err != nil || !bytes.Equal(reply, h.reply) {
			t.Fatalf("other replies: %v", err)
		}
		keys, err := w.Finish(h.first)
		if err != nil || !bytes.Equal(keys.Forward[:], h.forward) || !bytes.Equal(keys.Backward[:], h.backward) {
			t.Fatalf("other keys: %v", err)
		}
	}
}

func TestHandshakeWithoutRandomness(t *testing.T) {
	e := newEnds(t)
	short := func(n int) io.Reader {
		return io.MultiReader(bytes.NewReader(bytesOf("short", n)), iotest.ErrReader(errors.New("no entropy")))
	}
	want := func(step onion.Step, err error) {
		t.Helper()
		var typed *onion.Error
		if !errors.Is(err, onion.ErrRandom) || !errors.As(err, &typed) || typed.Step != step {
			t.Errorf("%v: %v", step, err)
		}
	}
	for _, n := range []int{0, 31, 32, 95} {
		i, err := onion.Introduce(e.binding, e.seal.Public(), e.cookie, e.rendezvous, short(n))
		if want(onion.StepIntroduce, err); i != nil {
			t.Error("a machine without randomness")
		}
	}
	for _, n := range []int{0, 31, 32, 95} {
		i, err := onion.OpenIntroduction(e.binding, e.seal, e.introduce(t, nil).Sealed())
		if err != nil {
			t.Fatal(err)
		}
		reply, w, err := i.Reply(short(n))
		if want(onion.StepReply, err); reply != nil || w != nil {
			t.Error("a reply without randomness")
		}
	}
	c := e.introduce(t, nil)
	reply, _ := e.reply(t, c.Sealed(), nil)
	keys, first, err := c.Finish(reply, short(31))
	if want(onion.StepJoined, err); keys != (onion.Keys{}) || first != nil {
		t.Error("keys without randomness")
	}
	if _, err := onion.NewSealKey(short(31)); !errors.Is(err, onion.ErrRandom) {
		t.Error(err)
	}
	if _, err := onion.NewClientSecret(short(31)); !errors.Is(err, onion.ErrRandom) {
		t.Error(err)
	}
}

func TestEstablishMessage(t *testing.T) {
	exporter := bytesOf("exporter", 32)
	want := cat([]byte("cepa/1 establish introduction"), exporter, be(25, 4), be(200, 4))
	if got := onion.EstablishMessage([32]byte(exporter), 25, 200); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// Nothing that holds a secret prints it, with any verb.
func TestSecretsDoNotPrint(t *testing.T) {
	e := newEnds(t)
	client := e.introduce(t, bytes.NewReader(bytesOf("client", 128)))
	host, err := onion.OpenIntroduction(e.binding, e.seal, client.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	second, err := onion.OpenIntroduction(e.binding, e.seal, client.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	_, waiting, err := second.Reply(nil)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := onion.NewClientSecret(bytes.NewReader(bytesOf("secret", 32)))
	if err != nil {
		t.Fatal(err)
	}
	k, public := newKey(t, "service", "main", 7), e.seal.Public()
	bundle := &onion.KeyBundle{Network: "main", Address: onion.Address(publicOf(bytesOf("service", 32))), Keys: []*onion.PeriodKey{k}}
	for _, v := range []struct {
		value any
		want  string
	}{
		{client, "onion.Introducer(secret)"},
		{*client, "onion.Introducer(secret)"},
		{host, "onion.Introduction(secret)"},
		{waiting, "onion.Waiting(secret)"},
		{onion.Keys{}, "onion.Keys(secret)"},
		{e.seal, fmt.Sprintf("onion.SealKey(%x)", public[:4])},
		{secret, "secret of " + secret.Key().String()},
		{*secret, "secret of " + secret.Key().String()},
		{k, "onion.PeriodKey(period 7, " + k.Blinded.Short() + ")"},
		{bundle, "onion.KeyBundle(1 periods)"},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x", "%q"} {
			if got := fmt.Sprintf(verb, v.value); got != v.want {
				t.Errorf("%T with %s: %s", v.value, verb, got)
			}
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("", "value", v.value)
		if !strings.Contains(log.String(), `"value":"`+v.want+`"`) {
			t.Errorf("%T is logged as %s", v.value, log.String())
		}
	}
}

func FuzzOpenIntroduction(f *testing.F) {
	e := newEnds(f)
	sealed := e.introduce(f, bytes.NewReader(bytesOf("client", 128))).Sealed()
	f.Add(sealed)
	f.Add(sealed[:1219])
	f.Add(make([]byte, onion.SealedSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := onion.OpenIntroduction(e.binding, e.seal, b)
		if (err == nil) != bytes.Equal(b, sealed) {
			t.Fatalf("%v", err)
		}
		if err == nil && i.Cookie != e.cookie {
			t.Fatal("another cookie")
		}
	})
}

func FuzzReplyAndFirst(f *testing.F) {
	e := newEnds(f)
	random := bytes.NewReader(bytesOf("client", 128))
	c := e.introduce(f, random)
	sealed := bytes.Clone(c.Sealed())
	reply, _ := e.reply(f, sealed, bytes.NewReader(bytesOf("host", 96)))
	_, first, err := c.Finish(reply, random)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reply, first)
	f.Add(reply[:1231], first[:1266])
	f.Add(make([]byte, onion.ReplySize), make([]byte, onion.FirstSize))
	f.Fuzz(func(t *testing.T, r, cell []byte) {
		c := e.introduce(t, bytes.NewReader(bytesOf("client", 128)))
		if _, _, err := c.Finish(r, nil); (err == nil) != bytes.Equal(r, reply) {
			t.Fatalf("reply: %v", err)
		}
		_, w := e.reply(t, sealed, bytes.NewReader(bytesOf("host", 96)))
		if _, err := w.Finish(cell); (err == nil) != bytes.Equal(cell, first) {
			t.Fatalf("first cell: %v", err)
		}
	})
}
