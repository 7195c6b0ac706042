package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cepa/client"
)

// testPathExplain asks the client that runs on dir, as a user would, for text and for JSON.
func testPathExplain(t *testing.T, args ...string) *client.PathReport {
	t.Helper()
	code, stdout, stderr := cepa(t, t.Context(), append([]string{"path", "explain", "secret-name.example:443"}, args...)...)
	if code != exitOK {
		t.Fatalf("code %d, %q", code, stderr)
	}
	for _, want := range []string{"Paths to port 443", "in use", "3 may ever be tried", "A path drawn now", "the guard that this client stays with", "CANDIDATES", "left out: ", "bits"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the answer has no %q:\n%s", want, stdout)
		}
	}
	code, stdout, stderr = cepa(t, t.Context(), append([]string{"path", "explain", "secret-name.example:443", "--json"}, args...)...)
	r := new(client.PathReport)
	if err := json.Unmarshal([]byte(stdout), r); code != exitOK || err != nil {
		t.Fatalf("code %d, %v, %q", code, err, stderr)
	}
	if strings.Contains(stdout, "secret-name") {
		t.Error("the answer names the destination")
	}
	if r.Relays != 8 || len(r.Example) != 3 || r.Port != 443 || r.IPv6 {
		t.Errorf("the answer is %+v", r)
	}
	return r
}

// testPathExplainStopped asks the same of the files that the client has left.
func testPathExplainStopped(t *testing.T, dir string, guard string) {
	t.Helper()
	files, network := filepath.Join(dir, "client"), filepath.Join(dir, "network.toml")
	before, err := os.ReadFile(filepath.Join(files, "guards.json"))
	if err != nil {
		t.Fatal(err)
	}
	if r := testPathExplain(t, "--data-dir", files, "--network", network); r.Example[0].Identity.String() != guard || len(r.Circuits) != 0 {
		t.Errorf("the guard on disk is %s, and was %s", r.Example[0].Identity, guard)
	}
	if after, err := os.ReadFile(filepath.Join(files, "guards.json")); err != nil || string(after) != string(before) {
		t.Errorf("asking has changed the guards: %v", err)
	}
	if code, _, stderr := cepa(t, t.Context(), "path", "explain", "a.example:443", "--data-dir", files); code != exitUsage || !strings.Contains(stderr, "--network is needed") {
		t.Errorf("without a network: code %d, %q", code, stderr)
	}
	none := filepath.Join(dir, "none")
	if code, _, stderr := cepa(t, t.Context(), "path", "explain", "a.example:443", "--data-dir", none); code != exitFailed || !strings.Contains(stderr, "does not exist") {
		t.Errorf("without a directory: code %d, %q", code, stderr)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("asking has made a directory")
	}
}

func TestParseDestination(t *testing.T) {
	for s, want := range map[string]client.PathQuery{
		"example.org:443": {Port: 443}, "192.0.2.1:22": {Port: 22}, "[2001:db8::1]:80": {Port: 80, IPv6: true}, "[::ffff:192.0.2.1]:80": {Port: 80},
	} {
		if got, err := parseDestination(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "example.org", "example.org:", "example.org:0", "example.org:65536", "example.org:x", ":443", "a b:443", "2001:db8::1:80", "x.onion:80", "x.cepa.alt.:80"} {
		if got, err := parseDestination(s); err == nil {
			t.Errorf("%q was accepted: %+v", s, got)
		}
	}
}

func TestGuardPorts(t *testing.T) {
	ports, err := parsePorts("--guard-ports", "80, 443")
	if err != nil || len(ports) != 2 {
		t.Fatalf("%v, %v", ports, err)
	}
	for _, s := range []string{",", "0", "x", "80,", "65536", strings.TrimSuffix(strings.Repeat("1,", 3), ",") + ",-1"} {
		if _, err := parsePorts("--guard-ports", s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
	can := reachable(ports)
	for addr, want := range map[string]bool{"127.0.0.1:443": true, "127.0.0.1:80": true, "127.0.0.1:9001": false} {
		if got := can(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: reachable %v, want %v", addr, got, want)
		}
	}
	if !reachable(nil)(netip.MustParseAddrPort("127.0.0.1:9001")) {
		t.Error("without a list of ports, not all will do")
	}
}

// TestHome: a directory is itself, also when it moved; a copy of it is another.
func TestHome(t *testing.T) {
	base := t.TempDir()
	one, two := filepath.Join(base, "one"), filepath.Join(base, "two")
	for _, d := range []string{one, two} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	home := homeOf(one)
	if home == "" {
		t.Skip("this system does not tell")
	}
	if homeOf(one) != home || homeOf(two) == home || homeOf(filepath.Join(base, "none")) != "" {
		t.Error("directories are not told apart")
	}
	if err := os.Rename(one, filepath.Join(base, "moved")); err != nil {
		t.Fatal(err)
	}
	if homeOf(filepath.Join(base, "moved")) != home {
		t.Error("a directory that moved is another")
	}
}
