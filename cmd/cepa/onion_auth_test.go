package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cepa/onion"
	"cepa/state"
)

func testSecret(t testing.TB, n byte) *onion.ClientSecret {
	t.Helper()
	s, err := onion.NewClientSecret(strings.NewReader(strings.Repeat(string(rune('a'+n)), 32)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAuthFile(t *testing.T) {
	a, s := serviceAddress(t, 1), testSecret(t, 0)
	text := string(encodeAuthFile(a, s))
	if n := len(text); n > maxAuthFile/2 {
		t.Errorf("it has %d bytes, more than half of maxAuthFile", n)
	}
	for _, good := range []string{text, "\n\n" + text + "\n", strings.TrimSpace(text), text + " \r\n"} {
		gotA, gotS, err := parseAuthFile([]byte(good))
		if err != nil || gotA != a || gotS.Key() != s.Key() {
			t.Errorf("%q: error %v", good, err)
		}
	}
	secret := s.String()[len("cepa-onion-auth-secret:"):]
	for name, v := range map[string]struct{ text, says string }{
		"empty":           {"", "first line"},
		"another version": {strings.Replace(text, "client 1", "client 2", 1), "first line"},
		"cut":             {text[:60], ""},
		"a line more":     {text + "name alice\n", "4 lines"},
		"exchanged":       {authFileHead + authFileSecret + s.String() + "\n" + authFileAddress + a.String() + "\n", "second line"},
		"public half":     {strings.Replace(text, s.String(), s.Key().String(), 1), "does not start"},
		"of Tor":          {strings.Replace(text, ".cepa.alt", ".onion", 1), "another network"},
		"typing error":    {strings.Replace(text, secret, "b"+secret[1:], 1), "checksum"},
		"with a label":    {strings.Replace(text, "address ", "address www.", 1), "another way"},
		"upper case":      {strings.Replace(text, a.String(), strings.ToUpper(a.String()), 1), "another way"},
		"two spaces":      {strings.Replace(text, "secret ", "secret  ", 1), "another way"},
		"line ends":       {strings.ReplaceAll(text, "\n", "\r\n"), "first line"},
		"huge":            {strings.Repeat(text, 10), "more than"},
	} {
		_, got, err := parseAuthFile([]byte(v.text))
		if !errors.Is(err, errAuthFile) || !strings.Contains(err.Error(), v.says) || got != nil {
			t.Errorf("%s: error %v, want one about %q", name, err, v.says)
		} else if strings.Contains(err.Error(), secret[10:]) || strings.Contains(err.Error(), a.String()[:20]) {
			t.Errorf("%s: the error repeats what is secret: %v", name, err)
		}
	}
}

func FuzzParseAuthFile(f *testing.F) {
	text := encodeAuthFile(serviceAddress(f, 1), testSecret(f, 0))
	f.Add(text)
	f.Add(text[:50])
	f.Add([]byte(authFileHead + authFileAddress + "\n" + authFileSecret + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, s, err := parseAuthFile(b)
		if err != nil {
			if !errors.Is(err, errAuthFile) || s != nil {
				t.Fatalf("error %v", err)
			}
			return
		}
		if again := encodeAuthFile(a, s); string(again) != strings.TrimSpace(string(b))+"\n" {
			t.Fatalf("%q became %q", b, again)
		}
	})
}

func TestReadAuthDir(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, b []byte, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	refused := func(what, says string) {
		t.Helper()
		s, err := readAuthDir(dir)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "--onion-auth") {
			t.Errorf("%s: %d services, error %v, want one about %q", what, len(s), err, says)
		}
	}
	a, b := serviceAddress(t, 1), serviceAddress(t, 2)
	refused("nothing", "has no file *.auth")
	put("a.auth", encodeAuthFile(a, testSecret(t, 0)), 0o600)
	put("b.auth", encodeAuthFile(b, testSecret(t, 1)), 0o400)
	put("a2.auth", encodeAuthFile(a, testSecret(t, 2)), 0o600)
	put("README", []byte("not a key"), 0o644)
	secrets, err := readAuthDir(dir)
	if err != nil || len(secrets.of(a)) != 2 || len(secrets.of(b)) != 1 || secrets.of(serviceAddress(t, 3)) != nil {
		t.Errorf("%v, error %v", secrets, err)
	}
	put("c.auth", encodeAuthFile(b, testSecret(t, 3)), 0o644)
	refused("readable by others", "chmod 600")
	put("c.auth", []byte("nonsense"), 0o600)
	refused("nonsense", "c.auth: not a file with the key")
	put("c.auth", encodeAuthFile(b, testSecret(t, 0)), 0o600)
	refused("a secret for two services", "a.auth and c.auth hold the same secret")
	os.Remove(filepath.Join(dir, "c.auth"))
	if err := os.Symlink(filepath.Join(dir, "a.auth"), filepath.Join(dir, "l.auth")); err == nil {
		refused("a link", "not a regular file")
		os.Remove(filepath.Join(dir, "l.auth"))
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	refused("writable by others", "chmod go-w")
	for path, says := range map[string]string{filepath.Join(dir, "nowhere"): "no such file", filepath.Join(dir, "a.auth"): "not a directory"} {
		code, _, stderr := cepa(t, t.Context(), "client", "--network", "x.toml", "--onion-auth", path)
		if code != exitFailed || !strings.Contains(stderr, says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", path, code, stderr)
		}
	}
}

// TestClientAuth: a list of clients, made before the service has ever run.
func TestClientAuth(t *testing.T) {
	data := filepath.Join(t.TempDir(), "onion")
	auth := func(code int, args []string, says ...string) (string, string) {
		t.Helper()
		got, stdout, stderr := cepa(t, t.Context(), append(append([]string{"onion", "client-auth"}, args...), "--data-dir", data)...)
		if got != code || strings.Count(stderr, "\n") > 1 {
			t.Errorf("client-auth %v: exit code %d, want %d; %q", args, got, code, stderr)
		}
		for _, s := range says {
			if !strings.Contains(stdout+stderr, s) {
				t.Errorf("client-auth %v does not say %q: %q %q", args, s, stdout, stderr)
			}
		}
		return stdout, stderr
	}
	auth(exitFailed, []string{"list"}, "there is no service there")
	alice, _ := auth(exitOK, []string{"add", "alice"}, "first on the list")
	a, secret, err := parseAuthFile([]byte(alice))
	if err != nil {
		t.Fatal(err)
	}
	folder := serviceFolder(data, defaultService)
	key, err := readServiceKey(filepath.Join(folder, identityFile))
	if err != nil || onion.AddressOf(key.ID()) != a {
		t.Errorf("the service's key: %v", err)
	}
	if list, err := readClients(filepath.Join(folder, clientsDir)); err != nil || len(list) != 1 || list[0].key != secret.Key() {
		t.Errorf("the list: %v, error %v", list, err)
	}
	bob := testSecret(t, 1)
	stdout, _ := auth(exitOK, []string{"add", "bob", "--key", bob.Key().String()})
	if stdout != "" {
		t.Errorf("with a key of the client it prints %q", stdout)
	}
	stdout, _ = auth(exitOK, []string{"list"})
	if want := "alice  " + secret.Key().String() + "\nbob  " + bob.Key().String() + "\n"; stdout != want {
		t.Errorf("the list is %q, want %q", stdout, want)
	}
	auth(exitOK, []string{"list", "--json"}, `"name": "bob"`)
	before, err := os.ReadFile(filepath.Join(folder, clientsDir, "alice.auth"))
	if err != nil || strings.Contains(string(before), "secret") {
		t.Errorf("the service keeps %q, error %v", before, err)
	}
	auth(exitFailed, []string{"add", "alice"}, "alice is on the list already")
	if after, _ := os.ReadFile(filepath.Join(folder, clientsDir, "alice.auth")); string(after) != string(before) {
		t.Error("the key was replaced")
	}
	auth(exitFailed, []string{"add", "robert", "--key", bob.Key().String()}, "on the list already, as that of bob")
	auth(exitUsage, []string{"add", "carol", "--key", bob.String()}, "it is a secret, which stays with the client")
	auth(exitUsage, []string{"add", "carol", "--key", "x"}, "--key")
	auth(exitUsage, []string{"add", "carol", "--address", "x.onion"}, "--address")
	for _, name := range []string{"", "-x", "../x", "A", strings.Repeat("x", 65), "a.b"} {
		auth(exitUsage, []string{"add", "--", name})
	}
	auth(exitUsage, []string{"add"}, "takes the name of one client")
	auth(exitUsage, []string{"remove", "a", "b"}, "takes the name of one client")
	auth(exitUsage, []string{"list", "--name", "X"}, "--name")
	auth(exitFailed, []string{"remove", "carol"}, "carol is not on the list")
	auth(exitOK, []string{"remove", "alice"})
	auth(exitFailed, []string{"remove", "bob"}, "--let-everybody-in")
	auth(exitOK, []string{"remove", "bob", "--let-everybody-in"})
	auth(exitOK, []string{"list"}, "everybody who knows the address")

	// Another service, whose identity is offline, and one with a directory of its own.
	stdout, _ = auth(exitOK, []string{"add", "alice", "--name", "blog", "--address", serviceAddress(t, 1).String()})
	if got, _, err := parseAuthFile([]byte(stdout)); err != nil || got != serviceAddress(t, 1) {
		t.Errorf("the address is %v, error %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(serviceFolder(data, "blog"), identityFile)); err == nil {
		t.Error("an identity was made although it is offline")
	}
	own := filepath.Join(t.TempDir(), "own")
	auth(exitOK, []string{"add", "alice", "--service-dir", own})
	if _, err := os.Stat(filepath.Join(own, clientsDir, "alice.auth")); err != nil {
		t.Error(err)
	}

	// What is not a list of clients lets nobody in.
	for name, says := range map[string]string{"bad.auth": "bad.auth: onion: not the key", "stray.txt": "does not belong there", "Bad.auth": "does not belong there"} {
		path := filepath.Join(folder, clientsDir, name)
		if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
		auth(exitFailed, []string{"list"}, says)
		auth(exitFailed, []string{"add", "carol"}, says)
		os.Remove(path)
	}
	for _, name := range []string{"x.auth", "y.auth"} {
		if err := state.Replace(filepath.Join(folder, clientsDir, name), []byte(bob.Key().String()+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	auth(exitFailed, []string{"list"}, "it is the key of x too")
}
