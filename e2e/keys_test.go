//go:build e2e && linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestOfflineKeys: a network one of whose authorities has its identity elsewhere. Its signing key is renewed while it runs, and a hang-up signal has it look;
// then it is killed, and the consensus goes on as if nothing had happened. What the directory has is looked at with the program itself.
func TestOfflineKeys(t *testing.T) {
	n := startRoles(t, onLoopback, killInterval)
	a := n.authorities[0]
	offline := filepath.Join(n.dir, "stick")
	if err := os.Mkdir(offline, 0o700); err != nil {
		t.Fatal(err)
	}
	killRole(t, a)
	if err := os.Rename(filepath.Join(a.dir, "identity.key"), filepath.Join(offline, "identity.key")); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	await(t, recoverTimeout, "an authority without its identity", a.up)

	signing := filepath.Join(a.dir, "signing")
	before, err := os.ReadFile(signing)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := cepa(t, "authority", "renew", "--identity-dir", offline, "--data-dir", a.dir, "--for", "40d")
	if code != 0 || !strings.Contains(stdout, "valid until") {
		t.Fatalf("renew: exit code %d: %s%s", code, stdout, stderr)
	}
	if after, err := os.ReadFile(signing); err != nil || bytes.Equal(before, after) {
		t.Errorf("the signing key is the same, error %v", err)
	}
	until := func() time.Time {
		t.Helper()
		stdout, stderr, code := cepa(t, "status", "--data-dir", a.dir, "--json")
		var s struct {
			Authority struct {
				Until time.Time `json:"signing_key_valid_until"`
			} `json:"authority"`
		}
		if err := json.Unmarshal([]byte(stdout), &s); err != nil || code != 0 {
			t.Fatalf("status: exit code %d, %v: %s", code, err, stderr)
		}
		return s.Authority.Until
	}
	if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(41 * 24 * time.Hour)
	await(t, recoverTimeout, "the new signing key", func() error {
		if got := until(); got.After(deadline) {
			return errors.New("it has the old one")
		}
		return nil
	})
	killRole(t, a)
	a.start(t)
	await(t, recoverTimeout, "the authority after a kill", a.up)

	// With the new key it signs like the others.
	file := filepath.Join(n.dir, "fetched")
	await(t, recoverTimeout, "a consensus with four signatures", func() error {
		if _, stderr, code := cepa(t, "dir", "fetch", "--network", n.file, "--out", file); code != 0 {
			t.Fatalf("dir fetch: exit code %d: %s", code, stderr)
		}
		stdout, stderr, code := cepa(t, "dir", "verify", "--network", n.file, file)
		if code != 0 {
			t.Fatalf("dir verify: exit code %d: %s", code, stderr)
		}
		if strings.Count(stdout, " good ") < authorities {
			return errors.New("fewer than all have signed")
		}
		return nil
	})
	stdout, _, code = cepa(t, "dir", "show", file)
	if code != 0 || !strings.Contains(stdout, "relay1 ") {
		t.Errorf("dir show: exit code %d:\n%s", code, stdout)
	}
}

// killRole kills a role as the system would.
func killRole(t *testing.T, r *role) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.exit(t, exitTimeout)
}
