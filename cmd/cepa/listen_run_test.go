package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cepa/socks"
)

// background runs the program until the end of the test.
func background(t *testing.T, args ...string) (out, errs *lockedBuffer) {
	t.Helper()
	out, errs = new(lockedBuffer), new(lockedBuffer)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() { done <- run(ctx, args, out, errs) }()
	t.Cleanup(func() {
		stop()
		if code := <-done; code != exitOK {
			t.Errorf("cepa %s ended with %d: %s", args[0], code, errs.text())
		}
	})
	return out, errs
}

func (l *lockedBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// eventually waits for f.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after a minute", what)
		}
	}
}

// through opens a connection through a SOCKS port; reply says why there is none.
func through(t *testing.T, port, host, user string) (net.Conn, socks.Reply) {
	t.Helper()
	conn, err := net.Dial("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	err = socks.ClientHandshake(conn, user, "", host, 80)
	var refused *socks.Error
	if errors.As(err, &refused) {
		return nil, refused.Reply
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn, socks.ReplySucceeded
}

// TestClientPorts: a client with two SOCKS ports, each with rules of its own, as a user
// sees it: in what status shows of circuits and destinations, before and after a new
// identity.
func TestClientPorts(t *testing.T) {
	dir := t.TempDir()
	ready := filepath.Join(dir, "ready.json")
	background(t, "simnet", "--socks", "127.0.0.1:0", "--data-dir", filepath.Join(dir, "net"), "--ready-file", ready)
	eventually(t, "simnet", func() bool { _, err := os.Stat(ready); return err == nil })
	data := filepath.Join(dir, "c")
	out, errs := background(t, "client", "--network", filepath.Join(dir, "net", "network.toml"), "--data-dir", data,
		"--socks", "127.0.0.1:0", "--socks", "127.0.0.1:0,isolate-dest,safe-socks")
	eventually(t, "client", func() bool { return strings.Contains(out.text(), "ready; ") })
	lines := regexp.MustCompile(`SOCKS5 on (\S+?)(?: \((.*)\))?(?:;|\n)`).FindAllStringSubmatch(out.text(), -1)
	if len(lines) != 2 || lines[1][2] != "isolate-dest-host, isolate-dest-port, safe-socks" {
		t.Fatalf("it says %q", out.text())
	}
	plain, strict := lines[0][1], lines[1][1]

	var open []net.Conn
	circuits := func(more ...string) (map[string]uint64, string) { // destination -> circuit
		t.Helper()
		code, stdout, stderr := cepa(t, t.Context(), append([]string{"status", "--json", "--data-dir", data}, more...)...)
		var s nodeStatus
		if err := json.Unmarshal([]byte(stdout), &s); code != exitOK || err != nil {
			t.Fatalf("code %d, %v, %s", code, err, stderr)
		}
		m := map[string]uint64{}
		for i, d := range s.Destinations {
			m[fmt.Sprint(d.Destination, " ", i)] = d.Circuit
		}
		return m, stdout
	}
	used := func() map[uint64]bool {
		all, _ := circuits("--show-destinations")
		set := map[uint64]bool{}
		for _, c := range all {
			set[c] = true
		}
		return set
	}
	connect := func(port, user string) {
		t.Helper()
		conn, reply := through(t, port, demoHost, user)
		if conn == nil {
			t.Fatalf("refused: %v", reply)
		}
		open = append(open, conn)
	}
	for i, step := range []struct {
		port, user string
		circuits   int
	}{{plain, "", 1}, {plain, "", 1}, {plain, "alice", 2}, {strict, "", 3}, {strict, "", 3}, {plain, "bob", 4}} {
		connect(step.port, step.user)
		if n := len(used()); n != step.circuits {
			t.Errorf("after connection %d: %d circuits in use, want %d", i+1, n, step.circuits)
		}
	}
	// The HTTP proxy on the same port goes by the same rules.
	tunnel := func(port, user string) {
		t.Helper()
		conn, err := net.Dial("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		req := fmt.Sprintf("CONNECT %s:80 HTTP/1.1\r\nHost: %s:80\r\n", demoHost, demoHost)
		if user != "" {
			req += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":")) + "\r\n"
		}
		if _, err := io.WriteString(conn, req+"\r\n"); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("HTTP/1.1 200"))
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 200" {
			t.Fatalf("CONNECT: %q, %v", answer, err)
		}
	}
	for i, step := range []struct {
		port, user string
		circuits   int
	}{{plain, "", 4}, {plain, "alice", 4}, {strict, "", 4}, {plain, "carol", 5}, {strict, "carol", 6}} {
		tunnel(step.port, step.user)
		if n := len(used()); n != step.circuits {
			t.Errorf("after tunnel %d: %d circuits in use, want %d", i+1, n, step.circuits)
		}
	}
	if _, text := circuits(); strings.Contains(text, demoHost) {
		t.Error("status says where streams go though nobody asked")
	}
	for flag, want := range map[string]bool{"": false, "--show-destinations": true} {
		_, stdout, _ := cepa(t, t.Context(), append([]string{"status", "--data-dir", data}, strings.Fields(flag)...)...)
		if strings.Contains(stdout, demoHost+":80") != want || !strings.Contains(stdout, "guard 1: ") || !strings.Contains(stdout, ", connected") {
			t.Errorf("status %s: %s", flag, stdout)
		}
	}

	// Literal addresses.
	for port, want := range map[string]socks.Reply{plain: socks.ReplyNotAllowed, strict: socks.ReplyNotAllowed} {
		if conn, reply := through(t, port, "127.0.0.1", ""); conn != nil || reply != want {
			t.Errorf("a private address: %v, want %v", reply, want)
		}
	}
	for range 3 {
		through(t, plain, "127.0.0.1", "")
	}
	if n := strings.Count(errs.text(), "a program asked for an IP address"); n != 1 {
		t.Errorf("the warning about addresses comes %d times, want once: %s", n, errs.text())
	}
	if strings.Contains(errs.text(), demoHost) {
		t.Errorf("the log names a destination: %s", errs.text())
	}

	before := used()
	code, stdout, stderr := cepa(t, t.Context(), "newnym", "--data-dir", data)
	if code != exitOK || !strings.Contains(stdout, "new connections use new circuits") {
		t.Errorf("newnym: code %d, %q, %q", code, stdout, stderr)
	}
	if code, _, stderr := cepa(t, t.Context(), "newnym", "--data-dir", data); code != exitFailed || !strings.Contains(stderr, "try again in ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("newnym at once again: code %d, %q", code, stderr)
	}
	connect(plain, "")
	fresh := 0
	for c := range used() {
		if !before[c] {
			fresh++
		}
	}
	if fresh != 1 {
		t.Errorf("%d circuits are new after a new identity, want 1", fresh)
	}
	// Those of before still work.
	if _, err := fmt.Fprintf(open[0], "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", demoHost); err != nil {
		t.Error(err)
	} else if b, err := io.ReadAll(open[0]); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK") {
		t.Errorf("a connection of before: %.40q, %v", b, err)
	}
}
