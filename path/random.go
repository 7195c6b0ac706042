package path

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// maxDraws bounds the repetitions of uniform. Half of all draws or more are accepted, so that good randomness fails once
// in 2^128.
const maxDraws = 128

// uniform draws a number from 0 to n-1, all equally likely, for n of at least 1. A nil source is crypto/rand's.
func uniform(source io.Reader, n uint64) (uint64, error) {
	if source == nil {
		source = rand.Reader
	}
	shift := bits.LeadingZeros64(n - 1)
	if n == 1 {
		return 0, nil
	}
	var buf [8]byte
	for range maxDraws {
		if _, err := io.ReadFull(source, buf[:]); err != nil {
			return 0, fmt.Errorf("path: cannot read randomness: %w", err)
		}
		if x := binary.LittleEndian.Uint64(buf[:]) >> shift; x < n {
			return x, nil
		}
	}
	return 0, errors.New("path: the source of randomness does not give random numbers")
}
