package testnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/simnet/testnet"
	"cepa/state"
)

// small is the smallest network with the usual majorities, for tests in real time.
func small(d *state.Dir) testnet.Config {
	return testnet.Config{Authorities: 4, Relays: 4, Exits: 2, Dir: d, Interval: 10 * time.Minute}
}

// startOn starts a network on a directory and returns both, with the error that
// prevented it. Both end with the test, or with stop.
func startOn(t *testing.T, path string, log *slog.Logger) (n *testnet.Net, d *state.Dir, stop func(), err error) {
	t.Helper()
	if d, err = state.Open(path); err != nil {
		t.Fatal(err)
	}
	cfg := small(d)
	cfg.Log = log
	if n, err = testnet.Start(within(t, time.Minute), cfg); err != nil {
		d.Close()
		return nil, nil, nil, err
	}
	stop = sync.OnceFunc(func() {
		n.Close()
		if err := n.Leaks(); err != nil {
			t.Error(err)
		}
		d.Close()
	})
	t.Cleanup(stop)
	return n, d, stop, nil
}

// TestLoopback boots on this machine's loopback, with files, fetches a page,
// ends, and starts again with the same files: everybody is who he was, where he
// was, and ready at once.
func TestLoopback(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	who := func(n *testnet.Net) (all []string) {
		for _, a := range n.Authorities {
			all = append(all, fmt.Sprint(a.Nickname, a.Identity, a.Addr))
		}
		for _, r := range n.Relays {
			all = append(all, fmt.Sprint(r.Nickname, r.Identity(), r.OnionKey.Public(), r.Addr))
		}
		return all
	}
	var first []string
	var guard identity.ID
	for run := range 2 {
		begun := time.Now()
		n, d, stop, err := startOn(t, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("run %d: network after %v", run, time.Since(begun))
		if _, err := n.ServeSite("hello.test", 80, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "hello")
		})); err != nil {
			t.Fatal(err)
		}
		files, err := d.Sub("client")
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, n, client.Config{Files: files})
		web := &http.Client{Transport: &http.Transport{DialContext: c.Dial, DisableKeepAlives: true}}
		if got, err := get(within(t, time.Minute), web, "http://hello.test/"); err != nil || got != "hello" {
			t.Errorf("run %d: %q, %v", run, got, err)
		}
		for _, addr := range []string{"hello.test:81", "198.18.250.1:80"} {
			if conn, err := c.Dial(within(t, time.Minute), "tcp", addr); err == nil {
				conn.Close()
				t.Errorf("%s, where nobody listens, answers", addr)
			}
		}
		switch now := who(n); {
		case run == 0:
			first, guard = now, guardOf(t, c)
			checkNetworkFile(t, n, d)
		case strings.Join(now, "\n") != strings.Join(first, "\n"):
			t.Errorf("after a restart the network is %v, and was %v", now, first)
		case guardOf(t, c) != guard:
			t.Error("after a restart the client has another guard")
		}
		stop()
	}
}

