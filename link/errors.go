package link

import (
	"errors"
	"fmt"
	"io"
	"net"

	"cepa/cell"
	"cepa/crypto/identity"
)

// Sentinels, to decide by. Errors of Client and Server are *HandshakeError and
// wrap what happened; the Err of a link that ended is one of ErrClosed, io.EOF,
// ErrDestroyUnanswered, ErrPeerNotReading, ErrSilent, a *ProtocolError, or what
// the connection said. Their texts hold no address and are fit for a log.
var (
	// ErrConfig says that a Config cannot be used.
	ErrConfig = errors.New("link: unusable configuration")
	// ErrClosed says that the link or the circuit has ended.
	ErrClosed = errors.New("link: closed")
	// ErrQueueFull says that a circuit's queue would pass Config.QueueCells. The
	// peer, or the circuit on our other side, broke its window: destroy the circuit.
	ErrQueueFull = errors.New("link: circuit's queue is full")
	// ErrState says that a call does not fit the circuit's state, such as RELAY
	// before CREATED: a fault of the caller.
	ErrState = errors.New("link: not in this state of the circuit")
	// ErrTooManyCircuits says that Open would pass Config.MaxCircuits, or that
	// the link's circuit IDs are used up. Use another link.
	ErrTooManyCircuits = errors.New("link: too many circuits")

	// ErrOwnIdentity says that the peer is, or claims to be, ourselves.
	ErrOwnIdentity = errors.New("link: the peer has our own identity")
	// ErrAuth says that the peer's AUTH cell is malformed or does not prove what
	// it claims. Certificate errors are wrapped beside it.
	ErrAuth = errors.New("link: the peer did not prove its identity")

	// ErrDestroyUnanswered says that the peer left DESTROYs without an answer
	// for too long or in too great a number.
	ErrDestroyUnanswered = errors.New("link: the peer does not answer DESTROY")
	// ErrPeerNotReading says that the peer makes us answer faster than it reads.
	ErrPeerNotReading = errors.New("link: the peer does not read what it asked for")
	// ErrSilent says that a client link carried nothing for five minutes although
	// both sides keep it busy.
	ErrSilent = errors.New("link: the peer fell silent")
)

// HandshakeError tells at which step a link was refused. Its text holds no address.
type HandshakeError struct {
	Step string // what we were doing
	Err  error  // why it failed
}

// Error implements error.
func (e *HandshakeError) Error() string { return "link handshake: " + e.Step + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *HandshakeError) Unwrap() error { return e.Err }

// IdentityError says that the peer proved an identity, but not the wanted one:
// the address leads to another relay. Nothing was sent to it.
type IdentityError struct {
	Want, Got identity.ID
}

// Error implements error.
func (e *IdentityError) Error() string {
	return fmt.Sprintf("link: the peer is %s, not %s", e.Got.Short(), e.Want.Short())
}

// Rule names a rule of doc/spec.md section 1 or 3 that a peer broke.
type Rule string

// The rules whose breach ends a link.
const (
	RuleRecordLength  Rule = "a record's length is 1,408 n + 16, n at most 46"
	RuleRecordSeal    Rule = "a record opens under the next nonce"
	RuleKeyRecords    Rule = "a key serves at most 2^16 records"
	RuleRekeyLast     Rule = "REKEY is the last cell of its record"
	RuleCommand       Rule = "the command is known"
	RuleAuthOnce      Rule = "AUTH is the first cell only"
	RuleLinkCircuit   Rule = "PADDING and REKEY have circuit ID 0"
	RuleCircuitZero   Rule = "circuit ID 0 is for cells of the link"
	RuleZero          Rule = "unused bytes are zero"
	RuleBody          Rule = "the body is well formed"
	RuleUnknown       Rule = "the circuit ID is in use"
	RuleSide          Rule = "the top bit of a new circuit ID tells who opened the connection"
	RuleOrder         Rule = "circuit IDs count up and are never reused"
	RuleCreateAllowed Rule = "this peer may create circuits"
	RuleCreated       Rule = "CREATED answers CREATE, once"
	RuleRelay         Rule = "RELAY follows CREATED"
)

// ProtocolError says which rule the peer broke, and with what.
type ProtocolError struct {
	Rule    Rule
	Command cell.Command // of the cell; 0 when the record was at fault
	Circuit uint32       // circuit ID of the cell; 0 when the record was at fault
}

// Error implements error.
func (e *ProtocolError) Error() string {
	if e.Command == 0 && e.Circuit == 0 {
		return fmt.Sprintf("link: the peer broke the rule that %s", string(e.Rule))
	}
	return fmt.Sprintf("link: the peer broke the rule that %s (%v, circuit %#x)", string(e.Rule), e.Command, e.Circuit)
}

// connError is an error of the connection. Its text has no addresses, which may
// be a client's; errors.As still finds the *net.OpError that has.
type connError struct{ err error }

func (e *connError) Error() string {
	var op *net.OpError
	if errors.As(e.err, &op) && op.Err != nil {
		return "link: connection failed: " + op.Op + ": " + op.Err.Error()
	}
	return "link: connection failed: " + e.err.Error()
}

func (e *connError) Unwrap() error { return e.err }

// readFailed tells the end of the connection between records, io.EOF, from one
// within a record, io.ErrUnexpectedEOF, and from failures.
func readFailed(err error, within bool) error {
	switch {
	case !errors.Is(err, io.EOF):
		return &connError{err}
	case within:
		return io.ErrUnexpectedEOF
	}
	return io.EOF
}

// reasonText says why a link ended in words fit for a log: without addresses and
// without circuit IDs.
func reasonText(err error) string {
	var breach *ProtocolError
	if errors.As(err, &breach) {
		return "the peer broke the rule that " + string(breach.Rule)
	}
	for _, known := range []error{
		ErrClosed, ErrDestroyUnanswered, ErrPeerNotReading, ErrSilent, io.EOF, io.ErrUnexpectedEOF,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "the connection failed"
}
