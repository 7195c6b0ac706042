package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory/authority"
	"cepa/state"
)

// TestFamilyCommands: a key, a certificate, and a relay's configuration made of them.
func TestFamilyCommands(t *testing.T) {
	a := newArchive(t)
	path := a.file("family.key")
	out, _ := a.cepa(exitOK, []string{"family", "create", "--out", path})
	family, err := identity.ParseID(strings.TrimSpace(out))
	a.must(err)
	before, err := os.ReadFile(path)
	a.must(err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v, error %v", info.Mode(), err)
	}
	a.cepa(exitFailed, []string{"family", "create", "--out", path}, "never overwritten")
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("the key was overwritten")
	}
	relay := a.key("relay 0").ID()
	cert, _ := a.cepa(exitOK, []string{"family", "sign", "--key", path, "--relay", relay.String(), "--for", "90d"}, "purpose family", family.String(), relay.String())
	file := a.file("relay.family", []byte(cert)...)
	keys, memberships, err := readFamilies([]string{path, file})
	if err != nil || len(keys) != 1 || len(memberships) != 1 || keys[0].ID() != family || memberships[0].Identity != family || memberships[0].Subject != relay {
		t.Errorf("read as %v and %v, error %v", keys, memberships, err)
	}
	if left := memberships[0].Remaining(time.Now()); left > 90*24*time.Hour || left < 89*24*time.Hour {
		t.Errorf("it is valid for %v", left)
	}
	a.cepa(exitOK, []string{"dir", "show", file}, "certificate for family")
	a.file("broken.family", []byte(strings.Replace(cert, "until 20", "until 30", 1))...)
	for _, bad := range []string{"broken.family", "nowhere", "network.toml"} {
		if _, _, err := readFamilies([]string{a.file(bad)}); err == nil || !strings.Contains(err.Error(), a.file(bad)) {
			t.Errorf("%s: error %v", bad, err)
		}
	}
	a.cepa(exitFailed, []string{"family", "sign", "--key", a.file("network.toml"), "--relay", relay.String()})
	a.cepa(exitFailed, []string{"family", "sign", "--key", path, "--relay", family.String()}, "name the relay's identity")
	for _, args := range []string{"family create", "family sign --key k", "family sign --key k --relay xyz", "family sign --key k --relay " + strings.Repeat("0", 64), "family nonsense"} {
		a.cepa(exitUsage, strings.Fields(args))
	}
	for _, span := range []string{"0d", "1h", "367d", "long", "-5d", "d"} {
		a.cepa(exitUsage, []string{"family", "sign", "--key", path, "--relay", relay.String(), "--for", span}, "--for")
	}
}

