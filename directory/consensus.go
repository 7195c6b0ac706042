package directory

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"cepa/crypto/identity"
)

// MaxRelays is the highest number of relays in a consensus.
const MaxRelays = 100_000

// Consensus is what the authorities agreed on for one period. It is immutable: Compute and the parsers make it, and it may be
// used by many goroutines at once.
type Consensus struct {
	// Network is the name of the network.
	Network string
	// Interval and Period say for which period it was made (see the package comment).
	Interval time.Duration
	Period   uint64
	// ValidAfter, FreshUntil and ValidUntil follow from Interval and Period. From FreshUntil on there should be a newer one; from
	// ValidUntil on this one must not be used.
	ValidAfter, FreshUntil, ValidUntil time.Time
	// Params are the agreed parameters.
	Params Params
	// Versions are the agreed versions of the software.
	Versions Versions
	// Random holds the agreed random values.
	Random Random
	// Relays are all running and valid relays, sorted by Identity.
	Relays []Relay
	// Signers are the authorities whose signatures were verified, sorted; nil for a consensus that was computed.
	Signers []identity.ID

	body       []byte          // what is signed
	raw        []byte          // the signed document
	signatures []signatureWire // its signatures; nil for a consensus that was computed
	digest     [32]byte
	index      map[identity.ID]int32
}

// Lookup returns the entry of a relay.
func (c *Consensus) Lookup(id identity.ID) (*Relay, bool) {
	if c.index != nil {
		i, ok := c.index[id]
		if !ok {
			return nil, false
		}
		return &c.Relays[i], true
	}
	// A Consensus that a test put together has no index.
	i, ok := slices.BinarySearchFunc(c.Relays, id, func(r Relay, id identity.ID) int { return r.Identity.Compare(id) })
	if !ok {
		return nil, false
	}
	return &c.Relays[i], true
}

// Digest returns the SHA-256 of what the authorities sign: equal consensuses have equal digests, whoever signed them.
func (c *Consensus) Digest() [32]byte {
	if c.body == nil {
		return sha256.Sum256(encode(c.wire()))
	}
	return c.digest
}

// Raw returns the signed document that the consensus was parsed from, nil if it was not. It must not be changed.
func (c *Consensus) Raw() []byte { return c.raw }

// CheckTime returns an *Error with ErrFuture or ErrExpired unless the consensus is valid at now. Clocks may lag by MaxClockSkew;
// after ValidUntil there is no grace.
func (c *Consensus) CheckTime(now time.Time) error {
	if now.Before(c.ValidAfter.Add(-MaxClockSkew)) {
		return fail("consensus", ErrFuture, "valid from %s, and it is %s here: is the clock behind?", stamp(c.ValidAfter), stamp(now))
	}
	if !now.Before(c.ValidUntil) {
		return fail("consensus", ErrExpired, "valid until %s, and it is %s here: unless the clock is ahead, a newer one is needed",
			stamp(c.ValidUntil), stamp(now))
	}
	return nil
}

// Fresh reports whether now is before FreshUntil: no newer consensus is due.
func (c *Consensus) Fresh(now time.Time) bool { return now.Before(c.FreshUntil) }

// ParseConsensus parses and verifies a signed consensus of the network that must be valid at now. b is copied. Errors are *Error:
// ErrTooLarge, ErrMalformed, ErrWrongNetwork, ErrUnknownSigner, ErrBadSignature, ErrUndersigned, ErrExpired, ErrFuture.
//
// Every signature in the document must be good and of a configured authority, beyond the threshold too: a document that
// anybody has touched is refused.
func ParseConsensus(b []byte, net *Network, now time.Time) (*Consensus, error) {
	c, err := VerifyConsensus(b, net)
	if err != nil {
		return nil, err
	}
	if err := c.CheckTime(now); err != nil {
		return nil, err
	}
	return c, nil
}

