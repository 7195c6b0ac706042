package directory

import (
	"bytes"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"cepa/crypto/identity"
)

// Kind says what a file of the directory is.
type Kind string

// The kinds, as errors and people name them.
const (
	KindDescriptor  Kind = "descriptor"
	KindVote        Kind = "vote"
	KindConsensus   Kind = "consensus"
	KindSignature   Kind = "consensus signature"
	KindCertificate Kind = "certificate"
	KindNetwork     Kind = "network file"
)

// MaxDocumentSize is the largest document of any kind in bytes, uncompressed.
const MaxDocumentSize = MaxVoteSize

// zstdMagic is how each zstd frame begins (RFC 8878 section 3.1.1).
const zstdMagic = "\x28\xb5\x2f\xfd"

var (
	// ErrNoDocument says that bytes are nothing that the directory knows.
	ErrNoDocument = errors.New("no document of the directory")
	// ErrSecret says that bytes are a private key, which nobody but its owner is to see.
	ErrSecret = errors.New("a private key, not a document: keep it secret")
)

// Unpack undoes the compression of a document of any kind, if it is compressed. It never returns more than MaxDocumentSize bytes. Errors are
// those of Decompress.
func Unpack(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte(zstdMagic)) {
		return Decompress(b, MaxDocumentSize)
	}
	if len(b) > MaxDocumentSize {
		return nil, fmt.Errorf("directory: %d bytes: %w", len(b), ErrTooLarge)
	}
	return b, nil
}

// Identify says of what kind an unpacked document claims to be: no more is looked at than that takes. Errors are ErrNoDocument and ErrSecret.
func Identify(b []byte) (Kind, error) {
	no := func(why string) (Kind, error) { return "", fmt.Errorf("%w: %s", ErrNoDocument, why) }
	name, named := leadingText(b)
	switch {
	case len(b) == 0:
		return no("it is empty")
	case identity.IsKeyFile(b), bytes.HasPrefix(b, []byte("cepa onion keys ")):
		return "", ErrSecret
	case identity.IsCertificateFile(b), len(b) == identity.CertificateSize && b[0] == 1:
		return KindCertificate, nil
	case !named && utf8.Valid(b) && bytes.IndexByte(b, 0) < 0:
		return KindNetwork, nil // or any other text: ParseNetwork says what is wrong with it
	case !named:
		return no("it does not begin as one")
	}
	switch name {
	case kindDescriptor:
		return KindDescriptor, nil
	case kindVote:
		return KindVote, nil
	case kindConsensus:
		return KindConsensus, nil
	case kindSignature:
		return KindSignature, nil
	}
	return no(fmt.Sprintf("it is %q, which this version does not know", clip(name)))
}

// leadingText returns the text with which a CBOR array begins, if it is short.
func leadingText(b []byte) (string, bool) {
	const array, text, oneByte = 4, 3, 24
	if len(b) < 3 || b[0]>>5 != array || b[0]&31 >= oneByte || b[1]>>5 != text {
		return "", false
	}
	n, rest := int(b[1]&31), b[2:]
	if n == oneByte {
		n, rest = int(rest[0]), rest[1:]
	} else if n > oneByte {
		return "", false
	}
	if n > len(rest) || !utf8.Valid(rest[:n]) {
		return "", false
	}
	return string(rest[:n]), true
}

// Certificates returns the certificates that stand in a descriptor, a vote, a consensus or a consensus signature beside the signatures, in
// their order. Nothing is verified. Errors are *Error.
func Certificates(b []byte) ([]*identity.Certificate, error) {
	wires, err := signatures(b)
	if err != nil {
		return nil, err
	}
	var out []*identity.Certificate
	for _, w := range wires {
		c, err := identity.ParseCertificate(w.Certificate)
		if err != nil {
			return nil, fail("document", ErrMalformed, "%v", err)
		}
		out = append(out, c)
	}
	return out, nil
}

