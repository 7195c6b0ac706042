package directory

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"

	"cepa/crypto/identity"
)

const kindBallot = "cepa/1 ballot"

// MaxHeads is how many votes of one authority a ballot tells of: two prove that it made two.
const MaxHeads = 2

// Head proves that an authority made a vote: the signature of that vote, without the vote. Others endorse it: they say that they hold the
// vote, or that they know of another one of that authority.
type Head struct {
	// Authority made the vote; Digest is the vote's.
	Authority identity.ID
	Digest    [32]byte
	// Endorsements are of different authorities, not of the author, sorted by authority.
	Endorsements []Endorsement

	by signatureWire
}

// Endorsement is one authority's signature on the head of another's vote.
type Endorsement struct {
	Authority identity.ID

	by signatureWire
}

// Ballot is what authorities send each other about votes of one period. It needs no signature: everything in it has one.
type Ballot struct {
	Period uint64
	// Heads are sorted by authority, then digest; at most MaxHeads of each authority.
	Heads []Head
}

type ballotWire struct {
	_            struct{} `cbor:",toarray"`
	Kind         string
	Network      string
	Period       uint64
	Certificates [][]byte // sorted by their bytes, all different, all in use
	Heads        []headWire
}

type headWire struct {
	_            struct{} `cbor:",toarray"`
	Certificate  uint64   // index
	Digest       [32]byte
	Signature    []byte
	Endorsements []endorsementWire
}

type endorsementWire struct {
	_           struct{} `cbor:",toarray"`
	Certificate uint64   // index
	Signature   []byte
}

// Certificate returns that of the key which signed the vote. The head is a parsed vote's, or of a parsed ballot.
func (h *Head) Certificate() *identity.Certificate {
	c, err := identity.ParseCertificate(h.by.Certificate)
	if err != nil {
		return new(identity.Certificate) // a head that nobody parsed
	}
	return c
}

// Head returns the head of a vote that was parsed.
func (v *Vote) Head() Head { return Head{Authority: v.Authority, Digest: v.digest, by: v.signature} }

// ballotKind is what endorsements start with.
func ballotKind(network string, period uint64) string {
	return fmt.Sprintf("%s %s %d", kindBallot, network, period)
}

// endorsed is what an endorsement signs in place of a digest.
func (h *Head) endorsed() [32]byte {
	return sha256.Sum256(append(h.Authority[:], h.Digest[:]...))
}

// Endorse signs the head of another authority's vote. key is the signing key and cert its certificate, valid at the start of the period.
func (h *Head) Endorse(network string, period uint64, key *identity.Key, cert *identity.Certificate) Endorsement {
	return Endorsement{Authority: cert.Identity, by: signer{key, cert}.sign(ballotKind(network, period), h.endorsed())}
}

// MaxBallotSize returns the cap of a ballot in a network, in bytes: MaxHeads heads of each authority, each with as many signatures as can be
// asked for, each with a certificate of its own.
func (n *Network) MaxBallotSize() int {
	const head, signature = 64, 146 + 64 + 16
	return 1<<10 + len(n.Authorities)*MaxHeads*(head+(n.faults()+3)*signature)
}

// faults is how many authorities may be malicious or absent.
func (n *Network) faults() int { return len(n.Authorities) - n.Threshold() }

// EncodeBallot returns the document of a ballot. It sorts the heads and their endorsements.
func EncodeBallot(network string, b *Ballot) []byte {
	w := ballotWire{Kind: kindBallot, Network: network, Period: b.Period}
	for _, h := range b.Heads {
		w.Certificates = append(w.Certificates, h.by.Certificate)
		for _, e := range h.Endorsements {
			w.Certificates = append(w.Certificates, e.by.Certificate)
		}
	}
	slices.SortFunc(w.Certificates, bytes.Compare)
	w.Certificates = slices.CompactFunc(w.Certificates, bytes.Equal)
	index := func(certificate []byte) uint64 {
		i, _ := slices.BinarySearchFunc(w.Certificates, certificate, bytes.Compare)
		return uint64(i)
	}
	slices.SortFunc(b.Heads, compareHeads)
	for _, h := range b.Heads {
		hw := headWire{Certificate: index(h.by.Certificate), Digest: h.Digest, Signature: h.by.Signature}
		slices.SortFunc(h.Endorsements, func(x, y Endorsement) int { return x.Authority.Compare(y.Authority) })
		for _, e := range h.Endorsements {
			hw.Endorsements = append(hw.Endorsements, endorsementWire{Certificate: index(e.by.Certificate), Signature: e.by.Signature})
		}
		w.Heads = append(w.Heads, hw)
	}
	return encode(w)
}

func compareHeads(x, y Head) int {
	return cmp.Or(x.Authority.Compare(y.Authority), slices.Compare(x.Digest[:], y.Digest[:]))
}

// Verified remembers which signatures and certificates of ballots are good, so that nobody can make an authority verify the same ones again and
// again, in whatever ballots they come. The zero value is ready; a nil one remembers nothing. It may be used by many goroutines at once.
type Verified struct {
	mu   sync.Mutex
	good map[[32]byte]struct{}
}

// maxVerified is how many signatures are remembered, each with 32 bytes: many rounds of the largest network. Then all are forgotten.
const maxVerified = 1 << 15

