package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/relay"
	"cepa/simnet"
)

// world is a network of real relays on a simnet in virtual time. Its one authority is
// played by the test, which so decides what the consensus says.
type world struct {
	*testing.T
	sim     *simnet.Network
	network *directory.Network
	auth    *simnet.Host
	pool    cell.Pool
	shift   atomic.Int64     // of everybody's date against the clock
	params  directory.Params // that the consensus states
	logged  logBuffer

	ctx    context.Context
	cancel context.CancelFunc
	nodes  []*node
	hosts  int
	stop   func() // the authority; nil while it is down

	mu     sync.Mutex // guards what follows
	posted map[identity.ID]*directory.Descriptor
	doc    *mirror.Document
	asked  int // how often the consensus was
}

// node is one relay of a world.
type node struct {
	*relay.Relay
	name   string
	cfg    relay.Config
	host   *simnet.Host
	at     netip.AddrPort
	flags  directory.Flags
	weight uint64
	cancel context.CancelFunc
	done   chan struct{}
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
		w := &world{
			T: t, sim: simnet.New(simnet.Config{Default: simnet.LinkParams{Latency: 5 * time.Millisecond}}),
			posted: map[identity.ID]*directory.Descriptor{},
		}
		defer w.sim.Close()
		w.network = &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
			{Nickname: "auth", Identity: w.key("authority").ID(), Address: "10.0.0.1:7000"},
		}}
		w.auth = w.sim.Host("auth", netip.MustParseAddr("10.0.0.1"))
		w.ctx, w.cancel = context.WithCancel(context.Background())
		w.startAuthority()
		defer func() {
			w.cancel()
			for _, n := range w.nodes {
				<-n.done
			}
			w.stopAuthority()
			synctest.Wait()
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

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
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

func (w *world) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	w.Cleanup(cancel)
	return ctx
}

// ServeHTTP is the authority.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Method == http.MethodPost {
		b, err := mirror.ReadRequest(r, directory.MaxDescriptorSize)
		if err == nil {
			var d *directory.Descriptor
			if d, err = directory.VerifyDescriptor(b); err == nil {
				w.posted[d.Identity] = d
				return
			}
		}
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	w.asked++
	if w.doc == nil {
		http.Error(rw, "none yet", http.StatusNotFound)
		return
	}
	w.doc.ServeHTTP(rw, r)
}

// asks returns how often the authority was asked for the consensus.
func (w *world) asks() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

func (w *world) startAuthority() {
	w.Helper()
	ln, err := w.auth.Listen("tcp", w.network.Authorities[0].Address)
	w.must(err)
	s := &http.Server{Handler: w}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln) // always an error: the server was closed
	}()
	w.stop = func() {
		s.Close()
		<-done
	}
}

func (w *world) stopAuthority() {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
}

// relay starts a relay that may be a guard. change, unless nil, changes its
// configuration.
func (w *world) relay(name string, change func(*relay.Config)) *node {
	w.Helper()
	w.hosts++
	addr := netip.AddrFrom4([4]byte{20, byte(w.hosts), 0, 1})
	at := netip.AddrPortFrom(addr, 9001)
	onion, err := handshake.OnionKeyFromSecret(sha256.Sum256([]byte(name + " onion")))
	w.must(err)
	n := &node{name: name, host: w.sim.Host(name, addr), at: at, flags: directory.FlagRunning | directory.FlagValid | directory.FlagGuard, weight: 100}
	n.cfg = relay.Config{
		Network: w.network, Identity: w.key(name), OnionKey: onion, Nickname: name, Addresses: []netip.AddrPort{at},
		Dial: n.host.Dial, CreateWorkers: 1, Pool: &w.pool, Now: w.now,
	}
	if change != nil {
		change(&n.cfg)
	}
	if n.cfg.Exit != nil {
		// Scarce, so that paths have guards in their middle.
		n.flags, n.weight = n.flags&^directory.FlagGuard|directory.FlagExit, 1
	}
	w.nodes = append(w.nodes, n)
	w.start(n)
	return n
}

// start starts a relay, again after a stop, and waits until it has published.
func (w *world) start(n *node) {
	w.Helper()
	r, err := relay.New(n.cfg)
	w.must(err)
	ln, err := n.host.Listen("tcp", n.at.String())
	w.must(err)
	ctx, cancel := context.WithCancel(w.ctx)
	n.Relay, n.cancel, n.done = r, cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		if err := r.Serve(ctx, ln); err != nil {
			w.Errorf("%s: %v", n.name, err)
		}
	}()
	time.Sleep(100 * time.Millisecond)
}

// halt stops a relay and waits for it.
func (n *node) halt() {
	n.cancel()
	<-n.done
}

// agree makes the consensus of now, of the given relays or of all.
func (w *world) agree(nodes ...*node) {
	w.Helper()
	if len(nodes) == 0 {
		nodes = w.nodes
	}
	b := w.sign(nodes)
	c, err := directory.VerifyConsensus(b, w.network)
	w.must(err)
	w.mu.Lock()
	w.doc = mirror.NewDocument(c)
	w.mu.Unlock()
	for _, n := range w.nodes {
		select {
		case <-n.done:
		default:
			w.must(n.Directory().Add(b))
		}
	}
}

