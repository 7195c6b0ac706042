package link

import (
	"encoding/binary"
	"fmt"
	"time"

	"cepa/cell"
	"cepa/crypto/identity"
)

// Roles in the AUTH cell (doc/spec.md section 3).
const (
	roleClient = 0
	roleRelay  = 1
)

// Roles in the signed bytes (doc/spec.md section 3): they keep a signature of
// one side from serving as the other's.
const (
	signedInitiator = 0
	signedResponder = 1
)

// authContext precedes the signed bytes (doc/spec.md section 3).
const authContext = "cepa/1 link auth"

// Layout of the AUTH body in bytes: role (1), certificate length (2),
// certificate (146), signature (64), zeros. A client's is all zeros.
const (
	authCertificate = 1 + 2
	authSignature   = authCertificate + identity.CertificateSize
	authEnd         = authSignature + identity.SignatureSize
)

// authCell is the body of AUTH.
type authCell struct {
	certificate *identity.Certificate // nil: a client
	signature   [identity.SignatureSize]byte
}

// parseAuth reads a body of BodySize bytes. It verifies nothing.
func parseAuth(b []byte) (a authCell, err error) {
	if len(b) != cell.BodySize {
		return a, fmt.Errorf("%w: AUTH has %d bytes, want %d", ErrAuth, len(b), cell.BodySize)
	}
	switch b[0] {
	case roleClient:
		if !cell.IsZero(b) {
			return a, fmt.Errorf("%w: a client's AUTH is not zero", ErrAuth)
		}
		return a, nil
	case roleRelay:
	default:
		return a, fmt.Errorf("%w: AUTH has the unknown role %d", ErrAuth, b[0])
	}
	if n := binary.BigEndian.Uint16(b[1:]); n != identity.CertificateSize {
		return a, fmt.Errorf("%w: AUTH has a certificate of %d bytes, want %d", ErrAuth, n, identity.CertificateSize)
	}
	if !cell.IsZero(b[authEnd:]) {
		return a, fmt.Errorf("%w: AUTH does not end with zeros", ErrAuth)
	}
	a.certificate, err = identity.ParseCertificate(b[authCertificate:authSignature])
	if err != nil {
		return a, fmt.Errorf("%w: %w", ErrAuth, err)
	}
	copy(a.signature[:], b[authSignature:])
	return a, nil
}

// appendTo appends the body without its trailing zeros.
func (a *authCell) appendTo(b []byte) []byte {
	if a.certificate == nil {
		return append(b, roleClient)
	}
	b = append(b, roleRelay)
	b = binary.BigEndian.AppendUint16(b, identity.CertificateSize)
	b = a.certificate.AppendTo(b)
	return append(b, a.signature[:]...)
}

// authSigned returns the bytes that the signature of AUTH covers. Initiator is
// zero in the responder's signature, and for a client.
func authSigned(role byte, initiator, responder identity.ID, exporter *[32]byte) []byte {
	b := make([]byte, 0, len(authContext)+1+2*identity.IDSize+len(exporter))
	b = append(b, authContext...)
	b = append(b, role)
	b = append(b, initiator[:]...)
	b = append(b, responder[:]...)
	return append(b, exporter[:]...)
}

// prove makes our AUTH. A nil a is a client's.
func (a *Auth) prove(role byte, initiator, responder identity.ID, exporter *[32]byte) authCell {
	if a == nil {
		return authCell{}
	}
	c := authCell{certificate: a.Certificate}
	copy(c.signature[:], a.Key.Sign(authSigned(role, initiator, responder, exporter)))
	return c
}

// verify tells whether the certificate is valid at now and its key signed the
// given. The caller compares identities.
func (a *authCell) verify(now time.Time, role byte, initiator, responder identity.ID, exporter *[32]byte) error {
	if err := a.certificate.Verify(now, identity.PurposeLink); err != nil {
		return fmt.Errorf("%w: %w", ErrAuth, err)
	}
	if !identity.Verify(a.certificate.Subject, authSigned(role, initiator, responder, exporter), a.signature[:]) {
		return fmt.Errorf("%w: bad signature in AUTH, which was made for other keys or another peer", ErrAuth)
	}
	return nil
}
