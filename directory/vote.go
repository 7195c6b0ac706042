package directory

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"cepa/crypto/identity"
)

// Vote is what one authority says about all relays before a period. It names descriptors by their digests: whoever lacks one fetches it.
type Vote struct {
	// Network is the name of the network.
	Network string
	// Interval and Period say for which period the vote is.
	Interval time.Duration
	Period   uint64
	// Authority is who votes.
	Authority identity.ID
	// Params are the parameters that the authority wants.
	Params Params
	// Versions are those that the authority wants.
	Versions Versions
	// Random is its part in the shared randomness.
	Random VoteRandom
	// Entries are the relays that the authority lists, sorted by identity; at most MaxRelays.
	Entries []VoteEntry

	raw       []byte
	digest    [32]byte
	signature signatureWire
}

// VoteEntry is an authority's opinion of one relay.
type VoteEntry struct {
	// Descriptor is the newest that the authority accepted. It came out of ParseDescriptor or VerifyDescriptor. In a vote that was parsed it
	// is nil unless the descriptor was at hand.
	Descriptor *Descriptor
	// Flags that the authority would give.
	Flags Flags
	// Weight in KB/s that the authority would give without a measurement, at most MaxWeight.
	Weight uint64
	// Measured is what the authority has drawn through the relay, in KB/s, at most MaxWeight; 0 if it has not measured it.
	Measured uint64
	// Identity and Digest are the relay's and that of its descriptor. Where there is a Descriptor, they follow from it.
	Identity identity.ID
	Digest   [32]byte
}

// id returns whom the entry is about.
func (e *VoteEntry) id() identity.ID {
	if e.Descriptor != nil {
		return e.Descriptor.Identity
	}
	return e.Identity
}

// named returns the digest of the descriptor that the entry names.
func (e *VoteEntry) named() [32]byte {
	if e.Descriptor != nil {
		return e.Descriptor.digest
	}
	return e.Digest
}

type voteBody struct {
	_         struct{} `cbor:",toarray"`
	Network   string
	Interval  uint64 // seconds
	Period    uint64
	Authority [32]byte
	Params    Params
	Versions  [2]string       // recommended, required
	Random    [4][]byte       // commitment, secret, previous, current
	Entries   cbor.RawMessage // voteColumns
}

// voteColumns holds the entries by columns, so that two votes that differ little have long parts in common.
type voteColumns struct {
	_          struct{} `cbor:",toarray"`
	Identities []byte   // 32 each
	Digests    []byte   // 32 each
	Flags      []uint32
	Weights    []uint64
	Measured   []uint64
}

// Raw returns the signed document that the vote was parsed from, nil if it was not. It must not be changed.
func (v *Vote) Raw() []byte { return v.raw }

// Digest returns the SHA-256 of the body: two votes with one digest say the same.
func (v *Vote) Digest() [32]byte { return v.digest }

// voteKind is what the signature on a vote starts with. It names network and period, so that signature and digest prove on their own that
// the authority made a vote for that period.
func voteKind(network string, period uint64) string {
	return fmt.Sprintf("%s %s %d", kindVote, network, period)
}

// SignVote returns the signed document of v. key is the authority's signing key and cert the certificate that the authority's
// identity gave it, with purpose consensus and valid at the start of the period.
func SignVote(v *Vote, key *identity.Key, cert *identity.Certificate) ([]byte, error) {
	s := signer{key, cert}
	for i := range v.Entries {
		if d := v.Entries[i].Descriptor; d != nil && d.raw == nil {
			return nil, fmt.Errorf("directory: signing a vote: entry %d has a descriptor that nobody signed", i)
		}
	}
	if err := v.validate(); err != nil {
		return nil, fmt.Errorf("directory: signing a vote: %w", err)
	}
	if err := s.check(identity.PurposeConsensus, periodStart(v.Interval, v.Period)); err != nil {
		return nil, fmt.Errorf("directory: signing a vote: %w", err)
	}
	if cert.Identity != v.Authority {
		return nil, fmt.Errorf("directory: signing a vote: the certificate is from %s, not from %s", cert.Identity.Short(), v.Authority.Short())
	}
	b := v.seal(encode(v.wire()), s)
	if len(b) > MaxVoteSize {
		return nil, fail("vote", ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxVoteSize)
	}
	return b, nil
}

// seal builds the document of a body.
func (v *Vote) seal(body []byte, s signer) []byte {
	signature := s.sign(voteKind(v.Network, v.Period), sha256.Sum256(body))
	return encode(envelope{Kind: kindVote, Body: body, Signatures: []signatureWire{signature}})
}

