package directory

import (
	"bytes"
	"slices"

	"cepa/crypto/identity"
)

const kindEvidence = "cepa/1 evidence"

// MaxEvidenceSize is the cap of one piece of evidence in bytes, which has about 600.
const MaxEvidenceSize = 1 << 10

// What an authority may make only one of in a period.
const (
	EvidenceVote      = "vote"
	EvidenceConsensus = "consensus"
)

// Evidence proves that an authority told different things for one period: it signed two votes, or two consensuses. Anybody can check it with
// the authority's identity alone.
type Evidence struct {
	// Network and Period say where and when.
	Network string
	Period  uint64
	// What is EvidenceVote or EvidenceConsensus.
	What string
	// Authority is who signed both.
	Authority identity.ID
	// Digests are those of the two bodies, the lower one first.
	Digests [2][32]byte

	by  [2]signatureWire
	raw []byte
}

type evidenceWire struct {
	_       struct{} `cbor:",toarray"`
	Kind    string
	Network string
	Period  uint64
	What    string
	Digests [2][]byte
	By      [2]signatureWire
}

// Raw returns the document, which ParseEvidence reads. It must not be changed.
func (e *Evidence) Raw() []byte { return e.raw }

// VoteEvidence returns the proof in two heads of one authority with different digests, nil if they prove nothing.
func VoteEvidence(network string, period uint64, a, b Head) *Evidence {
	if a.Authority != b.Authority {
		return nil
	}
	return newEvidence(network, period, EvidenceVote, a.Authority, [2][32]byte{a.Digest, b.Digest}, [2]signatureWire{a.by, b.by})
}

// ConsensusEvidence returns the proof in two signatures of one authority on different consensuses of a period, nil if they prove nothing.
func ConsensusEvidence(a, b *Signature) *Evidence {
	if a.Authority != b.Authority || a.Period != b.Period || a.Network != b.Network {
		return nil
	}
	return newEvidence(a.Network, a.Period, EvidenceConsensus, a.Authority, [2][32]byte{a.Digest, b.Digest}, [2]signatureWire{a.wire, b.wire})
}

func newEvidence(network string, period uint64, what string, authority identity.ID, digests [2][32]byte, by [2]signatureWire) *Evidence {
	switch slices.Compare(digests[0][:], digests[1][:]) {
	case 0:
		return nil
	case 1:
		digests[0], digests[1], by[0], by[1] = digests[1], digests[0], by[1], by[0]
	}
	e := &Evidence{Network: network, Period: period, What: what, Authority: authority, Digests: digests, by: by}
	e.raw = e.encode()
	return e
}

func (e *Evidence) encode() []byte {
	return encode(evidenceWire{
		Kind: kindEvidence, Network: e.Network, Period: e.Period, What: e.What, Digests: [2][]byte{e.Digests[0][:], e.Digests[1][:]}, By: e.by,
	})
}

// ParseEvidence parses and verifies a piece of evidence. Certificates are taken at any time: whether they were valid then is no excuse.
// b is copied. Errors are *Error.
func ParseEvidence(b []byte) (*Evidence, error) {
	const name = "evidence"
	if len(b) > MaxEvidenceSize {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxEvidenceSize)
	}
	var w evidenceWire
	if err := decoding.Unmarshal(b, &w); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if w.Kind != kindEvidence || w.What != EvidenceVote && w.What != EvidenceConsensus || len(w.Digests[0]) != 32 || len(w.Digests[1]) != 32 {
		return nil, fail(name, ErrMalformed, "it is %q about %q", clip(w.Kind), clip(w.What))
	}
	if err := checkNetworkName(w.Network); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	kind := voteKind(w.Network, w.Period)
	if w.What == EvidenceConsensus {
		kind = consensusKind(w.Period)
	}
	var e *Evidence
	var signers [2]identity.ID
	digests := [2][32]byte{[32]byte(w.Digests[0]), [32]byte(w.Digests[1])}
	for i, by := range w.By {
		cert, err := identity.ParseCertificate(by.Certificate)
		if err != nil {
			return nil, fail(name, ErrBadSignature, "%v", err)
		}
		if _, err = by.verify(kind, digests[i], identity.PurposeConsensus, cert.NotBefore); err != nil {
			return nil, fail(name, ErrBadSignature, "%v", err)
		}
		signers[i] = cert.Identity
	}
	if signers[0] == signers[1] {
		e = newEvidence(w.Network, w.Period, w.What, signers[0], digests, w.By)
	}
	if e == nil {
		return nil, fail(name, ErrMalformed, "it proves nothing")
	}
	if !bytes.Equal(e.raw, b) {
		return nil, fail(name, ErrMalformed, "not in its one form")
	}
	return e, nil
}
