// Package cell holds the wire formats of cepa that travel inside links: the
// fixed-size cell, the messages inside it (one body a file), and the pool that
// cell buffers come from. It does no I/O and knows no keys. Source:
// doc/spec.md sections 1 and 5.
package cell

import (
	"encoding/binary"
	"fmt"
)

// Sizes in bytes (doc/spec.md section 1).
const (
	// Size of a cell, always. It is the smallest at which a post-quantum
	// EXTEND fits one cell at hop 7, and one cell in one link record still
	// fits one packet over IPv6.
	Size = HeaderSize + BodySize
	// HeaderSize is the circuit ID (4) and the command (1).
	HeaderSize = 5
	// BodySize is what follows the header.
	BodySize = 1403
	// MaxHops is the largest hop index; a relay there refuses EXTEND.
	MaxHops = 8
	// JoinedIndex is the index of the layer end to end over two circuits that a
	// rendezvous point has joined, however many hops each of them has: so its
	// cells fit behind the last layer of both.
	JoinedIndex = MaxHops + 1
	// JoinedSize is the size of a sealed body of that layer: what a rendezvous
	// point passes on.
	JoinedSize = BodySize - LayerOverhead*(JoinedIndex-1)
	// TagSize is the size of an AEAD tag of a layer.
	TagSize = 16
	// LayerOverhead is what one layer takes from the body: one byte that
	// says whom the content is for, and the tag.
	LayerOverhead = 1 + TagSize
)

// InitiatorBit is the top bit of a circuit ID, set in the IDs that the side
// which opened the TCP connection chooses and clear in the other side's.
const InitiatorBit = 1 << 31

// Command says what a cell is (doc/spec.md section 1).
type Command uint8

// The commands of cells.
const (
	Padding Command = 0 // circuit 0: keeps a link from falling silent
	Create  Command = 1 // first half of a hop handshake
	Created Command = 2 // second half
	Relay   Command = 3 // a layered body
	Destroy Command = 4 // the circuit ends
	Rekey   Command = 5 // circuit 0: the next records use the next key
	Auth    Command = 6 // circuit 0: link authentication
)

// String returns the command's name in doc/spec.md.
func (c Command) String() string {
	switch c {
	case Padding:
		return "PADDING"
	case Create:
		return "CREATE"
	case Created:
		return "CREATED"
	case Relay:
		return "RELAY"
	case Destroy:
		return "DESTROY"
	case Rekey:
		return "REKEY"
	case Auth:
		return "AUTH"
	}
	return fmt.Sprintf("command %d", uint8(c))
}

// Cell is one cell in a buffer of its own. It has one owner at a time: whoever
// hands it over must not touch it again. Cells come from a Pool and go back to
// it.
type Cell struct {
	next  *Cell
	taken uint64 // see Taken
	place place
	buf   [Size]byte
}

// Taken returns when the cell was taken from its Pool, on a clock that counts the
// times that cells were taken: the lower, the longer ago.
func (c *Cell) Taken() uint64 { return c.taken }

// place says who has a cell, so that handing it over twice panics where it
// happens instead of giving one buffer to two circuits.
type place uint8

const (
	owned  place = iota // by whoever took it
	listed              // by a List
	pooled              // by nobody: returned to its Pool
)

// CircuitID returns the circuit ID of the cell's header.
func (c *Cell) CircuitID() uint32 { return binary.BigEndian.Uint32(c.buf[:4]) }

// SetCircuitID sets the circuit ID of the cell's header.
func (c *Cell) SetCircuitID(id uint32) { binary.BigEndian.PutUint32(c.buf[:4], id) }

// Command returns the command of the cell's header.
func (c *Cell) Command() Command { return Command(c.buf[4]) }

// SetCommand sets the command of the cell's header.
func (c *Cell) SetCommand(cmd Command) { c.buf[4] = byte(cmd) }

// Body returns the BodySize bytes after the header; they are the cell's own.
func (c *Cell) Body() []byte { return c.buf[HeaderSize:] }

// Bytes returns the whole cell of Size bytes; they are the cell's own.
func (c *Cell) Bytes() []byte { return c.buf[:] }

// SetBody copies b to the start of the body and zeroes the rest. It panics
// when b is larger than BodySize, which no caller may let happen.
func (c *Cell) SetBody(b []byte) {
	if len(b) > BodySize {
		panic("internal error: cell body too large")
	}
	clear(c.buf[HeaderSize+copy(c.buf[HeaderSize:], b):])
}

// IsZero reports whether all bytes of b are zero, as the spec demands of
// trailing bytes.
func IsZero(b []byte) bool {
	var acc uint64
	for len(b) >= 32 {
		acc |= binary.NativeEndian.Uint64(b) | binary.NativeEndian.Uint64(b[8:]) |
			binary.NativeEndian.Uint64(b[16:]) | binary.NativeEndian.Uint64(b[24:])
		b = b[32:]
	}
	for _, x := range b {
		acc |= uint64(x)
	}
	return acc == 0
}
