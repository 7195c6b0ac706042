package relay

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

// How an attempt to publish that failed is repeated, and how long the key that
// signs a descriptor is certified: longer than authorities keep the descriptor.
const (
	publishRetryMin = time.Second
	publishRetryMax = 5 * time.Minute
	descriptorCert  = 3 * 24 * time.Hour
	// relistPeriods is after how many periods a relay that published and is
	// still not listed publishes again: one for the vote that was under way,
	// one for the authorities to find that they reach it.
	relistPeriods = 2
)

// publishLoop keeps the authorities informed until ctx ends.
func (r *Relay) publishLoop(ctx context.Context) {
	pause := publishRetryMin
	var failures sparse
	for ctx.Err() == nil {
		select {
		case <-r.republish: // what it tells is told now
		default:
		}
		err := r.publish(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			pause = publishRetryMin
			r.awaitPublish(ctx)
			continue
		case r.tally.spent():
			r.awaitPublish(ctx) // nothing can be said before the month ends
			continue
		}
		r.cfg.Log.Debug("a descriptor was not accepted", "err", err)
		if n := failures.due(time.Now()); n > 0 {
			r.cfg.Log.Warn("the descriptor did not reach enough authorities, trying again; check the network and the clock", "count", n)
		}
		wait(ctx, r.spread(pause))
		pause = min(2*pause, publishRetryMax)
	}
}

// awaitPublish returns when the next descriptor is due: in time before the last
// one expires, or when the authorities have lost it.
func (r *Relay) awaitPublish(ctx context.Context) {
	due := time.NewTimer(directory.DescriptorRefresh)
	defer due.Stop()
	published := r.cfg.Now()
	for {
		changed := r.mirror.Changed()
		if r.unlisted(published) {
			r.cfg.Log.Warn("the consensus does not list this relay, publishing again; check that its address is reachable from outside")
			return
		}
		select {
		case <-changed:
		case <-r.republish:
			return
		case <-due.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// unlisted reports whether the present consensus should list this relay, which
// published at the given time, and does not.
func (r *Relay) unlisted(published time.Time) bool {
	c := r.mirror.Current()
	if c == nil || !r.takes() || c.ValidAfter.Before(published.Add(relistPeriods*c.Interval)) {
		return false
	}
	_, listed := c.Lookup(r.Identity())
	return !listed
}

// spread returns d, up to a quarter shorter, so that relays that began together
// do not go on together.
func (r *Relay) spread(d time.Duration) time.Duration {
	var b [8]byte
	if _, err := io.ReadFull(r.cfg.Rand, b[:]); err != nil {
		return d // without randomness all goes on, only less evenly
	}
	return d - time.Duration(binary.BigEndian.Uint64(b[:])%uint64(d/4+1))
}

func (r *Relay) publish(ctx context.Context) error {
	seq, err := r.nextSequence()
	if err != nil {
		return fmt.Errorf("relay: sequence of the next descriptor: %w", err)
	}
	doc, err := r.descriptor(seq)
	if err != nil {
		return err
	}
	at := r.cfg.Now()
	if err := mirror.Publish(ctx, r.cfg.Network, r.limitedDial, doc); err != nil {
		return err
	}
	r.lastPublished.Store(at.Unix())
	return nil
}

func (r *Relay) nextSequence() (uint64, error) {
	if r.cfg.NextSequence != nil {
		return r.cfg.NextSequence()
	}
	return uint64(max(r.cfg.Now().UnixMilli(), 1)), nil
}

// descriptor makes and signs what this relay says about itself.
func (r *Relay) descriptor(seq uint64) ([]byte, error) {
	key, err := identity.Generate(r.cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("relay: descriptor key: %w", err)
	}
	now := r.cfg.Now()
	memberships, err := r.memberships(now)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	cert, err := r.cfg.Identity.Certify(identity.PurposeDescriptor, key.ID(), now.Add(-clockSlack), now.Add(descriptorCert))
	if err != nil {
		return nil, fmt.Errorf("relay: descriptor key: %w", err)
	}
	d := &directory.Descriptor{
		Network: r.cfg.Network.Name, Identity: r.Identity(), Sequence: seq, Published: now.Truncate(time.Second),
		OnionKey: r.onion.current().Public(), Suite: uint8(r.cfg.Suite), Nickname: r.cfg.Nickname,
		Addresses: r.cfg.Addresses, Version: r.cfg.Version, Contact: r.cfg.Contact, Memberships: memberships,
		BandwidthRate: r.stated(), Uptime: r.uptime().Truncate(time.Second), Extra: r.extra(),
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
	now := r.Rate().BytesPerSecond
	if now == 0 {
		return unlimitedStated
	}
	return uint64(now / 1000)
}

// uptime returns how long the relay has been serving.
func (r *Relay) uptime() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started.IsZero() {
		return 0
	}
	return time.Since(r.started)
}
