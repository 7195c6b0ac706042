package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func testSecret() (s [SecretSize]byte) {
	for i := range s {
		s[i] = byte(0xc0 + i)
	}
	return s
}

func testKeyFile(t testing.TB, kind string) []byte {
	t.Helper()
	b, err := EncodeKeyFile(kind, testSecret())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeyFileText(t *testing.T) {
	const want = "cepa private key 1\n" +
		"kind x25519-onion\n" +
		"secret c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf\n" +
		"check 55f44caf61002e10\n"
	if got := string(testKeyFile(t, KindOnion)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestKeyFileRoundTrip(t *testing.T) {
	longest := strings.Repeat("z", maxKind)
	for _, kind := range []string{KindIdentity, KindSigning, KindOnion, "a", "0-9", longest} {
		b := testKeyFile(t, kind)
		if len(b) > MaxKeyFileSize {
			t.Errorf("%s: %d bytes, more than MaxKeyFileSize", kind, len(b))
		}
		if got, err := ParseKeyFile(b, kind); err != nil || got != testSecret() {
			t.Errorf("%s: read back as %x, %v", kind, got, err)
		}
	}
	if n := len(testKeyFile(t, longest)); n != 152 {
		t.Errorf("the longest file has %d bytes; the comment on MaxKeyFileSize says 152", n)
	}
}

func TestKeyFileKinds(t *testing.T) {
	for _, kind := range []string{"", "UPPER", "with space", "new\nline", "é", strings.Repeat("z", maxKind+1)} {
		if _, err := EncodeKeyFile(kind, testSecret()); err == nil {
			t.Errorf("kind %q was encoded", kind)
		}
	}
	secret, err := ParseKeyFile(testKeyFile(t, KindOnion), KindIdentity)
	var mixed *KindError
	if !errors.As(err, &mixed) || mixed.Want != KindIdentity || mixed.Got != KindOnion {
		t.Errorf("another kind: %v", err)
	}
	if errors.Is(err, ErrKeyFile) {
		t.Error("another kind is reported as damage")
	}
	if secret != [SecretSize]byte{} {
		t.Error("the secret of another kind was returned")
	}
}

// Any damage is told as damage, returns nothing and repeats nothing secret.
func TestKeyFileDamage(t *testing.T) {
	whole := testKeyFile(t, KindIdentity)
	refuse := func(name string, b []byte) {
		t.Helper()
		secret, err := ParseKeyFile(b, KindIdentity)
		if !errors.Is(err, ErrKeyFile) || secret != [SecretSize]byte{} {
			t.Errorf("%s: %x, %v, want ErrKeyFile", name, secret, err)
		} else if text := err.Error(); strings.Contains(text, "c0c1") || strings.Contains(text, "d0d1") {
			t.Errorf("%s: the error repeats the secret: %v", name, err)
		}
	}
	for i := range whole {
		refuse("cut", whole[:i])
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[i] ^= 1 << bit
			refuse("bit turned", b)
		}
		refuse("byte left out", append(bytes.Clone(whole[:i]), whole[i+1:]...))
		refuse("byte doubled", append(bytes.Clone(whole[:i+1]), whole[i:]...))
	}
	zeroed := bytes.Clone(whole)
	clear(zeroed[40:])
	for name, b := range map[string][]byte{
		"zeros from the middle": zeroed,
		"all zeros":             make([]byte, len(whole)),
		"newline added":         append(bytes.Clone(whole), '\n'),
		"twice":                 append(bytes.Clone(whole), whole...),
		"huge":                  bytes.Repeat(whole, 1000),
		"line ends of Windows":  bytes.ReplaceAll(whole, []byte("\n"), []byte("\r\n")),
		"upper case":            bytes.ToUpper(whole),
		"only the secret":       []byte(hex.EncodeToString(whole[:32])),
		"another program's":     []byte("-----BEGIN OPENSSH PRIVATE KEY-----\n"),
		"another version":       bytes.Replace(whole, []byte("key 1"), []byte("key 2"), 1),
	} {
		refuse(name, b)
	}
}

// Files with a right checksum that EncodeKeyFile would still not have made.
func TestKeyFileIsStrictBeyondChecksum(t *testing.T) {
	secret := hex.EncodeToString(bytes.Repeat([]byte{0xab}, SecretSize))
	for name, body := range map[string]string{
		"upper-case secret": keyFileHead + "kind a\nsecret " + strings.ToUpper(secret) + "\n",
		"short secret":      keyFileHead + "kind a\nsecret " + secret[2:] + "\n",
		"long secret":       keyFileHead + "kind a\nsecret " + secret + "00\n",
		"no label":          keyFileHead + "kind a\n" + secret + "\n",
		"two spaces":        keyFileHead + "kind a\nsecret  " + secret + "\n",
		"empty kind":        keyFileHead + "kind \nsecret " + secret + "\n",
		"bad kind":          keyFileHead + "kind A\nsecret " + secret + "\n",
		"no kind label":     keyFileHead + "a\nsecret " + secret + "\n",
		"lines exchanged":   keyFileHead + "secret " + secret + "\nkind a\n",
	} {
		sum := checksum([]byte(body))
		file := body + "check " + hex.EncodeToString(sum[:]) + "\n"
		if _, err := ParseKeyFile([]byte(file), "a"); !errors.Is(err, ErrKeyFile) {
			t.Errorf("%s: %v, want ErrKeyFile", name, err)
		}
	}
}

func FuzzParseKeyFile(f *testing.F) {
	whole := testKeyFile(f, KindOnion)
	f.Add(whole)
	f.Add(whole[:60])
	f.Add([]byte(keyFileHead))
	f.Add([]byte("kind a\nsecret b\ncheck c\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, secret, err := parseKeyFile(b)
		if err != nil {
			if _, err := ParseKeyFile(b, KindOnion); !errors.Is(err, ErrKeyFile) {
				t.Fatalf("%v, want ErrKeyFile", err)
			}
			return
		}
		again, err := EncodeKeyFile(kind, secret)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q became %q, %v", b, again, err)
		}
	})
}