// signatures returns those of a signed document.
func signatures(b []byte) ([]signatureWire, error) {
	if name, _ := leadingText(b); name == kindSignature {
		var w signatureBody
		if err := decoding.Unmarshal(b, &w); err != nil {
			return nil, fail("document", ErrMalformed, "%v", err)
		}
		return []signatureWire{w.Signature}, nil
	}
	var w struct {
		_          struct{} `cbor:",toarray"`
		Kind       string
		Body       cbor.RawMessage
		Signatures []signatureWire
	}
	if err := decoding.Unmarshal(b, &w); err != nil {
		return nil, fail("document", ErrMalformed, "%v", err)
	}
	return w.Signatures, nil
}

// Signer is who signed a document, or claims to.
type Signer struct {
	// Certificate is what stands beside the signature; its Identity is the signer.
	Certificate *identity.Certificate
	// Problem says why the signature or the certificate is not good; nil if both are. Whether the signer had the right to sign is another
	// question, and not answered here.
	Problem error
}

// Document is a document of any kind, parsed and, as far as that is possible without a network file, verified. Of the pointers, the one of its Kind
// is set.
type Document struct {
	Kind        Kind
	Descriptor  *Descriptor
	Vote        *Vote
	Consensus   *Consensus // its Signers are not set: see Signers
	Signature   *Signature
	Certificate *identity.Certificate
	Network     *Network
	// Signers are those who signed, in the order of the document; none for a network file.
	Signers []Signer

	raw []byte
}

// Inspect parses an unpacked document without knowing its network, so that people can look at it whether it counts or not. A bad
// signature of a consensus or a certificate is told in Signers; everything else that is wrong is an error: *Error, ErrNoDocument, ErrSecret or that of
// identity.ParseCertificateFile. b is copied.
func Inspect(b []byte) (*Document, error) {
	kind, err := Identify(b)
	if err != nil {
		return nil, err
	}
	d := &Document{Kind: kind, raw: bytes.Clone(b)}
	switch kind {
	case KindDescriptor:
		d.Descriptor, err = VerifyDescriptor(b)
	case KindVote:
		err = d.inspectVote()
	case KindConsensus:
		return d, d.inspectConsensus() // with all its signers
	case KindSignature:
		err = d.inspectSignature()
	case KindCertificate:
		return d, d.inspectCertificate()
	case KindNetwork:
		d.Network, err = ParseNetwork(b)
		return d, err
	}
	if err != nil {
		return nil, err
	}
	certs, err := Certificates(b)
	for _, c := range certs {
		d.Signers = append(d.Signers, Signer{Certificate: c}) // verified by now
	}
	return d, err
}

func (d *Document) inspectConsensus() error {
	const name = "consensus"
	env, digest, err := open(kindConsensus, name, d.raw, MaxConsensusSize)
	if err != nil {
		return err
	}
	if len(env.Signatures) > MaxAuthorities {
		return fail(name, ErrMalformed, "%d signatures: at most %d are possible", len(env.Signatures), MaxAuthorities)
	}
	var body consensusBody
	if err := decodingBig.Unmarshal(env.Body, &body); err != nil {
		return fail(name, ErrMalformed, "%v", err)
	}
	c, err := body.consensus()
	if err != nil {
		return fail(name, ErrMalformed, "%v", err)
	}
	if !bytes.Equal(encode(c.wire()), env.Body) {
		return fail(name, ErrMalformed, "the body is not in its one form")
	}
	c.body, c.digest, c.raw = env.Body, digest, d.raw
	d.Consensus = c
	for _, w := range env.Signatures {
		cert, err := identity.ParseCertificate(w.Certificate)
		if err != nil {
			return fail(name, ErrMalformed, "%v", err)
		}
		_, problem := w.verify(consensusKind(c.Period), digest, identity.PurposeConsensus, c.ValidAfter)
		d.Signers = append(d.Signers, Signer{cert, problem})
	}
	return nil
}

