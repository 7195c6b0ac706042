package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// cepa runs the program as a shell would.
func cepa(t *testing.T, ctx context.Context, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(ctx, args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestBadCommandLines(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		args string
		want string // part of the one line on standard error
	}{
		{"nonsense", `unknown command "nonsense"`},
		{"simnet --nonsense", "unknown flag: --nonsense; cepa simnet --help lists the flags"},
		{"simnet here", `cepa simnet takes no argument, got "here"`},
		{"simnet --relays many", "--relays"},
		{"simnet --relays 2", "--relays must be 3 to 1000, not 2"},
		{"simnet --relays 4 --exits 5", "--exits must be 1 to 4"},
		{"simnet --authorities 0", "--authorities must be 1 or more"},
		{"simnet --socks nowhere", "want an address and a port"},
		{"simnet --bandwidth-rate fast", "write a number and a unit"},
		{"simnet --bandwidth-rate 10KB/s", "the minimum is 20 KB/s"},
		{"simnet --bandwidth-rate 19.9KB/s", "the minimum is 20 KB/s"},
		{"simnet --interval 1ms", "--interval must be 1s or more"},
		{"status extra", "takes no argument"},
		{"newnym now", "takes no argument"},
		{"client --socks nowhere", "want an address and a port"},
		{"client --socks 127.0.0.1:1,isolate", `"isolate" is no rule; there are isolate-dest-host, `},
		{"client --socks 127.0.0.1:1 --socks 127.0.0.1:1", "the address stands there twice"},
		{"client --isolate-dest all", "it may be host, port, both or no"},
		{"authority --test-ipv6 perhaps", `--test-ipv6 is "perhaps": it may be auto, yes or no`},
		{"authority --measure-every 5s", "a minute is the least"},
		{"authority --measure-bytes 5KB", "1MB is the least"},
		{"authority --measure-rate 99KB/s", "100KB/s is the least"},
		{"authority --measure-rate fast", "--measure-rate: \"fast\" is not a rate"},
		{"path nonsense", `unknown command "nonsense"`},
		{"path explain", "takes one destination, HOST:PORT, got 0 arguments"},
		{"path explain example.org", "HOST:PORT is expected"},
		{"path explain example.org:0", "a number from 1 to 65535 is expected"},
		{"path explain abc.onion:80", "no path leads to names of other networks"},
		{"client --guard-ports 0", "numbers from 1 to 65535 with commas are expected"},
	} {
		code, stdout, stderr := cepa(t, context.Background(), append(strings.Fields(tc.args), dataDirIfSimnet(tc.args, dir)...)...)
		if code != exitUsage {
			t.Errorf("cepa %s: exit code %d, want %d", tc.args, code, exitUsage)
		}
		if !strings.Contains(stderr, tc.want) || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "cepa: ") {
			t.Errorf("cepa %s: standard error %q, want one line with %q", tc.args, stderr, tc.want)
		}
		if stdout != "" {
			t.Errorf("cepa %s: standard output %q", tc.args, stdout)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a bad command line left %d files in the data directory", len(entries))
	}
}

func dataDirIfSimnet(args, dir string) []string {
	if strings.HasPrefix(args, "simnet --") {
		return []string{"--data-dir", dir}
	}
	return nil
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"simnet", "--help"}, {"status", "--help"}, {"path"}, {"path", "explain", "--help"}, {"client", "--help"}, {"newnym", "--help"}, {"version"}} {
		code, stdout, stderr := cepa(t, context.Background(), args...)
		if code != exitOK || stderr != "" || stdout == "" {
			t.Errorf("cepa %v: code %d, standard error %q, %d bytes of output", args, code, stderr, len(stdout))
		}
	}
	_, help, _ := cepa(t, context.Background(), "simnet", "--help")
	for _, flag := range []string{"--authorities", "--relays", "--exits", "--socks", "--bandwidth-rate", "--data-dir", "--ready-file", "--check"} {
		if !strings.Contains(help, flag) {
			t.Errorf("simnet --help does not mention %s", flag)
		}
	}
}

