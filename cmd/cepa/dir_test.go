package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

// archive is a directory with documents of a network.
type archive struct {
	*testing.T
	dir     string
	network *directory.Network
	keys    []*identity.Key // of the authorities
	begin   time.Time       // of the present period
}

// newArchive makes a network of four authorities, of which the first n serve what serve answers.
func newArchive(t *testing.T) *archive {
	t.Helper()
	a := &archive{T: t, dir: t.TempDir(), network: &directory.Network{Name: "paper", Interval: time.Hour, Params: directory.Params{"relays-per-address": 8}}}
	for i := range 4 {
		k := a.key(fmt.Sprint("authority ", i))
		a.keys = append(a.keys, k)
		a.network.Authorities = append(a.network.Authorities, directory.Authority{
			Nickname: fmt.Sprint("auth", i+1), Identity: k.ID(), Address: fmt.Sprintf("127.0.0.1:%d", i+1), // where nobody answers
		})
	}
	a.begin = a.network.PeriodStart(a.network.Period(time.Now()))
	a.writeNetwork()
	return a
}

func (a *archive) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

func (a *archive) key(name string) *identity.Key {
	seed := sha256.Sum256([]byte(name))
	k, err := identity.FromSeed(seed[:])
	a.must(err)
	return k
}

// file is the path of a document; with content, it is written.
func (a *archive) file(name string, content ...byte) string {
	a.Helper()
	path := filepath.Join(a.dir, name)
	if content != nil {
		a.must(os.WriteFile(path, content, 0o600))
	}
	return path
}

func (a *archive) writeNetwork() { a.file("network.toml", a.network.AppendTOML(nil)...) }

// signing returns a certified key of an authority or a relay.
func (a *archive) signing(id *identity.Key, p identity.Purpose) (*identity.Key, *identity.Certificate) {
	a.Helper()
	k := a.key("signing of " + id.ID().String())
	c, err := id.Certify(p, k.ID(), a.begin.Add(-40*24*time.Hour), a.begin.Add(40*24*time.Hour))
	a.must(err)
	return k, c
}

// descriptor returns that of a relay.
func (a *archive) descriptor(i int, change func(*directory.Descriptor)) *directory.Descriptor {
	a.Helper()
	id := a.key(fmt.Sprint("relay ", i))
	d := &directory.Descriptor{
		Network: "paper", Identity: id.ID(), Sequence: 7, Published: a.begin.Add(-time.Hour), OnionKey: [32]byte{byte(i + 1)}, Suite: directory.SuiteAESGCM,
		Nickname: fmt.Sprint("relay", i), Addresses: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i), 7}), 9001)},
		Version: "1.0", BandwidthRate: 5000, Contact: "op@example.org", Uptime: time.Hour,
	}
	if change != nil {
		change(d)
	}
	k, c := a.signing(id, identity.PurposeDescriptor)
	b, err := directory.SignDescriptor(d, k, c)
	a.must(err)
	d, err = directory.VerifyDescriptor(b)
	a.must(err)
	return d
}

// vote returns an authority's, and consensus what three of them make of it.
func (a *archive) vote(i int, period uint64, params directory.Params, list ...*directory.Descriptor) *directory.Vote {
	a.Helper()
	v := &directory.Vote{Network: "paper", Interval: time.Hour, Period: period, Authority: a.keys[i].ID(), Params: params}
	for _, d := range list {
		flags := directory.FlagRunning | directory.FlagValid | directory.FlagGuard
		if !d.ExitPolicy.IsZero() {
			flags |= directory.FlagExit
		}
		v.Entries = append(v.Entries, directory.VoteEntry{Descriptor: d, Flags: flags, Weight: d.BandwidthRate})
	}
	slices.SortFunc(v.Entries, func(x, y directory.VoteEntry) int { return x.Descriptor.Identity.Compare(y.Descriptor.Identity) })
	k, c := a.signing(a.keys[i], identity.PurposeConsensus)
	b, err := directory.SignVote(v, k, c)
	a.must(err)
	v, err = directory.ParseVote(b, a.network, func(digest [32]byte) *directory.Descriptor {
		if i := slices.IndexFunc(list, func(d *directory.Descriptor) bool { return d.Digest() == digest }); i >= 0 {
			return list[i]
		}
		return nil
	})
	a.must(err)
	return v
}

