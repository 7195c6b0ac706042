package cell

import (
	"encoding/binary"
	"fmt"
)

// Sizes in bytes of INTRODUCE's payload, and of its parts.
const (
	IntroduceSize = 32 + WorkSize + SealedSize
	// WorkSize is the size of a proof of work (package onion/work).
	WorkSize = 41
	// SealedSize is the size of what only the service can open (package onion).
	SealedSize = 1220
)

// An INTRODUCE must fit at hop 6: what a client needs that takes the longest way
// which it may be told to. The constant turns negative, and fails to compile,
// when it does not.
const _ uint = BodySize - LayerOverhead*6 - MessageHeaderSize - IntroduceSize

// IntroduceBody is the payload of INTRODUCE, and of INTRODUCED, which brings the
// same bytes to the service.
type IntroduceBody struct {
	Key    [32]byte // introduction key
	Work   [WorkSize]byte
	Sealed [SealedSize]byte
}

// ParseIntroduce reads the payload of INTRODUCE.
func ParseIntroduce(p []byte) (IntroduceBody, error) { return parseIntroduce("INTRODUCE", p) }

// ParseIntroduced reads the payload of INTRODUCED.
func ParseIntroduced(p []byte) (IntroduceBody, error) { return parseIntroduce("INTRODUCED", p) }

func parseIntroduce(message string, p []byte) (b IntroduceBody, err error) {
	if len(p) != IntroduceSize {
		return b, &FormatError{message, "length"}
	}
	p = p[copy(b.Key[:], p):]
	p = p[copy(b.Work[:], p):]
	copy(b.Sealed[:], p)
	return b, nil
}

// AppendTo appends the payload.
func (b *IntroduceBody) AppendTo(p []byte) []byte {
	p = append(p, b.Key[:]...)
	p = append(p, b.Work[:]...)
	return append(p, b.Sealed[:]...)
}

// IntroduceStatus is how an INTRODUCE fared. All but IntroducePassed are errors,
// so that they can be handed to whoever asked.
type IntroduceStatus uint8

// The statuses of INTRODUCE_ACK (doc/spec.md section 5).
const (
	IntroducePassed  IntroduceStatus = 0
	IntroduceUnknown IntroduceStatus = 1
	IntroduceFull    IntroduceStatus = 2
	IntroduceWork    IntroduceStatus = 3
)

// Error implements error.
func (s IntroduceStatus) Error() string {
	switch s {
	case IntroducePassed:
		return "the introduction was passed on"
	case IntroduceUnknown:
		return "the relay is no introduction point for this key"
	case IntroduceFull:
		return "the introduction point has too many introductions just now"
	case IntroduceWork:
		return "the introduction point wants more work"
	}
	return fmt.Sprintf("introduction status %d", uint8(s))
}

// IntroduceAckSize is the size of INTRODUCE_ACK's payload in bytes.
const IntroduceAckSize = 5

// IntroduceAckBody is the payload of INTRODUCE_ACK.
type IntroduceAckBody struct {
	Status IntroduceStatus
	Effort uint32 // that is wanted; 0 unless Status is IntroduceWork, and not 0 then
}

// ParseIntroduceAck reads the payload of INTRODUCE_ACK.
func ParseIntroduceAck(p []byte) (b IntroduceAckBody, err error) {
	if len(p) != IntroduceAckSize {
		return b, &FormatError{"INTRODUCE_ACK", "length"}
	}
	b.Status = IntroduceStatus(p[0])
	b.Effort = binary.BigEndian.Uint32(p[1:])
	switch {
	case b.Status > IntroduceWork:
		return b, &FormatError{"INTRODUCE_ACK", "status"}
	case (b.Status == IntroduceWork) != (b.Effort != 0):
		return b, &FormatError{"INTRODUCE_ACK", "effort"}
	}
	return b, nil
}

// AppendTo appends the payload.
func (b IntroduceAckBody) AppendTo(p []byte) []byte {
	return binary.BigEndian.AppendUint32(append(p, byte(b.Status)), b.Effort)
}
