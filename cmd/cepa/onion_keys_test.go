package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/service"
	"cepa/state"
)

// TestOnionKeys: an identity in a file, its address, and keys that are carried over.
func TestOnionKeys(t *testing.T) {
	a := newArchive(t)
	path, bundlePath := a.file("blog.key"), a.file("blog.keys")
	out, _ := a.cepa(exitOK, []string{"onion", "keys", "new", "--out", path})
	address, err := onion.ParseAddress(strings.TrimSpace(out))
	a.must(err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v, error %v", info.Mode(), err)
	}
	before, err := os.ReadFile(path)
	a.must(err)
	a.cepa(exitFailed, []string{"onion", "keys", "new", "--out", path}, "never overwritten")
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("the key was overwritten")
	}
	if again, _ := a.cepa(exitOK, []string{"onion", "keys", "show", path}); again != out {
		t.Errorf("show prints %q, and new printed %q", again, out)
	}

	network := a.file("network.toml")
	prepare := func(more ...string) []string {
		return append([]string{"onion", "keys", "prepare", "--key", path, "--network", network}, more...)
	}
	a.cepa(exitOK, prepare("--out", bundlePath, "--days", "3"), address.String(), "keys of 5 periods of network \"paper\", until ", "cepa onion --keys")
	if info, err := os.Stat(bundlePath); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the prepared keys have mode %v, error %v", info.Mode(), err)
	}
	b, err := os.ReadFile(bundlePath)
	a.must(err)
	bundle, err := onion.ParseKeyBundle(b)
	a.must(err)
	present := service.PeriodOf(time.Hour, time.Now())
	if bundle.Address != address || len(bundle.Keys) != 5 || bundle.Keys[0].Period != present-1 {
		t.Errorf("%v, first period %d, want %d", bundle, bundle.Keys[0].Period, present-1)
	}
	seed, err := identity.ParseKeyFile(before, identity.KindService)
	a.must(err)
	if strings.Contains(string(b), string(seed[:])) {
		t.Error("the identity is in the prepared keys")
	}
	a.cepa(exitOK, []string{"onion", "keys", "show", bundlePath}, address.String(), "5 periods", "--network shows")
	a.cepa(exitOK, []string{"onion", "keys", "show", bundlePath, "--network", network}, "5 periods of network \"paper\", from "+dateOf(service.PeriodStart(time.Hour, present-1)))
	a.cepa(exitFailed, prepare("--out", bundlePath), "never overwritten")

	// Nonsense.
	for _, days := range []string{"0", "-1", "1.5", "30d", "", "99999"} {
		a.cepa(exitUsage, prepare("--out", a.file("x"), "--days", days), "--days")
	}
	a.cepa(exitFailed, prepare("--out", a.file("x"), "--days", "1000"), "it lasts for 998 days at most")
	a.cepa(exitUsage, []string{"onion", "keys", "prepare", "--key", path, "--network", network}, "--out are needed")
	a.cepa(exitUsage, []string{"onion", "keys", "new"}, "--out is needed")
	a.cepa(exitUsage, []string{"onion", "keys", "show"}, "takes one file")
	a.cepa(exitFailed, []string{"onion", "keys", "show", a.file("nowhere")}, "no such file")
	a.cepa(exitFailed, []string{"onion", "keys", "show", network}, "network.toml")
	a.cepa(exitFailed, []string{"onion", "keys", "show", a.file("rubbish", make([]byte, 2000)...)}, "neither the identity of an onion service nor prepared keys")
	relay := a.file("relay.key")
	a.must(state.CreateKey(relay, identity.KindIdentity, [32]byte{1}))
	a.cepa(exitFailed, []string{"onion", "keys", "show", relay}, "ed25519-identity")
	a.cepa(exitFailed, []string{"onion", "keys", "prepare", "--key", relay, "--network", network, "--out", a.file("x")}, "ed25519-identity")
	a.cepa(exitFailed, []string{"onion", "keys", "prepare", "--key", bundlePath, "--network", network, "--out", a.file("x")}, "longer than the identity")
	a.cepa(exitFailed, []string{"onion", "keys", "prepare", "--key", path, "--network", a.file("no.toml"), "--out", a.file("x")}, "does not exist")
	a.must(os.Chmod(path, 0o644))
	a.cepa(exitFailed, prepare("--out", a.file("x")), "chmod 600")
	a.must(os.Chmod(path, 0o600))
	if _, err := os.Stat(a.file("x")); err == nil {
		t.Error("a command that failed left a file")
	}

	// Keys that do not fit where they are to be used.
	other := *a.network
	other.Name = "other"
	now := time.Now()
	for says, v := range map[string]struct {
		n   *directory.Network
		now time.Time
	}{
		`for the network "paper"`: {&other, now},
		"these keys ended at":     {a.network, now.Add(5 * 24 * time.Hour)},
		"these keys begin at":     {a.network, now.Add(-3 * 24 * time.Hour)},
	} {
		if err := checkBundle(bundle, v.n, v.now); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want one about %q", err, says)
		}
	}
	if err := checkBundle(bundle, a.network, now); err != nil {
		t.Error(err)
	}
	run := func(says string, args ...string) {
		t.Helper()
		a.cepa(exitFailed, append([]string{"onion", "--network", network, "--port", "80", "--data-dir", a.file("data")}, args...), says)
	}
	run("does not exist: make it where the identity is", "--keys", a.file("nowhere"))
	run("bad bundle of keys", "--keys", path)
	run("it is its own front", "--keys", bundlePath, "--front", address.String())
	a.must(state.CreateKey(a.file("data")+"/services/default/identity.key", identity.KindService, [32]byte{2}))
	run("it should be offline", "--keys", bundlePath)
	a.must(os.WriteFile(a.file("data")+"/services/default/identity.key", []byte("damaged"), 0o600))
	run("services/default/identity.key")
}

func TestPeriodsFor(t *testing.T) {
	now := time.Unix(100*24*3600+5, 0)
	for _, v := range []struct {
		interval time.Duration
		days     int
		first    uint64
		count    int
	}{{time.Hour, 1, 99, 3}, {time.Hour, 30, 99, 32}, {24 * time.Hour, 1, 3, 2}, {24 * time.Hour, 24, 3, 3}, {10 * time.Second, 1, 100*360 - 1, 362}} {
		first, count, err := periodsFor(v.interval, now, v.days)
		if err != nil || first != v.first || count != v.count {
			t.Errorf("%v, %d days: first %d, %d periods, error %v", v.interval, v.days, first, count, err)
		}
		if end := service.PeriodStart(v.interval, first+uint64(count)); end.Before(now.Add(time.Duration(v.days) * 24 * time.Hour)) {
			t.Errorf("%v, %d days: they end at %v", v.interval, v.days, end)
		}
	}
	if _, _, err := periodsFor(time.Second, now, 1); err == nil || !strings.Contains(err.Error(), "3602 periods of 24s") || !strings.Contains(err.Error(), "6h39m12s at most") {
		t.Errorf("error %v", err)
	}
	if first, count, err := periodsFor(time.Hour, time.Unix(0, 0), 1); first != 0 || count != 2 || err != nil {
		t.Errorf("at the beginning: %d, %d, %v", first, count, err)
	}
}
