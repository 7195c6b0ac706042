package directory

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"cepa/crypto/identity"
)

// Signature is one authority's signature on a consensus, as authorities exchange it before they can publish.
type Signature struct {
	// Network and Period say which consensus was signed, Digest which of the possible ones (Consensus.Digest).
	Network string
	Period  uint64
	Digest  [32]byte
	// Authority is who signed.
	Authority identity.ID

	wire signatureWire
	raw  []byte
}

type signatureBody struct {
	_         struct{} `cbor:",toarray"`
	Kind      string
	Network   string
	Period    uint64
	Digest    [32]byte
	Signature signatureWire
}

// Raw returns the signature's document, which ParseSignature reads. It must not be changed.
func (s *Signature) Raw() []byte { return s.raw }

// SignConsensus signs a computed consensus. key is the authority's signing key and cert the certificate that the authority's
// identity gave it, with purpose consensus and valid at ValidAfter. The caller sees to it that it signs only one a period.
func SignConsensus(c *Consensus, key *identity.Key, cert *identity.Certificate) (*Signature, error) {
	s := signer{key, cert}
	if err := s.check(identity.PurposeConsensus, c.ValidAfter); err != nil {
		return nil, fmt.Errorf("directory: signing a consensus: %w", err)
	}
	sig := &Signature{Network: c.Network, Period: c.Period, Digest: c.Digest(), Authority: cert.Identity}
	sig.wire = s.sign(consensusKind(c.Period), sig.Digest)
	sig.raw = sig.encode()
	return sig, nil
}

// ParseSignature parses and verifies one authority's signature on a consensus of the network. b is copied. Errors are *Error.
func ParseSignature(b []byte, net *Network) (*Signature, error) {
	const name = "signature"
	if len(b) > MaxSignatureSize {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxSignatureSize)
	}
	var w signatureBody
	if err := decoding.Unmarshal(b, &w); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if w.Kind != kindSignature {
		return nil, fail(name, ErrMalformed, "it is %q, not %q", clip(w.Kind), kindSignature)
	}
	if w.Network != net.Name {
		return nil, fail(name, ErrWrongNetwork, "made for %q, not for %q", clip(w.Network), net.Name)
	}
	cert, err := w.Signature.verify(consensusKind(w.Period), w.Digest, identity.PurposeConsensus, net.PeriodStart(w.Period))
	if err != nil {
		return nil, fail(name, ErrBadSignature, "%v", err)
	}
	if _, ok := net.Authority(cert.Identity); !ok {
		return nil, fail(name, ErrUnknownSigner, "%s is no authority of network %s", cert.Identity.Short(), net.Name)
	}
	s := &Signature{Network: w.Network, Period: w.Period, Digest: w.Digest, Authority: cert.Identity, wire: w.Signature}
	if s.raw = s.encode(); !bytes.Equal(s.raw, b) {
		return nil, fail(name, ErrMalformed, "not in its one form")
	}
	return s, nil
}

func (s *Signature) encode() []byte {
	return encode(signatureBody{Kind: kindSignature, Network: s.Network, Period: s.Period, Digest: s.Digest, Signature: s.wire})
}

// AssembleConsensus returns the signed document of a computed consensus, which ParseConsensus reads. Signatures on anything else
// than c are left out; the remaining ones must reach the threshold, otherwise the error is an *Error with ErrUndersigned.
func AssembleConsensus(c *Consensus, signatures []*Signature, net *Network) ([]byte, error) {
	byAuthority := make(map[identity.ID]signatureWire)
	for _, s := range signatures {
		if s.Network == c.Network && s.Period == c.Period && s.Digest == c.Digest() {
			byAuthority[s.Authority] = s.wire
		}
	}
	if len(byAuthority) < net.Threshold() {
		return nil, fail("consensus", ErrUndersigned, "%d of the %d needed", len(byAuthority), net.Threshold())
	}
	env := envelope{Kind: kindConsensus, Body: c.body}
	if env.Body == nil {
		env.Body = encode(c.wire())
	}
	ids := make([]identity.ID, 0, len(byAuthority))
	for id := range byAuthority {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, identity.ID.Compare)
	for _, id := range ids {
		env.Signatures = append(env.Signatures, byAuthority[id])
	}
	b := encode(env)
	if len(b) > MaxConsensusSize {
		return nil, fail("consensus", ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxConsensusSize)
	}
	return b, nil
}

// periodStart is Network.PeriodStart for those who have only the interval.
func periodStart(interval time.Duration, period uint64) time.Time {
	return (&Network{Interval: interval}).PeriodStart(period)
}
