package relay

import (
	"context"
	"fmt"
	"time"

	"cepa/clock"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/link"
)

// The key that proves the relay's identity on links; ours.
const (
	// linkCertLifetime is how long a link key is certified; it is replaced
	// after half of that, so that links never meet an expired one.
	linkCertLifetime = 14 * 24 * time.Hour
	// clockSlack is how far another's clock may be behind ours.
	clockSlack = 24 * time.Hour
	// renewCheck is how often the date is looked at. A timer for the day
	// itself would stand still while the machine sleeps.
	renewCheck = time.Hour
	// clockCheck is how often it is looked whether the date has jumped.
	clockCheck = time.Minute
)

// renewAuth makes and certifies a new link key.
func (r *Relay) renewAuth() error {
	key, err := identity.Generate(r.cfg.Rand)
	if err != nil {
		return fmt.Errorf("relay: link key: %w", err)
	}
	now := r.cfg.Now()
	cert, err := r.cfg.Identity.Certify(identity.PurposeLink, key.ID(), now.Add(-clockSlack), now.Add(linkCertLifetime))
	if err != nil {
		return fmt.Errorf("relay: link key: %w", err)
	}
	r.auth.Store(&link.Auth{Identity: r.Identity(), Key: key, Certificate: cert})
	return nil
}

// renewalDue reports whether the link key is half way through its time, or was
// certified by a clock that has been put right since.
func (r *Relay) renewalDue() bool {
	cert, now := r.auth.Load().Certificate, r.cfg.Now()
	return cert.NotAfter.Sub(now) <= linkCertLifetime/2 || now.Sub(cert.NotBefore) < clockSlack/2
}

// renewLoop replaces keys in time until ctx ends.
func (r *Relay) renewLoop(ctx context.Context) {
	tick := time.NewTicker(renewCheck)
	defer tick.Stop()
	var reminded time.Time
	for {
		now := r.cfg.Now()
		if since := now.Sub(reminded); since >= 24*time.Hour || since < 0 {
			r.remindOfFamilies(now)
			reminded = now
		}
		select {
		case <-tick.C:
		case <-r.jumped:
		case <-ctx.Done():
			return
		}
		r.keepOnionKeys()
		if !r.renewalDue() {
			continue
		}
		if err := r.renewAuth(); err != nil {
			r.cfg.Log.Error("could not replace the link key, trying again; links will fail when it expires",
				"err", err, "until", r.auth.Load().Certificate.NotAfter)
		}
	}
}

// onJump does at once what timers would do too late, or for another date than it is
// now.
func (r *Relay) onJump(j clock.Jump) {
	j.Log(r.cfg.Log)
	r.mirror.Wake()
	select {
	case r.jumped <- struct{}{}:
	default: // is to be looked at already
	}
	last := time.Unix(r.lastPublished.Load(), 0)
	if age := r.cfg.Now().Sub(last); age > directory.DescriptorRefresh || age < -directory.MaxClockSkew {
		r.republishNow() // it has expired meanwhile, or soon will; or it is from the future
	}
}