// checkNetworkFile checks that others can join with what was written.
func checkNetworkFile(t *testing.T, n *testnet.Net, d *state.Dir) {
	t.Helper()
	b, err := d.Read(testnet.NetworkFile, directory.MaxNetworkFile)
	if err != nil {
		t.Fatal(err)
	}
	got, err := directory.ParseNetwork(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != n.Network.Name || len(got.Authorities) != len(n.Authorities) || got.Authorities[0] != n.Network.Authorities[0] {
		t.Errorf("%s describes %+v, want %+v", testnet.NetworkFile, got, n.Network)
	}
	other, err := client.New(client.Config{Network: got})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Ready(within(t, time.Minute)); err != nil {
		t.Errorf("a client with no more than the file: %v", err)
	}
}

// lines is a log's text that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written.
func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestDamage: a file that was damaged is never overwritten in silence: either
// the start fails with an error that names it and says what to do, or it does not
// matter and the log says so.
func TestDamage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	n, d, stop, err := startOn(t, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := d.Sub("client")
	if err != nil {
		t.Fatal(err)
	}
	newClient(t, n, client.Config{Files: files})
	stop()
	for _, c := range []struct {
		file string
		// survives: the start succeeds, and the log says this
		survives string
	}{
		{file: testnet.NetworkFile},
		{file: "auth1/identity.key"},
		{file: "relay1/identity.key"},
		{file: "relay2/onion.key"},
		{file: "relay1/port.json"},
		{file: "client/guards.json"},
		{file: "relay1/consensus", survives: "stored consensus is not used"},
		{file: "client/consensus", survives: "stored consensus is not used"},
		{file: "auth2/consensus", survives: "a stored file is damaged"},
		{file: "auth1/descriptors", survives: "a stored file is damaged"},
		{file: "auth1/random.json", survives: "a stored file is damaged"},
	} {
		t.Run(strings.ReplaceAll(c.file, "/", " "), func(t *testing.T) {
			name := filepath.Join(path, filepath.FromSlash(c.file))
			good, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			damages := map[string][]byte{"cut off": good[:len(good)/2], "empty": {}, "noise": random(4, 100), "changed": flip(good)}
			if c.file == testnet.NetworkFile || strings.HasSuffix(c.file, ".json") && c.file != "client/guards.json" {
				delete(damages, "changed") // text without a checksum: it may be as good as before
			}
			for what, bad := range damages {
				if err := os.WriteFile(name, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				log := new(lines)
				err := startAll(t, path, slog.New(slog.NewTextHandler(log, nil)))
				after, readErr := os.ReadFile(name)
				if readErr != nil {
					t.Fatal(readErr)
				}
				switch {
				case c.survives != "":
					if err != nil {
						t.Errorf("%s: %v, want a start", what, err)
					}
					if !strings.Contains(log.String(), c.survives) {
						t.Errorf("%s: the log does not say %q", what, c.survives)
					}
				case err == nil:
					t.Errorf("%s: started all the same", what)
				case !strings.Contains(err.Error(), filepath.Dir(name)) || !strings.Contains(err.Error(), filepath.Base(name)):
					t.Errorf("%s: the error does not name the file: %v", what, err)
				case strings.Contains(err.Error(), "\n"):
					t.Errorf("%s: the error has more than one line: %v", what, err)
				case !bytes.Equal(after, bad):
					t.Errorf("%s: the file was changed", what)
				}
			}
			if err := os.WriteFile(name, good, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	if err := startAll(t, path, nil); err != nil {
		t.Errorf("with everything put back: %v", err)
	}
}

// flip returns b with one bit changed, in the middle.
func flip(b []byte) []byte {
	c := bytes.Clone(b)
	c[len(c)/2] ^= 1
	return c
}

// startAll starts a network and a client on a directory and ends both.
func startAll(t *testing.T, path string, log *slog.Logger) error {
	t.Helper()
	n, d, stop, err := startOn(t, path, log)
	if err != nil {
		return err
	}
	defer stop()
	files, err := d.Sub("client")
	if err != nil {
		return err
	}
	c, err := n.NewClient(client.Config{Files: files})
	if err != nil {
		return err
	}
	return c.Ready(within(t, time.Minute))
}

// TestStartErrors: what cannot work is refused at once, in words.
func TestStartErrors(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]testnet.Config{
		"3 to 1000 relays, not 2":        {Relays: 2},
		"1 to 3 can be exits, not 4":     {Relays: 3, Exits: 4},
		"1 to 32 authorities, not 33":    {Authorities: 33},
		"the minimum is 20 KB/s":         {Rate: rateOf(19_999)},
		"whole seconds from 1s to 24h0m": {Interval: 1500 * time.Millisecond},
	} {
		n, err := testnet.Start(t.Context(), cfg)
		if err == nil {
			n.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := testnet.Start(ctx, small(nil)); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "relay1 has") {
		t.Errorf("%v, want a cancelled start that tells how far it came", err)
	}
}