func (a *archive) consensus(period uint64, params directory.Params, list ...*directory.Descriptor) []byte {
	a.Helper()
	var votes []*directory.Vote
	for i := range 3 {
		votes = append(votes, a.vote(i, period, params, list...))
	}
	c, err := directory.Compute(votes, a.network)
	a.must(err)
	var signatures []*directory.Signature
	for i := range 3 {
		k, cert := a.signing(a.keys[i], identity.PurposeConsensus)
		s, err := directory.SignConsensus(c, k, cert)
		a.must(err)
		signatures = append(signatures, s)
	}
	a.file("signature", signatures[0].Raw()...)
	b, err := directory.AssembleConsensus(c, signatures, a.network)
	a.must(err)
	return b
}

// cepa runs the program and checks its exit code, that an error is one line, and that the output says all of says.
func (a *archive) cepa(code int, args []string, says ...string) (stdout, stderr string) {
	a.Helper()
	got, stdout, stderr := cepa(a.T, a.Context(), args...)
	if got != code {
		a.Errorf("cepa %v: exit code %d, want %d\n%s%s", args, got, code, stdout, stderr)
	}
	if (code != 0) != (stderr != "") || strings.Count(stderr, "\n") > 1 {
		a.Errorf("cepa %v: standard error %q", args, stderr)
	}
	for _, text := range says {
		if !strings.Contains(stdout+stderr, text) {
			a.Errorf("cepa %v does not say %q:\n%s%s", args, text, stdout, stderr)
		}
	}
	return stdout, stderr
}

// TestDirShow: each kind of document, for people and for programs.
func TestDirShow(t *testing.T) {
	a := newArchive(t)
	period := a.network.Period(a.begin)
	family := a.key("family")
	first := a.descriptor(0, func(d *directory.Descriptor) {
		d.ExitPolicy = directory.AllPorts()
		m, err := directory.Membership(family, d.Identity, a.begin.Add(-48*time.Hour), a.begin.Add(48*time.Hour))
		a.must(err)
		d.Memberships = append(d.Memberships, m)
		d.Extra = directory.Extra{Hibernating: true, FirstDay: 20000, History: []directory.DayUse{{Read: 4, Written: 8}}}
	})
	second := a.descriptor(1, nil)
	consensus := a.consensus(period, directory.Params{"circuit-rate": 5}, first, second)
	vote := a.vote(0, period, nil, first)
	cert := first.Memberships[0]
	for _, c := range []struct {
		name    string
		b       []byte
		says    []string
		program string // key and value that the JSON has
	}{
		{"consensus", consensus, []string{
			"consensus of network \"paper\"", fmt.Sprint(period, ", of 1h0m0s each"), "valid and fresh now", "circuit-rate = 5",
			"relay0", first.Identity.Short(), "203.0.0.7:9001", "Running,Valid,Guard,Exit", family.ID().Short(), "2 relays, 1 of them exits and 2 guards; weight 10.0 MB/s",
		}, `"kind": "consensus"`},
		{"vote", vote.Raw(), []string{"vote of authority " + a.keys[0].ID().String(), "1 relays", "good"}, `"authority": "` + a.keys[0].ID().String() + `"`},
		{"descriptor", first.Raw(), []string{
			"descriptor of relay relay0", first.Identity.String(), "current now", "1, AES-256-GCM", "5000 KB/s", "op@example.org", "hibernating",
			"family", family.ID().String(), "use of 2024-10-04", "read 1.1 GB, written 2.1 GB",
		}, `"bandwidth_rate_kb_per_second": 5000`},
		{"consensus signature", nil, []string{"signature of authority " + a.keys[0].ID().String(), "of the consensus"}, `"kind": "consensus signature"`},
		{"certificate", identity.EncodeCertificateFile(cert), []string{"certificate for family", "by family", "of relay", "valid now", first.Identity.String()}, `"purpose": "family"`},
		{"certificate, raw", cert.AppendTo(nil), []string{"certificate for family"}, `"kind": "certificate"`},
		{"network file", a.network.AppendTOML(nil), []string{"3 of 4 authorities", "auth4", a.keys[3].ID().String()}, `"threshold": 3`},
	} {
		path := a.file("signature")
		if c.b != nil {
			path = a.file("document", c.b...)
		}
		out, _ := a.cepa(exitOK, []string{"dir", "show", path}, c.says...)
		for line := range strings.SplitSeq(out, "\n") {
			if strings.ContainsAny(line, "\t\x1b") {
				t.Errorf("%s: a line is not aligned: %q", c.name, line)
			}
		}
		out, _ = a.cepa(exitOK, []string{"dir", "show", "--json", path}, c.program)
		if !json.Valid([]byte(out)) {
			t.Errorf("%s: no JSON:\n%s", c.name, out)
		}
		if c.b != nil {
			plain, _ := a.cepa(exitOK, []string{"dir", "show", path})
			packed, _ := a.cepa(exitOK, []string{"dir", "show", a.file("packed", directory.Compress(c.b)...)})
			if plain != packed {
				t.Errorf("%s: compressed it is shown as\n%s", c.name, packed)
			}
		}
	}
	// What programs get of a consensus is enough to work with.
	out, _ := a.cepa(exitOK, []string{"dir", "show", "--json", a.file("document", consensus...)})
	var got documentJSON
	a.must(json.Unmarshal([]byte(out), &got))
	if len(got.Relays) != 2 || len(got.Signers) != 3 || got.ValidAfter == nil || !got.ValidAfter.Equal(a.begin) {
		t.Errorf("the JSON has %+v", got)
	}
	i := slices.IndexFunc(got.Relays, func(r relayJSON) bool { return r.Nickname == "relay0" })
	if r := got.Relays[i]; r.Identity != first.Identity.String() || !slices.Contains(r.Flags, "Exit") || len(r.Families) != 1 || r.Families[0] != family.ID().String() || r.Exit != "*" {
		t.Errorf("relay0 is %+v", r)
	}
}

