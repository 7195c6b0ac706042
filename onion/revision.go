package onion

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"time"
)

const (
	// revisionSteps is into how many steps the length of a period is cut: 1.3 s each when it is a day.
	revisionSteps = 1 << 16
	// revisionSpan is over how many lengths of a period revisions rise: from one before it begins, for a service whose clock
	// is behind, to two after it has ended, because descriptors of the period before are still published.
	revisionSpan = 4
	// revisionOffset bounds the number at which revisions start: far more than they rise in all steps together.
	revisionOffset = 1 << 40
	// revisionLeast is the least that a whole period's steps may add on average, and half the most.
	revisionLeast = 1 << 15
)

const _ uint = revisionOffset/64 - revisionSteps*revisionSpan*2*revisionLeast/64

// Revision returns the number for a descriptor that is made since the beginning of its period, which lasts length. A later one
// is never smaller, and one that is made a 65,536th of the period later is greater; services that run apart with the same
// identity and the same clock agree. Relays see the number: it starts at a secret number and rises by secret steps of a secret
// size, so that neither one nor the difference of two tells them the service's clock.
func Revision(k *PeriodKey, since, length time.Duration) uint64 {
	steps := 0
	if length > 0 {
		// In floating point, because length·65,536 would overflow after 3 days.
		at := (float64(since)/float64(length) + 1) * revisionSteps
		steps = int(min(max(at, 0), revisionSteps*revisionSpan))
	}
	block, err := aes.NewCipher(k.revision[:])
	if err != nil {
		panic(err) // only for another length than 32
	}
	stream := make([]byte, 12+2*steps)
	cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(stream, stream)
	revision := 1 + binary.BigEndian.Uint64(stream)%revisionOffset
	most := revisionLeast + uint64(binary.BigEndian.Uint32(stream[8:]))%revisionLeast
	for i := 12; i < len(stream); i += 2 {
		revision += 1 + uint64(binary.BigEndian.Uint16(stream[i:]))*most>>16
	}
	return revision
}
