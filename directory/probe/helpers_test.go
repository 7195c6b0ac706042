package probe_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cepa/cell"
	"cepa/crypto/handshake"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/probe"
	"cepa/relay"
	"cepa/simnet"
)

// soak runs the tests of TestSoak… with their full counts.
var soak = flag.Bool("soak", false, "run the long tests in full")

// memStore is a Store in memory.
type memStore struct {
	mu    sync.Mutex
	files map[string][]byte
}

func (s *memStore) Read(name string, limit int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is too long", name)
	}
	return bytes.Clone(b), nil
}

func (s *memStore) Write(name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = make(map[string][]byte)
	}
	s.files[name] = bytes.Clone(data)
	return nil
}

// lab is a prober, on a machine of its own, and relays.
type lab struct {
	*testing.T
	sim     *simnet.Network
	network *directory.Network
	self    *identity.Key
	host    *simnet.Host
	store   *memStore
	pool    *cell.Pool
	log     bytes.Buffer
	things  sync.Map // machines by netip.Addr, keys by "key " and name, *atomic.Int64 of dials by address

	ctx    context.Context // of the relays
	cancel context.CancelFunc
	wg     sync.WaitGroup

	*probe.Prober
	stop  context.CancelFunc // of the prober
	ended chan struct{}
}

type lockedWriter struct {
	mu sync.Mutex
	b  *bytes.Buffer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// inLab runs f in virtual time with a running prober, and checks that nothing is left of it. Consensuses are made every hour.
func inLab(t *testing.T, change func(*probe.Config), f func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{
			T: t, sim: simnet.New(simnet.Config{Default: simnet.LinkParams{Latency: 5 * time.Millisecond}}), store: new(memStore), pool: new(cell.Pool),
		}
		defer l.sim.Close()
		l.self = l.key("authority")
		l.network = &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
			{Nickname: "auth", Identity: l.self.ID(), Address: "10.0.0.1:7000"},
		}}
		l.host = l.sim.Host("auth", netip.MustParseAddr("10.0.0.1"))
		l.ctx, l.cancel = context.WithCancel(context.Background())
		defer func() {
			l.end()
			l.cancel()
			l.wg.Wait()
			synctest.Wait()
			if n := l.pool.Outstanding(); n != 0 {
				t.Errorf("%d cells were not given back", n)
			}
			if t.Failed() {
				t.Logf("log:\n%s", l.log.String())
			}
		}()
		l.begin(change)
		f(l)
	})
}

