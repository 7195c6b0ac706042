// Package circuit holds both ends of a circuit: Origin, which has hops, and
// Transit, which has two sides; and the window of each hop. One code for the
// layers, windows and messages of both. It does not know links, only the
// Outlet that a circuit has on one, and not the directory: keys and relays are
// handed in. Source: doc/spec.md sections 2, 4 and 5.
//
// Whose goroutine: Receive and Flush of a side run on the reader of the link
// that the cells came from, which alone owns the layer state that opens them.
// Everything that goes out on one side is sealed and queued under that side's
// lock, so that cells leave in the order of their nonces. Nothing here waits,
// except the methods of Origin that take a Context, for their caller.
package circuit

import (
	"errors"
	"fmt"

	"cepa/cell"
	"cepa/crypto/layer"
)

// Limits.
const (
	// MaxWindow is how many counted messages may be unacknowledged, per hop and
	// direction, before DATA waits, however well they flow (doc/spec.md section
	// 5): enough for 37 MB/s where a round trip takes 150 ms.
	MaxWindow = 4096
	// maxUnacked is where a sender gives up on a peer that does not
	// acknowledge. It leaves room for what does not wait for the window: a
	// few messages for each of 512 streams.
	maxUnacked = MaxWindow + 2048
	// QueueCells is the bound that a link must give one circuit's outgoing
	// queue: all that the peer may leave unacknowledged, and its ACKs, of which
	// an honest one has few under way. An overflow proves misbehaviour.
	QueueCells = maxUnacked + 512
	// batch is how many cells SendData seals at most before others get
	// their turn: one link record's worth.
	batch = 46
)

// Errors that decide. They are wrapped with the details.
var (
	// ErrProtocol says that the other side broke a rule of doc/spec.md.
	ErrProtocol = errors.New("circuit: protocol violation")
	// ErrDestroyed says that the circuit was destroyed by the other side, or
	// its link was lost.
	ErrDestroyed = errors.New("circuit: destroyed")
	// ErrClosed says that the circuit was closed on our side.
	ErrClosed = errors.New("circuit: closed")
)

// Outlet is the way out onto one link: what a circuit ID on it can do.
type Outlet interface {
	// Send queues cells in order. It takes ownership of them in every case
	// and never waits; an error means that the circuit cannot go on.
	Send(cells *cell.List) error
	// Kick lets what was sent go. It follows Send as soon as no lock is held,
	// once for many, and never waits. What is sent on a link from its own
	// reader goes without.
	Kick()
	// Destroy ends the circuit on that link. It never waits.
	Destroy(reason cell.Reason)
}

// Receiver is one side of a circuit, as a link sees it. All its methods are
// called on the link's reader (Closed may come from elsewhere) and do not wait.
type Receiver interface {
	// Receive takes one CREATED or RELAY. body has cell.BodySize bytes, is
	// the caller's, valid only during the call, and may be changed.
	Receive(cmd cell.Command, body []byte)
	// Flush is called after a batch of Receive, so that what came of it can
	// go out at once. It is called even when the circuit died meanwhile.
	Flush()
	// Kick is called when all circuits of the batch have been flushed: time to
	// kick the other side.
	Kick()
	// Closed is called once, when the other side destroyed the circuit or
	// the link was lost; not after our own Destroy.
	Closed(reason cell.Reason)
}

// What the byte after a layer's inner body says.
const (
	kindForward = 0 // the inner body is the next hop's
	kindMessage = 1 // the inner body is a message
	kindAsking  = 2 // the same, and its sender wants an ACK of it
)

// messageKind is the kind of a message.
func messageKind(asks bool) byte {
	if asks {
		return kindAsking
	}
	return kindMessage
}

// sealedSize is the size of the sealed body at hop k, or cell.JoinedIndex.
func sealedSize(k int) int { return cell.BodySize - cell.LayerOverhead*(k-1) }

// innerSize is the size of the inner body at hop k, or cell.JoinedIndex.
func innerSize(k int) int { return cell.BodySize - cell.LayerOverhead*k }

// openLayer opens src, the body at hop k, into dst (in place when they start
// at the same byte) and returns what its last byte says. What follows the
// sealed bytes must be zero.
func openLayer(st *layer.State, k int, dst, src []byte) (kind byte, err error) {
	n := sealedSize(k)
	if !cell.IsZero(src[n:]) {
		return 0, fmt.Errorf("%w: bytes behind the layer of hop %d", ErrProtocol, k)
	}
	if err := st.Open(dst[:n-cell.TagSize], src[:n]); err != nil {
		return 0, fmt.Errorf("%w: layer of hop %d: %w", ErrProtocol, k, err)
	}
	kind = dst[innerSize(k)]
	if kind > kindAsking {
		return 0, fmt.Errorf("%w: unknown kind in the layer of hop %d", ErrProtocol, k)
	}
	return kind, nil
}

// sealLayer seals the inner body in src, for hop k, into dst (in place when
// they start at the same byte). src must have one byte more than the inner
// body, for the kind.
func sealLayer(st *layer.State, k int, kind byte, dst, src []byte) {
	n := innerSize(k)
	src[n] = kind
	st.Seal(dst[:sealedSize(k)], src[:n+1])
}