// TestSimnetCheck boots the whole thing as a user would.
func TestSimnetCheck(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net")
	args := []string{"simnet", "--check", "--socks", "127.0.0.1:0", "--data-dir", dir}
	code, stdout, stderr := cepa(t, t.Context(), args...)
	if code != exitOK {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	for _, want := range []string{"guard ", "middle", "exit ", "first byte", "curl --socks5-hostname", "network.toml"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the output has no %q:\n%s", want, stdout)
		}
	}
	// Keys stay: a second start is the same network.
	before, err := os.ReadFile(filepath.Join(dir, "relay1", "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := cepa(t, t.Context(), args...); code != exitOK {
		t.Fatalf("second start: exit code %d\n%s%s", code, stdout, stderr)
	}
	after, _ := os.ReadFile(filepath.Join(dir, "relay1", "identity.key"))
	if !bytes.Equal(before, after) {
		t.Error("the second start changed a relay's identity")
	}
}

// lockedBuffer is a buffer for a program that runs meanwhile.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func TestSimnetStatusAndStop(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net")
	ready := filepath.Join(t.TempDir(), "ready.json")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var out, errs lockedBuffer
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"simnet", "--socks", "127.0.0.1:0", "--data-dir", dir, "--ready-file", ready}, &out, &errs)
	}()
	var info readyInfo
	for deadline := time.Now().Add(time.Minute); ; {
		b, err := os.ReadFile(ready)
		if err == nil {
			if err := json.Unmarshal(b, &info); err != nil {
				t.Fatalf("ready file: %v", err)
			}
			break
		}
		select {
		case code := <-done:
			t.Fatalf("it ended with %d: %s", code, errs.b.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("not ready after a minute")
		}
	}
	if len(info.Relays) != 8 || len(info.Authorities) != 4 {
		t.Errorf("the ready file names %d relays and %d authorities", len(info.Relays), len(info.Authorities))
	}
	code, stdout, stderr := cepa(t, ctx, "status", "--data-dir", dir)
	if code != exitOK || !strings.Contains(stdout, "100 %, ready") || !strings.Contains(stdout, " > ") {
		t.Errorf("status: code %d, %q %q", code, stdout, stderr)
	}
	code, stdout, _ = cepa(t, ctx, "status", "--json", "--data-dir", dir)
	var s nodeStatus
	if err := json.Unmarshal([]byte(stdout), &s); code != exitOK || err != nil || len(s.Relays) != 8 || s.Client == nil || len(s.Client.Circuits) == 0 {
		t.Errorf("status --json: code %d, error %v, %d relays", code, err, len(s.Relays))
	}
	if strings.Contains(stdout, demoHost) {
		t.Error("the status names a destination")
	}
	guard := testPathExplain(t, "--data-dir", dir).Example[0].Identity.String()
	if got := s.Client.Circuits[0].Hops[0].Identity.String(); got != guard {
		t.Errorf("the guard is %s, and is explained to be %s", got, guard)
	}
	// A second one on the same directory, and one on the same port.
	if code, _, stderr := cepa(t, ctx, "simnet", "--socks", "127.0.0.1:0", "--data-dir", dir); code != exitFailed || !strings.Contains(stderr, dir) {
		t.Errorf("second on one directory: code %d, %q", code, stderr)
	}
	code, _, stderr = cepa(t, ctx, "simnet", "--socks", info.Socks, "--data-dir", filepath.Join(t.TempDir(), "other"))
	if code != exitFailed || !strings.Contains(stderr, "in use by another program") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("busy port: code %d, %q", code, stderr)
	}
	stop()
	if code := <-done; code != exitOK {
		t.Errorf("after Ctrl-C: exit code %d, %s", code, errs.b.String())
	}
	for _, a := range info.Relays {
		if c, err := net.Dial("tcp", a.Address.String()); err == nil {
			c.Close()
			t.Errorf("%s still listens", a.Nickname)
		}
	}
	if code, _, stderr := cepa(t, t.Context(), "status", "--data-dir", dir); code != exitFailed || !strings.Contains(stderr, "start cepa first") {
		t.Errorf("status of nothing: code %d, %q", code, stderr)
	}
	testPathExplainStopped(t, dir, guard)
}

// TestDamagedState: what cannot be read is named and left alone.
func TestDamagedState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net")
	args := []string{"simnet", "--check", "--socks", "127.0.0.1:0", "--data-dir", dir}
	if code, _, stderr := cepa(t, t.Context(), args...); code != exitOK {
		t.Fatal(stderr)
	}
	for _, name := range []string{"network.toml", "relay1/identity.key", "client/guards.json", "relay2/port.json"} {
		path := filepath.Join(dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := []byte("\x00 damaged")
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := cepa(t, t.Context(), args...)
		if code != exitFailed || !strings.Contains(stderr, path) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("damaged %s: code %d, %q", name, code, stderr)
		}
		if b, _ := os.ReadFile(path); !bytes.Equal(b, bad) {
			t.Errorf("damaged %s was changed", name)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, stderr := cepa(t, t.Context(), args...); code != exitOK {
		t.Errorf("repaired: %s", stderr)
	}
}
