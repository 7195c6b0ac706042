package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/circuit"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/directory"
	"cepa/link"
	"cepa/simnet"
	"cepa/stream"
)

// world is some relays on a simnet in virtual time, of a network whose one
// authority the test plays.
type world struct {
	*testing.T
	sim     *simnet.Network
	network *directory.Network
	auth    *simnet.Host
	pool    cell.Pool
	shift   atomic.Int64     // of everybody's date against the clock
	params  directory.Params // that the consensus states
	random  directory.Random // likewise
	logged  logBuffer

	ctx    context.Context // of all relays
	cancel context.CancelFunc
	nodes  []*node
	hosts  int
}

// node is one relay of a world.
type node struct {
	*Relay
	world  *world
	name   string
	host   *simnet.Host
	at     netip.AddrPort
	cancel context.CancelFunc
	done   chan struct{} // closed when Serve has returned
	err    error         // of Serve
	young  bool          // it gets no flag HSDir
}

// logBuffer holds log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run runs f in a bubble with a world, and checks that nothing is left of it.
func run(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, sim: simnet.New(simnet.Config{Default: simnet.LinkParams{Latency: 5 * time.Millisecond}})}
		defer w.sim.Close()
		id := w.key("authority")
		w.network = &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
			{Nickname: "auth", Identity: id.ID(), Address: "10.0.0.1:7000"},
		}}
		w.auth = w.sim.Host("auth", netip.MustParseAddr("10.0.0.1"))
		w.ctx, w.cancel = context.WithCancel(context.Background())
		defer func() {
			w.close()
			synctest.Wait() // clients hear of it
			if n := w.pool.Outstanding(); n != 0 {
				t.Errorf("%d cells were not given back", n)
			}
			if t.Failed() {
				t.Logf("log:\n%s", w.logged.String())
			}
		}()
		f(w)
	})
}

// close stops all relays and waits for them.
func (w *world) close() {
	w.cancel()
	for _, n := range w.nodes {
		<-n.done
		if n.err != nil {
			w.Errorf("%s: Serve: %v", n.name, n.err)
		}
		if c := n.circuits.now(); c != 0 {
			w.Errorf("%s: %d circuits are counted after its end", n.name, c)
		}
		if s := n.streams.now(); s != 0 {
			w.Errorf("%s: %d streams are counted after its end", n.name, s)
		}
	}
}

// now is everybody's date.
func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.shift.Load())) }

