package cell

import "encoding/binary"

// EstablishIntroSize is the size of ESTABLISH_INTRO's payload in bytes.
const EstablishIntroSize = 32 + 4 + 4 + 64

// EstablishIntroBody is the payload of ESTABLISH_INTRO: be an introduction point
// for who holds this key. The signature binds it to the circuit; who checks it
// knows how (package onion).
type EstablishIntroBody struct {
	Key       [32]byte // introduction key, Ed25519
	Rate      uint32   // introductions a second that the service wants at most; 0: no limit
	Burst     uint32   // and at once
	Signature [64]byte
}

// ParseEstablishIntro reads the payload of ESTABLISH_INTRO.
func ParseEstablishIntro(p []byte) (b EstablishIntroBody, err error) {
	if len(p) != EstablishIntroSize {
		return b, &FormatError{"ESTABLISH_INTRO", "length"}
	}
	copy(b.Key[:], p)
	b.Rate = binary.BigEndian.Uint32(p[32:])
	b.Burst = binary.BigEndian.Uint32(p[36:])
	copy(b.Signature[:], p[40:])
	return b, nil
}

// AppendTo appends the payload.
func (b *EstablishIntroBody) AppendTo(p []byte) []byte {
	p = append(p, b.Key[:]...)
	p = binary.BigEndian.AppendUint32(p, b.Rate)
	p = binary.BigEndian.AppendUint32(p, b.Burst)
	return append(p, b.Signature[:]...)
}

// ParseIntroEstablished checks the payload of INTRO_ESTABLISHED, which is empty.
func ParseIntroEstablished(p []byte) error { return parseEmpty("INTRO_ESTABLISHED", p) }

func parseEmpty(message string, p []byte) error {
	if len(p) != 0 {
		return &FormatError{message, "length"}
	}
	return nil
}

// IntroWorkSize is the size of INTRO_WORK's payload in bytes.
const IntroWorkSize = 4 + 32 + 32

// IntroWorkBody is the payload of INTRO_WORK: the proof of work that the service
// wants its introduction point to ask for from now on.
type IntroWorkBody struct {
	Effort   uint32   // the least; 0: none
	Seed     [32]byte // of the puzzles
	Previous [32]byte // the seed before, which is still good; zeros: none
}

// ParseIntroWork reads the payload of INTRO_WORK.
func ParseIntroWork(p []byte) (b IntroWorkBody, err error) {
	if len(p) != IntroWorkSize {
		return b, &FormatError{"INTRO_WORK", "length"}
	}
	b.Effort = binary.BigEndian.Uint32(p)
	copy(b.Seed[:], p[4:])
	copy(b.Previous[:], p[36:])
	return b, nil
}

// AppendTo appends the payload.
func (b *IntroWorkBody) AppendTo(p []byte) []byte {
	p = binary.BigEndian.AppendUint32(p, b.Effort)
	p = append(p, b.Seed[:]...)
	return append(p, b.Previous[:]...)
}
