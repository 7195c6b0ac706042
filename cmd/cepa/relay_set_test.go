//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// until waits for something that a running program does.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatal(what + " did not happen in 30 s")
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestRelayLimits: a running relay takes new limits from its control socket and, on
// SIGHUP, from its configuration file; what is wrong changes nothing; and what was
// used is still there after a restart.
func TestRelayLimits(t *testing.T) {
	dir := t.TempDir()
	key, err := identity.Generate(nil)
	if err != nil {
		t.Fatal(err)
	}
	network := &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{{Nickname: "a", Identity: key.ID(), Address: "127.0.0.1:1"}}}
	text, err := network.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	networkFile := write("network.toml", string(text))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	data := filepath.Join(dir, "relay")
	config := fmt.Sprintf("network = %q\nlisten = %q\ndata-dir = %q\n", networkFile, addr, data)
	file := write("relay.toml", config+"bandwidth-rate = \"100 KB/s\"\nquota-day = 7\n")

	var errs lockedBuffer
	start := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan int, 1)
		var out lockedBuffer
		go func() { done <- run(ctx, []string{"relay", "--config", file}, &out, &errs) }()
		until(t, "the start", func() bool { code, _, _ := cepa(t, t.Context(), "status", "--data-dir", data); return code == exitOK })
		return func() {
			cancel()
			if code := <-done; code != exitOK {
				t.Errorf("exit code %d: %s", code, errs.b.String())
			}
		}
	}
	type limits struct {
		rate, quota int64
		day         int
	}
	now := func() limits {
		_, stdout, _ := cepa(t, t.Context(), "status", "--json", "--data-dir", data)
		var s nodeStatus
		if err := json.Unmarshal([]byte(stdout), &s); err != nil || len(s.Relays) != 1 {
			t.Fatalf("status: %v, %s", err, stdout)
		}
		return limits{s.Relays[0].Rate, s.Relays[0].Usage.Quota, s.Relays[0].Usage.MonthEnd.Local().Day()}
	}
	stop := start()
	if got := now(); got != (limits{100_000, 0, 7}) {
		t.Errorf("at the start: %+v", got)
	}
	code, stdout, stderr := cepa(t, t.Context(), "relay", "set", "--data-dir", data, "--bandwidth-rate", "2MB/s", "--monthly-quota", "1.5 GB")
	if code != exitOK || stdout != "bandwidth rate 2 MB/s, burst of the rate, monthly quota 1.5 GB\n" || now() != (limits{2_000_000, 1_500_000_000, 7}) {
		t.Errorf("set: code %d, %q %q, now %+v", code, stdout, stderr, now())
	}
	for args, want := range map[string]string{
		"--bandwidth-rate 10KB/s": "the minimum is 20 KB/s", "--monthly-quota 5MB": "the minimum is 100 MB", "--bandwidth-burst 1KB --bandwidth-rate 5MB/s": "one cell needs 1426",
	} {
		code, _, stderr := cepa(t, t.Context(), append([]string{"relay", "set", "--data-dir", data}, strings.Fields(args)...)...)
		if code != exitFailed || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 || now() != (limits{2_000_000, 1_500_000_000, 7}) {
			t.Errorf("%s: code %d, %q, now %+v", args, code, stderr, now())
		}
	}
	if _, stdout, _ := cepa(t, t.Context(), "status", "--data-dir", data); !strings.Contains(stdout, "1.5 GB") || !strings.Contains(stdout, "awake") {
		t.Errorf("status: %s", stdout)
	}
	hangup := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	logged := func() string {
		errs.mu.Lock()
		defer errs.mu.Unlock()
		return errs.b.String()
	}
	write("relay.toml", config+"bandwidth-rate = \"300 KB/s\"\nmonthly-quota = \"2TB\"\nquota-day = 8\ncontact = \"me\"\n")
	hangup()
	until(t, "the new configuration", func() bool { return now().rate == 300_000 })
	if got := now(); got != (limits{300_000, 2e12, 8}) {
		t.Errorf("after SIGHUP: %+v", got)
	}
	if !strings.Contains(logged(), "flags=contact") {
		t.Errorf("what needs a restart is not told: %s", logged())
	}
	write("relay.toml", config+"bandwidth-rate = \"400 KB/s\"\nmonthly-quote = \"2TB\"\n")
	hangup()
	until(t, "the refusal", func() bool { return strings.Contains(logged(), `monthly-quote`) })
	if got := now(); got != (limits{300_000, 2e12, 8}) || !strings.Contains(logged(), "line 5") {
		t.Errorf("after a mistake: %+v, %s", got, logged())
	}
	stop()
	if b, err := os.ReadFile(filepath.Join(data, "usage")); err != nil || !strings.Contains(string(b), `"used"`) {
		t.Errorf("the use is not kept: %v", err)
	}
	write("relay.toml", config)
	start()()
}