// key returns the identity that a name stands for.
func (w *world) key(name string) *identity.Key {
	w.Helper()
	seed := sha256.Sum256([]byte(name))
	k, err := identity.FromSeed(seed[:])
	w.must(err)
	return k
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// config returns the configuration of the next relay.
func (w *world) config(name string) (Config, *simnet.Host, netip.AddrPort) {
	w.Helper()
	w.hosts++
	addr := netip.AddrFrom4([4]byte{20, byte(w.hosts), 0, 1})
	at := netip.AddrPortFrom(addr, 9001)
	host := w.sim.Host(name, addr)
	onion, err := handshake.OnionKeyFromSecret(sha256.Sum256([]byte(name + " onion")))
	w.must(err)
	return Config{
		Network: w.network, Identity: w.key(name), OnionKey: onion, Nickname: name, Addresses: []netip.AddrPort{at},
		Dial: host.Dial, CreateWorkers: 1, Pool: &w.pool, Now: w.now,
		Log: slog.New(slog.NewTextHandler(&w.logged, nil)).With("node", name),
	}, host, at
}

// relay starts a relay. change, unless nil, changes its configuration, and tune
// the Relay before it serves.
func (w *world) relay(name string, change func(*Config), tune ...func(*Relay)) *node {
	w.Helper()
	cfg, host, at := w.config(name)
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	w.must(err)
	for _, f := range tune {
		f(r)
	}
	ln, err := host.Listen("tcp", at.String())
	w.must(err)
	return w.start(&node{Relay: r, world: w, name: name, host: host, at: at}, ln)
}

func (w *world) start(n *node, ln net.Listener) *node {
	n.done = make(chan struct{})
	ctx, cancel := context.WithCancel(w.ctx)
	n.cancel = cancel
	go func() {
		defer close(n.done)
		n.err = n.Serve(ctx, ln)
	}()
	w.nodes = append(w.nodes, n)
	synctest.Wait()
	return n
}

// stop ends one relay and waits for it.
func (n *node) stop() {
	n.cancel()
	<-n.done
}

// entry returns the relay's vote.
func (n *node) entry() directory.VoteEntry {
	n.world.Helper()
	doc, err := n.descriptor(1)
	n.world.must(err)
	d, err := directory.VerifyDescriptor(doc)
	n.world.must(err)
	flags := directory.FlagRunning | directory.FlagValid | directory.FlagGuard
	if !n.young {
		flags |= directory.FlagHSDir
	}
	if n.exit != nil {
		flags |= directory.FlagExit
	}
	return directory.VoteEntry{Descriptor: d, Flags: flags, Weight: 100}
}

// consensus returns a signed consensus of the given relays for now.
func (w *world) consensus(nodes ...*node) []byte {
	w.Helper()
	key, sub := w.key("authority"), w.key("authority signing")
	v := &directory.Vote{Network: w.network.Name, Interval: w.network.Interval, Period: w.network.Period(w.now()), Authority: key.ID(), Params: w.params}
	v.Random.Random = w.random
	for _, n := range nodes {
		v.Entries = append(v.Entries, n.entry())
	}
	slices.SortFunc(v.Entries, func(a, b directory.VoteEntry) int { return a.Descriptor.Identity.Compare(b.Descriptor.Identity) })
	c, err := directory.Compute([]*directory.Vote{v}, w.network)
	w.must(err)
	start := w.network.PeriodStart(v.Period)
	cert, err := key.Certify(identity.PurposeConsensus, sub.ID(), start.Add(-time.Hour), start.Add(48*time.Hour))
	w.must(err)
	sig, err := directory.SignConsensus(c, sub, cert)
	w.must(err)
	b, err := directory.AssembleConsensus(c, []*directory.Signature{sig}, w.network)
	w.must(err)
	return b
}

// agree gives all relays a consensus of the given ones, or of all.
func (w *world) agree(nodes ...*node) {
	w.Helper()
	if len(nodes) == 0 {
		nodes = w.nodes
	}
	doc := w.consensus(nodes...)
	for _, n := range w.nodes {
		w.must(n.mirror.Add(doc))
	}
}

// within returns a context that ends with the test, or after d of virtual time.
func (w *world) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	w.Cleanup(cancel)
	return ctx
}

// link opens a link to n from a host of its own, as a relay when auth is not nil.
func (w *world) link(n *node, auth *link.Auth) *link.Link {
	w.Helper()
	w.hosts++
	h := w.sim.Host(fmt.Sprintf("client%d", w.hosts), netip.AddrFrom4([4]byte{30, byte(w.hosts >> 8), byte(w.hosts), 1}))
	return w.linkFrom(h, n, auth)
}

func (w *world) linkFrom(h *simnet.Host, n *node, auth *link.Auth) *link.Link {
	w.Helper()
	conn, err := h.Dial(w.within(time.Minute), "tcp", n.at.String())
	w.must(err)
	l, err := link.Client(w.within(time.Minute), conn, n.Identity(), &link.Config{
		Auth: auth, Pool: &w.pool, QueueCells: circuit.QueueCells, Now: w.now,
	})
	w.must(err)
	w.Cleanup(func() { l.Close() })
	return l
}

// authOf returns what proves the identity of a name.
func (w *world) authOf(name string) *link.Auth {
	w.Helper()
	id, sub := w.key(name), w.key(name+" link")
	cert, err := id.Certify(identity.PurposeLink, sub.ID(), w.now().Add(-time.Hour), w.now().Add(time.Hour))
	w.must(err)
	return &link.Auth{Identity: id.ID(), Key: sub, Certificate: cert}
}

// specOf says how to use a relay as a hop.
func specOf(n *node) circuit.HopSpec {
	return circuit.HopSpec{Identity: n.Identity(), OnionKey: n.onion.current().Public(), Suite: layer.AES256GCM}
}

