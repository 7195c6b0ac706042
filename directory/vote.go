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

// Vote is what one authority says about all relays before a period.
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
	// Entries are the relays that the authority lists, sorted by identity; at most MaxRelays.
	Entries []VoteEntry

	raw    []byte
	digest [32]byte
}

// VoteEntry is an authority's opinion of one relay.
type VoteEntry struct {
	// Descriptor is the newest that the authority accepted. It came out of ParseDescriptor or VerifyDescriptor.
	Descriptor *Descriptor
	// Flags that the authority would give.
	Flags Flags
	// Weight in KB/s that the authority would give without a measurement, at most MaxWeight.
	Weight uint64
	// Measured is what the authority has drawn through the relay, in KB/s, at most MaxWeight; 0 if it has not measured it.
	Measured uint64
}

type voteBody struct {
	_         struct{} `cbor:",toarray"`
	Network   string
	Interval  uint64 // seconds
	Period    uint64
	Authority [32]byte
	Params    Params
	Entries   cbor.RawMessage // []voteEntryWire
}

type voteEntryWire struct {
	_          struct{} `cbor:",toarray"`
	Descriptor []byte
	Flags      uint32
	Weight     uint64
	Measured   uint64
}

// Raw returns the signed document that the vote was parsed from, nil if it was not. It must not be changed.
func (v *Vote) Raw() []byte { return v.raw }

// Digest returns the SHA-256 of Raw.
func (v *Vote) Digest() [32]byte { return v.digest }

// SignVote returns the signed document of v. key is the authority's signing key and cert the certificate that the authority's
// identity gave it, with purpose consensus and valid at the start of the period.
func SignVote(v *Vote, key *identity.Key, cert *identity.Certificate) ([]byte, error) {
	s := signer{key, cert}
	if err := v.validate(); err != nil {
		return nil, fmt.Errorf("directory: signing a vote: %w", err)
	}
	if err := s.check(identity.PurposeConsensus, periodStart(v.Interval, v.Period)); err != nil {
		return nil, fmt.Errorf("directory: signing a vote: %w", err)
	}
	if cert.Identity != v.Authority {
		return nil, fmt.Errorf("directory: signing a vote: the certificate is from %s, not from %s", cert.Identity.Short(), v.Authority.Short())
	}
	b := seal(kindVote, encode(v.wire()), s)
	if len(b) > MaxVoteSize {
		return nil, fail("vote", ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxVoteSize)
	}
	return b, nil
}

// ParseVote parses and verifies a signed vote of an authority of the network; which period it is for is the caller's to check.
// Verifying descriptors is most of the work, and authorities hold most of them already: known, unless nil, may return the verified
// descriptor with the digest (see Descriptor.Digest), or nil. b is copied. Errors are *Error.
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
	cert, err := env.Signatures[0].verify(kindVote, digest, identity.PurposeConsensus, net.PeriodStart(body.Period))
	if err != nil {
		return nil, fail(name, ErrBadSignature, "%v", err)
	}
	if _, ok := net.Authority(cert.Identity); !ok || cert.Identity != body.Authority {
		return nil, fail(name, ErrUnknownSigner, "a vote in the name of %s signed by %s", identity.ID(body.Authority).Short(), cert.Identity.Short())
	}
	v, err := body.vote(known)
	if err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if !bytes.Equal(encode(v.wire()), env.Body) {
		return nil, fail(name, ErrMalformed, "the body is not in its one form")
	}
	v.raw = bytes.Clone(b)
	v.digest = sha256.Sum256(b)
	return v, nil
}

func (v *Vote) wire() *voteBody {
	entries := make([]voteEntryWire, len(v.Entries))
	for i, e := range v.Entries {
		entries[i] = voteEntryWire{Descriptor: e.Descriptor.raw, Flags: uint32(e.Flags), Weight: e.Weight, Measured: e.Measured}
	}
	return &voteBody{
		Network:   v.Network,
		Interval:  uint64(v.Interval / time.Second),
		Period:    v.Period,
		Authority: v.Authority,
		Params:    v.Params,
		Entries:   encode(entries),
	}
}

// vote converts the wire form and checks everything. The interval has been compared with the network's.
func (w *voteBody) vote(known func([32]byte) *Descriptor) (*Vote, error) {
	var entries []voteEntryWire
	if err := decodingBig.Unmarshal(w.Entries, &entries); err != nil {
		return nil, err
	}
	if len(entries) > MaxRelays {
		return nil, fmt.Errorf("%d relays: at most %d are allowed", len(entries), MaxRelays)
	}
	v := &Vote{
		Network:   w.Network,
		Interval:  time.Duration(w.Interval) * time.Second,
		Period:    w.Period,
		Authority: w.Authority,
		Params:    w.Params.normal(),
		Entries:   make([]VoteEntry, len(entries)),
	}
	for i, e := range entries {
		var d *Descriptor
		if known != nil {
			d = known(sha256.Sum256(e.Descriptor))
		}
		if d == nil {
			var err error
			if d, err = VerifyDescriptor(e.Descriptor); err != nil {
				return nil, fmt.Errorf("entry %d: %w", i, err)
			}
		}
		v.Entries[i] = VoteEntry{Descriptor: d, Flags: Flags(e.Flags), Weight: e.Weight, Measured: e.Measured}
	}
	return v, v.validate()
}

func (v *Vote) validate() error {
	if err := errors.Join(checkNetworkName(v.Network), v.Params.validate()); err != nil {
		return err
	}
	if v.Interval < MinInterval || v.Interval > MaxInterval || v.Interval%time.Second != 0 {
		return fmt.Errorf("interval %v is out of range", v.Interval)
	}
	if len(v.Entries) > MaxRelays {
		return fmt.Errorf("%d relays: at most %d are allowed", len(v.Entries), MaxRelays)
	}
	for i, e := range v.Entries {
		d := e.Descriptor
		switch {
		case d.raw == nil:
			return fmt.Errorf("entry %d has a descriptor that nobody signed", i)
		case d.Network != v.Network:
			return fmt.Errorf("relay %s belongs to network %q", d.Identity.Short(), d.Network)
		case i > 0 && v.Entries[i-1].Descriptor.Identity.Compare(d.Identity) >= 0:
			return errors.New("relays are not sorted or not all different")
		case e.Flags&^AllFlags != 0:
			return fmt.Errorf("relay %s has unknown flags %#x", d.Identity.Short(), uint32(e.Flags&^AllFlags))
		case e.Weight > MaxWeight:
			return fmt.Errorf("relay %s has a weight of %d KB/s, above %d", d.Identity.Short(), e.Weight, uint64(MaxWeight))
		case e.Measured > MaxWeight:
			return fmt.Errorf("relay %s was measured at %d KB/s, above %d", d.Identity.Short(), e.Measured, uint64(MaxWeight))
		}
	}
	return nil
}
