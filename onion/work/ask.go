package work

// Ask is what a service asks for: what its descriptor tells clients, and INTRO_WORK
// its introduction points.
type Ask struct {
	Effort   uint32         // least effort; 0: none is needed
	Seed     [SeedSize]byte // for new proofs
	Previous [SeedSize]byte // accepted too; zeros: none
}

// Check returns nil if p is enough for an introduction with that introduction key and sealed
// payload. What costs least is looked at first: the effort claimed, the seed's
// head, and only then sums. An introduction without work passes if none is
// needed; work that comes unasked is checked nevertheless, because it decides who is
// next in a Queue.
func (a *Ask) Check(p *Proof, key *[KeySize]byte, sealed []byte) error {
	if p.Effort < a.Effort {
		return ErrMore
	}
	if p.Effort == 0 {
		return nil
	}
	c := Challenge{Key: *key}
	switch {
	case p.SeedHead == [seedHead]byte(a.Seed[:seedHead]):
		c.Seed = a.Seed
	case a.Previous != [SeedSize]byte{} && p.SeedHead == [seedHead]byte(a.Previous[:seedHead]):
		c.Seed = a.Previous
	default:
		return ErrSeed
	}
	c.Sealed = SealedSum(sealed)
	return p.Verify(c)
}
