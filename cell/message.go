package cell

import (
	"encoding/binary"
	"fmt"
)

// MessageHeaderSize is the size of a message's header: command (1), stream ID
// (2), payload length (2).
const MessageHeaderSize = 5

// Room returns how many payload bytes a message for hop k may have (k =
// 1…MaxHops, or JoinedIndex): 1,398 - 17 k.
func Room(k int) int { return BodySize - LayerOverhead*k - MessageHeaderSize }

// The budgets that the cell's size was chosen for: an EXTEND made at hop 7
// must fit. The constant turns negative, and fails to compile, when it does
// not.
const _ uint = BodySize - LayerOverhead*(MaxHops-1) - MessageHeaderSize - ExtendSize

// MessageCommand says what a message is (doc/spec.md section 5).
type MessageCommand uint8

// The commands of messages.
const (
	Extend       MessageCommand = 1
	Extended     MessageCommand = 2
	ExtendFailed MessageCommand = 3
	Begin        MessageCommand = 4
	BeginDir     MessageCommand = 5
	Connected    MessageCommand = 6
	Data         MessageCommand = 7
	End          MessageCommand = 8
	Resolve      MessageCommand = 9
	Resolved     MessageCommand = 10
	Ack          MessageCommand = 11
	Credit       MessageCommand = 12
	PadNegotiate MessageCommand = 13
	Drop         MessageCommand = 14

	EstablishIntro        MessageCommand = 15
	IntroEstablished      MessageCommand = 16
	IntroWork             MessageCommand = 17
	Introduce             MessageCommand = 18
	Introduced            MessageCommand = 19
	IntroduceAck          MessageCommand = 20
	EstablishRendezvous   MessageCommand = 21
	RendezvousEstablished MessageCommand = 22
	Rendezvous            MessageCommand = 23
	Joined                MessageCommand = 24
)

// LastMessage is the highest command of a message.
const LastMessage = Joined

// String returns the command's name in doc/spec.md.
func (c MessageCommand) String() string {
	switch c {
	case Extend:
		return "EXTEND"
	case Extended:
		return "EXTENDED"
	case ExtendFailed:
		return "EXTEND_FAILED"
	case Begin:
		return "BEGIN"
	case BeginDir:
		return "BEGIN_DIR"
	case Connected:
		return "CONNECTED"
	case Data:
		return "DATA"
	case End:
		return "END"
	case Resolve:
		return "RESOLVE"
	case Resolved:
		return "RESOLVED"
	case Ack:
		return "ACK"
	case Credit:
		return "CREDIT"
	case PadNegotiate:
		return "PAD_NEGOTIATE"
	case Drop:
		return "DROP"
	case EstablishIntro:
		return "ESTABLISH_INTRO"
	case IntroEstablished:
		return "INTRO_ESTABLISHED"
	case IntroWork:
		return "INTRO_WORK"
	case Introduce:
		return "INTRODUCE"
	case Introduced:
		return "INTRODUCED"
	case IntroduceAck:
		return "INTRODUCE_ACK"
	case EstablishRendezvous:
		return "ESTABLISH_RENDEZVOUS"
	case RendezvousEstablished:
		return "RENDEZVOUS_ESTABLISHED"
	case Rendezvous:
		return "RENDEZVOUS"
	case Joined:
		return "JOINED"
	}
	return fmt.Sprintf("message %d", uint8(c))
}

// OfStream reports whether the message belongs to a stream (its stream ID is
// not 0) rather than to the circuit.
func (c MessageCommand) OfStream() bool {
	switch c {
	case Begin, BeginDir, Connected, Data, End, Resolve, Resolved, Credit:
		return true
	default:
		return false
	}
}

// Message is one message, as it stands inside the innermost layer.
type Message struct {
	Command MessageCommand
	Stream  uint16
	Payload []byte // parsing aliases the input
}

// ParseMessage reads the inner body b of an opened layer: header, payload,
// zeros to the end. The result aliases b.
func ParseMessage(b []byte) (m Message, err error) {
	if len(b) < MessageHeaderSize {
		return m, &FormatError{"message", "header"}
	}
	m.Command = MessageCommand(b[0])
	m.Stream = binary.BigEndian.Uint16(b[1:])
	n := int(binary.BigEndian.Uint16(b[3:]))
	rest := b[MessageHeaderSize:]
	if n > len(rest) {
		return m, &FormatError{m.Command.String(), "length"}
	}
	m.Payload = rest[:n:n]
	if !IsZero(rest[n:]) {
		return m, &FormatError{m.Command.String(), "trailing bytes"}
	}
	if m.Command < Extend || m.Command > LastMessage {
		return m, &FormatError{m.Command.String(), "command"}
	}
	if m.Command.OfStream() != (m.Stream != 0) {
		return m, &FormatError{m.Command.String(), "stream ID"}
	}
	return m, nil
}

// PutMessage writes header, payload and zeros over all of b, the inner body of
// a layer. It panics when the payload does not fit, which no caller may let
// happen.
func PutMessage(b []byte, cmd MessageCommand, stream uint16, payload []byte) {
	if len(payload) > len(b)-MessageHeaderSize {
		panic("internal error: message too large for its hop")
	}
	b[0] = byte(cmd)
	binary.BigEndian.PutUint16(b[1:], stream)
	binary.BigEndian.PutUint16(b[3:], uint16(len(payload)))
	clear(b[MessageHeaderSize+copy(b[MessageHeaderSize:], payload):])
}
