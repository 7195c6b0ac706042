package testnet_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"time"

	"cepa/client"
	"cepa/relay"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// fileStore is a store in memory.
type fileStore struct {
	mu    sync.Mutex
	files map[string][]byte
}

func (m *fileStore) Read(name string, limit int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.files[name]
	switch {
	case !ok:
		return nil, fs.ErrNotExist
	case int64(len(b)) > limit:
		return nil, errors.New("too long")
	}
	return bytes.Clone(b), nil
}

func (m *fileStore) Write(name string, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[name] = bytes.Clone(b)
	return nil
}

// TestOnionKeysOfANetwork: a whole network replaces its onion keys, and its clients notice nothing: not on a stream from before, not when they build circuits
// with the keys of the consensus that they have, and not with the next one.
func TestOnionKeysOfANetwork(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	// Their keys are 27 days and 22 hours old.
	aged := func(_ int, cfg *relay.Config) {
		since := time.Now().Add(2*time.Hour - 28*day)
		b := fmt.Appendf(nil, "cepa onion keys 1\nkey %x since %s\n", cfg.OnionKey.Secret(), since.UTC().Format(time.RFC3339))
		sum := sha256.Sum256(b)
		cfg.Store = &fileStore{files: map[string][]byte{"onion-keys": fmt.Appendf(b, "check %x\n", sum[:8])}}
	}
	onSimnet(t, simnet.Config{}, testnet.Config{Relays: 4, Exits: 2, Interval: day / 2, Tune: aged}, func(t *testing.T, n *testnet.Net) {
		serveTCP(t, n, "hello.test", 80, echo)
		listed := func() map[[32]byte]bool {
			keys := map[[32]byte]bool{}
			for _, r := range n.Relays[0].Directory().Current().Relays {
				keys[r.OnionKey] = true
			}
			return keys
		}
		c := newClient(t, n, client.Config{})
		fresh := func(isolation string) {
			t.Helper()
			conn, err := c.DialTarget(within(t, time.Minute), client.Target{Host: "hello.test", Port: 80, Isolation: isolation})
			if err != nil {
				t.Errorf("%s: %v", isolation, err)
				return
			}
			defer conn.Close()
			if err := roundTrip(conn, isolation); err != nil {
				t.Errorf("%s: %v", isolation, err)
			}
		}
		old := dial(t, c, "hello.test:80")
		defer old.Close()
		fresh("before")
		before := listed()
		if len(before) != len(n.Relays) || !before[n.Relays[0].OnionKey.Public()] {
			t.Fatalf("%d onion keys are listed", len(before))
		}
		time.Sleep(4 * time.Hour)
		until := c.Status().ConsensusUntil
		fresh("after, with the old consensus")
		if err := roundTrip(old, "over the change"); err != nil {
			t.Errorf("a stream from before: %v", err)
		}
		if got := c.Status().ConsensusUntil; !got.Equal(until) {
			t.Errorf("the client had the next consensus already: valid until %v", got)
		}
		time.Sleep(16 * time.Hour)
		for key := range listed() {
			if before[key] {
				t.Error("the consensus still lists an onion key from before")
			}
		}
		fresh("with the next consensus")
		if err := roundTrip(old, "later"); err != nil {
			t.Errorf("a stream from before, hours later: %v", err)
		}
		if got := c.Status().ConsensusUntil; !got.After(until) {
			t.Error("the client has no newer consensus")
		}
	})
}
