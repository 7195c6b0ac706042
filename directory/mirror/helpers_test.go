package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/simnet"
)

func testKey(t testing.TB, name string) *identity.Key {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	key, err := identity.FromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// world is a network of authorities whose servers the test plays, on simnet.
type world struct {
	t       *testing.T
	sim     *simnet.Network
	network *directory.Network
	hosts   []*simnet.Host
	client  *simnet.Host
	known   map[int]*directory.Descriptor // that were made, by number
	log     *bytes.Buffer
	mu      sync.Mutex // guards log
	logger  *slog.Logger
}

func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

func newWorld(t *testing.T, n int, interval time.Duration) *world {
	t.Helper()
	w := &world{
		t:       t,
		sim:     simnet.New(simnet.Config{Default: simnet.LinkParams{Latency: 5 * time.Millisecond}}),
		network: &directory.Network{Name: "test", Interval: interval},
		known:   make(map[int]*directory.Descriptor),
		log:     new(bytes.Buffer),
	}
	w.logger = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.client = w.sim.Host("client", netip.MustParseAddr("10.9.9.9"))
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		w.hosts = append(w.hosts, w.sim.Host(fmt.Sprintf("auth%d", i), addr))
		w.network.Authorities = append(w.network.Authorities, directory.Authority{
			Nickname: fmt.Sprintf("auth%d", i), Identity: testKey(t, fmt.Sprintf("authority %d", i)).ID(), Address: net.JoinHostPort(addr.String(), "7000"),
		})
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", w.log)
		}
	})
	return w
}

// serve lets an authority answer with handler; the func that it returns ends that.
func (w *world) serve(i int, handler http.HandlerFunc) (stop func()) {
	w.t.Helper()
	ln, err := w.hosts[i].Listen("tcp", w.network.Authorities[i].Address)
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln) // always an error: the server was closed
	}()
	return func() {
		server.Close()
		<-done
	}
}

// descriptors returns relays with the given numbers.
func (w *world) descriptors(numbers ...int) []*directory.Descriptor {
	w.t.Helper()
	var list []*directory.Descriptor
	for _, i := range numbers {
		if w.known[i] == nil {
			d, err := directory.VerifyDescriptor(w.descriptor(i))
			if err != nil {
				w.t.Fatal(err)
			}
			w.known[i] = d
		}
		list = append(list, w.known[i])
	}
	slices.SortFunc(list, func(a, b *directory.Descriptor) int { return a.Identity.Compare(b.Identity) })
	return list
}

func (w *world) descriptor(i int) []byte {
	w.t.Helper()
	id, key := testKey(w.t, fmt.Sprintf("relay %d", i)), testKey(w.t, fmt.Sprintf("relay %d signing", i))
	now := time.Now().Truncate(time.Second)
	cert, err := id.Certify(identity.PurposeDescriptor, key.ID(), now, now.Add(24*time.Hour))
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := directory.SignDescriptor(&directory.Descriptor{
		Network: "test", Identity: id.ID(), Sequence: 1, Published: now, OnionKey: [32]byte{1, byte(i)}, Suite: directory.SuiteAESGCM,
		Nickname: fmt.Sprintf("relay%d", i), Addresses: []netip.AddrPort{relayAddr(i)}, Version: "0.1.0", BandwidthRate: 1000,
	}, key, cert)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func relayAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(10 + i), 0, 1}), 9001)
}

// consensus returns a consensus of the relays for a period, signed by the given authorities.
func (w *world) consensus(period uint64, relays []int, signers ...int) []byte {
	w.t.Helper()
	start := w.network.PeriodStart(period)
	entries := []directory.VoteEntry{}
	for _, d := range w.descriptors(relays...) {
		entries = append(entries, directory.VoteEntry{Descriptor: d, Flags: directory.FlagRunning | directory.FlagValid, Weight: 100})
	}
	var votes []*directory.Vote
	for _, a := range w.network.Authorities {
		votes = append(votes, &directory.Vote{Network: "test", Interval: w.network.Interval, Period: period, Authority: a.Identity, Entries: entries})
	}
	c, err := directory.Compute(votes, w.network)
	if err != nil {
		w.t.Fatal(err)
	}
	var signatures []*directory.Signature
	for _, i := range signers {
		id, key := testKey(w.t, fmt.Sprintf("authority %d", i)), testKey(w.t, fmt.Sprintf("authority %d signing", i))
		cert, err := id.Certify(identity.PurposeConsensus, key.ID(), start.Add(-time.Hour), start.Add(24*time.Hour))
		if err != nil {
			w.t.Fatal(err)
		}
		s, err := directory.SignConsensus(c, key, cert)
		if err != nil {
			w.t.Fatal(err)
		}
		signatures = append(signatures, s)
	}
	lax := *w.network // lets under-signed ones be put together
	lax.Authorities = lax.Authorities[:min(len(signers), len(lax.Authorities))]
	b, err := directory.AssembleConsensus(c, signatures, &lax)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) parsed(period uint64, relays ...int) *directory.Consensus {
	w.t.Helper()
	c, err := directory.VerifyConsensus(w.consensus(period, relays, 0, 1, 2), w.network)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// run runs a mirror until the func that it returns is called.
func (w *world) run(m *Mirror) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (w *world) mirror(change func(*Config)) *Mirror {
	w.t.Helper()
	cfg := Config{Network: w.network, Dial: w.client.Dial, Log: w.logger}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

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
