package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// MaxCertificateFileSize bounds a certificate file, in bytes. Ours: the longest
	// that EncodeCertificateFile makes has 554.
	MaxCertificateFileSize = 1024

	certFileHead = "cepa certificate 1\n"
	certLabel    = "certificate "
)

// ErrCertificateFile says that bytes are not a certificate file.
var ErrCertificateFile = errors.New("identity: bad certificate file")

// EncodeCertificateFile returns the text in which a certificate is kept or handed
// from person to person:
//
//	cepa certificate 1
//	purpose family
//	identity 64 hex digits
//	subject 64 hex digits
//	from 2026-01-02T03:04:05Z
//	until 2026-04-02T03:04:05Z
//	certificate 292 hex digits
//
// The last line is the certificate, and the others say for people what is in it.
func EncodeCertificateFile(c *Certificate) []byte {
	b := make([]byte, 0, MaxCertificateFileSize)
	b = fmt.Appendf(b, "%spurpose %s\nidentity %s\nsubject %s\nfrom %s\nuntil %s\n%s",
		certFileHead, c.Purpose, c.Identity, c.Subject, stamp(c.NotBefore), stamp(c.NotAfter), certLabel)
	b = hex.AppendEncode(b, c.AppendTo(nil))
	return append(b, '\n')
}

// ParseCertificateFile returns the certificate of a certificate file. It accepts
// only what EncodeCertificateFile returns, so that the lines for people cannot say
// anything else than the certificate does; white space at the ends does not count,
// as it comes and goes when people copy text. Errors are ErrCertificateFile, and
// those of ParseCertificate besides. The signature and the times are not looked at:
// that is Verify. b is not kept.
func ParseCertificateFile(b []byte) (*Certificate, error) {
	fail := func(err error) (*Certificate, error) { return nil, fmt.Errorf("%w: %w", ErrCertificateFile, err) }
	if len(b) > MaxCertificateFileSize {
		return fail(fmt.Errorf("it has more than %d bytes", MaxCertificateFileSize))
	}
	text := string(bytes.TrimSpace(b)) + "\n"
	if !IsCertificateFile([]byte(text)) {
		return fail(errors.New("it does not start as a certificate file does"))
	}
	at := strings.LastIndex(text, "\n"+certLabel)
	if at < 0 {
		return fail(errors.New("its last line is not a certificate: is its end missing?"))
	}
	digits := strings.TrimSuffix(text[at+1+len(certLabel):], "\n")
	raw := make([]byte, CertificateSize)
	if !decodeHex(raw, []byte(digits)) {
		return fail(fmt.Errorf("its certificate is not %d lower-case hex digits", 2*CertificateSize))
	}
	c, err := ParseCertificate(raw)
	if err != nil {
		return fail(err)
	}
	if string(EncodeCertificateFile(c)) != text {
		return fail(errors.New("its lines for people are not those of its certificate: it was changed"))
	}
	return c, nil
}

// IsCertificateFile reports whether b begins as a certificate file does.
func IsCertificateFile(b []byte) bool { return bytes.HasPrefix(b, []byte(certFileHead)) }

// IsKeyFile reports whether b begins as a key file does: it is secret.
func IsKeyFile(b []byte) bool { return bytes.HasPrefix(b, []byte(keyFileMagic)) }

// Generation orders the certificates of one identity for one purpose: of two, the one
// that begins later was issued later, and takes the place of the other with those who
// know both (doc/spec.md section 6). It is the first second of validity, as Unix time.
func (c *Certificate) Generation() int64 { return c.NotBefore.Unix() }

// Remaining is for how long the certificate is still valid at now; negative after its
// end.
func (c *Certificate) Remaining(now time.Time) time.Duration { return c.NotAfter.Sub(now) }
