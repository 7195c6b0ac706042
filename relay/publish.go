package relay

import (
	"context"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

// How often a descriptor goes to the authorities (they drop it after 48 h), and
// how an attempt that failed is repeated.
const (
	publishEvery    = 18 * time.Hour
	publishRetryMin = time.Second
	publishRetryMax = 5 * time.Minute
	descriptorCert  = 3 * 24 * time.Hour
)

// publishLoop keeps the authorities informed until ctx ends.
func (r *Relay) publishLoop(ctx context.Context) {
	pause := publishRetryMin
	for ctx.Err() == nil {
		err := r.publish(ctx)
		if err == nil {
			pause = publishRetryMin
			wait(ctx, publishEvery)
			continue
		}
		if ctx.Err() == nil {
			r.cfg.Log.Warn("the descriptor did not reach enough authorities", "error", err, "retry_in", pause)
		}
		wait(ctx, pause)
		pause = min(2*pause, publishRetryMax)
	}
}

func (r *Relay) publish(ctx context.Context) error {
	doc, err := r.descriptor()
	if err != nil {
		return err
	}
	return mirror.Publish(ctx, r.cfg.Network, r.limitedDial, doc)
}

// descriptor makes and signs what this relay says about itself.
func (r *Relay) descriptor() ([]byte, error) {
	now := r.cfg.Now()
	seq := uint64(now.UnixMilli())
	if r.cfg.NextSequence != nil {
		var err error
		if seq, err = r.cfg.NextSequence(); err != nil {
			return nil, err
		}
	}
	key, err := identity.Generate(r.cfg.Rand)
	if err != nil {
		return nil, err
	}
	cert, err := r.cfg.Identity.Certify(identity.PurposeDescriptor, key.ID(), now.Add(-clockSlack), now.Add(descriptorCert))
	if err != nil {
		return nil, err
	}
	d := &directory.Descriptor{
		Network: r.cfg.Network.Name, Identity: r.Identity(), Sequence: seq, Published: now.Truncate(time.Second),
		OnionKey: r.cfg.OnionKey.Public(), Suite: uint8(r.cfg.Suite), Nickname: r.cfg.Nickname,
		Addresses: r.cfg.Addresses, Version: r.cfg.Version, Contact: r.cfg.Contact,
		BandwidthRate: r.stated(), Uptime: r.uptime().Truncate(time.Second),
	}
	if r.exit != nil {
		d.ExitPolicy = r.exit.cfg.Policy
	}
	return directory.SignDescriptor(d, key, cert)
}

// unlimitedStated is what a relay without a rate states, in KB/s: 1 Gbit/s.
const unlimitedStated = 125_000

// stated returns the rate for the descriptor, in KB/s.
func (r *Relay) stated() uint64 {
	if r.cfg.Rate.BytesPerSecond == 0 {
		return unlimitedStated
	}
	return uint64(r.cfg.Rate.BytesPerSecond / 1000)
}

func (r *Relay) uptime() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.started)
}
