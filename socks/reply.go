package socks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Reply is what a client is told about its request.
type Reply uint8

// The replies of RFC 1928 section 6.
const (
	ReplySucceeded               Reply = 0
	ReplyGeneralFailure          Reply = 1
	ReplyNotAllowed              Reply = 2
	ReplyNetworkUnreachable      Reply = 3
	ReplyHostUnreachable         Reply = 4
	ReplyConnectionRefused       Reply = 5
	ReplyTTLExpired              Reply = 6
	ReplyCommandNotSupported     Reply = 7
	ReplyAddressTypeNotSupported Reply = 8
)

// The replies about onion services that Tor added (its socks-extensions.txt, section 6, and proposal 304). Programs that know
// Tor show them to their users; others may stumble over them. So they are sent with [Server.ExtendedErrors] only.
const (
	ReplyOnionDescriptorNotFound  Reply = 0xF0
	ReplyOnionDescriptorInvalid   Reply = 0xF1
	ReplyOnionIntroductionFailed  Reply = 0xF2
	ReplyOnionRendezvousFailed    Reply = 0xF3
	ReplyOnionAuthMissing         Reply = 0xF4
	ReplyOnionAuthWrong           Reply = 0xF5
	ReplyOnionAddressInvalid      Reply = 0xF6
	ReplyOnionIntroductionTimeout Reply = 0xF7
)

// String says what the reply means.
func (r Reply) String() string {
	switch r {
	case ReplySucceeded:
		return "succeeded"
	case ReplyGeneralFailure:
		return "general failure"
	case ReplyNotAllowed:
		return "not allowed by the rules"
	case ReplyNetworkUnreachable:
		return "network unreachable"
	case ReplyHostUnreachable:
		return "host unreachable"
	case ReplyConnectionRefused:
		return "connection refused"
	case ReplyTTLExpired:
		return "timed out"
	case ReplyCommandNotSupported:
		return "command not supported"
	case ReplyAddressTypeNotSupported:
		return "address type not supported"
	case ReplyOnionDescriptorNotFound:
		return "onion service descriptor not found"
	case ReplyOnionDescriptorInvalid:
		return "onion service descriptor invalid"
	case ReplyOnionIntroductionFailed:
		return "introduction to the onion service failed"
	case ReplyOnionRendezvousFailed:
		return "rendezvous with the onion service failed"
	case ReplyOnionAuthMissing:
		return "onion service wants client authorization"
	case ReplyOnionAuthWrong:
		return "onion service rejected the client authorization"
	case ReplyOnionAddressInvalid:
		return "onion service address invalid"
	case ReplyOnionIntroductionTimeout:
		return "introduction to the onion service timed out"
	default:
		return fmt.Sprintf("reply %#02x", uint8(r))
	}
}

// General returns the reply of RFC 1928 that comes closest to r, for clients that know no others.
func (r Reply) General() Reply {
	switch r {
	case ReplyOnionAuthMissing, ReplyOnionAuthWrong:
		return ReplyNotAllowed
	case ReplyOnionIntroductionTimeout:
		return ReplyTTLExpired
	case ReplyOnionDescriptorNotFound, ReplyOnionDescriptorInvalid, ReplyOnionIntroductionFailed, ReplyOnionRendezvousFailed,
		ReplyOnionAddressInvalid:
		return ReplyHostUnreachable
	}
	if r > ReplyAddressTypeNotSupported {
		return ReplyGeneralFailure
	}
	return r
}

// Error is a failure together with what the client is told of it. [Server.Dial] and [Server.Resolve] return it (a pointer to
// it, anywhere in the error's chain) to choose the reply; [ClientHandshake] returns it when the server refuses.
type Error struct {
	Reply Reply
	Err   error // the reason, for our side only; may be nil
}

// Error returns the reply's meaning and the reason.
func (e *Error) Error() string {
	if e.Err == nil {
		return "socks: " + e.Reply.String()
	}
	return "socks: " + e.Reply.String() + ": " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// ReplyTo returns what a client is told when a dial or a lookup fails with err: the Reply of an [Error] in its chain, else what is plain
// from the error (a deadline is ReplyTTLExpired, a refusal by the host is ReplyConnectionRefused, and so on), else
// ReplyGeneralFailure. It never returns ReplySucceeded for a failure; nil is ReplySucceeded. Without [Server.ExtendedErrors],
// clients are told the [Reply.General] of it.
func ReplyTo(err error) Reply {
	var chosen *Error
	var dns *net.DNSError
	var netErr net.Error
	switch {
	case err == nil:
		return ReplySucceeded
	case errors.As(err, &chosen) && chosen.Reply != ReplySucceeded:
		return chosen.Reply
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return ReplyTTLExpired
	case errors.Is(err, syscall.ECONNREFUSED):
		return ReplyConnectionRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return ReplyNetworkUnreachable
	case errors.Is(err, syscall.EHOSTUNREACH):
		return ReplyHostUnreachable
	case errors.As(err, &dns) && dns.IsNotFound:
		return ReplyHostUnreachable
	case errors.As(err, &netErr) && netErr.Timeout():
		return ReplyTTLExpired
	default:
		return ReplyGeneralFailure
	}
}
