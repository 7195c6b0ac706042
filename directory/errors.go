package directory

import (
	"errors"
	"fmt"
	"unicode"
)

// What can be wrong with a document. Parsers return an *Error that wraps exactly one of these.
var (
	// ErrMalformed: not a document of this kind, or not in its one form.
	ErrMalformed = errors.New("malformed")
	// ErrTooLarge: above the bound of its kind; nothing of it was parsed.
	ErrTooLarge = errors.New("too large")
	// ErrWrongNetwork: made for another network.
	ErrWrongNetwork = errors.New("of another network")
	// ErrUnknownSigner: signed by somebody whom the network file does not name.
	ErrUnknownSigner = errors.New("signed by a stranger")
	// ErrBadSignature: a signature or its certificate does not verify.
	ErrBadSignature = errors.New("bad signature")
	// ErrUndersigned: all signatures are good, but there are too few.
	ErrUndersigned = errors.New("too few signatures")
	// ErrExpired: no longer valid.
	ErrExpired = errors.New("expired")
	// ErrFuture: not valid yet.
	ErrFuture = errors.New("from the future")
	// ErrWrongBase: a difference from another consensus than the one at hand.
	ErrWrongBase = errors.New("from another consensus")
	// ErrTooFewVotes: no consensus can be computed from so few votes.
	ErrTooFewVotes = errors.New("too few votes")
	// ErrMissing: no consensus can be computed without descriptors that are not at hand.
	ErrMissing = errors.New("descriptors are missing")
)

// Error explains what is wrong with a document. errors.Is finds its Reason.
type Error struct {
	// Document is the kind: "descriptor", "vote", "consensus", "signature", "difference", "ballot", "evidence", "network file".
	Document string
	// Reason is one of the sentinels of this package.
	Reason error
	// Detail says what and where; it may be empty.
	Detail string
}

// Error returns document, reason and detail.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Document + ": " + e.Reason.Error()
	}
	return e.Document + ": " + e.Reason.Error() + ": " + e.Detail
}

// Unwrap returns the Reason.
func (e *Error) Unwrap() error { return e.Reason }

// fail makes an *Error about a document.
func fail(document string, reason error, format string, args ...any) error {
	return &Error{Document: document, Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// clip shortens text of unknown origin for an error message; %q makes it harmless.
func clip(s string) string {
	const limit = 40
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// isPrintable accepts graphic characters and the plain space: no control, formatting or private characters.
func isPrintable(c rune) bool { return unicode.IsPrint(c) }