// begin starts the prober, again if need be.
func (l *lab) begin(change func(*probe.Config)) {
	l.Helper()
	cfg := probe.Config{
		Network: l.network, Self: l.self.ID(), Store: l.store, AllowPrivateAddresses: true, Pool: l.pool,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			n, _ := l.things.LoadOrStore(addr, new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
			return l.host.Dial(ctx, network, addr)
		},
		Log: slog.New(slog.NewTextHandler(&lockedWriter{b: &l.log}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	p, err := probe.New(cfg)
	if err != nil {
		l.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l.Prober, l.stop, l.ended = p, stop, make(chan struct{})
	ended := l.ended
	go func() {
		defer close(ended)
		p.Run(ctx, func() *directory.Consensus { return nil }, func() {})
	}()
}

// end ends the prober and waits for it.
func (l *lab) end() {
	l.stop()
	<-l.ended
}

func (l *lab) key(name string) *identity.Key {
	l.Helper()
	if k, ok := l.things.Load("key " + name); ok {
		return k.(*identity.Key)
	}
	seed := sha256.Sum256([]byte(name))
	k, err := identity.FromSeed(seed[:])
	if err != nil {
		l.Fatal(err)
	}
	l.things.Store("key "+name, k)
	return k
}

func (l *lab) onionKey(name string) *handshake.OnionKey {
	l.Helper()
	k, err := handshake.OnionKeyFromSecret(sha256.Sum256([]byte("onion " + name)))
	if err != nil {
		l.Fatal(err)
	}
	return k
}

// serve runs a relay of that name at its addresses until the func that it returns is called. Each address is a machine.
func (l *lab) serve(name string, addrs ...string) (stop func()) {
	l.Helper()
	var ports []netip.AddrPort
	merged := &merged{conns: make(chan net.Conn), done: make(chan struct{})}
	for _, a := range addrs {
		at := netip.MustParseAddrPort(a)
		ports = append(ports, at)
		host := l.machine(at.Addr())
		ln, err := host.Listen("tcp", a)
		if err != nil {
			l.Fatal(err)
		}
		merged.add(ln)
	}
	r, err := relay.New(relay.Config{
		Network: l.network, Identity: l.key(name), OnionKey: l.onionKey(name), Nickname: "x", Addresses: ports,
		Dial:         func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") },
		NextSequence: func() (uint64, error) { return 0, errors.New("publishes nothing") },
	})
	if err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.ctx)
	done := make(chan struct{})
	l.wg.Go(func() {
		defer close(done)
		if err := r.Serve(ctx, merged); err != nil {
			l.Errorf("%s: %v", name, err)
		}
	})
	return func() {
		cancel()
		<-done
	}
}

// machine returns the host with that address.
func (l *lab) machine(a netip.Addr) *simnet.Host {
	if h, ok := l.things.Load(a); ok {
		return h.(*simnet.Host)
	}
	h := l.sim.Host(a.String(), a)
	l.things.Store(a, h)
	return h
}

// dialled returns how often the prober has dialled an address.
func (l *lab) dialled(addr string) int64 {
	if n, ok := l.things.Load(addr); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}

// descriptor returns what a relay says of itself: its own name's keys, unless change says otherwise.
func (l *lab) descriptor(name string, change func(*directory.Descriptor), addrs ...string) *directory.Descriptor {
	l.Helper()
	id, key := l.key(name), l.key(name+" signing")
	now := time.Now().Truncate(time.Second)
	cert, err := id.Certify(identity.PurposeDescriptor, key.ID(), now.Add(-time.Hour), now.Add(30*24*time.Hour))
	if err != nil {
		l.Fatal(err)
	}
	d := &directory.Descriptor{
		Network: "test", Identity: id.ID(), Sequence: uint64(now.UnixMilli()), Published: now, OnionKey: l.onionKey(name).Public(), Suite: directory.SuiteAESGCM,
		Nickname: "x", Version: "1", BandwidthRate: 1000,
	}
	for _, a := range addrs {
		d.Addresses = append(d.Addresses, netip.MustParseAddrPort(a))
	}
	if change != nil {
		change(d)
	}
	b, err := directory.SignDescriptor(d, key, cert)
	if err != nil {
		l.Fatal(err)
	}
	if d, err = directory.VerifyDescriptor(b); err != nil {
		l.Fatal(err)
	}
	return d
}

// running tells whether a relay is running now.
func (l *lab) running(name string) bool { return l.Observed(l.key(name).ID()).Running }

// want fails the test unless exactly these of all relays are running.
func (l *lab) want(when string, all []string, running ...string) {
	l.Helper()
	for _, name := range all {
		want := false
		for _, r := range running {
			want = want || r == name
		}
		if l.running(name) != want {
			l.Errorf("%s: %s is running: %v, want %v", when, name, !want, want)
		}
	}
}

// merged is several listeners as one.
type merged struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	mu    sync.Mutex
	all   []net.Listener
}

func (m *merged) add(ln net.Listener) {
	m.mu.Lock()
	m.all = append(m.all, ln)
	m.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			select {
			case m.conns <- c:
			case <-m.done:
				c.Close()
			}
		}
	}()
}

func (m *merged) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *merged) Close() error {
	m.once.Do(func() {
		close(m.done)
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, ln := range m.all {
			ln.Close()
		}
	})
	return nil
}

func (m *merged) Addr() net.Addr { return m.all[0].Addr() }
