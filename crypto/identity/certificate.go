package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	// CertificateSize is the length of a certificate in bytes: version (1), purpose
	// (1), not before (8), not after (8), subject key (32), identity (32),
	// signature (64). doc/spec.md section 6.
	CertificateSize = certificateSigned + SignatureSize

	// certificateSigned is the length in bytes of what the signature covers.
	certificateSigned = 1 + 1 + 8 + 8 + IDSize + IDSize
	// certificateVersion is the only version there is. doc/spec.md section 6.
	certificateVersion = 1
	// certificateContext precedes the signed bytes. doc/spec.md section 6.
	certificateContext = "cepa/1 certificate"
	// maxUnix is the last second, as Unix time, of the year 9999. Ours: a later
	// time has no usual text form, and nobody means it.
	maxUnix = 253402300799
)

var (
	// ErrMalformed says that bytes are not a certificate, whoever signed them.
	ErrMalformed = errors.New("identity: malformed certificate")
	// ErrPurpose says that a certificate is for something else.
	ErrPurpose = errors.New("identity: certificate is for another purpose")
	// ErrSignature says that the identity named in a certificate did not sign it.
	ErrSignature = errors.New("identity: bad signature on certificate")
	// ErrNotYetValid says that a certificate's time has not come.
	ErrNotYetValid = errors.New("identity: certificate is not valid yet")
	// ErrExpired says that a certificate's time is over.
	ErrExpired = errors.New("identity: certificate has expired")
)

// Purpose says what a certified key may sign. doc/spec.md section 6.
type Purpose uint8

// The purposes; any other value is malformed.
const (
	PurposeLink       Purpose = 1 // AUTH on a link, doc/spec.md section 3
	PurposeDescriptor Purpose = 2 // a relay's descriptors
	PurposeConsensus  Purpose = 3 // an authority's votes and consensus signatures
	PurposeFamily     Purpose = 4 // nothing: the subject is a relay's identity, a member of the family whose key certifies
	PurposeOnion      Purpose = 5 // an onion service's descriptors of one period; the blinded key certifies
)

// String returns the name that doc/spec.md gives to the purpose.
func (p Purpose) String() string {
	switch p {
	case PurposeLink:
		return "link"
	case PurposeDescriptor:
		return "descriptor"
	case PurposeConsensus:
		return "consensus"
	case PurposeFamily:
		return "family"
	case PurposeOnion:
		return "onion descriptor"
	}
	return fmt.Sprintf("purpose(%d)", uint8(p))
}

func (p Purpose) known() bool { return p >= PurposeLink && p <= PurposeOnion }

// Certificate is an identity's statement that, between two times, the key
// Subject may sign for it what Purpose names. Key.Certify and ParseCertificate
// make it; changing a field makes Verify fail, as the signature covers them all.
// Two certificates with the same bytes are equal under ==.
type Certificate struct {
	Purpose   Purpose
	NotBefore time.Time // first instant of validity, in whole seconds
	NotAfter  time.Time // last instant of validity, in whole seconds; later than NotBefore
	Subject   ID        // the certified key
	Identity  ID        // who certifies
	signature [SignatureSize]byte
}

// Certify signs a certificate for subject in the name of k. The format holds
// whole seconds from 1970 to 9999: both times are rounded down, so that a
// certificate from now on is valid at once and none outlives what was asked.
// An unknown purpose, times out of range or out of order, and a subject that is
// no acceptable key (ErrWeakKey) are errors.
func (k *Key) Certify(p Purpose, subject ID, notBefore, notAfter time.Time) (*Certificate, error) {
	return certify(k, p, subject, notBefore, notAfter)
}

func certify(k signer, p Purpose, subject ID, notBefore, notAfter time.Time) (*Certificate, error) {
	c := &Certificate{
		Purpose:   p,
		NotBefore: time.Unix(notBefore.Unix(), 0).UTC(),
		NotAfter:  time.Unix(notAfter.Unix(), 0).UTC(),
		Subject:   subject,
		Identity:  k.ID(),
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("identity: certifying %s: %w", subject.Short(), err)
	}
	copy(c.signature[:], k.Sign(c.appendSigned([]byte(certificateContext))))
	return c, nil
}

