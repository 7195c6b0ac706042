package authority

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/simnet"
)

const testPort = "7000"

// testKey returns the key that a name stands for.
func testKey(t testing.TB, name string) *identity.Key {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	key, err := identity.FromSeed(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
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
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, len(b), limit)
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

// cluster is a network of authorities on simnet.
type cluster struct {
	t       *testing.T
	sim     *simnet.Network
	network *directory.Network
	keys    []*identity.Key
	stores  []*memStore
	hosts   []*simnet.Host
	client  *simnet.Host // is no authority
	running []*Authority
	log     *lockedWriter
	logger  *slog.Logger
	change  func(i int, cfg *Config)
}

// lockedWriter makes a buffer fit for many goroutines.
type lockedWriter struct {
	mu  sync.Mutex
	out bytes.Buffer
}

// String returns what was written.
func (w *lockedWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.String()
}

func (w *lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(b)
}

// newCluster prepares n authorities; change may change the Config of each. It starts none.
func newCluster(t *testing.T, n int, interval time.Duration, change func(i int, cfg *Config)) *cluster {
	t.Helper()
	log := new(lockedWriter)
	c := &cluster{
		t:       t,
		sim:     simnet.New(simnet.Config{Default: simnet.LinkParams{Latency: 5 * time.Millisecond}}),
		network: &directory.Network{Name: "test", Interval: interval},
		log:     log,
		logger:  slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		running: make([]*Authority, n),
		change:  change,
	}
	c.client = c.sim.Host("client", netip.MustParseAddr("10.9.9.9"))
	for i := range n {
		key := testKey(t, fmt.Sprintf("authority %d", i))
		c.keys = append(c.keys, key)
		c.stores = append(c.stores, new(memStore))
		c.hosts = append(c.hosts, c.sim.Host(fmt.Sprintf("auth%d", i), c.addr(i)))
		c.network.Authorities = append(c.network.Authorities, directory.Authority{
			Nickname: fmt.Sprintf("auth%d", i), Identity: key.ID(), Address: net.JoinHostPort(c.addr(i).String(), testPort),
		})
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	return c
}

func (c *cluster) addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}) }

// start starts authorities.
func (c *cluster) start(which ...int) {
	c.t.Helper()
	for _, i := range which {
		host := c.hosts[i]
		cfg := Config{
			Network: c.network, Key: c.keys[i], Dial: host.Dial, Store: c.stores[i],
			AllowPrivateAddresses: true, TestingFlags: true, Log: c.logger,
		}
		if c.change != nil {
			c.change(i, &cfg)
		}
		a, err := New(cfg)
		if err != nil {
			c.t.Fatal(err)
		}
		ln, err := host.Listen("tcp", net.JoinHostPort(c.addr(i).String(), testPort))
		if err != nil {
			c.t.Fatal(err)
		}
		c.running[i] = a
		go func() {
			if err := a.Serve(ln); err != nil {
				c.t.Errorf("Serve: %v", err)
			}
		}()
		go func() {
			if err := a.Run(context.Background()); err != nil {
				c.t.Errorf("Run: %v", err)
			}
		}()
	}
}

// stop ends authorities.
func (c *cluster) stop(which ...int) {
	for _, i := range which {
		if a := c.running[i]; a != nil {
			if err := a.Close(); err != nil {
				c.t.Errorf("Close: %v", err)
			}
			c.running[i] = nil
		}
	}
}

func (c *cluster) stopAll() {
	for i := range c.running {
		c.stop(i)
	}
	if err := c.sim.Close(); err != nil {
		c.t.Errorf("closing simnet: %v", err)
	}
}

// relay returns the signed descriptor of relay i.
func (c *cluster) relay(i int, change func(*directory.Descriptor)) []byte {
	c.t.Helper()
	return testRelay(c.t, i, change)
}

func testRelay(t testing.TB, i int, change func(*directory.Descriptor)) []byte {
	t.Helper()
	id, key := testKey(t, fmt.Sprintf("relay %d", i)), testKey(t, fmt.Sprintf("relay %d signing", i))
	now := time.Now().Truncate(time.Second)
	cert, err := id.Certify(identity.PurposeDescriptor, key.ID(), now.Add(-30*24*time.Hour), now.Add(30*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	d := &directory.Descriptor{
		Network: "test", Identity: id.ID(), Sequence: 1, Published: now, OnionKey: [32]byte{1, byte(i)}, Suite: directory.SuiteAESGCM,
		Nickname: fmt.Sprintf("relay%d", i), Addresses: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(10 + i), 0, 1}), 9001)},
		Version: "0.1.0", BandwidthRate: 1000,
	}
	if change != nil {
		change(d)
	}
	b, err := directory.SignDescriptor(d, key, cert)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// publish publishes relays from…to-1 to all authorities.
func (c *cluster) publish(from, to int) {
	c.t.Helper()
	for i := from; i < to; i++ {
		if err := mirror.Publish(context.Background(), c.network, c.client.Dial, c.relay(i, nil)); err != nil {
			c.t.Fatalf("relay %d: %v", i, err)
		}
	}
}

// agreed returns the consensus that all running authorities hold and which has the period; it fails the test if they do not.
func (c *cluster) agreed(period uint64) *directory.Consensus {
	c.t.Helper()
	var first *directory.Consensus
	for i, a := range c.running {
		if a == nil {
			continue
		}
		got := a.Consensus()
		if got == nil {
			c.t.Fatalf("authority %d has no consensus", i)
		}
		if got.Period != period {
			c.t.Errorf("authority %d has the consensus of period %d, want %d", i, got.Period, period)
		}
		if first == nil {
			first = got
		}
		if got.Digest() != first.Digest() {
			c.t.Errorf("authority %d has another consensus", i)
		}
	}
	return first
}

// inBubble runs a test of a cluster in virtual time and stops what it leaves running.
func inBubble(t *testing.T, n int, interval time.Duration, change func(i int, cfg *Config), test func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, n, interval, change)
		defer c.stopAll()
		test(t, c)
	})
}

// sleepUntil waits in virtual time for a time and for everything that happens then.
func sleepUntil(at time.Time) {
	time.Sleep(time.Until(at))
	synctest.Wait()
}
