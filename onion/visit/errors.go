package visit

import (
	"errors"
	"fmt"
)

// Reason is why a service was not reached. It is an error, so that errors.Is finds it in an *Error.
type Reason uint8

// The reasons.
const (
	// DescriptorNotFound: no relay that should hold the descriptor has it, or none was reached.
	DescriptorNotFound Reason = iota + 1
	// DescriptorInvalid: what relays gave is not a descriptor of the service, or is of a newer version.
	DescriptorInvalid
	// IntroductionFailed: no introduction point passed the introduction on.
	IntroductionFailed
	// RendezvousFailed: the introduction was passed on, and the service did not come to the rendezvous point, or somebody else did.
	RendezvousFailed
	// AuthNeeded: the service lets in only clients that it knows.
	AuthNeeded
	// AuthWrong: the service does not know this client.
	AuthWrong
	// TimedOut: it took too long.
	TimedOut
)

// Error implements error.
func (r Reason) Error() string {
	switch r {
	case DescriptorNotFound:
		return "the onion service's descriptor was not found: the address is wrong, or the service is not running"
	case DescriptorInvalid:
		return "the onion service's descriptor is not valid"
	case IntroductionFailed:
		return "the introduction to the onion service failed"
	case RendezvousFailed:
		return "the onion service did not come to the rendezvous"
	case AuthNeeded:
		return "the onion service lets in only clients that it knows, and there is no key for it here: ask its owner for access"
	case AuthWrong:
		return "the onion service does not know the key that there is for it here: it is of another service, or access was withdrawn"
	case TimedOut:
		return "the onion service did not answer in time"
	}
	return fmt.Sprintf("onion service: reason %d", uint8(r))
}

// Error is why a service was not reached. Its text names neither the service nor relays, from which the service could be told;
// causes, which may, are for errors.Is and errors.As alone.
type Error struct {
	Reason Reason
	Detail string // what is more to say; may be empty
	cause  error  // may be nil
}

// Error implements error.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Reason.Error()
	}
	return e.Reason.Error() + " (" + e.Detail + ")"
}

// Unwrap returns the reason and the cause.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.cause}
}

// ErrClosed is returned by a Visitor that was closed.
var ErrClosed = errors.New("visit: closed")

// ErrBusy says that there are as many joined circuits as there may be, and all are in use.
var ErrBusy = errors.New("visit: too many onion services are in use at once; close connections, or wait")
