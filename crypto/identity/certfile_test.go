package identity

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func testCertificateFile(t testing.TB) (*Certificate, []byte) {
	t.Helper()
	from := time.Unix(1_700_000_000, 0)
	c, err := testKey(t, 1).Certify(PurposeFamily, testKey(t, 2).ID(), from, from.Add(90*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return c, EncodeCertificateFile(c)
}

func TestCertificateFile(t *testing.T) {
	c, file := testCertificateFile(t)
	for _, text := range []string{string(file), "\n" + string(file), strings.TrimSpace(string(file)), string(file) + " \r\n"} {
		got, err := ParseCertificateFile([]byte(text))
		if err != nil || *got != *c {
			t.Errorf("%q: parsed as %+v, error %v", text, got, err)
		}
	}
	for _, line := range []string{"purpose family", "from 2023-11-14T22:13:20Z", "until 2024-02-12T22:13:20Z", c.Identity.String(), c.Subject.String()} {
		if !strings.Contains(string(file), line) {
			t.Errorf("the file does not say %q to people:\n%s", line, file)
		}
	}
	if len(file) > MaxCertificateFileSize || !IsCertificateFile(file) || IsKeyFile(file) {
		t.Error("a certificate file is not known as one")
	}
}

// TestCertificateFileRefused: above all, what people read must be what is signed.
func TestCertificateFileRefused(t *testing.T) {
	c, file := testCertificateFile(t)
	text := string(file)
	for name, changed := range map[string]string{
		"nothing":                 "",
		"a key file":              "cepa private key 1\nkind ed25519-family\n",
		"another version":         strings.Replace(text, "certificate 1", "certificate 2", 1),
		"its end is missing":      text[:len(text)-200],
		"one digit less":          strings.TrimSpace(text)[:len(text)-2],
		"another end for people":  strings.Replace(text, "until 2024", "until 2034", 1),
		"another relay":           strings.Replace(text, "subject "+c.Subject.String(), "subject "+c.Identity.String(), 1),
		"another purpose":         strings.Replace(text, "purpose family", "purpose link", 1),
		"a line more":             strings.Replace(text, "purpose", "note all is well\npurpose", 1),
		"upper case":              strings.Replace(text, "certificate 01", "certificate 0A", 1),
		"line ends of another OS": strings.ReplaceAll(text, "\n", "\r\n"),
		"too long":                text + strings.Repeat("\n", MaxCertificateFileSize),
	} {
		if got, err := ParseCertificateFile([]byte(changed)); !errors.Is(err, ErrCertificateFile) || got != nil {
			t.Errorf("%s: parsed as %+v, error %v", name, got, err)
		}
	}
}

func TestGeneration(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	first, err := testKey(t, 1).Certify(PurposeConsensus, testKey(t, 2).ID(), at, at.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	second, err := testKey(t, 1).Certify(PurposeConsensus, testKey(t, 3).ID(), at.Add(time.Second), at.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if first.Generation() >= second.Generation() {
		t.Errorf("generations %d and %d", first.Generation(), second.Generation())
	}
	if got := first.Remaining(at.Add(2 * time.Hour)); got != -time.Hour {
		t.Errorf("%v are left, want an hour less than nothing", got)
	}
}

func FuzzParseCertificateFile(f *testing.F) {
	_, file := testCertificateFile(f)
	f.Add(file)
	f.Add(file[:40])
	f.Add(bytes.Replace(file, []byte("2024"), []byte("2034"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCertificateFile(b)
		if err != nil {
			return
		}
		again := EncodeCertificateFile(c)
		if !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(b)) {
			t.Errorf("%q is written again as %q", b, again)
		}
		if got, err := ParseCertificateFile(again); err != nil || *got != *c {
			t.Errorf("what was written again is %+v, error %v", got, err)
		}
	})
}
