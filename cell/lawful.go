package cell

// This file says where cells and messages are lawful, as data: the tables of
// doc/spec.md sections 1 and 5, which lawful_test.go holds against it. What a
// body may contain is for its parser, and what counts up (credit, windows, IDs)
// for who counts it.

// Verdict is what a receiver does with what arrived. The zero value is Unlawful,
// so that what nobody has allowed is refused.
type Verdict uint8

// The verdicts.
const (
	// Unlawful ends the circuit, or for a cell the link.
	Unlawful Verdict = iota
	// Dropped is a lawful late arrival: it was sent before the peer could know
	// that we have ended. It is checked like any other, counts against its
	// bounds, and has no other effect.
	Dropped
	// Lawful is taken.
	Lawful
)

// CircuitState is what a link knows of the circuit ID of a cell that arrived.
type CircuitState uint8

// The states of doc/spec.md section 1.
const (
	// CircuitZero is ID 0, for cells of the link itself.
	CircuitZero CircuitState = iota
	// CircuitNew has the top bit of the peer's IDs and is higher than all
	// that the peer has chosen so far.
	CircuitNew
	// CircuitPending is ours: CREATE has left, CREATED has not come.
	CircuitPending
	// CircuitOffered is the peer's: CREATE has come, CREATED has not left.
	CircuitOffered
	// CircuitOpen has seen CREATED.
	CircuitOpen
	// CircuitDestroyed has our DESTROY, and the peer's has not come.
	CircuitDestroyed
	// CircuitUnknown is any other ID: never in use, skipped, or done with.
	CircuitUnknown

	circuitStates = int(CircuitUnknown) + 1
)

// cellRules has a row for each command. AUTH is lawful as a link's very first
// cell, before any of these states.
var cellRules = [...][circuitStates]Verdict{
	Padding: {CircuitZero: Lawful},
	Create:  {CircuitNew: Lawful},
	Created: {CircuitPending: Lawful, CircuitDestroyed: Dropped},
	Relay:   {CircuitOpen: Lawful, CircuitDestroyed: Dropped},
	Destroy: {CircuitPending: Lawful, CircuitOffered: Lawful, CircuitOpen: Lawful, CircuitDestroyed: Lawful},
	Rekey:   {CircuitZero: Lawful},
	Auth:    {},
}

// On says what becomes of a cell with command c, after the first cell of the
// link, when its circuit ID is in state s.
func (c Command) On(s CircuitState) Verdict {
	if int(c) >= len(cellRules) || int(s) >= circuitStates {
		return Unlawful
	}
	return cellRules[c][s]
}

// StreamUse says what the stream ID of a message is.
type StreamUse uint8

// The uses of the stream ID.
const (
	NoStream    StreamUse = iota // 0: a message of the circuit
	NewStream                    // higher than all before it on this circuit
	KnownStream                  // that of a stream or look-up
)

// RelayRule says when a relay takes a message for it from the origin.
type RelayRule uint8

// The rules of relays. A relay that has a role of an onion service in a circuit is
// not its last in the sense of RelayLast.
const (
	RelayNever  RelayRule = iota
	RelayAlways           // whatever its state
	RelayLast             // while it is neither extended nor extending
	RelayIdle             // so, and while it has neither streams nor look-ups

	RelayIntroduction // while it is an introduction point for this circuit
)

// OriginRule says when an origin takes a message from one of its hops.
type OriginRule uint8

// The rules of origins.
const (
	OriginNever   OriginRule = iota
	OriginAnyHop             // from every hop
	OriginLastHop            // from the last hop
	OriginPending            // from the last hop, as the one answer to what it was asked

	OriginIntroduction // from the last hop, while that is an introduction point
	OriginRendezvous   // from the last hop, once, while that is a rendezvous point
)

// Rule says where a message is lawful on its circuit. For messages of streams,
// StreamState says the rest.
type Rule struct {
	Stream StreamUse
	Relay  RelayRule
	Origin OriginRule
	// Counts says that the message counts in the window of its hop.
	Counts bool
}

// messageRules has a row for each message.
var messageRules = [...]Rule{
	Extend:       {NoStream, RelayIdle, OriginNever, true},
	Extended:     {NoStream, RelayNever, OriginPending, true},
	ExtendFailed: {NoStream, RelayNever, OriginPending, true},
	Begin:        {NewStream, RelayLast, OriginNever, true},
	BeginDir:     {NewStream, RelayLast, OriginNever, true},
	Connected:    {KnownStream, RelayNever, OriginLastHop, true},
	Data:         {KnownStream, RelayLast, OriginLastHop, true},
	End:          {KnownStream, RelayLast, OriginLastHop, true},
	Resolve:      {NewStream, RelayLast, OriginNever, true},
	Resolved:     {KnownStream, RelayNever, OriginLastHop, true},
	Ack:          {NoStream, RelayAlways, OriginAnyHop, false},
	Credit:       {KnownStream, RelayLast, OriginLastHop, true},
	PadNegotiate: {NoStream, RelayIdle, OriginNever, false},
	Drop:         {NoStream, RelayLast, OriginLastHop, false},

	EstablishIntro:        {NoStream, RelayIdle, OriginNever, true},
	IntroEstablished:      {NoStream, RelayNever, OriginPending, true},
	IntroWork:             {NoStream, RelayIntroduction, OriginNever, true},
	Introduce:             {NoStream, RelayIdle, OriginNever, true},
	Introduced:            {NoStream, RelayNever, OriginIntroduction, true},
	IntroduceAck:          {NoStream, RelayNever, OriginPending, true},
	EstablishRendezvous:   {NoStream, RelayIdle, OriginNever, true},
	RendezvousEstablished: {NoStream, RelayNever, OriginPending, true},
	Rendezvous:            {NoStream, RelayIdle, OriginNever, true},
	Joined:                {NoStream, RelayNever, OriginRendezvous, true},
}

