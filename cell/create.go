package cell

// Sizes in bytes of the hop handshake's parts (doc/spec.md section 2), stated
// here so that the wire formats need not import the handshake; a test in
// circuit holds the two together.
const (
	HopMessage1Size = 1232 // Noise NK message 1 with an ML-KEM-768 key
	HopMessage2Size = 1136 // Noise NK message 2 with an ML-KEM-768 ciphertext
	ConfirmSize     = 16   // confirmation under the final keys
	HopReplySize    = HopMessage2Size + ConfirmSize
	KeyIDSize       = 8
)

// CreateBody is the body of CREATE (doc/spec.md section 1).
type CreateBody struct {
	Index    uint8           // hop index, 1…MaxHops
	KeyID    [KeyIDSize]byte // which onion key of the relay
	Suite    uint8           // layer cipher
	Message1 []byte          // HopMessage1Size bytes; parsing aliases the input
}

const createSize = 1 + KeyIDSize + 1 + HopMessage1Size

// ParseCreate reads a cell body of BodySize bytes. The result aliases b.
func ParseCreate(b []byte) (m CreateBody, err error) {
	if len(b) != BodySize {
		return m, &FormatError{"CREATE", "body size"}
	}
	m.Index = b[0]
	copy(m.KeyID[:], b[1:])
	m.Suite = b[1+KeyIDSize]
	m.Message1 = b[createSize-HopMessage1Size : createSize]
	if m.Index < 1 || m.Index > MaxHops {
		return m, &FormatError{"CREATE", "hop index"}
	}
	if !IsZero(b[createSize:]) {
		return m, &FormatError{"CREATE", "trailing bytes"}
	}
	return m, nil
}

// AppendTo appends the body without its trailing zeros.
func (m *CreateBody) AppendTo(b []byte) []byte {
	b = append(b, m.Index)
	b = append(b, m.KeyID[:]...)
	b = append(b, m.Suite)
	return append(b, m.Message1...)
}

// ParseCreated reads the body of CREATED: hop message 2 and the confirmation.
// The result aliases b.
func ParseCreated(b []byte) (reply []byte, err error) {
	if len(b) != BodySize {
		return nil, &FormatError{"CREATED", "body size"}
	}
	if !IsZero(b[HopReplySize:]) {
		return nil, &FormatError{"CREATED", "trailing bytes"}
	}
	return b[:HopReplySize], nil
}

// Reason says why a circuit was destroyed. It speaks of one link only: a relay
// that passes a destruction on says ReasonNone.
type Reason uint8

// The reasons of DESTROY (doc/spec.md section 1).
const (
	ReasonNone       Reason = 0 // not said, or passed on
	ReasonProtocol   Reason = 1 // an unexpected or malformed message
	ReasonResource   Reason = 2 // a limit was reached
	ReasonFinished   Reason = 3 // no longer wanted
	ReasonLinkLost   Reason = 4 // the link broke
	ReasonUnknownKey Reason = 5 // the onion-key ID is not this relay's
	ReasonRefused    Reason = 6 // this relay takes no such circuit
	maxReason               = ReasonRefused
)

// String returns the reason in words.
func (r Reason) String() string {
	switch r {
	case ReasonNone:
		return "no reason given"
	case ReasonProtocol:
		return "protocol violation"
	case ReasonResource:
		return "out of resources"
	case ReasonFinished:
		return "finished"
	case ReasonLinkLost:
		return "link lost"
	case ReasonUnknownKey:
		return "unknown onion key"
	case ReasonRefused:
		return "refused"
	}
	return "unknown reason"
}

// ParseDestroy reads the body of DESTROY.
func ParseDestroy(b []byte) (Reason, error) {
	if len(b) != BodySize {
		return 0, &FormatError{"DESTROY", "body size"}
	}
	if b[0] > byte(maxReason) {
		return 0, &FormatError{"DESTROY", "reason"}
	}
	if !IsZero(b[1:]) {
		return 0, &FormatError{"DESTROY", "trailing bytes"}
	}
	return Reason(b[0]), nil
}

// FormatError tells what was malformed: the message and the field.
type FormatError struct {
	Message string // name in doc/spec.md
	Field   string
}

// Error implements error.
func (e *FormatError) Error() string { return "malformed " + e.Message + ": " + e.Field }
