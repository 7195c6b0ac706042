package simnet

import (
	"net/netip"
	"time"
)

// TapKind says what a TapEvent is about.
type TapKind uint8

// The kinds of events.
const (
	TapOpen  TapKind = iota + 1 // a request to open a connection, also one that is then refused
	TapData                     // a segment
	TapEnd                      // the sender will send no more (FIN)
	TapReset                    // the sender has given up the connection (RST)
)

// String returns the kind in one word.
func (k TapKind) String() string {
	switch k {
	case TapOpen:
		return "open"
	case TapData:
		return "data"
	case TapEnd:
		return "end"
	case TapReset:
		return "reset"
	}
	return "unknown"
}

// TapEvent is what an observer of all links sees arrive at the end of one.
type TapEvent struct {
	Kind TapKind
	// Conn is the number of the connection, the same in both directions.
	Conn uint64
	// Sent is when the last byte left the sending host, and Time when it reached the receiving one (before the
	// receiver's own SetBandwidth is applied). A lost segment is seen once, with its late arrival.
	Sent, Time time.Time
	From, To   netip.AddrPort
	// Data is 1 to Config.Segment bytes if Kind is TapData. It is a copy that belongs to the observer.
	Data []byte
}

// Tap adds an observer of everything that arrives anywhere, from now on. Events come one at a time, in order for each
// direction of a connection. f runs inside the network: it must not block or call the network or its connections.
// What f has recorded may be read without a lock after Close, or in a bubble after synctest.Wait.
func (n *Network) Tap(f func(TapEvent)) {
	n.taps.mu.Lock()
	defer n.taps.mu.Unlock()
	var list []func(TapEvent)
	if old := n.taps.list.Load(); old != nil {
		list = append(list, *old...)
	}
	list = append(list, f)
	n.taps.list.Store(&list)
}

// tapped reports whether there is anybody to show events to.
func (n *Network) tapped() bool { return n.taps.list.Load() != nil }

func (n *Network) show(h *half, kind TapKind, sent, arrived int64, data []byte) {
	list := n.taps.list.Load()
	if list == nil {
		return
	}
	n.taps.mu.Lock()
	defer n.taps.mu.Unlock()
	for _, f := range *list {
		f(TapEvent{
			Kind: kind, Conn: h.src.id,
			Sent: n.at(sent), Time: n.at(arrived),
			From: h.src.local, To: h.dst.local,
			Data: append([]byte(nil), data...),
		})
	}
}

// showBytes shows the bytes from position a to b of h's stream, a segment at a time. The caller holds h.mu.
func (n *Network) showBytes(h *half, a, b uint64, sent, arrived int64) {
	buf := make([]byte, n.cfg.Segment)
	for a < b {
		m := min(b-a, uint64(len(buf)))
		h.ring.get(buf[:m], a)
		n.show(h, TapData, sent, arrived, buf[:m])
		a += m
	}
}