// TestDirHostileFiles: what is wrong with a file is said in one line, nothing of it gets to the terminal, and the exit code tells.
func TestDirHostileFiles(t *testing.T) {
	a := newArchive(t)
	consensus := a.consensus(a.network.Period(a.begin), nil, a.descriptor(0, nil))
	key, err := identity.EncodeKeyFile(identity.KindFamily, [identity.SecretSize]byte{7})
	a.must(err)
	changed := bytes.Clone(consensus)
	changed[len(changed)-1] ^= 1
	body := bytes.Clone(consensus)
	body[40] ^= 1
	escape := []byte("name = \"\x1b]0;evil\x07\"\n")
	for _, c := range []struct {
		name string
		path string
		says string
	}{
		{"missing", a.file("nowhere"), "does not exist"},
		{"a directory", a.dir, "is a directory"},
		{"empty", a.file("empty", []byte{}...), ""},
		{"a program", a.file("elf", []byte("\x7fELF\x00\x01")...), "no document of the directory"},
		{"a private key", a.file("key", key...), "keep it secret"},
		{"escape sequences", a.file("escape", escape...), "network file: malformed"},
		{"a text", a.file("text", []byte("hello\n")...), "network file: malformed"},
		{"cut", a.file("cut", consensus[:len(consensus)/2]...), "consensus: malformed"},
		{"a bomb", a.file("bomb", directory.Compress(make([]byte, directory.MaxDocumentSize+1))...), "too large"},
		{"bad zstd", a.file("zstd", []byte("\x28\xb5\x2f\xfdxxxx")...), "decompressing"},
		{"a bad signature", a.file("changed", changed...), "the signature of"},
		{"a changed body", a.file("body", body...), ""},
	} {
		if c.name == "empty" {
			a.must(os.WriteFile(c.path, nil, 0o600))
			c.says = "it is empty"
		}
		out, errs := a.cepa(exitFailed, []string{"dir", "show", c.path}, c.says)
		if strings.ContainsAny(out+errs, "\x1b\x07") {
			t.Errorf("%s: escape sequences get to the terminal", c.name)
		}
		a.cepa(exitFailed, []string{"dir", "verify", "--network", a.file("network.toml"), c.path})
		a.cepa(exitFailed, []string{"dir", "diff", a.file("good", consensus...), c.path}, "")
	}
	_, errs := a.cepa(exitFailed, []string{"dir", "show", a.file("key")})
	if strings.Contains(errs, "0700") {
		t.Error("a key gets to the terminal")
	}
}

// TestDirVerify: what is good, and each way not to be.
func TestDirVerify(t *testing.T) {
	a := newArchive(t)
	period := a.network.Period(a.begin)
	d := a.descriptor(0, nil)
	consensus := a.consensus(period, nil, d)
	network := a.file("network.toml")
	verify := func(code int, b []byte, says ...string) {
		t.Helper()
		a.cepa(code, []string{"dir", "verify", "--network", network, a.file("document", b...)}, says...)
	}
	verify(exitOK, consensus, "3, 3 of them good, 3 by authorities of the network; 3 are needed", "auth1", "auth3", "valid and fresh now", "\ngood\n")
	verify(exitOK, directory.Compress(consensus), "good")
	verify(exitOK, d.Raw(), "relay0")
	verify(exitOK, a.vote(1, period, nil, d).Raw(), "auth2")
	a.cepa(exitOK, []string{"dir", "verify", "--network", network, a.file("signature")}, "good")
	verify(exitOK, a.network.AppendTOML(nil), "good")
	verify(exitFailed, a.consensus(period-30, nil, d), "EXPIRED", "NOT GOOD", "consensus: expired")
	verify(exitFailed, a.consensus(period+2, nil, d), "NOT VALID YET", "from the future")
	a.cepa(exitOK, []string{"dir", "verify", "--network", network, "--at", a.begin.Add(-30 * time.Hour).UTC().Format(time.RFC3339), a.file("document", a.consensus(period-30, nil, d)...)}, "good")

	out, _ := a.cepa(exitFailed, []string{"dir", "verify", "--json", "--network", network, a.file("document", a.consensus(period-30, nil, d)...)})
	var got documentJSON
	a.must(json.Unmarshal([]byte(out), &got))
	if got.Verified == nil || got.Verified.Good || !strings.Contains(got.Verified.Problem, "expired") || got.Signers[0].Nickname == "" {
		t.Errorf("the JSON says %+v", got)
	}

	// Another network, with two of the same authorities.
	other := *a.network
	other.Authorities = slices.Clone(a.network.Authorities)
	other.Authorities[0].Identity, other.Authorities[1].Identity = a.key("x").ID(), a.key("y").ID()
	a.file("other.toml", other.AppendTOML(nil)...)
	a.cepa(exitFailed, []string{"dir", "verify", "--network", a.file("other.toml"), a.file("document", consensus...)}, "1 by authorities of the network", "no authority", "signed by a stranger")
	other.Name = "other"
	a.file("other.toml", other.AppendTOML(nil)...)
	a.cepa(exitFailed, []string{"dir", "verify", "--network", a.file("other.toml"), a.file("document", d.Raw()...)}, "of another network")
	a.cepa(exitFailed, []string{"dir", "verify", "--network", a.file("other.toml"), network}, "not the one that it is compared with")

	for _, args := range []string{"dir verify x", "dir verify --network n", "dir verify --network n --at noon x", "dir show", "dir show a b", "dir diff a", "dir fetch --network n", "dir nonsense"} {
		a.cepa(exitUsage, strings.Fields(args))
	}
}

// TestDirDiff: what came, went and changed, and what did not.
func TestDirDiff(t *testing.T) {
	a := newArchive(t)
	period := a.network.Period(a.begin)
	stays, goes, comes := a.descriptor(0, nil), a.descriptor(1, nil), a.descriptor(2, nil)
	changes := a.descriptor(3, nil)
	changed := a.descriptor(3, func(d *directory.Descriptor) {
		d.Sequence, d.OnionKey, d.BandwidthRate, d.Version, d.ExitPolicy, d.Contact = 8, [32]byte{99}, 777, "1.1", directory.AllPorts(), ""
	})
	before := a.file("before", a.consensus(period-1, directory.Params{"circuit-rate": 5}, stays, goes, changes)...)
	after := a.file("after", a.consensus(period, directory.Params{"circuit-rate": 6, "flow-max": 100}, stays, comes, changed)...)
	out, _ := a.cepa(exitOK, []string{"dir", "diff", before, after}, "circuit-rate", "flow-max", "1 came, 1 went, 1 changed, 1 are as they were")
	fields := func(name string) (all []string) {
		for line := range strings.SplitSeq(out, "\n") {
			if f := strings.Fields(line); len(f) > 0 && f[0] == name {
				all = append(all, strings.Join(f[2:], " "))
			}
		}
		return all
	}
	if got := strings.Join(fields("relay3"), "; "); !strings.Contains(got, "weight 5000 777") || !strings.Contains(got, "version 1.0 1.1") ||
		!strings.Contains(got, "flags Running,Valid,Guard Running,Valid,Guard,Exit") || !strings.Contains(got, "onion key") || !strings.Contains(got, "exit policy none *") {
		t.Errorf("of relay3 it says %q", got)
	}
	if len(fields("relay0")) != 0 || len(fields("relay1")) != 1 || len(fields("relay2")) != 1 {
		t.Errorf("the output is\n%s", out)
	}
	out, _ = a.cepa(exitOK, []string{"dir", "diff", "--json", before, after})
	var got diffJSON
	a.must(json.Unmarshal([]byte(out), &got))
	if got.Same || len(got.Came) != 1 || len(got.Went) != 1 || len(got.Changed) != 1 || len(got.Params) != 2 || got.Alike != 1 || got.Went[0].Nickname != "relay1" {
		t.Errorf("the JSON has %+v", got)
	}
	a.cepa(exitOK, []string{"dir", "diff", before, before}, "they say the same")
	a.cepa(exitOK, []string{"dir", "diff", before, a.file("vote", a.vote(0, period, directory.Params{"circuit-rate": 5}, stays, goes, changes).Raw()...)}, "they say the same")
	a.cepa(exitOK, []string{"dir", "diff", a.file("d1", changes.Raw()...), a.file("d2", changed.Raw()...)}, "bandwidth rate", "contact")
	a.cepa(exitFailed, []string{"dir", "diff", a.file("d1"), a.file("d3", stays.Raw()...)}, "different relays")
	a.cepa(exitFailed, []string{"dir", "diff", before, a.file("d1")}, "cannot be compared")
}

// TestDirFetch: from whoever has a good one; what is not good is not kept.
func TestDirFetch(t *testing.T) {
	a := newArchive(t)
	period := a.network.Period(a.begin)
	d := a.descriptor(0, nil)
	consensus, old := a.consensus(period, nil, d), a.consensus(period-30, nil, d)
	vote := a.vote(1, period, nil, d)
	serve := func(b []byte) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case mirror.PathConsensus:
				w.Write(b)
			case fmt.Sprintf("/cepa/v1/vote/%d/%v", period, a.keys[1].ID()):
				w.Write(vote.Raw())
			default:
				http.Error(w, "no such vote here", http.StatusNotFound)
			}
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	good, stale, silly := serve(consensus), serve(old), serve([]byte("hello"))
	network, out := a.file("network.toml"), a.file("out")
	a.cepa(exitOK, []string{"dir", "fetch", "--network", network, "--from", good, "--out", out}, "verified")
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, consensus) {
		t.Errorf("%d bytes were written, error %v", len(got), err)
	}
	a.cepa(exitFailed, []string{"dir", "fetch", "--network", network, "--from", stale, "--out", out}, stale, "expired")
	a.cepa(exitFailed, []string{"dir", "fetch", "--network", network, "--from", silly, "--out", out}, "malformed")
	a.cepa(exitFailed, []string{"dir", "fetch", "--network", network, "--out", out}, "nobody has a good one", "connection refused", "127.0.0.1:4")
	if got, _ := os.ReadFile(out); !bytes.Equal(got, consensus) {
		t.Error("a document that is not good took the place of a good one")
	}
	// The authorities in any order, until one has it.
	for i, addr := range []string{stale, silly, good} {
		a.network.Authorities[i].Address = addr
	}
	a.writeNetwork()
	for range 5 {
		a.cepa(exitOK, []string{"dir", "fetch", "--network", network, "--out", out}, good)
	}
	stdout, _ := a.cepa(exitOK, []string{"dir", "fetch", "--network", network, "--out", "-"})
	if stdout != string(consensus) {
		t.Errorf("standard output has %d bytes", len(stdout))
	}
	for _, who := range []string{"auth2", a.keys[1].ID().String()} {
		a.cepa(exitOK, []string{"dir", "fetch", "--network", network, "--what", fmt.Sprintf("vote/%d/%s", period, who), "--from", good, "--out", out}, "vote of auth2")
	}
	a.cepa(exitFailed, []string{"dir", "fetch", "--network", network, "--what", "vote/this/auth1", "--from", good, "--out", out}, "404")
	for _, bad := range [][]string{
		{"--what", "nonsense"}, {"--what", "vote/x/auth1"}, {"--what", "vote/this/nobody"}, {"--from", "nowhere"},
	} {
		a.cepa(exitUsage, append([]string{"dir", "fetch", "--network", network, "--out", out}, bad...))
	}
}