// known reports whether ok was called with the same parts.
func (v *Verified) known(key [32]byte) bool {
	if v == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.good[key]
	return ok
}

// add remembers that what the key stands for is good.
func (v *Verified) add(key [32]byte) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.good == nil || len(v.good) >= maxVerified {
		v.good = make(map[[32]byte]struct{})
	}
	v.good[key] = struct{}{}
}

// verifiedKey stands for a certificate at a time (then there is no signature), or a signature with it on a message.
func verifiedKey(certificate, message, signature []byte) [32]byte {
	b := fmt.Appendf(nil, "%d %d ", len(certificate), len(signature))
	return sha256.Sum256(slices.Concat(b, certificate, signature, message))
}

// ParseBallot parses a ballot of the network and verifies every signature in it. Errors are *Error.
func ParseBallot(b []byte, net *Network) (*Ballot, error) {
	return (*Verified)(nil).ParseBallot(b, net)
}

// ParseBallot is ParseBallot, but for signatures that are known to be good.
func (v *Verified) ParseBallot(b []byte, net *Network) (*Ballot, error) {
	const name = "ballot"
	if limit := net.MaxBallotSize(); len(b) > limit {
		return nil, fail(name, ErrTooLarge, "%d bytes: at most %d are allowed", len(b), limit)
	}
	var w ballotWire
	if err := decoding.Unmarshal(b, &w); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if w.Kind != kindBallot {
		return nil, fail(name, ErrMalformed, "it is %q, not %q", clip(w.Kind), kindBallot)
	}
	if w.Network != net.Name {
		return nil, fail(name, ErrWrongNetwork, "made for %q, not for %q", clip(w.Network), net.Name)
	}
	if len(w.Heads) > MaxHeads*len(net.Authorities) {
		return nil, fail(name, ErrMalformed, "%d heads of %d authorities", len(w.Heads), len(net.Authorities))
	}
	certificates, err := w.certificates(net, v)
	if err != nil {
		return nil, err
	}
	signed := func(index uint64, signature []byte, kind string, digest [32]byte) (signatureWire, identity.ID, error) {
		if index >= uint64(len(certificates)) {
			return signatureWire{}, identity.ID{}, fail(name, ErrMalformed, "index beyond the certificates")
		}
		cert := certificates[index]
		message := signedMessage(kind, digest)
		if key := verifiedKey(w.Certificates[index], message, signature); !v.known(key) {
			if !identity.Verify(cert.Subject, message, signature) {
				return signatureWire{}, identity.ID{}, fail(name, ErrBadSignature, "a signature of %s does not fit", cert.Identity.Short())
			}
			v.add(key)
		}
		return signatureWire{Certificate: w.Certificates[index], Signature: signature}, cert.Identity, nil
	}
	ballot := &Ballot{Period: w.Period}
	for i, hw := range w.Heads {
		if len(hw.Endorsements) >= len(net.Authorities) {
			return nil, fail(name, ErrMalformed, "%d endorsements of %d authorities", len(hw.Endorsements), len(net.Authorities))
		}
		h := Head{Digest: hw.Digest}
		if h.by, h.Authority, err = signed(hw.Certificate, hw.Signature, voteKind(net.Name, w.Period), hw.Digest); err != nil {
			return nil, err
		}
		if i > 0 && compareHeads(ballot.Heads[i-1], h) >= 0 || i >= MaxHeads && ballot.Heads[i-MaxHeads].Authority == h.Authority {
			return nil, fail(name, ErrMalformed, "heads are not sorted, or too many are of one authority")
		}
		for _, ew := range hw.Endorsements {
			var e Endorsement
			if e.by, e.Authority, err = signed(ew.Certificate, ew.Signature, ballotKind(net.Name, w.Period), h.endorsed()); err != nil {
				return nil, err
			}
			if n := len(h.Endorsements); e.Authority == h.Authority || n > 0 && h.Endorsements[n-1].Authority.Compare(e.Authority) >= 0 {
				return nil, fail(name, ErrMalformed, "endorsements are not sorted, repeat an authority, or are the author's")
			}
			h.Endorsements = append(h.Endorsements, e)
		}
		ballot.Heads = append(ballot.Heads, h)
	}
	if !bytes.Equal(EncodeBallot(net.Name, ballot), b) {
		return nil, fail(name, ErrMalformed, "not in its one form")
	}
	return ballot, nil
}

// certificates verifies those of a ballot, each once.
func (w *ballotWire) certificates(net *Network, v *Verified) ([]*identity.Certificate, error) {
	const name = "ballot"
	list := make([]*identity.Certificate, len(w.Certificates))
	for i, b := range w.Certificates {
		cert, err := identity.ParseCertificate(b)
		key := verifiedKey(b, fmt.Append(nil, w.Period), nil)
		if err == nil && !v.known(key) {
			if err = cert.Verify(net.PeriodStart(w.Period), identity.PurposeConsensus); err == nil {
				v.add(key)
			}
		}
		if err != nil {
			return nil, fail(name, ErrBadSignature, "%v", err)
		}
		if _, ok := net.Authority(cert.Identity); !ok {
			return nil, fail(name, ErrUnknownSigner, "%s is no authority of network %s", cert.Identity.Short(), net.Name)
		}
		list[i] = cert
	}
	return list, nil
}