// ParseVote parses and verifies a signed vote of an authority of the network; which period it is for is the caller's to check.
// known, unless nil, may return the verified descriptor with a digest (see Descriptor.Digest), or nil: see With. b is copied.
// Errors are *Error.
func ParseVote(b []byte, net *Network, known func(digest [32]byte) *Descriptor) (*Vote, error) {
	const name = "vote"
	env, digest, err := openSingle(kindVote, name, b, MaxVoteSize)
	if err != nil {
		return nil, err
	}
	var body voteBody
	if err := decodingBig.Unmarshal(env.Body, &body); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if body.Network != net.Name || body.Interval != uint64(net.Interval/time.Second) {
		return nil, fail(name, ErrWrongNetwork, "made for %q with an interval of %d s, not for %q with %v", clip(body.Network), body.Interval, net.Name, net.Interval)
	}
	// The entries wait until we know that an authority signed them.
	cert, err := env.Signatures[0].verify(voteKind(net.Name, body.Period), digest, identity.PurposeConsensus, net.PeriodStart(body.Period))
	if err != nil {
		return nil, fail(name, ErrBadSignature, "%v", err)
	}
	if _, ok := net.Authority(cert.Identity); !ok || cert.Identity != body.Authority {
		return nil, fail(name, ErrUnknownSigner, "a vote in the name of %s signed by %s", identity.ID(body.Authority).Short(), cert.Identity.Short())
	}
	v, err := body.vote()
	if err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if !bytes.Equal(encode(v.wire()), env.Body) {
		return nil, fail(name, ErrMalformed, "the body is not in its one form")
	}
	v.raw, v.digest, v.signature = bytes.Clone(b), digest, env.Signatures[0]
	if known != nil {
		v.attach(known)
	}
	return v, nil
}

// With returns the vote with the descriptors that known has.
func (v *Vote) With(known func(digest [32]byte) *Descriptor) *Vote {
	c := *v
	c.Entries = append([]VoteEntry(nil), v.Entries...)
	c.attach(known)
	return &c
}

func (v *Vote) attach(known func(digest [32]byte) *Descriptor) {
	for i := range v.Entries {
		e := &v.Entries[i]
		if e.Descriptor != nil {
			continue
		}
		// A digest that an authority wrote beside another relay, or another network, names nothing.
		if d := known(e.Digest); d != nil && d.Identity == e.Identity && d.Network == v.Network {
			e.Descriptor = d
		}
	}
}

func (v *Vote) wire() *voteBody {
	var c voteColumns
	for i := range v.Entries {
		e := &v.Entries[i]
		id, digest := e.id(), e.named()
		c.Identities = append(c.Identities, id[:]...)
		c.Digests = append(c.Digests, digest[:]...)
		c.Flags = append(c.Flags, uint32(e.Flags))
		c.Weights = append(c.Weights, e.Weight)
		c.Measured = append(c.Measured, e.Measured)
	}
	return &voteBody{
		Network:   v.Network,
		Interval:  uint64(v.Interval / time.Second),
		Period:    v.Period,
		Authority: v.Authority,
		Params:    v.Params,
		Versions:  v.Versions.wire(),
		Random:    v.Random.wire(),
		Entries:   encode(c),
	}
}

// vote converts the wire form and checks everything. The interval has been compared with the network's.
func (w *voteBody) vote() (*Vote, error) {
	var c voteColumns
	if err := decodingBig.Unmarshal(w.Entries, &c); err != nil {
		return nil, err
	}
	n := len(c.Flags)
	if n > MaxRelays || len(c.Weights) != n || len(c.Identities) != 32*n || len(c.Digests) != 32*n {
		return nil, fmt.Errorf("columns differ in length, or have more than %d relays", MaxRelays)
	}
	v := &Vote{
		Network:   w.Network,
		Interval:  time.Duration(w.Interval) * time.Second,
		Period:    w.Period,
		Authority: w.Authority,
		Params:    w.Params.normal(),
		Versions:  Versions{w.Versions[0], w.Versions[1]},
		Entries:   make([]VoteEntry, n),
	}
	r := &v.Random
	if err := parseRandom(w.Random[:], &r.Commitment, &r.Secret, &r.Previous, &r.Current); err != nil {
		return nil, err
	}
	for i := range v.Entries {
		v.Entries[i] = VoteEntry{
			Identity: identity.ID(c.Identities[32*i:]), Digest: [32]byte(c.Digests[32*i:]), Flags: Flags(c.Flags[i]), Weight: c.Weights[i], Measured: c.Measured[i],
		}
	}
	return v, v.validate()
}

func (v *Vote) validate() error {
	if err := errors.Join(checkNetworkName(v.Network), v.Params.validate(), v.Versions.validate(), v.Random.validate(v.Period)); err != nil {
		return err
	}
	if v.Interval < MinInterval || v.Interval > MaxInterval || v.Interval%time.Second != 0 {
		return fmt.Errorf("interval %v is out of range", v.Interval)
	}
	if len(v.Entries) > MaxRelays {
		return fmt.Errorf("%d relays: at most %d are allowed", len(v.Entries), MaxRelays)
	}
	for i := range v.Entries {
		e := &v.Entries[i]
		id := e.id()
		switch {
		case e.Descriptor != nil && e.Descriptor.Network != v.Network:
			return fmt.Errorf("relay %s belongs to network %q", id.Short(), e.Descriptor.Network)
		case i > 0 && v.Entries[i-1].id().Compare(id) >= 0:
			return errors.New("relays are not sorted or not all different")
		case e.Flags&^AllFlags != 0:
			return fmt.Errorf("relay %s has unknown flags %#x", id.Short(), uint32(e.Flags&^AllFlags))
		case e.Weight > MaxWeight:
			return fmt.Errorf("relay %s has a weight of %d KB/s, above %d", id.Short(), e.Weight, uint64(MaxWeight))
		case e.Measured > MaxWeight:
			return fmt.Errorf("relay %s was measured at %d KB/s, above %d", id.Short(), e.Measured, uint64(MaxWeight))
		}
	}
	return nil
}