// sign returns the consensus of now, of the given relays.
func (w *world) sign(nodes []*node) []byte {
	w.Helper()
	key, sub := w.key("authority"), w.key("authority signing")
	v := &directory.Vote{Network: w.network.Name, Interval: w.network.Interval, Period: w.network.Period(w.now()), Authority: key.ID(), Params: w.params}
	w.mu.Lock()
	for _, n := range nodes {
		d := w.posted[n.Identity()]
		if d == nil {
			w.Fatalf("%s has not published", n.name)
		}
		v.Entries = append(v.Entries, directory.VoteEntry{Descriptor: d, Flags: n.flags, Weight: n.weight})
	}
	w.mu.Unlock()
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

// small is a network of three guards and as many exits as there are configurations.
func (w *world) small(exits ...func(*relay.Config)) (guards, outs []*node) {
	w.Helper()
	for i := range 3 {
		guards = append(guards, w.relay(fmt.Sprintf("guard%d", i+1), nil))
	}
	for i, change := range exits {
		outs = append(outs, w.relay(fmt.Sprintf("exit%d", i+1), change))
	}
	w.agree()
	return guards, outs
}

// client starts a client on a host of its own; the test's end closes it.
func (w *world) client(change func(*Config)) *Client {
	w.Helper()
	c, _ := w.clientAt(w.clientHost(), change)
	return c
}

func (w *world) clientHost() *simnet.Host {
	w.hosts++
	return w.sim.Host(fmt.Sprintf("client%d", w.hosts), netip.AddrFrom4([4]byte{30, byte(w.hosts), 0, 1}))
}

func (w *world) clientAt(h *simnet.Host, change func(*Config)) (*Client, *simnet.Host) {
	w.Helper()
	cfg := Config{
		Network: w.network, Dial: h.Dial, Pool: &w.pool, Now: w.now,
		Log: slog.New(slog.NewTextHandler(&w.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	w.must(err)
	w.Cleanup(func() { c.Close() })
	return c, h
}

// readyClient is client, waited for, until it rests.
func (w *world) readyClient(change func(*Config)) *Client {
	w.Helper()
	c := w.client(change)
	w.must(c.Ready(w.within(time.Minute)))
	time.Sleep(5 * time.Second)
	return c
}

// dial opens a stream that the test's end closes.
func (w *world) dial(c *Client, addr string) net.Conn {
	w.Helper()
	conn, err := c.Dial(w.within(2*time.Minute), "tcp", addr)
	w.must(err)
	w.Cleanup(func() { conn.Close() })
	return conn
}

// wantError checks which party failed and why.
func wantError(t *testing.T, err error, party Party, why error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Party != party || why != nil && !errors.Is(err, why) {
		t.Errorf("%v, want %v of %s", err, why, party)
	}
}

// site starts a host of the internet that serves handle on a port.
func (w *world) site(addr string, port uint16, handle func(net.Conn)) {
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
}

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

// resolver is what an exit resolves with: each name to the same address, or error.
type resolver struct {
	addr  string
	err   error
	hang  bool
	calls atomic.Int64
}

func (r *resolver) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	r.calls.Add(1)
	if r.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.err != nil {
		return nil, r.err
	}
	return []netip.Addr{netip.MustParseAddr(r.addr)}, nil
}

func (r *resolver) LookupAddr(ctx context.Context, _ string) ([]string, error) {
	if _, err := r.LookupNetIP(ctx, "", ""); err != nil {
		return nil, err
	}
	return []string{"name.example."}, nil
}

// exit makes a relay an exit to all ports that resolves every name to addr.
func exit(addr string) func(*relay.Config) {
	return exitWith(&resolver{addr: addr}, directory.AllPorts())
}

func exitWith(r *resolver, policy directory.PortPolicy) func(*relay.Config) {
	return func(cfg *relay.Config) { cfg.Exit = &relay.Exit{Policy: policy, Resolver: r, Dial: cfg.Dial} }
}

// ports returns a policy for IPv4 and IPv6 from its text form.
func ports(t *testing.T, text string) directory.PortPolicy {
	t.Helper()
	p, err := directory.ParsePortPolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// memory is Files that keep everything in memory.
type memory struct {
	mu     sync.Mutex
	files  map[string][]byte
	refuse error // of writes
	writes int
}

func newMemory() *memory { return &memory{files: map[string][]byte{}} }

func (m *memory) Read(name string, max int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(b), nil
}

func (m *memory) Write(name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	m.writes++
	m.files[name] = bytes.Clone(data)
	return nil
}

func (m *memory) ReadJSON(name string, _ int, max int64, v any) error {
	b, err := m.Read(name, max)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

func (m *memory) WriteJSON(name string, _ int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return m.Write(name, b)
}

// guardList returns the guards that a client has tried.
func guardList(c *Client) []identity.ID { return triedOf(c.guards) }

func triedOf(g *guards) (ids []identity.ID) {
	g.lock <- struct{}{}
	defer func() { <-g.lock }()
	for _, r := range g.all.State().Guards {
		if r.Tried != 0 {
			ids = append(ids, r.Relay)
		}
	}
	return ids
}

// table returns the client's circuits, oldest first.
func table(c *Client) []*circ {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*circ
	for _, x := range c.circuits {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b *circ) int { return int(a.id) - int(b.id) })
	return all
}

// built returns how many circuits the client has begun to build, ever.
func built(c *Client) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nextID
}

// countLines counts the lines of a log that hold a text.
func countLines(log, text string) (n int) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
