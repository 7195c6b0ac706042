package cell

import (
	"encoding/binary"
	"time"
)

// PadSize is the payload of PAD_NEGOTIATE.
const PadSize = 8

// MaxPadDelay bounds each of the delays that a PAD_NEGOTIATE asks for: longer
// than the way to a next relay takes, and short enough to hold nothing for long.
const MaxPadDelay = 2 * time.Second

// PadBody is the payload of PAD_NEGOTIATE: it asks the last hop for two DROPs,
// the first after First and the second when Second has passed since then, in
// whole microseconds. So an exchange takes as long as an EXTEND would.
type PadBody struct{ First, Second time.Duration }

// ParsePadNegotiate reads the payload of PAD_NEGOTIATE.
func ParsePadNegotiate(p []byte) (PadBody, error) {
	if len(p) != PadSize {
		return PadBody{}, &FormatError{"PAD_NEGOTIATE", "length"}
	}
	b := PadBody{
		First:  time.Duration(binary.BigEndian.Uint32(p)) * time.Microsecond,
		Second: time.Duration(binary.BigEndian.Uint32(p[4:])) * time.Microsecond,
	}
	if b.First > MaxPadDelay || b.Second > MaxPadDelay {
		return PadBody{}, &FormatError{"PAD_NEGOTIATE", "delay"}
	}
	return b, nil
}

// AppendTo appends the payload. Delays are cut to whole microseconds and to
// what is allowed.
func (b PadBody) AppendTo(p []byte) []byte {
	for _, d := range [2]time.Duration{b.First, b.Second} {
		p = binary.BigEndian.AppendUint32(p, uint32(min(max(d, 0), MaxPadDelay)/time.Microsecond))
	}
	return p
}

// ParseDrop checks the payload of DROP, which is empty.
func ParseDrop(p []byte) error {
	if len(p) != 0 {
		return &FormatError{"DROP", "length"}
	}
	return nil
}
