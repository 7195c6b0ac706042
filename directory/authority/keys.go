package authority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

const (
	// SigningFile is the file of the store that holds the signing key and its certificate.
	SigningFile = "signing"
	// SigningLifetime is how long a signing key serves unless somebody decides otherwise.
	SigningLifetime = 90 * 24 * time.Hour
	// signingSlack is by how much a certificate starts early: the first consensus is for a period that has begun already, and clocks differ.
	signingSlack = 24*time.Hour + directory.MaxClockSkew
	// signingNotice is how long before the end of the signing key its operator is reminded, every day.
	signingNotice = 30 * 24 * time.Hour
	// keyCheck is how often it is looked whether to remind.
	keyCheck = time.Hour
	// maxSigningFile is the longest SigningFile in bytes.
	maxSigningFile = identity.MaxKeyFileSize + identity.MaxCertificateFileSize
	// certificateHead is how the certificate's part of SigningFile begins.
	certificateHead = "cepa certificate "
	// renewAdvice is what to do about a signing key that cannot be used.
	renewAdvice = `make a new one with "cepa authority renew"`
)

// ErrSigningFile says that bytes are not what EncodeSigningKey makes.
var ErrSigningFile = errors.New("authority: bad signing key file")

// SigningKey signs votes and consensuses for an authority whose identity, which may lie somewhere offline, has certified it.
type SigningKey struct {
	Key         *identity.Key
	Certificate *identity.Certificate // with purpose consensus
}

// NewSigningKey makes a key from random (crypto/rand when nil) and certifies it from now on, for lifetime. Its certificate is of a later generation than
// previous, which may be nil: who knows both refuses the older.
func NewSigningKey(id *identity.Key, random io.Reader, now time.Time, lifetime time.Duration, previous *identity.Certificate) (*SigningKey, error) {
	key, err := identity.Generate(random)
	if err != nil {
		return nil, fmt.Errorf("authority: signing key: %w", err)
	}
	from := now.Add(-signingSlack).Truncate(time.Second)
	// One that begins in the future was made by a clock that was wrong: nobody has taken it.
	if previous != nil && !previous.NotBefore.After(now) && !previous.NotBefore.Before(from) {
		from = previous.NotBefore.Add(time.Second)
	}
	cert, err := id.Certify(identity.PurposeConsensus, key.ID(), from, now.Add(lifetime))
	if err != nil {
		return nil, fmt.Errorf("authority: signing key: %w", err)
	}
	return &SigningKey{key, cert}, nil
}

// EncodeSigningKey returns the content of SigningFile: the key file, and behind it the certificate file. Being one file, both change at once.
// It is as secret as the key.
func EncodeSigningKey(k *SigningKey) ([]byte, error) {
	b, err := identity.EncodeKeyFile(identity.KindSigning, [identity.SecretSize]byte(k.Key.Seed()))
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return append(b, identity.EncodeCertificateFile(k.Certificate)...), nil
}

// ParseSigningKey undoes EncodeSigningKey. Errors are ErrSigningFile; they never repeat what the file holds. Whether the certificate is good and valid is
// left to be verified.
func ParseSigningKey(b []byte) (*SigningKey, error) {
	fail := func(err error) (*SigningKey, error) { return nil, fmt.Errorf("%w: %w", ErrSigningFile, err) }
	if len(b) > maxSigningFile {
		return fail(fmt.Errorf("it has more than %d bytes", maxSigningFile))
	}
	at := bytes.Index(b, []byte(certificateHead))
	if at < 0 {
		return fail(errors.New("it has no certificate"))
	}
	seed, err := identity.ParseKeyFile(b[:at], identity.KindSigning)
	if err != nil {
		return fail(err)
	}
	cert, err := identity.ParseCertificateFile(b[at:])
	if err != nil {
		return fail(err)
	}
	if !bytes.Equal(identity.EncodeCertificateFile(cert), b[at:]) {
		return fail(errors.New("something was changed at its end"))
	}
	key, err := identity.FromSeed(seed[:])
	if err != nil {
		return fail(err)
	}
	if key.ID() != cert.Subject {
		return fail(errors.New("its certificate is for another key"))
	}
	return &SigningKey{key, cert}, nil
}

// firstKey sets the authority's identity and its signing key.
func (a *Authority) firstKey() error {
	k, err := a.loadKey(a.now())
	if err != nil {
		return err
	}
	self, ok := a.cfg.Network.Authority(k.Certificate.Identity)
	if !ok {
		return fmt.Errorf("authority: network %s has no authority with identity %v; is this the right key and network file?", a.cfg.Network.Name, k.Certificate.Identity)
	}
	a.self, a.log = self, a.cfg.Log.With("authority", self.Nickname)
	if err := a.checkKey(k, a.now()); err != nil {
		return err
	}
	a.signing.Store(k)
	return nil
}

