package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testKey is the key whose seed is n in every byte.
func testKey(t testing.TB, n byte) *Key {
	t.Helper()
	k, err := FromSeed(bytes.Repeat([]byte{n}, SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Vectors: RFC 8032 section 7.1, tests 1 to 3.
func TestRFC8032(t *testing.T) {
	for _, v := range []struct{ seed, public, msg, sig string }{
		{
			"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
			"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
			"",
			"e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
		},
		{
			"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
			"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
			"72",
			"92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
		},
		{
			"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
			"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
			"af82",
			"6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
		},
	} {
		k, err := FromSeed(unhex(t, v.seed))
		if err != nil {
			t.Fatal(err)
		}
		if k.ID().String() != v.public {
			t.Errorf("ID = %s, want %s", k.ID(), v.public)
		}
		msg, sig := unhex(t, v.msg), unhex(t, v.sig)
		if got := k.Sign(msg); !bytes.Equal(got, sig) {
			t.Errorf("Sign = %x, want %x", got, sig)
		}
		if !Verify(k.ID(), msg, sig) {
			t.Error("Verify refuses the vector's signature")
		}
		if !bytes.Equal(k.Seed(), unhex(t, v.seed)) {
			t.Errorf("Seed = %x", k.Seed())
		}
	}
}

func TestGenerate(t *testing.T) {
	stream := bytes.Repeat([]byte{3}, SeedSize)
	k, err := Generate(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	if k.ID() != testKey(t, 3).ID() {
		t.Error("Generate does not use the random bytes as the seed")
	}
	if _, err := Generate(bytes.NewReader(stream[1:])); err == nil {
		t.Error("Generate made a key of 31 random bytes")
	}
	if _, err := Generate(io.LimitReader(nil, 0)); err == nil {
		t.Error("Generate made a key of no random bytes")
	}
	a, errA := Generate(nil)
	b, errB := Generate(nil)
	if errA != nil || errB != nil || a.ID() == b.ID() {
		t.Errorf("two keys from crypto/rand: %v %v, %v %v", a, errA, b, errB)
	}
	for _, n := range []int{0, 31, 33, 64} {
		if _, err := FromSeed(make([]byte, n)); err == nil {
			t.Errorf("FromSeed took %d bytes", n)
		}
	}
}

func TestSeedIsACopy(t *testing.T) {
	seed := bytes.Repeat([]byte{4}, SeedSize)
	k, err := FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	seed[0], k.Seed()[1] = 9, 9
	if !Verify(testKey(t, 4).ID(), []byte("m"), k.Sign([]byte("m"))) {
		t.Error("changing a seed outside changed the key")
	}
}

// A key that is printed or logged by mistake must not show its seed in any base.
func TestKeyHidesItself(t *testing.T) {
	k := testKey(t, 0xa7)
	var text strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%T %[1]v"} {
		fmt.Fprintf(&text, verb+"\n", k)
		fmt.Fprintf(&text, verb+"\n", *k)
		fmt.Fprintf(&text, verb+"\n", struct{ K *Key }{k}.K)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&text, nil), slog.NewJSONHandler(&text, nil)} {
		slog.New(h).Info("key", "key", k, "value", *k)
	}
	got := strings.ToLower(text.String())
	for _, secret := range []string{"a7a7", "a7, 0xa7", "a7,0xa7", "167 167", "167,167", "247 247", "p6en", "10100111 10100111"} {
		if strings.Contains(got, secret) {
			t.Errorf("output holds the seed as %q:\n%s", secret, got)
		}
	}
	if !strings.Contains(got, "private key of "+k.ID().Short()) {
		t.Errorf("output does not name the key:\n%s", got)
	}
}

func TestVerifyRefuses(t *testing.T) {
	k, msg := testKey(t, 1), []byte("cepa/1 test")
	sig := k.Sign(msg)
	if !Verify(k.ID(), msg, sig) {
		t.Fatal("Verify refuses an honest signature")
	}
	for i := range 8 * len(sig) {
		bent := bytes.Clone(sig)
		bent[i/8] ^= 1 << (i % 8)
		if Verify(k.ID(), msg, bent) {
			t.Errorf("Verify accepts the signature with bit %d turned", i)
		}
	}
	for i := range 8 * IDSize {
		id := k.ID()
		id[i/8] ^= 1 << (i % 8)
		if Verify(id, msg, sig) {
			t.Errorf("Verify accepts the key with bit %d turned", i)
		}
	}
	for name, bad := range map[string][]byte{
		"nil": nil, "empty": {}, "short": sig[:63], "long": append(bytes.Clone(sig), 0), "half": sig[:32],
	} {
		if Verify(k.ID(), msg, bad) {
			t.Errorf("Verify accepts a signature that is %s", name)
		}
	}
	if Verify(k.ID(), msg[1:], sig) || Verify(testKey(t, 2).ID(), msg, sig) || Verify(ID{}, msg, sig) {
		t.Error("Verify accepts another message or another key")
	}
	if !ed25519.Verify(k.private.Public().(ed25519.PublicKey), msg, sig) {
		t.Error("crypto/ed25519 does not agree")
	}
}
