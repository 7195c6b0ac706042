package onion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"cepa/crypto/identity"
)

const (
	envelopeVersion = 1
	envelopeContext = "cepa/1 onion descriptor"
	saltSize        = 32

	// envelopeHead is version (1), period (8), revision (8), certificate (146), salt (32), and the length of the network's name
	// (1), which follows.
	envelopeHead = 1 + 8 + 8 + identity.CertificateSize + saltSize + 1
	// maxEnvelope is the largest descriptor that Encode makes.
	maxEnvelope = envelopeHead + MaxNetworkName + outerHead + MaxClients*clientEntry + maxContent + 2*macSize + identity.SignatureSize
)

// A descriptor with as many points and clients as there may be fits.
const _ uint = MaxDescriptor - maxEnvelope

var (
	// ErrInvalid says that bytes are not a sound descriptor, or not the one that was asked for: whoever gave it is at fault.
	ErrInvalid = errors.New("onion: invalid descriptor")
	// ErrWrongNetwork says that a descriptor is of another network.
	ErrWrongNetwork = errors.New("onion: the descriptor is of another network")
)

// Envelope is all that a relay can see of a descriptor that it holds. It knows neither the address nor how many introduction
// points or clients there are, and nothing in the envelopes of two periods says that they are of one service.
type Envelope struct {
	Network     string
	Blinded     identity.ID
	Period      uint64
	Revision    uint64
	Certificate *identity.Certificate // of the signing key by the blinded key

	salt      [saltSize]byte
	sealed    []byte
	signed    []byte // all but the signature
	signature [identity.SignatureSize]byte
}

// ParseEnvelope reads a descriptor without being able to open it. Of signatures and times it says nothing: that is Verify. b is
// kept and must not change. Errors are ErrInvalid.
func ParseEnvelope(b []byte) (*Envelope, error) {
	e, err := parseEnvelope(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return e, nil
}

func parseEnvelope(b []byte) (*Envelope, error) {
	if len(b) > MaxDescriptor {
		return nil, fmt.Errorf("it has %d bytes, at most %d are lawful", len(b), MaxDescriptor)
	}
	r := reader{b: b}
	if version := r.uint8(); version != envelopeVersion {
		return nil, fmt.Errorf("its version is %d, want %d", version, envelopeVersion)
	}
	e := &Envelope{Period: r.uint64(), Revision: r.uint64()}
	certificate := r.take(identity.CertificateSize)
	e.salt = r.array32()
	e.Network = string(r.take(int(r.uint8())))
	e.sealed = r.take(max(len(r.b)-identity.SignatureSize, 0))
	e.signature = [identity.SignatureSize]byte(r.take(identity.SignatureSize))
	if r.short || !lawfulSealed(len(e.sealed)) {
		return nil, fmt.Errorf("no descriptor has its length of %d bytes", len(b))
	}
	e.signed = b[:len(b)-identity.SignatureSize]
	if err := checkNetwork(e.Network); err != nil {
		return nil, err
	}
	var err error
	if e.Certificate, err = identity.ParseCertificate(certificate); err != nil {
		return nil, err
	}
	if e.Certificate.Purpose != identity.PurposeOnion {
		return nil, fmt.Errorf("its certificate is for %v", e.Certificate.Purpose)
	}
	e.Blinded = e.Certificate.Identity
	return e, nil
}

// lawfulSealed tells whether the layers of a descriptor can have this length.
func lawfulSealed(n int) bool {
	for clients := clientGrid; clients <= MaxClients; clients += clientGrid {
		content := n - 2*macSize - outerHead - clients*clientEntry
		if content > 0 && content <= maxContent && content%contentGrid == 0 {
			return true
		}
	}
	return false
}

// Verify returns nil when the blinded key vouches for the descriptor at the time now, in this network. Otherwise the error is
// ErrWrongNetwork, or ErrInvalid, which wraps those of identity.Certificate.Verify. It says nothing of whether the period is one
// in which anybody asks for it.
func (e *Envelope) Verify(network string, now time.Time) error {
	if e.Network != network {
		return fmt.Errorf("%w: it is of %q, this is %q", ErrWrongNetwork, e.Network, network)
	}
	if err := e.Certificate.Verify(now, identity.PurposeOnion); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if !identity.Verify(e.Certificate.Subject, append([]byte(envelopeContext), e.signed...), e.signature[:]) {
		return fmt.Errorf("%w: its signature is bad", ErrInvalid)
	}
	return nil
}

// AppendTo appends the descriptor as it was parsed.
func (e *Envelope) AppendTo(b []byte) []byte {
	b = e.appendHead(b)
	b = append(b, e.sealed...)
	return append(b, e.signature[:]...)
}

// appendHead appends what is before the layers. They are bound to it.
func (e *Envelope) appendHead(b []byte) []byte {
	b = append(b, envelopeVersion)
	b = binary.BigEndian.AppendUint64(b, e.Period)
	b = binary.BigEndian.AppendUint64(b, e.Revision)
	b = e.Certificate.AppendTo(b)
	b = append(b, e.salt[:]...)
	return appendNetwork(b, e.Network)
}

// sign completes an envelope whose sealed is set.
func (e *Envelope) sign(key *identity.Key) []byte {
	b := slices.Concat(e.appendHead(nil), e.sealed)
	return append(b, key.Sign(append([]byte(envelopeContext), b...))...)
}
