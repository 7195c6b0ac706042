package relay

import (
	"net/netip"
	"sync/atomic"

	"cepa/cell"
	"cepa/stream"
)

// limits bound what others can make a relay do at once; all are ours. What is
// beyond is refused at once, so that what was accepted is also served.
type limits struct {
	// handshaking: connections whose link handshake is under way.
	handshaking int
	// links in all, each some 20 KB at rest.
	links int64
	// clientLinks are those among them whose other end is no relay.
	clientLinks int64
	// circuits in all, waiting handshakes included, each some 10 KB at rest;
	// and how many of them one client may have over its link: far more than
	// a client keeps, far less than would fill the relay.
	circuits, clientCircuits int64
	// createQueue is how many handshakes may wait for a worker: at 122 µs
	// each, 2,048 on one core are a quarter of a second; clientQueue, how many
	// of clients, so that they leave places to relays. One client may take an
	// eighth of it.
	createQueue, clientQueue, clientCreating int64
	// extending: EXTENDs that wait for the next relay, each up to
	// extendTimeout and perhaps a connection; in all and for one client.
	extending, clientExtending int64
	// streams to the internet, from BEGIN to the end of the socket, each a
	// socket, three goroutines and 8 to 128 KB; in all and for one circuit. A
	// stream that its client gave up counts as long as there is work for it.
	streams, circuitStreams int64
	// lookups of names under way, for BEGIN and RESOLVE: two sockets each.
	lookups int64
	// dirStreams: streams to the directory, each a goroutine and some 10 KB; in
	// all and for one circuit.
	dirStreams, circuitDirStreams int64
	// dirSockets: connections of plain HTTP to the directory; in all and from one
	// address.
	dirSockets, addressDirSockets int64
	// introPoints: circuits of services for which the relay is an introduction point, or
	// wants to be, some 500 bytes each beside the circuit; in all, and of those that
	// come over one link, so that what one neighbour passes on leaves room.
	introPoints, nearIntroPoints int64
	// rendezvous: circuits of clients that wait for a service, for up to
	// rendezvousWait; likewise.
	rendezvous, nearRendezvous int64
	// descriptors of onion services, and their bytes. Ours: with 100,000 services and
	// 1,000 relays each has 1,600.
	descriptors, descriptorBytes int64
	// uploads of descriptors under way, each as large as a descriptor may be; in all
	// and on one circuit.
	uploads, circuitUploads int64
}

func defaultLimits() limits {
	return limits{
		handshaking: 256,
		links:       16384, clientLinks: 12288,
		circuits: 65536, clientCircuits: 2048,
		createQueue: 2048, clientQueue: 1536, clientCreating: 256,
		extending: 4096, clientExtending: 128,
		streams: 16384, circuitStreams: stream.DefaultMaxStreams,
		lookups:    1024,
		dirStreams: 512, circuitDirStreams: 16,
		dirSockets: 256, addressDirSockets: 16,
		introPoints: 8192, nearIntroPoints: 2048,
		rendezvous: 16384, nearRendezvous: 4096,
		descriptors: 4096, descriptorBytes: 64 << 20,
		uploads: 128, circuitUploads: 2,
	}
}

// fit lowers limits to what a process with that many file descriptors can
// keep: half of them for clients, a quarter for streams, and the rest for links
// to relays, which a flood of clients cannot take.
func (l *limits) fit(files int) {
	const own = 32 // listeners, files, control connections
	if files == 0 {
		return
	}
	n := int64(max(files-own, own))
	l.handshaking = min(l.handshaking, int(n/8))
	l.links = min(l.links, n*3/4)
	l.clientLinks = min(l.clientLinks, n/2-n/8)
	l.streams = min(l.streams, n/4)
	l.lookups = min(l.lookups, n/16)
	l.dirSockets = min(l.dirSockets, n/16)
}

// fitMemory lowers limits to what half of the memory holds at rest, so that there
// is enough left to be made free when more is held; 0: no bound is known.
func (l *limits) fitMemory(bytes int64) {
	if bytes == 0 {
		return
	}
	l.links = min(l.links, max(16, bytes/8/linkMemory))
	l.clientLinks = min(l.clientLinks, l.links*3/4)
	l.circuits = min(l.circuits, max(64, bytes/4/circuitMemory))
	l.streams = min(l.streams, max(16, bytes/8/streamMemory))
	l.descriptorBytes = min(l.descriptorBytes, max(1<<20, bytes/16))
}

// gauge counts what is there at once.
type gauge struct {
	n    atomic.Int64
	pool *cell.Pool // unless nil, is charged
	each int64      // bytes for each
}

// enter counts one more, unless that would be more than limit.
func (g *gauge) enter(limit int64) bool {
	if g.n.Add(1) > limit {
		g.n.Add(-1)
		return false
	}
	if g.pool != nil {
		g.pool.Charge(g.each)
	}
	return true
}

// leave takes back one enter that returned true.
func (g *gauge) leave() {
	g.n.Add(-1)
	if g.pool != nil {
		g.pool.Charge(-g.each)
	}
}

// now returns the count.
func (g *gauge) now() int64 { return g.n.Load() }

// neighbour counts what the peer of one link has going on. Limits hold for
// clients: behind a relay are many of them.
type neighbour struct {
	addr    netip.Addr   // where the connection came from, as keyOf says; zero for a link that we opened
	counted atomic.Int32 // whether addressBook counts the link

	circuits  gauge
	creating  gauge
	extending gauge

	intros  int64 // circuits of services; guarded by introTable.mu
	waiting int64 // circuits that wait for a service; guarded by meetingTable.mu

	line createLine // guarded by createQueue.mu
}

// Whether a client's link is counted: never yet, now, and no longer.
const (
	linkNotCounted = iota
	linkCounted
	linkEnded
)

// forClient returns the limit for a client, and for a relay none but that of
// the whole.
func forClient(isRelay bool, client, whole int64) int64 {
	if isRelay {
		return whole
	}
	return client
}