// VerifyConsensus is ParseConsensus for a consensus of any time: it checks everything but whether it is valid now.
// Certificates are judged at ValidAfter.
func VerifyConsensus(b []byte, net *Network) (*Consensus, error) {
	const name = "consensus"
	env, digest, err := open(kindConsensus, name, b, MaxConsensusSize)
	if err != nil {
		return nil, err
	}
	// The head says for when the certificates must be valid. It is trusted no further until the signatures are verified, and the
	// relays are not looked at before.
	var body consensusBody
	if err := decodingBig.Unmarshal(env.Body, &body); err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if body.Network != net.Name || body.Interval != uint64(net.Interval/time.Second) {
		return nil, fail(name, ErrWrongNetwork, "made for %q with an interval of %d s, not for %q with %v", clip(body.Network), body.Interval, net.Name, net.Interval)
	}
	signers, err := verifySigners(env.Signatures, digest, net, body.Period)
	if err != nil {
		return nil, err
	}
	c, err := body.consensus()
	if err != nil {
		return nil, fail(name, ErrMalformed, "%v", err)
	}
	if !bytes.Equal(encode(c.wire()), env.Body) {
		return nil, fail(name, ErrMalformed, "the body is not in its one form")
	}
	c.Signers = signers
	c.body = env.Body
	c.digest = digest
	c.raw = bytes.Clone(b)
	c.signatures = env.Signatures
	return c, nil
}

// PeekConsensus returns which consensus a document says it is, and verifies nothing but its form.
func PeekConsensus(b []byte) (period uint64, digest [32]byte, err error) {
	env, digest, err := open(kindConsensus, "consensus", b, MaxConsensusSize)
	if err != nil {
		return 0, digest, err
	}
	var body consensusBody
	if err := decodingBig.Unmarshal(env.Body, &body); err != nil {
		return 0, digest, fail("consensus", ErrMalformed, "%v", err)
	}
	return body.Period, digest, nil
}

// verifySigners checks all signatures of a consensus; at least the threshold of the network's authorities must have signed,
// each once, and nobody else.
func verifySigners(signatures []signatureWire, digest [32]byte, net *Network, period uint64) ([]identity.ID, error) {
	const name = "consensus"
	if len(signatures) > len(net.Authorities) {
		return nil, fail(name, ErrMalformed, "%d signatures of %d authorities", len(signatures), len(net.Authorities))
	}
	var signers []identity.ID
	for _, w := range signatures {
		cert, err := w.verify(consensusKind(period), digest, identity.PurposeConsensus, net.PeriodStart(period))
		if err != nil {
			return nil, fail(name, ErrBadSignature, "%v", err)
		}
		if _, ok := net.Authority(cert.Identity); !ok {
			return nil, fail(name, ErrUnknownSigner, "%s is no authority of network %s", cert.Identity.Short(), net.Name)
		}
		if n := len(signers); n > 0 && signers[n-1].Compare(cert.Identity) >= 0 {
			return nil, fail(name, ErrMalformed, "signatures are not sorted or repeat an authority")
		}
		signers = append(signers, cert.Identity)
	}
	if len(signers) < net.Threshold() {
		return nil, fail(name, ErrUndersigned, "%d of the %d needed", len(signers), net.Threshold())
	}
	return signers, nil
}

// validate checks what the comments promise, beyond what the wire form cannot express.
func (c *Consensus) validate() error {
	if err := errors.Join(checkNetworkName(c.Network), c.Params.validate(), c.Versions.validate()); err != nil {
		return err
	}
	if c.Interval < MinInterval || c.Interval > MaxInterval || c.Interval%time.Second != 0 {
		return fmt.Errorf("interval %v is out of range", c.Interval)
	}
	if c.Period > maxUnixTime/uint64(c.Interval/time.Second)-ValidPeriods {
		return fmt.Errorf("period %d is out of range", c.Period)
	}
	if len(c.Relays) > MaxRelays {
		return fmt.Errorf("%d relays: at most %d are allowed", len(c.Relays), MaxRelays)
	}
	for i := range c.Relays {
		r := &c.Relays[i]
		if i > 0 && c.Relays[i-1].Identity.Compare(r.Identity) >= 0 {
			return errors.New("relays are not sorted or not all different")
		}
		if !r.Flags.Has(FlagRunning | FlagValid) {
			return fmt.Errorf("relay %s is not running or not valid", r.Identity.Short())
		}
		if err := r.validate(); err != nil {
			return fmt.Errorf("relay %s: %w", r.Identity.Short(), err)
		}
	}
	return nil
}

// finish sets what follows from the other fields.
func (c *Consensus) finish() {
	seconds := uint64(c.Interval / time.Second)
	at := func(period uint64) time.Time { return time.Unix(int64(period*seconds), 0).UTC() }
	c.ValidAfter, c.FreshUntil, c.ValidUntil = at(c.Period), at(c.Period+1), at(c.Period+ValidPeriods)
	c.index = make(map[identity.ID]int32, len(c.Relays))
	for i := range c.Relays {
		c.index[c.Relays[i].Identity] = int32(i)
	}
}