// inspectVote parses a vote as one of a network in which its signer is the only authority.
func (d *Document) inspectVote() error {
	const name = "vote"
	env, _, err := openSingle(kindVote, name, d.raw, MaxVoteSize)
	if err != nil {
		return err
	}
	cert, err := identity.ParseCertificate(env.Signatures[0].Certificate)
	if err != nil {
		return fail(name, ErrMalformed, "%v", err)
	}
	var fields []cbor.RawMessage
	var network string
	var seconds uint64
	err = decodingBig.Unmarshal(env.Body, &fields)
	if err == nil && len(fields) < 2 {
		err = errors.New("it has too few fields")
	}
	if err == nil {
		err = errors.Join(decoding.Unmarshal(fields[0], &network), decoding.Unmarshal(fields[1], &seconds))
	}
	if err == nil && (seconds == 0 || seconds > uint64(MaxInterval/time.Second)) {
		err = fmt.Errorf("interval of %d s is out of range", seconds)
	}
	if err != nil {
		return fail(name, ErrMalformed, "%v", err)
	}
	alone := &Network{Name: network, Interval: time.Duration(seconds) * time.Second, Authorities: []Authority{{Identity: cert.Identity}}}
	d.Vote, err = ParseVote(d.raw, alone, nil)
	return err
}

// inspectSignature parses a consensus signature. As it does not say how long periods are, its certificate is judged at a time at which it is valid.
func (d *Document) inspectSignature() error {
	const name = "signature"
	if len(d.raw) > MaxSignatureSize {
		return fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(d.raw), MaxSignatureSize)
	}
	var w signatureBody
	if err := decoding.Unmarshal(d.raw, &w); err != nil {
		return fail(name, ErrMalformed, "%v", err)
	}
	cert, err := identity.ParseCertificate(w.Signature.Certificate)
	if err != nil {
		return fail(name, ErrMalformed, "%v", err)
	}
	if _, err := w.Signature.verify(consensusKind(w.Period), w.Digest, identity.PurposeConsensus, cert.NotBefore); err != nil {
		return fail(name, ErrBadSignature, "%v", err)
	}
	s := &Signature{Network: w.Network, Period: w.Period, Digest: w.Digest, Authority: cert.Identity, wire: w.Signature}
	if s.raw = s.encode(); !bytes.Equal(s.raw, d.raw) {
		return fail(name, ErrMalformed, "not in its one form")
	}
	d.Signature = s
	return checkNetworkName(w.Network)
}

func (d *Document) inspectCertificate() (err error) {
	if identity.IsCertificateFile(d.raw) {
		d.Certificate, err = identity.ParseCertificateFile(d.raw)
	} else {
		d.Certificate, err = identity.ParseCertificate(d.raw)
	}
	if err != nil {
		return err
	}
	d.Signers = []Signer{{d.Certificate, d.Certificate.Verify(d.Certificate.NotBefore, d.Certificate.Purpose)}}
	return nil
}

// Verify returns nil if the document counts in the network at now. Errors are *Error, or those of identity.Certificate.Verify.
func (d *Document) Verify(net *Network, now time.Time) error {
	switch d.Kind {
	case KindDescriptor:
		got, err := ParseDescriptor(d.raw, now)
		if err == nil && got.Network != net.Name {
			err = fail("descriptor", ErrWrongNetwork, "made for %q, not for %q", got.Network, net.Name)
		}
		return err
	case KindVote:
		_, err := ParseVote(d.raw, net, nil)
		return err
	case KindConsensus:
		_, err := ParseConsensus(d.raw, net, now)
		return err
	case KindSignature:
		_, err := ParseSignature(d.raw, net)
		return err
	case KindCertificate:
		if err := d.Certificate.Verify(now, d.Certificate.Purpose); err != nil {
			return err
		}
		if _, ok := net.Authority(d.Certificate.Identity); d.Certificate.Purpose == identity.PurposeConsensus && !ok {
			return fail("certificate", ErrUnknownSigner, "%s is no authority of network %s", d.Certificate.Identity.Short(), net.Name)
		}
		return nil
	case KindNetwork:
		if !bytes.Equal(d.Network.AppendTOML(nil), net.AppendTOML(nil)) {
			return fail("network file", ErrWrongNetwork, "it is in order, and not the one that it is compared with")
		}
		return nil
	}
	return ErrNoDocument
}
