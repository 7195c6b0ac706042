package directory

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"cepa/crypto/identity"
)

// Times and bounds of descriptors.
const (
	// DescriptorRefresh is after how long a relay publishes a new descriptor even if nothing changed.
	DescriptorRefresh = 18 * time.Hour
	// DescriptorLifetime is how long after its publication a descriptor is accepted: two missed refreshes and some.
	DescriptorLifetime = 48 * time.Hour
	// MaxClockSkew is how far in the future a document may lie: clocks differ, and few differ by more without being wrong.
	MaxClockSkew = 5 * time.Minute
	// MaxContact is the longest contact line in bytes.
	MaxContact = 200

	// maxUnixTime is the end of the year 9999 in Unix seconds: what text formats can hold.
	maxUnixTime = 253402300799
	// maxUptime is 100 years in seconds.
	maxUptime = 100 * 365 * 24 * 3600
)

// Descriptor is what a relay says about itself. Relays make it, sign it with SignDescriptor and send it to the authorities.
type Descriptor struct {
	// Network is the name of the network that the relay joins.
	Network string
	// Identity is the relay's; its certificate for the signing key travels with the descriptor.
	Identity identity.ID
	// Sequence orders the descriptors of one relay: the highest counts, and a used one is never used again. 1 to 2^63 − 1; a relay
	// takes one more than its last, or the Unix time in milliseconds.
	Sequence uint64
	// Published is when the descriptor was made, in whole seconds.
	Published time.Time
	// OnionKey, Suite, Nickname, Addresses and Version have the meaning and the bounds of those of Relay.
	OnionKey  [32]byte
	Suite     uint8
	Nickname  string
	Addresses []netip.AddrPort
	Version   string
	// Memberships says of which families the relay is, at most MaxFamilies: certificates of the families' keys for the relay's identity, with
	// purpose family and valid when d is published, sorted by family, each once. So both sides agree: the family has signed, and the relay shows it.
	Memberships []*identity.Certificate
	// BandwidthRate is what the relay promises to carry, in KB/s (1 KB = 1000 bytes), at most MaxWeight.
	BandwidthRate uint64
	// Uptime is since when the relay has been running, in whole seconds.
	Uptime time.Duration
	// Contact tells people whom to write to: up to MaxContact bytes of printable text; may be empty.
	Contact string
	// ExitPolicy sums up to which ports the relay opens streams; the zero value means none.
	ExitPolicy PortPolicy
	// Extra is the relay's state and past; it may be zero.
	Extra Extra

	raw    []byte
	digest [32]byte
}

type descriptorBody struct {
	_             struct{} `cbor:",toarray"`
	Network       string
	Identity      [32]byte
	Sequence      uint64
	Published     uint64
	OnionKey      [32]byte
	Suite         uint8
	Nickname      string
	Addresses     []addressWire
	Memberships   [][]byte
	Version       string
	BandwidthRate uint64
	Uptime        uint64
	Contact       string
	ExitPolicy    string
}

// descriptorBodyExtra is the body of a descriptor whose Extra is not zero: an array of one element more.
type descriptorBodyExtra struct {
	_ struct{} `cbor:",toarray"`
	descriptorBody
	Extra extraWire
}

// extraBodyHead is the first byte of a body with Extra: an array of 15.
const extraBodyHead = 0x80 | 15

type addressWire struct {
	_    struct{} `cbor:",toarray"`
	IP   []byte
	Port uint16
}

// Raw returns the signed document that the descriptor was parsed from, nil if it was not. It must not be changed.
func (d *Descriptor) Raw() []byte { return d.raw }

// Digest returns the SHA-256 of Raw: it names this descriptor, signature included.
func (d *Descriptor) Digest() [32]byte { return d.digest }

// SignDescriptor returns the signed document of d. key is the relay's signing key and cert the certificate that the relay's identity gave
// it, with purpose descriptor and valid when d is published. It does not change d.
func SignDescriptor(d *Descriptor, key *identity.Key, cert *identity.Certificate) ([]byte, error) {
	s := signer{key, cert}
	if err := errors.Join(d.validate(), d.verifyMemberships(), s.check(identity.PurposeDescriptor, d.Published)); err != nil {
		return nil, fmt.Errorf("directory: signing a descriptor: %w", err)
	}
	if cert.Identity != d.Identity {
		return nil, fmt.Errorf("directory: signing a descriptor: the certificate is from %s, not from %s", cert.Identity.Short(), d.Identity.Short())
	}
	b := seal(kindDescriptor, d.encode(), s)
	if len(b) > MaxDescriptorSize {
		return nil, fail("descriptor", ErrTooLarge, "%d bytes: at most %d are allowed", len(b), MaxDescriptorSize)
	}
	return b, nil
}