// origin makes a circuit on a link through the given relays.
func (w *world) origin(l *link.Link, nodes ...*node) *circuit.Origin {
	w.Helper()
	o, err := w.tryOrigin(l, nodes...)
	w.must(err)
	return o
}

func (w *world) tryOrigin(l *link.Link, nodes ...*node) (*circuit.Origin, error) {
	o := circuit.NewOrigin(circuit.OriginConfig{Pool: &w.pool})
	out, err := l.Open(o)
	if err != nil {
		return nil, err
	}
	o.Attach(out)
	w.Cleanup(o.Close)
	for _, n := range nodes {
		if err := o.Extend(w.within(time.Minute), specOf(n)); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// path returns a circuit over a fresh link to the first of the relays.
func (w *world) path(nodes ...*node) *circuit.Origin {
	w.Helper()
	return w.origin(w.link(nodes[0], nil), nodes...)
}

// open opens a stream and returns it once it is connected.
func (w *world) open(o *circuit.Origin, host string, port uint16) (*stream.Stream, error) {
	s, err := o.Mux().Open(cell.BeginBody{Flags: cell.BeginIPv6, Port: port, Host: host})
	if err != nil {
		return nil, err
	}
	if err := s.Connected(w.within(2 * time.Minute)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// wantOpen checks with which error a stream is refused.
func (w *world) wantOpen(o *circuit.Origin, host string, port uint16, want error) {
	w.Helper()
	s, err := w.open(o, host, port)
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, want) {
		w.Errorf("a stream to %s port %d: %v, want %v", host, port, err, want)
	}
}

// site starts a host of the internet that serves handle on a port.
func (w *world) site(addr string, port uint16, handle func(net.Conn)) *simnet.Host {
	w.Helper()
	h := w.sim.Host("site "+addr, netip.MustParseAddr(addr))
	ln, err := h.Listen("tcp", fmt.Sprintf(":%d", port))
	w.must(err)
	w.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return h
}

// echo sends back what it gets.
func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// roundTrip sends text over an echo connection and reads it back.
func roundTrip(c net.Conn, text string) error {
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("echo of %q is %q", text, b)
	}
	return nil
}

// names is a Resolver of what a test says.
type names struct {
	mu    sync.Mutex
	addrs func(name string) ([]netip.Addr, error)
	ptrs  func(addr string) ([]string, error)
	asked []string
}

func (n *names) note(q string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, q)
}

// queries returns what was asked for.
func (n *names) queries() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

func (n *names) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	n.note(host)
	if n.addrs == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return n.addrs(host)
}

func (n *names) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	n.note(addr)
	if n.ptrs == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return n.ptrs(addr)
}

// answer makes a names of fixed addresses for every name.
func answer(addrs ...string) *names {
	return &names{addrs: func(string) ([]netip.Addr, error) {
		var list []netip.Addr
		for _, a := range addrs {
			list = append(list, netip.MustParseAddr(a))
		}
		return list, nil
	}}
}

// asExit makes a relay an exit to all ports over its own host.
func asExit(resolver Resolver) func(*Config) {
	return func(cfg *Config) {
		cfg.Exit = &Exit{Policy: directory.AllPorts(), Resolver: resolver, Dial: cfg.Dial, Interfaces: interfaces()}
	}
}

// interfaces is an Exit's Interfaces of fixed addresses.
func interfaces(addrs ...string) func() ([]net.Addr, error) {
	return func() ([]net.Addr, error) {
		var list []net.Addr
		for _, a := range addrs {
			ip := net.ParseIP(a) // 16 bytes, of IPv4 too
			list = append(list, &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 8*len(ip))})
		}
		return list, nil
	}
}

// serveAuthority lets the authority answer until the func that it returns is called.
func (w *world) serveAuthority(handle http.HandlerFunc) (stop func()) {
	w.Helper()
	ln, err := w.auth.Listen("tcp", w.network.Authorities[0].Address)
	w.must(err)
	s := &http.Server{Handler: handle}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln) // always an error: the server was closed
	}()
	return func() {
		s.Close()
		<-done
	}
}
