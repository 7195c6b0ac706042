package directory

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"

	"cepa/crypto/identity"
)

// Kinds of documents: the first element of the envelope, and what a signature starts with, so that a signature made for one
// kind never fits another.
const (
	kindDescriptor = "cepa/1 descriptor"
	kindVote       = "cepa/1 vote"
	kindConsensus  = "cepa/1 consensus"
	kindSignature  = "cepa/1 consensus signature"
)

// Bounds of documents in bytes, uncompressed.
const (
	// MaxDescriptorSize: the longest lawful descriptor has about 3,500.
	MaxDescriptorSize = 4 << 10
	// MaxConsensusSize is the hard cap of a consensus: room for some 100,000 relays.
	MaxConsensusSize = 16 << 20
	// MaxVoteSize has room for MaxRelays entries of the longest kind: 64 bytes of identity and digest, and numbers.
	MaxVoteSize = 16 << 20
	// MaxSignatureSize is the cap of one authority's signature on a consensus, which has about 350.
	MaxSignatureSize = 1 << 10
)

// envelope is the outer form of a signed document.
type envelope struct {
	_          struct{} `cbor:",toarray"`
	Kind       string
	Body       []byte
	Signatures []signatureWire
}

// signatureWire is one signature in an envelope. The certificate names the signer.
type signatureWire struct {
	_           struct{} `cbor:",toarray"`
	Certificate []byte
	Signature   []byte
}

// signer is an identity that signs through a certified key.
type signer struct {
	key  *identity.Key
	cert *identity.Certificate
}

// check finds mistakes of the caller before they become documents that nobody accepts.
func (s signer) check(purpose identity.Purpose, at time.Time) error {
	if s.cert.Subject != s.key.ID() {
		return fmt.Errorf("the certificate is for key %s, not for %s", s.cert.Subject.Short(), s.key.ID().Short())
	}
	return s.cert.Verify(at, purpose)
}

// sign signs the digest of a body.
func (s signer) sign(kind string, digest [32]byte) signatureWire {
	return signatureWire{Certificate: s.cert.AppendTo(nil), Signature: s.key.Sign(signedMessage(kind, digest))}
}

// consensusKind is what signatures on a consensus start with. It names the period, so that a signature on its own can be told
// from those of other periods.
func consensusKind(period uint64) string { return fmt.Sprintf("%s %d", kindConsensus, period) }

// signedMessage is what a signature covers. The digest has a fixed length, so the message can be cut in one way only.
func signedMessage(kind string, digest [32]byte) []byte { return append([]byte(kind), digest[:]...) }

// verify checks signature and certificate, the latter at the time at, and returns who signed.
func (w signatureWire) verify(kind string, digest [32]byte, purpose identity.Purpose, at time.Time) (*identity.Certificate, error) {
	cert, err := identity.ParseCertificate(w.Certificate)
	if err != nil {
		return nil, err
	}
	if err := cert.Verify(at, purpose); err != nil {
		return nil, err
	}
	if !identity.Verify(cert.Subject, signedMessage(kind, digest), w.Signature) {
		return nil, fmt.Errorf("the signature of %s does not fit", cert.Identity.Short())
	}
	return cert, nil
}

// seal builds the document of a body signed by one.
func seal(kind string, body []byte, s signer) []byte {
	return encode(envelope{Kind: kind, Body: body, Signatures: []signatureWire{s.sign(kind, sha256.Sum256(body))}})
}

// open parses an envelope of the kind and returns it with the digest of its body. It verifies no signature.
func open(kind, name string, b []byte, limit int) (*envelope, [32]byte, error) {
	if len(b) > limit {
		return nil, [32]byte{}, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(b), limit)
	}
	var env envelope
	if err := decoding.Unmarshal(b, &env); err != nil {
		return nil, [32]byte{}, fail(name, ErrMalformed, "%v", err)
	}
	if env.Kind != kind {
		return nil, [32]byte{}, fail(name, ErrMalformed, "it is %q, not %q", clip(env.Kind), kind)
	}
	if !bytes.Equal(encode(env), b) {
		return nil, [32]byte{}, fail(name, ErrMalformed, "the envelope is not in its one form")
	}
	return &env, sha256.Sum256(env.Body), nil
}

// openSingle is open for documents with exactly one signature.
func openSingle(kind, name string, b []byte, limit int) (*envelope, [32]byte, error) {
	env, digest, err := open(kind, name, b, limit)
	if err == nil && len(env.Signatures) != 1 {
		err = fail(name, ErrMalformed, "%d signatures instead of one", len(env.Signatures))
	}
	return env, digest, err
}