// Rule returns where the message is lawful. That of an unknown command is
// lawful nowhere.
func (c MessageCommand) Rule() Rule {
	if int(c) >= len(messageRules) {
		return Rule{}
	}
	return messageRules[c]
}

// StreamState is the state of a stream or look-up in the eyes of one that
// receives a message for its ID. What it has sent itself matters only when that
// was final: after an EOF of its own it takes what it took before.
type StreamState uint8

// The states of doc/spec.md section 5.
const (
	// StreamUnknown was never used on the circuit, or is done with: both
	// finals, or RESOLVED, have passed. It is that of skipped IDs too.
	StreamUnknown StreamState = iota
	// StreamNew, at a relay, is higher than all IDs so far.
	StreamNew

	OriginAsked           // BEGIN or BEGIN_DIR sent
	OriginOpen            // CONNECTED received
	OriginEOF             // CONNECTED and EOF received
	OriginEndedUnanswered // our final END sent, CONNECTED not received
	OriginEnded           // our final END sent, CONNECTED received
	OriginEndedEOF        // our final END sent, CONNECTED and EOF received
	OriginLookup          // RESOLVE sent

	RelayAsked              // BEGIN or BEGIN_DIR received
	RelayAskedEOF           // so, and EOF received
	RelayOpen               // CONNECTED sent
	RelayEOF                // CONNECTED sent, EOF received
	RelayEndedUnanswered    // our final END sent, CONNECTED not sent
	RelayEndedUnansweredEOF // so, and EOF received
	RelayEnded              // CONNECTED and our final END sent
	RelayEndedEOF           // so, and EOF received
	RelayLookup             // RESOLVE received

	streamStates = int(RelayLookup) + 1
)

// endEOF is the column of END with reason EOF; End is that of the final ones.
const endEOF = LastMessage + 1

// streamRules has a row for each state and a column for each message.
var streamRules = [streamStates][endEOF + 1]Verdict{
	StreamNew: {Begin: Lawful, BeginDir: Lawful, Resolve: Lawful},

	OriginAsked:           {Connected: Lawful, End: Lawful},
	OriginOpen:            {Data: Lawful, Credit: Lawful, endEOF: Lawful, End: Lawful},
	OriginEOF:             {Credit: Lawful, End: Lawful},
	OriginEndedUnanswered: {Connected: Dropped, End: Lawful},
	OriginEnded:           {Data: Dropped, Credit: Dropped, endEOF: Dropped, End: Lawful},
	OriginEndedEOF:        {Credit: Dropped, End: Lawful},
	OriginLookup:          {Resolved: Lawful},

	// Before CONNECTED an origin has received nothing that it could grant again.
	RelayAsked:              {Data: Lawful, endEOF: Lawful, End: Lawful},
	RelayAskedEOF:           {End: Lawful},
	RelayOpen:               {Data: Lawful, Credit: Lawful, endEOF: Lawful, End: Lawful},
	RelayEOF:                {Credit: Lawful, End: Lawful},
	RelayEndedUnanswered:    {Data: Dropped, endEOF: Dropped, End: Lawful},
	RelayEndedUnansweredEOF: {End: Lawful},
	RelayEnded:              {Data: Dropped, Credit: Dropped, endEOF: Dropped, End: Lawful},
	RelayEndedEOF:           {Credit: Dropped, End: Lawful},
}

// Takes says what becomes of message c of a stream in state s. Of END it says
// what becomes of a final one; TakesEnd knows all.
func (s StreamState) Takes(c MessageCommand) Verdict {
	if int(s) >= streamStates || c > LastMessage {
		return Unlawful
	}
	return streamRules[s][c]
}

// TakesEnd says what becomes of END with this reason.
func (s StreamState) TakesEnd(why EndReason) Verdict {
	switch {
	case int(s) >= streamStates:
		return Unlawful
	case why == EndEOF:
		return streamRules[s][endEOF]
	}
	return streamRules[s][End]
}

// StateOf returns the state of a stream that is known. Answered says that
// CONNECTED has passed, eof that the peer's EOF has come, and ended that our
// final END has been sent. An origin that was not answered cannot have seen EOF.
func StateOf(origin, answered, eof, ended bool) StreamState {
	i := 0
	if origin {
		i |= 8
	}
	if answered {
		i |= 4
	}
	if eof {
		i |= 2
	}
	if ended {
		i |= 1
	}
	return statesOf[i]
}

// statesOf is indexed by the bits origin, answered, eof, ended.
var statesOf = [16]StreamState{
	RelayAsked, RelayEndedUnanswered, RelayAskedEOF, RelayEndedUnansweredEOF,
	RelayOpen, RelayEnded, RelayEOF, RelayEndedEOF,
	OriginAsked, OriginEndedUnanswered, OriginAsked, OriginEndedUnanswered,
	OriginOpen, OriginEnded, OriginEOF, OriginEndedEOF,
}