// ParseDescriptor parses and verifies a signed descriptor that must be current at now: not published longer than
// DescriptorLifetime ago nor more than MaxClockSkew ahead, and its certificate and memberships still valid. b is copied. Errors are *Error:
// ErrTooLarge, ErrMalformed, ErrBadSignature, ErrExpired, ErrFuture. Whether Network is the right one is the caller's to check.
func ParseDescriptor(b []byte, now time.Time) (*Descriptor, error) {
	d, cert, err := parseDescriptor(b)
	if err != nil {
		return nil, err
	}
	if err := d.CheckTime(now); err != nil {
		return nil, err
	}
	if cert.NotAfter.Before(now) {
		return nil, fail("descriptor", ErrExpired, "the certificate of its signing key ended at %s", stamp(cert.NotAfter))
	}
	for _, m := range d.Memberships {
		if m.NotAfter.Before(now) {
			return nil, fail("descriptor", ErrExpired, "its membership of family %s ended at %s", m.Identity.Short(), stamp(m.NotAfter))
		}
	}
	return d, nil
}

// VerifyDescriptor is ParseDescriptor for descriptors of any age: it checks everything but whether the descriptor is current.
func VerifyDescriptor(b []byte) (*Descriptor, error) {
	d, _, err := parseDescriptor(b)
	return d, err
}

// CheckTime returns an *Error with ErrExpired or ErrFuture unless the descriptor is current at now.
func (d *Descriptor) CheckTime(now time.Time) error {
	if age := now.Sub(d.Published); age > DescriptorLifetime {
		return fail("descriptor", ErrExpired, "published at %s, and it is %s here; if it should be valid, check both clocks", stamp(d.Published), stamp(now))
	} else if age < -MaxClockSkew {
		return fail("descriptor", ErrFuture, "published at %s, and it is %s here; if it should be valid, check both clocks", stamp(d.Published), stamp(now))
	}
	return nil
}

func parseDescriptor(b []byte) (*Descriptor, *identity.Certificate, error) {
	const name = "descriptor"
	env, digest, err := openSingle(kindDescriptor, name, b, MaxDescriptorSize)
	if err != nil {
		return nil, nil, err
	}
	d, err := decodeDescriptor(env.Body)
	if err != nil {
		return nil, nil, fail(name, ErrMalformed, "%v", err)
	}
	if err := d.validate(); err != nil {
		return nil, nil, fail(name, ErrMalformed, "%v", err)
	}
	if !bytes.Equal(d.encode(), env.Body) {
		return nil, nil, fail(name, ErrMalformed, "the body is not in its one form")
	}
	cert, err := env.Signatures[0].verify(kindDescriptor, digest, identity.PurposeDescriptor, d.Published)
	if err != nil {
		return nil, nil, fail(name, ErrBadSignature, "%v", err)
	}
	if cert.Identity != d.Identity {
		return nil, nil, fail(name, ErrUnknownSigner, "it is about %s and signed by %s", d.Identity.Short(), cert.Identity.Short())
	}
	// Last, because each costs as much as the descriptor's own signature: a stranger's descriptor has been refused by now.
	if err := d.verifyMemberships(); err != nil {
		return nil, nil, fail(name, ErrBadSignature, "%v", err)
	}
	d.raw = bytes.Clone(b)
	d.digest = sha256.Sum256(b)
	return d, cert, nil
}