// loadKey returns the newest signing key there is. With the identity at hand, it makes one when there is none, or when half of its time is over.
func (a *Authority) loadKey(now time.Time) (*SigningKey, error) {
	k := a.signing.Load()
	if a.cfg.Store != nil {
		switch b, err := a.cfg.Store.Read(SigningFile, maxSigningFile); {
		case err == nil:
			if k, err = ParseSigningKey(b); err != nil {
				return nil, fmt.Errorf("authority: stored file %q: %w; put back a good copy of it, or %s", SigningFile, err, renewAdvice)
			}
		case errors.Is(err, fs.ErrNotExist):
			k = nil // as long as it is not there, the present key is in memory only
		default:
			return nil, fmt.Errorf("authority: signing key: %w", err)
		}
	}
	id := a.cfg.Key
	switch {
	case id == nil && k == nil:
		return nil, fmt.Errorf("authority: there is neither an identity nor a signing key here: %s, with the directory where the identity is", renewAdvice)
	case id == nil:
		return k, nil
	case k != nil && k.Certificate.Identity == id.ID() && k.young(now):
		return k, nil
	}
	a.mu.Lock()
	previous := a.newest[id.ID()]
	a.mu.Unlock()
	if k != nil && k.Certificate.Identity == id.ID() && (previous == nil || previous.Generation() < k.Certificate.Generation()) {
		previous = k.Certificate
	}
	k, err := NewSigningKey(id, a.cfg.Rand, now, SigningLifetime, previous)
	if err != nil || a.cfg.Store == nil {
		return k, err
	}
	b, err := EncodeSigningKey(k)
	if err == nil {
		err = a.cfg.Store.Write(SigningFile, b)
	}
	if err != nil {
		return nil, fmt.Errorf("authority: storing a new signing key: %w", err)
	}
	return k, nil
}

// young reports whether less than half of the key's time is over.
func (k *SigningKey) young(now time.Time) bool {
	c := k.Certificate
	return !c.NotBefore.After(now) && 2*c.Remaining(now) > c.NotAfter.Sub(c.NotBefore)
}

// checkKey returns nil if the authority can sign with the key at now.
func (a *Authority) checkKey(k *SigningKey, now time.Time) error {
	if k.Certificate.Identity != a.self.Identity {
		return fmt.Errorf("authority: the signing key is that of %v, and this is authority %v: the files were mixed up", k.Certificate.Identity.Short(), a.self.Identity.Short())
	}
	if err := k.Certificate.Verify(now, identity.PurposeConsensus); err != nil {
		return fmt.Errorf("authority: the signing key cannot be used: %w; %s", err, renewAdvice)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if newest := a.newest[a.self.Identity]; newest != nil && k.Certificate.Generation() < newest.Generation() {
		return fmt.Errorf("authority: the signing key is older than one that this authority has used, certified from %s on, and the others refuse it: put back the newer one, or %s",
			newest.NotBefore.UTC().Format(time.RFC3339), renewAdvice)
	}
	return nil
}

// Reload looks whether there is a new signing key in the store, and takes it. Each vote does so too.
func (a *Authority) Reload() error {
	now := a.now()
	next, err := a.loadKey(now)
	if err == nil {
		err = a.checkKey(next, now)
	}
	if err != nil {
		return err
	}
	for {
		present := a.signing.Load()
		if *next.Certificate == *present.Certificate {
			return nil
		}
		if next.Certificate.Generation() < present.Certificate.Generation() {
			return fmt.Errorf("authority: the signing key in the store is older than the one in use, from %s: put back the newer one, or %s",
				present.Certificate.NotBefore.UTC().Format(time.RFC3339), renewAdvice)
		}
		if a.signing.CompareAndSwap(present, next) {
			a.log.Info("the signing key was replaced", "until", next.Certificate.NotAfter)
			return nil
		}
	}
}

// signingKey returns the key to sign with for a period.
func (a *Authority) signingKey(period uint64) (*SigningKey, error) {
	if err := a.Reload(); err != nil {
		a.log.Warn("the signing key could not be looked at, the present one stays", "err", err)
	}
	k := a.signing.Load()
	if err := k.Certificate.Verify(a.cfg.Network.PeriodStart(period), identity.PurposeConsensus); err != nil {
		return nil, fmt.Errorf("the signing key cannot be used: %w; %s", err, renewAdvice)
	}
	return k, nil
}

// SigningUntil returns until when the signing key serves.
func (a *Authority) SigningUntil() time.Time { return a.signing.Load().Certificate.NotAfter }

// SigningNotice returns from when on the operator is reminded of the end of the signing key.
func (a *Authority) SigningNotice() time.Time {
	c := a.signing.Load().Certificate
	return c.NotAfter.Add(-min(signingNotice, c.NotAfter.Sub(c.NotBefore)/3))
}

// keyLoop reminds the operator of the end of the signing key, every day, until ctx ends.
func (a *Authority) keyLoop(ctx context.Context) {
	tick := time.NewTicker(keyCheck)
	defer tick.Stop()
	var reminded time.Time
	for {
		now := a.now()
		// A clock that was set back makes the last reminder lie in the future.
		if since := now.Sub(reminded); now.After(a.SigningNotice()) && (since >= 24*time.Hour || since < 0) {
			a.remind(now)
			reminded = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Authority) remind(now time.Time) {
	left := a.signing.Load().Certificate.Remaining(now)
	if left <= 0 {
		a.log.Error("the signing key has expired: this authority neither votes nor signs; "+renewAdvice, "until", a.SigningUntil())
		return
	}
	a.log.Warn("the signing key expires soon; "+renewAdvice, "days", int(left/(24*time.Hour)), "until", a.SigningUntil())
}
