package directory

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"cepa/crypto/identity"
)

// Membership returns a certificate by which a family takes a relay in: key is the family's, member the relay's identity. It goes into the relay's
// descriptors. Times are as of identity.Key.Certify, whose errors it returns.
func Membership(key *identity.Key, member identity.ID, from, until time.Time) (*identity.Certificate, error) {
	c, err := key.Certify(identity.PurposeFamily, member, from, until)
	if err != nil {
		return nil, fmt.Errorf("directory: family: %w", err)
	}
	return c, nil
}

// CheckMembership returns nil if c takes the relay into a family, is signed by it, and is valid at now. Errors are those of
// identity.Certificate.Verify, or say what is wrong.
func CheckMembership(c *identity.Certificate, member identity.ID, now time.Time) error {
	if err := c.Verify(now, identity.PurposeFamily); err != nil {
		return err
	}
	if c.Subject != member {
		return fmt.Errorf("membership of family %s is that of relay %s, not of %s", c.Identity.Short(), c.Subject.Short(), member.Short())
	}
	return nil
}

// SortMemberships puts memberships in the order of descriptors, and leaves of several of one family the one that ends last.
func SortMemberships(list []*identity.Certificate) []*identity.Certificate {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *identity.Certificate) int {
		if c := a.Identity.Compare(b.Identity); c != 0 {
			return c
		}
		return b.NotAfter.Compare(a.NotAfter)
	})
	return slices.CompactFunc(list, func(a, b *identity.Certificate) bool { return a.Identity == b.Identity })
}

// Families returns the families that d's memberships are of, sorted; nil when there are none.
func (d *Descriptor) Families() []FamilyID {
	var list []FamilyID
	for _, m := range d.Memberships {
		list = append(list, FamilyID(m.Identity))
	}
	return list
}

// checkMemberships holds all rules but the one that costs: that the families have signed.
func (d *Descriptor) checkMemberships() error {
	for _, m := range d.Memberships {
		switch {
		case m.Purpose != identity.PurposeFamily:
			return fmt.Errorf("a membership is a certificate for %s", m.Purpose)
		case m.Subject != d.Identity:
			return fmt.Errorf("membership of family %s is that of relay %s", m.Identity.Short(), m.Subject.Short())
		}
	}
	return checkFamily(d.Families())
}

// verifyMemberships verifies the signatures of the families, at the descriptor's publication.
func (d *Descriptor) verifyMemberships() error {
	var errs []error
	for _, m := range d.Memberships {
		errs = append(errs, CheckMembership(m, d.Identity, d.Published))
	}
	return errors.Join(errs...)
}

func parseMemberships(list [][]byte) ([]*identity.Certificate, error) {
	if len(list) > MaxFamilies {
		return nil, fmt.Errorf("%d families: at most %d are allowed", len(list), MaxFamilies)
	}
	var out []*identity.Certificate
	for _, b := range list {
		c, err := identity.ParseCertificate(b)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