func (d *Descriptor) validate() error {
	if err := d.Identity.Check(); err != nil {
		return err
	}
	if err := errors.Join(checkNetworkName(d.Network), checkNickname(d.Nickname), checkVersion(d.Version), checkSuite(d.Suite),
		checkAddresses(d.Addresses), d.checkMemberships(), checkText(d.Contact, MaxContact), d.ExitPolicy.validate(), d.Extra.validate()); err != nil {
		return err
	}
	switch {
	case d.Sequence == 0 || d.Sequence > math.MaxInt64:
		return fmt.Errorf("sequence %d is out of range", d.Sequence)
	case d.Published.Unix() < 0 || d.Published.Unix() > maxUnixTime || d.Published.Nanosecond() != 0:
		return errors.New("published is not a whole second from 1970 to 9999")
	case d.OnionKey == [32]byte{}:
		return errors.New("onion key is missing")
	case d.BandwidthRate == 0 || d.BandwidthRate > MaxWeight:
		return fmt.Errorf("bandwidth rate of %d KB/s is out of range", d.BandwidthRate)
	case d.Uptime < 0 || d.Uptime > maxUptime*time.Second || d.Uptime%time.Second != 0:
		return fmt.Errorf("uptime %v is not whole seconds up to 100 years", d.Uptime)
	}
	return nil
}

// encode returns the body.
func (d *Descriptor) encode() []byte {
	if d.Extra.IsZero() {
		return encode(d.wire())
	}
	return encode(&descriptorBodyExtra{descriptorBody: *d.wire(), Extra: *d.Extra.wire()})
}

// decodeDescriptor reads a body of either form. Whether it is the right one, and within bounds, is left to the caller.
func decodeDescriptor(b []byte) (*Descriptor, error) {
	if len(b) == 0 || b[0] != extraBodyHead {
		var body descriptorBody
		if err := decoding.Unmarshal(b, &body); err != nil {
			return nil, err
		}
		return body.descriptor()
	}
	var body descriptorBodyExtra
	if err := decoding.Unmarshal(b, &body); err != nil {
		return nil, err
	}
	d, err := body.descriptor()
	if err != nil {
		return nil, err
	}
	d.Extra, err = body.Extra.extra()
	return d, err
}

func (d *Descriptor) wire() *descriptorBody {
	w := &descriptorBody{
		Network:       d.Network,
		Identity:      d.Identity,
		Sequence:      d.Sequence,
		Published:     uint64(d.Published.Unix()),
		OnionKey:      d.OnionKey,
		Suite:         d.Suite,
		Nickname:      d.Nickname,
		Version:       d.Version,
		BandwidthRate: d.BandwidthRate,
		Uptime:        uint64(d.Uptime / time.Second),
		Contact:       d.Contact,
		ExitPolicy:    d.ExitPolicy.String(),
	}
	for _, a := range d.Addresses {
		w.Addresses = append(w.Addresses, addressWire{IP: a.Addr().AsSlice(), Port: a.Port()})
	}
	for _, m := range d.Memberships {
		w.Memberships = append(w.Memberships, m.AppendTo(nil))
	}
	return w
}

// descriptor converts the wire form. Numbers that do not fit their Go types are errors here; all else is left to validate.
func (w *descriptorBody) descriptor() (*Descriptor, error) {
	if w.Published > maxUnixTime || w.Uptime > maxUptime {
		return nil, errors.New("a time is out of range")
	}
	d := &Descriptor{
		Network:       w.Network,
		Identity:      w.Identity,
		Sequence:      w.Sequence,
		Published:     time.Unix(int64(w.Published), 0).UTC(),
		OnionKey:      w.OnionKey,
		Suite:         w.Suite,
		Nickname:      w.Nickname,
		Version:       w.Version,
		BandwidthRate: w.BandwidthRate,
		Uptime:        time.Duration(w.Uptime) * time.Second,
		Contact:       w.Contact,
	}
	for _, a := range w.Addresses {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			return nil, fmt.Errorf("address of %d bytes", len(a.IP))
		}
		d.Addresses = append(d.Addresses, netip.AddrPortFrom(ip, a.Port))
	}
	var err error
	if d.Memberships, err = parseMemberships(w.Memberships); err != nil {
		return nil, err
	}
	d.ExitPolicy, err = ParsePortPolicy(w.ExitPolicy)
	return d, err
}

// relay returns the entry that the consensus has for a relay with this descriptor.
func (d *Descriptor) relay(flags Flags, weight uint64) Relay {
	return Relay{
		Identity:  d.Identity,
		OnionKey:  d.OnionKey,
		Suite:     d.Suite,
		Nickname:  d.Nickname,
		Addresses: slices.Clone(d.Addresses),
		Flags:     flags,
		Weight:    weight,
		Exit:      d.ExitPolicy,
		Family:    d.Families(),
		Version:   d.Version,
	}
}

// stamp prints a time for people.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
