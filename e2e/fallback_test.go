//go:build e2e && linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFallback lets a relay serve its directory over plain HTTP, looks at it as a web
// cache would, and starts a fresh client that can reach no authority, but knows that
// relay from its network file.
func TestFallback(t *testing.T) {
	n := startRoles(t, onLoopback, killInterval)
	cache := n.relays[0]
	cache.stop(t)
	at := cache.host.freePort(t)
	cache.args = append(cache.args, "--dir-listen", at)
	cache.start(t)
	await(t, n.listedTimeout(), cache.name, cache.up)

	url := "http://" + at + "/cepa/v1/consensus"
	plain, packed, heads := filepath.Join(n.dir, "plain"), filepath.Join(n.dir, "packed"), filepath.Join(n.dir, "heads")
	n.run(t, "curl", "-sSf", "-o", plain, "-D", heads, url)
	n.run(t, "curl", "-sSf", "-H", "Accept-Encoding: zstd", "-o", packed, url)
	head, err := os.ReadFile(heads)
	if err != nil {
		t.Fatal(err)
	}
	etag := ""
	for _, line := range strings.Split(string(head), "\r\n") {
		if name, value, _ := strings.Cut(line, ": "); strings.EqualFold(name, "ETag") {
			etag = value
		}
	}
	if etag == "" {
		t.Fatalf("no ETag in %q", head)
	}
	b, err := os.ReadFile(packed)
	if err != nil || !strings.HasPrefix(string(b), "\x28\xb5\x2f\xfd") {
		t.Errorf("with zstd it begins with %q, %v", b[:min(len(b), 4)], err)
	}
	// 304, unless the next consensus has come meanwhile.
	if code := n.run(t, "curl", "-sS", "-o", os.DevNull, "-w", "%{http_code}", "-H", "If-None-Match: "+etag, url); code != "304" && code != "200" {
		t.Errorf("again: %s", code)
	}
	if code := n.run(t, "curl", "-sS", "-o", os.DevNull, "-w", "%{http_code}", "http://"+at+"/cepa/v1/descriptor"); code != "404" {
		t.Errorf("another resource: %s", code)
	}

	for _, a := range n.authorities {
		a.stop(t)
	}
	text, err := os.ReadFile(n.file)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.dir, "fallback.toml")
	if err := os.WriteFile(file, append(text, "\n[[fallback]]\naddress = \""+at+"\"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := n.role("client", "fresh", n.client.host, "--socks", n.client.host.freePort(t), "--allow-private-addresses")
	fresh.args[1] = file
	fresh.start(t)
	await(t, readyTimeout, "a client without authorities", fresh.up)
	said := fresh.stdout.String()
	for _, want := range []string{"bootstrapped ", "choosing guard", "ready"} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q: %s", want, said)
		}
	}
}
