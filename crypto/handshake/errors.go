package handshake

import (
	"errors"
	"fmt"
)

// Sentinels: each error of this package wraps exactly one of them.
var (
	// ErrParams: the caller's parameters cannot be used: a hop index outside 1…8, no onion key, an onion secret of zeros.
	ErrParams = errors.New("parameters out of range")
	// ErrRandom: the source of randomness failed; the *Error wraps its error too.
	ErrRandom = errors.New("source of randomness failed")
	// ErrLength: a message is not exactly as long as doc/spec.md says.
	ErrLength = errors.New("message has the wrong length")
	// ErrLowOrder: an X25519 public key is a point of low order, with which every secret gives the same (zero) result
	// (RFC 7748 section 6.1).
	ErrLowOrder = errors.New("x25519 key is a point of low order")
	// ErrKEMKey: an ML-KEM encapsulation key fails the modulus check of FIPS 203 section 7.2.
	ErrKEMKey = errors.New("ml-kem encapsulation key is not reduced")
	// ErrAuthentication: a message does not open: it was altered, answers another message 1, or the two sides differ in
	// identity, onion key, hop index or suite.
	ErrAuthentication = errors.New("message does not authenticate")
	// ErrConfirmation: message 2 is sound but the relay has other final keys, or the confirmation was altered.
	ErrConfirmation = errors.New("confirmation does not match the keys")
	// ErrSpent: Finish was called before; start a new handshake.
	ErrSpent = errors.New("machine is spent, start a new handshake")
)

// Step names the place in a handshake at which it died.
type Step uint8

// The steps in their order.
const (
	StepStart         Step = iota + 1 // initiator: parameters, keys, writing message 1
	StepReadMessage1                  // responder: message 1 and the ML-KEM key in it
	StepWriteMessage2                 // responder: randomness, ephemeral agreement
	StepReadMessage2                  // initiator: message 2
	StepConfirm                       // initiator: the hop confirmation
)

// String returns the role and what it did.
func (s Step) String() string {
	switch s {
	case StepStart:
		return "initiator: start"
	case StepReadMessage1:
		return "responder: read message 1"
	case StepWriteMessage2:
		return "responder: write message 2"
	case StepReadMessage2:
		return "initiator: read message 2"
	case StepConfirm:
		return "initiator: check confirmation"
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// Kind tells the two handshakes apart.
type Kind uint8

// The kinds.
const (
	Hop  Kind = 1 // doc/spec.md section 2
	Link Kind = 2 // doc/spec.md section 3
)

// String returns "hop" or "link".
func (k Kind) String() string {
	switch k {
	case Hop:
		return "hop"
	case Link:
		return "link"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is the type of every error of the hop and link functions. It never holds key material.
type Error struct {
	Kind Kind  // which handshake
	Step Step  // where it died
	Err  error // wraps one of the sentinels
}

// Error says which handshake died, in which step and why.
func (e *Error) Error() string { return fmt.Sprintf("handshake: %v %v: %v", e.Kind, e.Step, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func fail(k Kind, s Step, err error) error { return &Error{Kind: k, Step: s, Err: err} }

// checkLength refuses every length but the exact one. It must precede each call of flynn/noise's ReadMessage: that has
// no upper bound of its own.
func checkLength(message []byte, want int) error {
	if len(message) != want {
		return fmt.Errorf("%w: %d bytes, want exactly %d", ErrLength, len(message), want)
	}
	return nil
}
