package onion

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"cepa/crypto/identity"
)

const (
	// periodContext precedes network and period in what a blinded key is bound to.
	periodContext = "cepa/1 onion period"
	// subcredentialContext precedes address and blinded key.
	subcredentialContext = "cepa/1 onion subcredential"
	// revisionContext is the info by which the secret of a period's revisions follows from the identity.
	revisionContext = "cepa/1 onion revision"
	revisionSize    = 32
)

// ErrPeriodKey says that the parts of a period's key do not belong together.
var ErrPeriodKey = errors.New("onion: the keys of a period do not fit together")

// Blind returns the blinded key of a service: what it is called by in one period of one network. Who knows the address computes
// it; who does not cannot go back, and cannot tell that two blinded keys are of one service. An address that is no usable key
// and a name that is none of a network are errors.
func Blind(a Address, network string, period uint64) (identity.ID, error) {
	if err := checkNetwork(network); err != nil {
		return identity.ID{}, fmt.Errorf("onion: blinding a key: %w", err)
	}
	return a.ID().Blind(appendPeriod([]byte(periodContext), network, period))
}

// Subcredential returns the secret that whoever knows the address shares for the time of a blinded key. Relays, which know the
// blinded key alone, do not have it.
func Subcredential(a Address, blinded identity.ID) [32]byte {
	return sum([]byte(subcredentialContext), a[:], blinded[:])
}

// PeriodKey is what a service needs in one period, and all that it needs of its identity: a key for its descriptors that the
// blinded key has certified. It does not change after it was made. Printing it shows no secret.
type PeriodKey struct {
	Period      uint64
	Blinded     identity.ID
	Signing     *identity.Key
	Certificate *identity.Certificate // of Signing by Blinded, for identity.PurposeOnion

	// revision is the secret of Revision. It follows from the identity and the period, so that a service that starts anew,
	// with another signing key, goes on where it was.
	revision [revisionSize]byte
}

// NewPeriodKey makes the key of a period from 32 bytes of random. The times of the certificate are seen by the relays that hold
// the descriptor: they must be those of the period, the same for all services, and not of this service's clock.
func NewPeriodKey(id *identity.Key, network string, period uint64, notBefore, notAfter time.Time, random io.Reader) (*PeriodKey, error) {
	if err := checkNetwork(network); err != nil {
		return nil, fmt.Errorf("onion: making the key of a period: %w", err)
	}
	bound := appendPeriod(nil, network, period)
	blinded, err := id.Blind(append([]byte(periodContext), bound...))
	if err != nil {
		return nil, fmt.Errorf("onion: making the key of a period: %w", err)
	}
	signing, err := identity.Generate(orDefault(random))
	if err != nil {
		return nil, fmt.Errorf("onion: making the key of a period: %w", err)
	}
	certificate, err := blinded.Certify(identity.PurposeOnion, signing.ID(), notBefore, notAfter)
	if err != nil {
		return nil, fmt.Errorf("onion: making the key of a period: %w", err)
	}
	seed := id.Seed()
	defer clear(seed)
	k := &PeriodKey{Period: period, Blinded: blinded.ID(), Signing: signing, Certificate: certificate}
	copy(k.revision[:], derive(seed, nil, revisionContext+string(bound), revisionSize))
	return k, nil
}

// check tells whether the parts belong together, and to the address.
func (k *PeriodKey) check(network string, a Address) error {
	if k.Signing == nil || k.Certificate == nil {
		return fmt.Errorf("%w: there is no signing key or no certificate", ErrPeriodKey)
	}
	switch blinded, err := Blind(a, network, k.Period); {
	case err != nil:
		return err
	case blinded != k.Blinded:
		return fmt.Errorf("%w: the blinded key is not that of the address in network %q and period %d", ErrPeriodKey, network, k.Period)
	case k.Certificate.Identity != k.Blinded:
		return fmt.Errorf("%w: the certificate is not by the blinded key", ErrPeriodKey)
	case k.Certificate.Subject != k.Signing.ID():
		return fmt.Errorf("%w: the certificate is for another signing key", ErrPeriodKey)
	}
	if err := k.Certificate.Verify(k.Certificate.NotBefore, identity.PurposeOnion); err != nil {
		return fmt.Errorf("%w: %w", ErrPeriodKey, err)
	}
	return nil
}

// Format writes period and blinded key for every verb.
func (k PeriodKey) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "onion.PeriodKey(period %d, %s)", k.Period, k.Blinded.Short())
}

// LogValue is the text of Format for log/slog.
func (k PeriodKey) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }
