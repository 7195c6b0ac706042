package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/authority"
	"cepa/directory/mirror"
	"cepa/state"
)

// oneAuthority is a network of one authority, and its signing key.
func oneAuthority(t *testing.T) (*directory.Network, *identity.Key, *identity.Certificate) {
	t.Helper()
	id, err := identity.FromSeed(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.FromSeed(bytes.Repeat([]byte{2}, 32))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := id.Certify(identity.PurposeConsensus, key.ID(), time.Now().Add(-48*time.Hour), time.Now().Add(48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return &directory.Network{Name: "one", Interval: time.Hour, Authorities: []directory.Authority{{Nickname: "auth", Identity: id.ID(), Address: "127.0.0.1:1"}}}, key, cert
}

// consensusOn writes a valid consensus that says something of versions into a data directory, and the network file beside it.
func consensusOn(t *testing.T, versions directory.Versions) (network *directory.Network, dir, file string) {
	t.Helper()
	network, key, cert := oneAuthority(t)
	v := &directory.Vote{Network: network.Name, Interval: network.Interval, Period: network.Period(time.Now()), Authority: cert.Identity, Versions: versions}
	c, err := directory.Compute([]*directory.Vote{v}, network)
	if err != nil {
		t.Fatal(err)
	}
	s, err := directory.SignConsensus(c, key, cert)
	if err != nil {
		t.Fatal(err)
	}
	b, err := directory.AssembleConsensus(c, []*directory.Signature{s}, network)
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	dir, file = filepath.Join(base, "data"), filepath.Join(base, "network.toml")
	d, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Write("consensus", b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, network.AppendTOML(nil), 0o600); err != nil {
		t.Fatal(err)
	}
	return network, dir, file
}

// TestRequiredVersion: a client and a relay that are older than the authorities require end with a clear error and their own exit code.
func TestRequiredVersion(t *testing.T) {
	defer func(v string) { version = v }(version)
	version = "v0.1.0-5-gabcdef0"
	_, dir, file := consensusOn(t, directory.Versions{Required: "0.2.0"})
	for _, args := range [][]string{
		{"client", "--socks", "127.0.0.1:0"},
		{"relay", "--listen", "127.0.0.1:0", "--address", "127.0.0.1:9"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		code, _, stderr := cepa(t, ctx, append(args, "--network", file, "--data-dir", dir)...)
		cancel()
		last := stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:]
		if code != exitOld || !strings.HasPrefix(last, "cepa: this is version v0.1.0-5-gabcdef0, and the authorities of the network require 0.2.0 or newer") {
			t.Errorf("%v: exit code %d, %q", args, code, last)
		}
	}
}

func TestWatchVersion(t *testing.T) {
	network, dir, _ := consensusOn(t, directory.Versions{Recommended: "0.3", Required: "0.2.0"})
	d, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	m, err := mirror.New(mirror.Config{Network: network, Store: d})
	if err != nil {
		t.Fatal(err)
	}
	for own, want := range map[string]struct {
		refused, warned bool
		status          string
	}{
		"0.1.9": {true, false, "requires 0.2.0 or newer"},
		"0.2.0": {false, true, "recommends 0.3 or newer"},
		"0.3.0": {false, false, ""},
		"devel": {false, false, ""},
	} {
		var log bytes.Buffer
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		err := watchVersion(ctx, m, own, slog.New(slog.NewTextHandler(&log, nil)))
		cancel()
		var old *outdatedError
		if errors.As(err, &old) != want.refused || strings.Contains(log.String(), "recommend a newer version") != want.warned {
			t.Errorf("%s: error %v, log %q", own, err, log.String())
		}
		var out bytes.Buffer
		if err := printStatus(&out, &nodeStatus{Version: own, Versions: judgeVersion(m.Current(), own)}); err != nil || !strings.Contains(out.String(), want.status) ||
			want.status == "" && strings.Contains(out.String(), "newer") {
			t.Errorf("%s: status %q", own, out.String())
		}
	}
	if judgeVersion(nil, "0.1.0") != nil {
		t.Error("no consensus says something")
	}
}

// TestEvidence: the proofs of an authority as a table and as JSON, and what there is without.
func TestEvidence(t *testing.T) {
	network, key, cert := oneAuthority(t)
	_, dir, file := consensusOn(t, directory.Versions{})
	args := []string{"authority", "evidence", "--data-dir", dir}
	code, stdout, _ := cepa(t, context.Background(), args...)
	if code != exitOK || !strings.HasPrefix(stdout, "no evidence") {
		t.Errorf("without a file: %d, %q", code, stdout)
	}
	var heads []directory.Head
	for i := range 2 {
		v := &directory.Vote{Network: "one", Interval: time.Hour, Period: 472_222, Authority: cert.Identity, Params: directory.Params{"x": int64(i)}}
		id, err := identity.FromSeed(bytes.Repeat([]byte{1}, 32))
		if err != nil {
			t.Fatal(err)
		}
		start := network.PeriodStart(v.Period)
		then, err := id.Certify(identity.PurposeConsensus, key.ID(), start.Add(-time.Hour), start.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		b, err := directory.SignVote(v, key, then)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := directory.ParseVote(b, network, nil)
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, parsed.Head())
	}
	proof := directory.VoteEvidence("one", 472_222, heads[0], heads[1])
	path := filepath.Join(dir, authority.EvidenceFile)
	content := append([]byte("cepa authority evidence 1\n"), byte(len(proof.Raw())>>8), byte(len(proof.Raw())))
	content = append(content, proof.Raw()...)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := cepa(t, context.Background(), append(args, "--network", file)...)
	if code != exitOK || !strings.Contains(stdout, "auth "+cert.Identity.String()[:8]) || !strings.Contains(stdout, "2023-11-14 22:00:00Z") || !strings.Contains(stdout, "votes") {
		t.Errorf("table: %d, %q, %q", code, stdout, stderr)
	}
	code, stdout, _ = cepa(t, context.Background(), append(args, "--json")...)
	var list []evidenceEntry
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || code != exitOK || len(list) != 1 || list[0].Authority != cert.Identity.String() || list[0].What != "vote" {
		t.Errorf("JSON: %d, %v, %q", code, err, stdout)
	}
	if err := os.WriteFile(path, content[:len(content)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = cepa(t, context.Background(), args...)
	if code != exitFailed || !strings.Contains(stderr, "is damaged") {
		t.Errorf("damaged: %d, %q", code, stderr)
	}
	code, _, stderr = cepa(t, context.Background(), "authority", "evidence", "--data-dir", filepath.Join(dir, "nowhere"))
	if code != exitFailed || !strings.Contains(stderr, "does not exist") {
		t.Errorf("no directory: %d, %q", code, stderr)
	}
}
