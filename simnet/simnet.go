// Package simnet is a network in memory: hosts with one address each, listeners and connections between them, and
// links that have latency, jitter, bandwidth, loss and partitions.
//
// Connections are [net.Conn] with the manners of TCP: deadlines, half-close, resets, back-pressure, partial reads.
// Host.Dial and Host.Listen have the shape of the standard library's, so that code which takes a dial function and a
// net.Listener runs on a Network unchanged. It works in real time, and in a testing/synctest bubble in virtual time:
// waits are on sync.Cond and channels, time is the runtime's, and no lock is held while waiting. Everything of one
// Network belongs to the bubble in which it was first used.
//
// # Model
//
// A byte goes from the sender's buffer through the sending host's uplink, the link, the link's latency and the
// receiving host's downlink into the receiver's buffer. Uplink, link and downlink are serialising queues: each sends
// one segment at a time, taking size/bandwidth, and serves the connections that wait for it in turn, a segment each.
// With no bandwidth set, a queue takes no time. So size bytes written at t on an idle network with one bandwidth B and
// latency L have arrived at exactly t + size/B + L (rounded down to a nanosecond); each further queue adds the time of
// one segment. Only payload takes bandwidth: opening, closing, acknowledging and resetting are free but take latency.
//
// Where latency, jitter, bandwidth and loss are all zero a write goes straight into the receiver's buffer, with no
// timer and no other goroutine involved.
//
// Differences from TCP, on purpose: there is no congestion control (Config.Buffer bounds what is under way instead);
// room in the buffer is seen by the sender as soon as the receiver reads; a reset discards what the receiver had not
// read (some systems keep it); established connections outlive any partition; a closed port can be reused at once.
package simnet

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of Config.
const (
	// DefaultSegment is the payload of a TCP segment in bytes on Ethernet with timestamps: 1,500 - 20 - 20 - 12.
	DefaultSegment = 1448
	// DefaultBuffer is the buffer of one direction in bytes. It bounds throughput to 256 KiB per one-way latency.
	DefaultBuffer = 256 << 10
)

// Config says how a Network behaves. The zero value is an ideal network.
type Config struct {
	// Seed decides jitter and loss. The n-th connection from one host to another sees the same draws for the same
	// seed, whatever else goes on.
	Seed uint64
	// Default holds for every pair of hosts that SetLink was not called for. A host reaches itself without delay.
	Default LinkParams
	// Segment is the largest number of bytes sent, lost, or shown to a tap as one. 0 means DefaultSegment.
	Segment int
	// Buffer is the number of bytes that may be written and not yet read in one direction of a connection: the send
	// buffer, what is under way, and the receive buffer. A Write waits when it is full; it goes on when a quarter is
	// free. Memory is taken as needed. 0 means DefaultBuffer.
	Buffer int
}

// LinkParams describe a link between two hosts, the same in both directions.
type LinkParams struct {
	// Latency is the time one way.
	Latency time.Duration
	// Jitter is the largest addition to the latency of a segment, drawn uniformly. Order is kept.
	Jitter time.Duration
	// Bandwidth is in bytes per second, each way, shared by all connections between the two hosts. 0 is unlimited.
	Bandwidth int64
	// Loss is the probability, per segment, of arriving one retransmission timeout, max(200 ms, 2 RTT), later. What
	// was sent after it on the same connection waits for it, as in TCP.
	Loss float64
}

// check panics on parameters that mean nothing: they are a mistake in a test, and must not be read as "unlimited".
func (p LinkParams) check() {
	if p.Latency < 0 || p.Jitter < 0 || p.Bandwidth < 0 || !(p.Loss >= 0 && p.Loss <= 1) {
		panic(fmt.Sprintf("simnet: link parameters out of range: %+v", p))
	}
}

// rto is the retransmission timeout: Linux's least (200 ms), or twice the round trip.
func (p LinkParams) rto() int64 {
	return max(int64(200*time.Millisecond), int64(4*p.Latency))
}

// A Network is a set of hosts and the links between them. All methods may be called at any time from any goroutine,
// but not from a tap.
type Network struct {
	cfg   Config
	start time.Time      // instants are int64 nanoseconds since start
	wg    sync.WaitGroup // timers that may still call back
	taps  taps

	// mu guards everything below and the transit state of every half. It is taken before any half's mu, never while
	// holding one.
	mu      sync.Mutex
	closed  bool
	hosts   map[netip.Addr]*Host
	wires   map[hostPair]*wire
	opened  map[hostPair]uint64 // connections ever opened, to seed their random draws
	conns   map[*Conn]struct{}  // the dialling ends of all pairs that are not over
	lastID  uint64
	events  eventHeap
	lastSeq uint64
	timer   *time.Timer
	armed   int64 // when timer fires; idle if it does not
}

type hostPair struct{ from, to *Host }

// New returns a network without hosts. It panics on a Config that is out of range.
func New(cfg Config) *Network {
	cfg.Default.check()
	if cfg.Segment <= 0 {
		cfg.Segment = DefaultSegment
	}
	if cfg.Buffer <= 0 {
		cfg.Buffer = DefaultBuffer
	}
	return &Network{
		cfg:    cfg,
		start:  time.Now(),
		hosts:  make(map[netip.Addr]*Host),
		wires:  make(map[hostPair]*wire),
		opened: make(map[hostPair]uint64),
		conns:  make(map[*Conn]struct{}),
		armed:  idle,
	}
}

