package directory

import (
	"errors"
	"testing"
	"time"

	"cepa/crypto/identity"
)

// TestFamilyNeedsBothSides: who only names another's family, or shows what was given to others, is refused; and so nobody can say of a relay that it is
// of a family, or keep it out of circuits.
func TestFamilyNeedsBothSides(t *testing.T) {
	victim, mallory := testKey(t, "relay 0").ID(), testDescriptor(t, 2)
	p := newParty(t, "relay 2", identity.PurposeDescriptor)
	family := testKey(t, "family of the victim")
	from, to := epoch.Add(-24*time.Hour), epoch.Add(24*time.Hour)
	cert := func(k *identity.Key, purpose identity.Purpose, member identity.ID, from, to time.Time) *identity.Certificate {
		c, err := k.Certify(purpose, member, from, to)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	forged := *cert(testKey(t, "relay 2"), identity.PurposeFamily, mallory.Identity, from, to)
	forged.Identity = family.ID()
	for name, c := range map[string]struct {
		membership *identity.Certificate
		reason     error
	}{
		"given to the victim":       {cert(family, identity.PurposeFamily, victim, from, to), ErrMalformed},
		"signed by mallory":         {&forged, ErrBadSignature},
		"for another purpose":       {cert(family, identity.PurposeLink, mallory.Identity, from, to), ErrMalformed},
		"from after its descriptor": {cert(family, identity.PurposeFamily, mallory.Identity, mallory.Published.Add(time.Second), to), ErrBadSignature},
		"ended":                     {cert(family, identity.PurposeFamily, mallory.Identity, from, mallory.Published.Add(-time.Second)), ErrBadSignature},
	} {
		d := *mallory
		d.Memberships = []*identity.Certificate{c.membership}
		if _, err := SignDescriptor(&d, p.key, p.cert); err == nil {
			t.Errorf("%s: SignDescriptor signs", name)
		}
		_, err := ParseDescriptor(seal(kindDescriptor, d.encode(), signer{p.key, p.cert}), epoch)
		if !errors.Is(err, c.reason) {
			t.Errorf("%s: error %v, want %v", name, err, c.reason)
		}
	}
	// With both sides it is in, and so are its entries in the consensus.
	d := *mallory
	d.Memberships = []*identity.Certificate{cert(family, identity.PurposeFamily, mallory.Identity, from, to)}
	r := signedDescriptor(t, &d, "relay 2").relay(FlagRunning|FlagValid, 1)
	if len(r.Family) != 1 || r.Family[0] != FamilyID(family.ID()) {
		t.Errorf("the entry has the families %v", r.Family)
	}
	// Authorities refuse it once the membership has ended, however young the descriptor is.
	b, err := SignDescriptor(&d, p.key, p.cert)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ParseDescriptor(b, to.Add(time.Second))
	wantReason(t, err, ErrExpired)
}

func TestSortMemberships(t *testing.T) {
	member := testKey(t, "relay 0").ID()
	long, err := Membership(testKey(t, "a"), member, epoch, epoch.Add(2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	short, err := Membership(testKey(t, "a"), member, epoch, epoch.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	other := testMemberships(t, member, "b", "c")
	got := SortMemberships([]*identity.Certificate{short, other[1], long, other[0]})
	if len(got) != 3 {
		t.Fatalf("%d memberships, want 3", len(got))
	}
	d := testDescriptor(t, 0)
	d.Memberships = got
	if err := d.checkMemberships(); err != nil {
		t.Error(err)
	}
	for _, c := range got {
		if c.Identity == long.Identity && c != long {
			t.Error("of two of one family, the one that ends first is left")
		}
	}
}
