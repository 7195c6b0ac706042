package onion

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"cepa/crypto/identity"
)

const (
	// MaxBundleKeys is how many periods a bundle may hold: more than two years of days.
	MaxBundleKeys = 1000
	// MaxBundleSize is the largest bundle in bytes.
	MaxBundleSize = len(bundleMagic) + 1 + MaxNetworkName + identity.IDSize + 2 + MaxBundleKeys*bundleKeySize + bundleCheck

	bundleMagic = "cepa onion keys 1\n"
	// bundleKeySize is period (8), seed of the signing key (32), secret of the revisions (32), certificate (146).
	bundleKeySize = 8 + identity.SeedSize + revisionSize + identity.CertificateSize
	// bundleCheck is the length of the checksum. It guards against accidents.
	bundleCheck = 8
)

// ErrBundle says that bytes are not an undamaged bundle of keys.
var ErrBundle = errors.New("onion: bad bundle of keys")

// KeyBundle is what a service takes along whose identity stays offline: the keys of some periods. No secret of the identity and
// none of a blinded key is in it: who steals it can pose as the service in these periods, and in no other. Printing it shows no
// secret.
type KeyBundle struct {
	Network string
	Address Address
	Keys    []*PeriodKey // by rising period
}

// Key returns the key of a period.
func (b *KeyBundle) Key(period uint64) (*PeriodKey, bool) {
	i, found := slices.BinarySearchFunc(b.Keys, period, func(k *PeriodKey, p uint64) int {
		switch {
		case k.Period < p:
			return -1
		case k.Period > p:
			return 1
		}
		return 0
	})
	if !found {
		return nil, false
	}
	return b.Keys[i], true
}

// Encode returns the bytes of the file, which are as secret as the keys in them: a line that says what it is, network (length 1,
// name), address (32), number of periods (2), for each period (8), signing seed (32), secret of its revisions (32), certificate
// (146); the first 8 bytes of SHA-256 of it all.
func (b *KeyBundle) Encode() []byte {
	out := appendNetwork([]byte(bundleMagic), b.Network)
	out = append(out, b.Address[:]...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(b.Keys)))
	for _, k := range b.Keys {
		out = binary.BigEndian.AppendUint64(out, k.Period)
		out = append(out, k.Signing.Seed()...)
		out = append(out, k.revision[:]...)
		out = k.Certificate.AppendTo(out)
	}
	check := sum(out)
	return append(out, check[:bundleCheck]...)
}

// ParseKeyBundle reads what Encode wrote, and checks that every key is the address's in that network. b is not kept. Errors are
// ErrBundle.
func ParseKeyBundle(b []byte) (*KeyBundle, error) {
	bundle, err := parseBundle(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	return bundle, nil
}

func parseBundle(b []byte) (*KeyBundle, error) {
	switch {
	case len(b) > MaxBundleSize:
		return nil, errors.New("it is too long")
	case !bytes.HasPrefix(b, []byte(bundleMagic)):
		return nil, errors.New("it does not start as one, or is of a version that this program does not know")
	case len(b) < len(bundleMagic)+bundleCheck:
		return nil, errors.New("its end is missing")
	}
	body, check := b[:len(b)-bundleCheck], b[len(b)-bundleCheck:]
	if s := sum(body); !bytes.Equal(s[:bundleCheck], check) {
		return nil, errors.New("its checksum does not fit: it was damaged, or its end is missing")
	}
	r := reader{b: body[len(bundleMagic):]}
	bundle := &KeyBundle{Network: string(r.take(int(r.uint8()))), Address: Address(r.array32())}
	count := int(r.uint16())
	switch {
	case r.short || len(r.b) != count*bundleKeySize:
		return nil, errors.New("its length does not fit the number of periods")
	case count == 0 || count > MaxBundleKeys:
		return nil, fmt.Errorf("it holds %d periods, want 1 to %d", count, MaxBundleKeys)
	}
	for range count {
		k := &PeriodKey{Period: r.uint64()}
		if n := len(bundle.Keys); n > 0 && bundle.Keys[n-1].Period >= k.Period {
			return nil, errors.New("its periods are not in rising order")
		}
		var err error
		if k.Signing, err = identity.FromSeed(r.take(identity.SeedSize)); err != nil {
			return nil, err
		}
		k.revision = r.array32()
		if k.Certificate, err = identity.ParseCertificate(r.take(identity.CertificateSize)); err != nil {
			return nil, err
		}
		k.Blinded = k.Certificate.Identity
		if err := k.check(bundle.Network, bundle.Address); err != nil {
			return nil, err
		}
		bundle.Keys = append(bundle.Keys, k)
	}
	return bundle, nil
}

// Format writes how much there is for every verb, and neither secrets nor the address.
func (b KeyBundle) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "onion.KeyBundle(%d periods)", len(b.Keys))
}

// LogValue is the text of Format for log/slog.
func (b KeyBundle) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(b)) }