// Host adds a host. The name is for people; the address must be new and neither unspecified nor loopback. It
// panics otherwise.
func (n *Network) Host(name string, addr netip.Addr) *Host {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() {
		panic(fmt.Sprintf("simnet: host %q: address %v cannot be a host's", name, addr))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if other := n.hosts[addr]; other != nil {
		panic(fmt.Sprintf("simnet: host %q: address %v is taken by %q", name, addr, other.name))
	}
	h := &Host{
		n:         n,
		name:      name,
		addr:      addr,
		listeners: make(map[netip.AddrPort]*listener),
		ports:     make(map[uint16]struct{}),
		nextPort:  firstEphemeral,
		up:        station{index: stageUp},
		down:      station{index: stageDown},
	}
	n.hosts[addr] = h
	return h
}

// SetLink sets the link between two hosts, in both directions. What is already under way keeps its time of arrival;
// the segment being sent keeps its speed. A host has no link to itself: SetLink panics, also on parameters out of
// range.
func (n *Network) SetLink(a, b *Host, p LinkParams) {
	p.check()
	distinct(a, b)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range []*wire{n.wire(a, b), n.wire(b, a)} {
		w.params = p
		w.setRate(p.Bandwidth)
	}
	n.refresh()
}

// Partition cuts the link between two hosts, or heals it. While it is cut nothing arrives, not even a reset: writers
// run into the full buffer and dials wait. When it heals, what was held up is sent again and arrives one latency
// later. It panics if a is b.
func (n *Network) Partition(a, b *Host, cut bool) {
	distinct(a, b)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wire(a, b).cut, n.wire(b, a).cut = cut, cut
	n.unblock()
}

// Isolate cuts a host off from all others, or reconnects it. Partitions of single links stay as they are.
func (n *Network) Isolate(h *Host, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.isolated = cut
	n.unblock()
}

func distinct(a, b *Host) {
	if a == b {
		panic(fmt.Sprintf("simnet: host %q has no link to itself", a.name))
	}
}

// Close resets all connections, closes all listeners, and waits until nothing of the network runs any more. Calls in
// progress return an error that wraps net.ErrClosed, as do later ones. It always returns nil.
func (n *Network) Close() error {
	n.mu.Lock()
	if !n.closed {
		n.closed = true
		for _, h := range n.hosts {
			h.closeListeners()
		}
		for c := range n.conns {
			n.fail(c, net.ErrClosed)
			n.fail(c.peer, net.ErrClosed)
		}
		n.events = nil
		n.disarm()
	}
	n.mu.Unlock()
	n.wg.Wait()
	return nil
}

// now is the present in nanoseconds since n.start.
func (n *Network) now() int64 { return int64(time.Since(n.start)) }

func (n *Network) at(t int64) time.Time { return n.start.Add(time.Duration(t)) }

// wire returns the link from one host to another. The caller holds n.mu.
func (n *Network) wire(from, to *Host) *wire {
	key := hostPair{from, to}
	w := n.wires[key]
	if w == nil {
		w = &wire{from: from, to: to}
		w.index = stageLink
		if from != to {
			w.params = n.cfg.Default
			w.rate = w.params.Bandwidth
			w.blocked = from.isolated || to.isolated
		}
		n.wires[key] = w
	}
	return w
}

// unblock recomputes which links are cut, and sets those going that no longer are. The caller holds n.mu.
func (n *Network) unblock() {
	healed := make(map[*wire]bool)
	for _, w := range n.wires {
		blocked := w.from != w.to && (w.cut || w.from.isolated || w.to.isolated)
		if w.blocked && !blocked {
			healed[w] = true
		}
		w.blocked = blocked
	}
	n.refresh()
	if len(healed) == 0 {
		return
	}
	t := n.now()
	for _, c := range n.sortedConns() {
		for _, h := range []*half{c.out, c.in} {
			if !healed[h.wire] {
				continue
			}
			held := h.held
			h.held = nil
			for _, ev := range held {
				ev.at, ev.sent = h.arrival(t), t
				n.schedule(ev)
			}
			n.run(&h.wire.station, t)
		}
	}
}

// refresh decides anew for every connection whether writes may go straight to the receiver. The caller holds n.mu.
func (n *Network) refresh() {
	for c := range n.conns {
		n.setDirect(c.out)
		n.setDirect(c.in)
	}
}

// sortedConns gives the order in which connections were opened, so that a run repeats.
func (n *Network) sortedConns() []*Conn {
	list := make([]*Conn, 0, len(n.conns))
	for c := range n.conns {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Conn) int { return cmp.Compare(a.id, b.id) })
	return list
}

// taps is the list of observers. It is read without a lock where there are none.
type taps struct {
	mu   sync.Mutex // held while calling, so that observers are called one at a time
	list atomic.Pointer[[]func(TapEvent)]
}