// TestAuthorityKeys: an authority whose identity is kept offline runs, is renewed while it runs, and refuses to start once its key has expired.
func TestAuthorityKeys(t *testing.T) {
	root := t.TempDir()
	offline, data := filepath.Join(root, "stick"), filepath.Join(root, "auth")
	a := &archive{T: t, dir: root}
	out, _ := a.cepa(exitOK, []string{"authority", "init", "--nickname", "auth1", "--address", "127.0.0.1:1", "--identity-dir", offline, "--data-dir", data}, "[[authority]]")
	again, _ := a.cepa(exitOK, []string{"authority", "init", "--nickname", "auth1", "--address", "127.0.0.1:1", "--identity-dir", offline, "--data-dir", data})
	if out != again {
		t.Errorf("a second init says\n%s, and the first\n%s", again, out)
	}
	if _, err := os.Stat(filepath.Join(data, identityFile)); err == nil {
		t.Error("the identity is in the data directory")
	}
	network := a.file("network.toml", []byte("name = \"keys\"\n"+out)...)
	present := func() *authority.SigningKey {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(data, authority.SigningFile))
		a.must(err)
		k, err := authority.ParseSigningKey(b)
		a.must(err)
		return k
	}
	first := present()
	// It runs, and is renewed meanwhile, which takes no lock.
	ctx, cancel := context.WithCancel(t.Context())
	var log lockedBuffer
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"authority", "--network", network, "--data-dir", data, "--listen", "127.0.0.1:0"}, &log, &log)
	}()
	waitFor(t, &log, "authority auth1", done)
	stdout, _ := a.cepa(exitOK, []string{"status", "--data-dir", data}, "signing key: valid until", "renew it with")
	if strings.Contains(stdout, "renewed by itself") {
		t.Error("status says that the identity is in the data directory")
	}
	a.cepa(exitOK, []string{"authority", "renew", "--identity-dir", offline, "--data-dir", data, "--for", "30d"}, "valid until", "next vote, or at SIGHUP")
	second := present()
	if second.Certificate.Generation() <= first.Certificate.Generation() || second.Certificate.Subject == first.Certificate.Subject {
		t.Error("the renewed key is not a newer one")
	}
	cancel()
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d", code)
	}

	// Expired.
	seed, err := state.ReadKey(filepath.Join(offline, identityFile), identity.KindIdentity)
	a.must(err)
	id, err := identity.FromSeed(seed[:])
	a.must(err)
	k, err := authority.NewSigningKey(id, nil, time.Now().Add(-40*24*time.Hour), 30*24*time.Hour, nil)
	a.must(err)
	b, err := authority.EncodeSigningKey(k)
	a.must(err)
	a.must(state.Replace(filepath.Join(data, authority.SigningFile), b))
	a.cepa(exitFailed, []string{"authority", "--network", network, "--data-dir", data, "--listen", "127.0.0.1:0"}, "has expired", "cepa authority renew")

	// Mistakes.
	a.cepa(exitUsage, []string{"authority", "renew", "--data-dir", data}, "--identity-dir is needed")
	a.cepa(exitUsage, []string{"authority", "renew", "--identity-dir", offline, "--data-dir", data, "--for", "400d"}, "1d to 366d")
	a.cepa(exitFailed, []string{"authority", "renew", "--identity-dir", root, "--data-dir", data}, "there is no identity at")
	a.cepa(exitFailed, []string{"authority", "renew", "--identity-dir", offline, "--data-dir", filepath.Join(root, "nowhere")}, "is not there")
	other := filepath.Join(root, "other")
	a.cepa(exitOK, []string{"authority", "init", "--nickname", "b", "--address", "127.0.0.1:2", "--data-dir", other})
	a.cepa(exitFailed, []string{"authority", "renew", "--identity-dir", other, "--data-dir", data}, "name the directories that belong together")
	a.cepa(exitFailed, []string{"authority", "--network", network, "--data-dir", other}, "not in the network file")
	a.cepa(exitFailed, []string{"authority", "--network", network, "--data-dir", filepath.Join(root, "empty")}, "neither an identity nor a signing key")
	if k := present(); k.Certificate.Identity != id.ID() {
		t.Error("the signing key was replaced by that of another authority")
	}
}

// String returns what was written so far.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// waitFor waits until a program has said something, or has ended.
func waitFor(t *testing.T, log *lockedBuffer, text string, done <-chan int) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(log.String(), text) {
		select {
		case code := <-done:
			t.Fatalf("it ended with %d:\n%s", code, log.String())
		case <-deadline:
			t.Fatalf("it did not say %q:\n%s", text, log.String())
		case <-tick.C:
		}
	}
}

func TestPrintSigningKey(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	const day = 24 * time.Hour
	for want, s := range map[string]authorityStatus{
		"EXPIRED at":                 {SigningUntil: now.Add(-day), SigningNotice: now.Add(-31 * day)},
		"20 days: RENEW it":          {SigningUntil: now.Add(20*day + time.Hour), SigningNotice: now.Add(-10 * day)},
		"80 days; renew it with":     {SigningUntil: now.Add(80*day + time.Hour), SigningNotice: now.Add(50 * day)},
		"20 days; renewed by itself": {SigningUntil: now.Add(20*day + time.Hour), SigningNotice: now.Add(-10 * day), IdentityHere: true},
	} {
		var b strings.Builder
		printSigningKey(&b, &s, now)
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}
