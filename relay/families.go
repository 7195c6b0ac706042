package relay

import (
	"errors"
	"fmt"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// membershipNotice is how long before a membership ends its operator is reminded,
// every day.
const membershipNotice = 30 * 24 * time.Hour

// checkFamilies returns an error unless the relay can show all its memberships.
func (c *Config) checkFamilies() error {
	families := map[identity.ID]bool{}
	for _, k := range c.FamilyKeys {
		families[k.ID()] = true
	}
	for _, m := range c.Memberships {
		if err := directory.CheckMembership(m, c.Identity.ID(), c.Now()); err != nil {
			return fmt.Errorf("family %s: %w; \"cepa family sign\" makes a new certificate", m.Identity.Short(), err)
		}
		families[m.Identity] = true
	}
	if len(families) > directory.MaxFamilies {
		return fmt.Errorf("%d families: a relay can be in %d at most", len(families), directory.MaxFamilies)
	}
	return nil
}

// memberships returns what the next descriptor shows: what keys of families certify now,
// and certificates that are valid long enough for authorities to take the descriptor.
func (r *Relay) memberships(now time.Time) ([]*identity.Certificate, error) {
	var list []*identity.Certificate
	for _, k := range r.cfg.FamilyKeys {
		m, err := directory.Membership(k, r.Identity(), now.Add(-clockSlack), now.Add(descriptorCert))
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	for _, m := range r.cfg.Memberships {
		if directory.CheckMembership(m, r.Identity(), now) == nil {
			list = append(list, m)
		}
	}
	return directory.SortMemberships(list), nil
}

// remindOfFamilies tells the operator of memberships that end.
func (r *Relay) remindOfFamilies(now time.Time) {
	for _, m := range r.cfg.Memberships {
		err := directory.CheckMembership(m, r.Identity(), now)
		switch {
		case errors.Is(err, identity.ErrExpired):
			r.cfg.Log.Error("a membership has expired: clients no longer know that this relay is of that family, and may choose two of it; "+
				"make a new certificate with \"cepa family sign\", and restart", "family", m.Identity.Short(), "until", m.NotAfter)
		case err == nil && m.Remaining(now) < membershipNotice:
			r.cfg.Log.Warn("a membership expires soon; make a new certificate with \"cepa family sign\", and restart",
				"family", m.Identity.Short(), "days", int(m.Remaining(now)/(24*time.Hour)), "until", m.NotAfter)
		}
	}
}