// ParseCertificate reads a certificate of exactly CertificateSize bytes. Errors
// are ErrMalformed, and ErrWeakKey besides when one of the keys is the reason.
// The signature and the times are not looked at: that is Verify. b is not kept.
func ParseCertificate(b []byte) (*Certificate, error) {
	if len(b) != CertificateSize {
		return nil, fmt.Errorf("%w: it has %d bytes, want %d", ErrMalformed, len(b), CertificateSize)
	}
	if b[0] != certificateVersion {
		return nil, fmt.Errorf("%w: its version is %d, want %d", ErrMalformed, b[0], certificateVersion)
	}
	notBefore, notAfter := binary.BigEndian.Uint64(b[2:]), binary.BigEndian.Uint64(b[10:])
	if notBefore > maxUnix || notAfter > maxUnix {
		return nil, fmt.Errorf("%w: a time is after the year 9999", ErrMalformed)
	}
	c := &Certificate{
		Purpose:   Purpose(b[1]),
		NotBefore: time.Unix(int64(notBefore), 0).UTC(),
		NotAfter:  time.Unix(int64(notAfter), 0).UTC(),
		Subject:   ID(b[18:50]),
		Identity:  ID(b[50:82]),
		signature: [SignatureSize]byte(b[82:]),
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return c, nil
}

// AppendTo appends the CertificateSize bytes of the certificate to b.
func (c *Certificate) AppendTo(b []byte) []byte {
	return append(c.appendSigned(b), c.signature[:]...)
}

// Verify returns nil when the certificate is for want, is signed by its Identity
// and is valid at now, both ends included. Otherwise the error is ErrPurpose,
// ErrSignature, ErrNotYetValid or ErrExpired, looked at in this order: who gets
// one of the last two knows that the identity did sign. Whether Identity is the
// expected one is for the caller to compare.
func (c *Certificate) Verify(now time.Time, want Purpose) error {
	if c.Purpose != want {
		return fmt.Errorf("%w: it is for %s, want %s", ErrPurpose, c.Purpose, want)
	}
	if !Verify(c.Identity, c.appendSigned([]byte(certificateContext)), c.signature[:]) {
		return fmt.Errorf("%w: it claims to be from %s", ErrSignature, c.Identity.Short())
	}
	if now.Before(c.NotBefore) {
		return fmt.Errorf("%w: %s for %s starts at %s, and it is %s here; if it should be valid, check the clock",
			ErrNotYetValid, c.Purpose, c.Identity.Short(), stamp(c.NotBefore), stamp(now))
	}
	if now.After(c.NotAfter) {
		return fmt.Errorf("%w: %s for %s ended at %s, and it is %s here; if it should be valid, check the clock",
			ErrExpired, c.Purpose, c.Identity.Short(), stamp(c.NotAfter), stamp(now))
	}
	return nil
}

// check holds the rules that a certificate obeys whether made or received.
func (c *Certificate) check() error {
	switch {
	case !c.Purpose.known():
		return fmt.Errorf("its purpose %d is unknown", c.Purpose)
	case c.NotBefore.Unix() < 0 || c.NotAfter.Unix() > maxUnix:
		return errors.New("its times are not between the years 1970 and 9999")
	case !c.NotBefore.Before(c.NotAfter):
		return fmt.Errorf("its end %s is not after its start %s", stamp(c.NotAfter), stamp(c.NotBefore))
	}
	if err := c.Subject.Check(); err != nil {
		return fmt.Errorf("its subject: %w", err)
	}
	if err := c.Identity.Check(); err != nil {
		return fmt.Errorf("its identity: %w", err)
	}
	return nil
}

// appendSigned appends all of the certificate but the signature.
func (c *Certificate) appendSigned(b []byte) []byte {
	b = append(b, certificateVersion, byte(c.Purpose))
	b = binary.BigEndian.AppendUint64(b, uint64(c.NotBefore.Unix()))
	b = binary.BigEndian.AppendUint64(b, uint64(c.NotAfter.Unix()))
	b = append(b, c.Subject[:]...)
	return append(b, c.Identity[:]...)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
