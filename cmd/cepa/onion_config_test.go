package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/forward"
)

// serviceAddress is the address of a service that is nowhere.
func serviceAddress(t testing.TB, n byte) onion.Address {
	t.Helper()
	seed := make([]byte, identity.SeedSize)
	seed[0] = n
	k, err := identity.FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	return onion.AddressOf(k.ID())
}

func publicKey(t testing.TB, n byte) string {
	t.Helper()
	s, err := onion.NewClientSecret(strings.NewReader(strings.Repeat(string(rune('a'+n)), 32)))
	if err != nil {
		t.Fatal(err)
	}
	return s.Key().String()
}

func TestOnionConfig(t *testing.T) {
	front := serviceAddress(t, 1).String()
	text := fmt.Sprintf(`# services
[[service]]
name = "blog"
ports = [
  "80:8080",
  "22:unix:/run/ssh.sock",
]
proof-of-work = true
points = 5
max-streams = 10
max-clients = 20
intro-rate = 3
intro-burst = 30
proxy-protocol = "v2"
clients = ["%s", "%s"]

[[service]]
name = "b1"
dir = "keys/b1"
keys = "/var/lib/b1.keys"
ports = ["80"]
front = "%s"
single-hop = true
not-anonymous = true

[[service]]
name = "front"
backends = ["%s", "%s"]
`, publicKey(t, 0), publicKey(t, 1), front, serviceAddress(t, 2), serviceAddress(t, 3))
	specs, err := parseOnionConfig([]byte(text), "/etc/cepa")
	if err != nil || len(specs) != 3 {
		t.Fatalf("%d services, error %v", len(specs), err)
	}
	s := specs[0]
	if s.name != "blog" || len(s.ports) != 2 || s.ports[1].Address != "/run/ssh.sock" || !s.work || s.points != 5 || s.maxStreams != 10 || s.maxClients != 20 ||
		s.introRate != 3 || s.introBurst != 30 || s.proxy != forward.ProxyV2 || len(s.clients) != 2 || s.singleHop {
		t.Errorf("the first is %+v", s)
	}
	if s := specs[1]; s.dir != "/etc/cepa/keys/b1" || s.keys != "/var/lib/b1.keys" || s.front == nil || s.front.String() != front || !s.singleHop || s.points != 3 {
		t.Errorf("the second is %+v", s)
	}
	if s := specs[2]; len(s.backends) != 2 || len(s.ports) != 0 {
		t.Errorf("the third is %+v", s)
	}
}

// Each mistake is told with the line on which it is.
func TestOnionConfigMistakes(t *testing.T) {
	a, b := serviceAddress(t, 1).String(), serviceAddress(t, 2).String()
	one := "[[service]]\nname = \"a\"\nports = [\"80\"]\n"
	key := publicKey(t, 0)
	var many strings.Builder
	for i := range maxServices + 1 {
		fmt.Fprintf(&many, "[[service]]\nname = \"s%d\"\nports = [\"80\"]\n", i)
	}
	for _, v := range []struct{ text, says string }{
		{"", "no [[service]] table"},
		{"x = 1\n" + one, `line 1: unknown key "x"`},
		{one + "[other]\ny = 1\n", `line 4: unknown key "other"`},
		{"[service]\nname = \"a\"\n", "line 1: service is to be written as tables"},
		{"service = 5\n", "line 1: service is to be written as tables"},
		{one + "port = \"80\"\n", `line 4: unknown key "port"; known are backends, clients,`},
		{one + one, "line 5: the name a stands there twice"},
		{"[[service]]\nports = [\"80\"]\n", "line 1: the service has no name"},
		{"[[service]]\nname = \"A b\"\nports = [\"80\"]\n", "line 2: name: \"A b\" is no name"},
		{"[[service]]\nname = \"\"\n", "line 2: name: want a text"},
		{"[[service]]\nname = 5\n", "line 2: name: want a text"},
		{"[[service]]\nname = \"a\"\nname = \"b\"\n", "line 3"},
		{"[[service]]\nname = \"a\"\nports = \"80\"\n", "line 3: ports: want a list"},
		{"[[service]]\nname = \"a\"\nports = [80]\n", "line 3: ports: want a list"},
		{"[[service]]\nname = \"a\"\nports = [\"80\", \"80:81\"]\n", "line 3: ports: port 80 stands there twice"},
		{"[[service]]\nname = \"a\"\n\nports = [\"80:localhost:1\"]\n", "line 4: ports: \"80:localhost:1\": the target must be an IP address"},
		{"[[service]]\nname = \"a\"\n", "line 1: service a: ports is needed"},
		{one + "points = 0\n", "line 1: service a: points must be 1 to 20, not 0"},
		{one + "points = 21\n", "points must be 1 to 20, not 21"},
		{one + "points = 3.5\n", "line 4: points: want a whole number"},
		{one + "points = \"3\"\n", "line 4: points: want a whole number"},
		{one + "points = 99999999999999999999\n", "line 4"},
		{one + "max-streams = 0\n", "max-streams must be 1 to"},
		{one + "max-clients = -1\n", "max-clients must be 1 to"},
		{one + "intro-rate = 0\n", "intro-rate must be 1 to"},
		{one + "intro-rate = 500\n", "intro-burst must be 500"},
		{one + "proof-of-work = 1\n", "line 4: proof-of-work: want true or false"},
		{one + "proxy-protocol = \"v3\"\n", "line 4: proxy-protocol: \"v3\" is no version"},
		{one + "single-hop = true\n", "line 1: service a: single-hop gives the place of the service away"},
		{one + "not-anonymous = true\n", "not-anonymous belongs to single-hop"},
		{one + "front = \"nowhere.onion\"\n", "line 4: front: onion: bad address: an address that ends in .onion belongs to another network"},
		{one + "front = \" " + a + "\"\n", "line 4: front: "},
		{one + "backends = [\"" + a + "\"]\n", "give the ports to its backends"},
		{"[[service]]\nname = \"a\"\nbackends = [\"" + a + "\", \"" + a + "\"]\n", "an address stands there twice"},
		{"[[service]]\nname = \"a\"\nfront = \"" + b + "\"\nbackends = [\"" + a + "\"]\n", "it can be one of them"},
		{"[[service]]\nname = \"a\"\nproxy-protocol = \"v1\"\nbackends = [\"" + a + "\"]\n", "set it at its backends"},
		{"[[service]]\nname = \"a\"\nbackends = [" + strings.Repeat("\""+a+"\",", 21) + "]\n", "21 are too many"},
		{one + "clients = [\"alice\"]\n", "line 4: clients: onion: not the key of a client"},
		{one + "clients = [\"" + key + "\", \"" + key + "\"]\n", "line 4: clients: a key stands there twice"},
		{one + "dir = \"x\"\n[[service]]\nname = \"b\"\nports = [\"80\"]\ndir = \"./x\"\n", "line 8: the services a and b have the same dir"},
		{one + "ports = [\n", "line"},
		{"\x00", "line 1"},
		{many.String(), "65 services: at most 64"},
	} {
		specs, err := parseOnionConfig([]byte(v.text), "/etc")
		if err == nil || !strings.Contains(err.Error(), v.says) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 600 {
			t.Errorf("%.80q: %d services, error %v, want one that says %q", v.text, len(specs), err, v.says)
		}
	}
	dir := t.TempDir()
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, make([]byte, maxOnionConfig+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{filepath.Join(dir, "no.toml"): "does not exist", dir: "is a directory", big: "more than"} {
		if _, err := readOnionConfig(path); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v", path, err)
		}
	}
}

// What is accepted is a list of services that can be started; nothing makes it fail in another way than by an error of one line.
func FuzzOnionConfig(f *testing.F) {
	for _, s := range []string{
		"", "[[service]]\nname = \"a\"\nports = [\"80\"]\n", "[[service]]\nname = \"a\"\nports = [\"80\"]\n[[service]]\nname = \"b\"\nports = [\"1:[::1]:2\", \"2:unix:/s\"]\ndir = \"d\"\n",
		"[[service]]\n[[service.ports]]\nx=1\n", "service = [{name=\"a\", ports=[\"1\"]}]\n", "[service]\n", "\"service\" = 1", "[[service]]\nname.a = 1\n", "[[service]]\nname = '''\n[[service]]\nname = \"x\"\n'''\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		specs, err := parseOnionConfig(b, "/etc")
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Fatalf("an error of several lines: %q", err)
			}
			return
		}
		var names []string
		for i := range specs {
			s := &specs[i]
			if err := s.check(fileWords()); err != nil || slices.Contains(names, s.name) || s.dir != "" && !filepath.IsAbs(s.dir) {
				t.Fatalf("%+v was accepted: %v", s, err)
			}
			if !s.sameButLive(s) {
				t.Fatalf("%+v is not the same as itself", s)
			}
			names = append(names, s.name)
		}
		if len(specs) == 0 || len(specs) > maxServices {
			t.Fatalf("%d services", len(specs))
		}
	})
}

// Every setting but ports and clients makes another service.
func TestSameButLive(t *testing.T) {
	a := serviceAddress(t, 1)
	base := newServiceSpec()
	for name, change := range map[string]func(*serviceSpec){
		"name": func(s *serviceSpec) { s.name = "x" }, "dir": func(s *serviceSpec) { s.dir = "x" }, "points": func(s *serviceSpec) { s.points++ },
		"max-streams": func(s *serviceSpec) { s.maxStreams++ }, "max-clients": func(s *serviceSpec) { s.maxClients++ }, "intro-rate": func(s *serviceSpec) { s.introRate++ },
		"intro-burst": func(s *serviceSpec) { s.introBurst++ }, "work": func(s *serviceSpec) { s.work = true }, "single-hop": func(s *serviceSpec) { s.singleHop = true },
		"keys": func(s *serviceSpec) { s.keys = "x" }, "proxy": func(s *serviceSpec) { s.proxy = forward.ProxyV1 },
		"front": func(s *serviceSpec) { s.setFront(a.String()) }, "backends": func(s *serviceSpec) { s.setBackends([]string{a.String()}) },
	} {
		s := newServiceSpec()
		if change(&s); s.sameButLive(&base) {
			t.Errorf("another %s is no change", name)
		}
	}
	s := newServiceSpec()
	s.ports, s.clients = []forward.Port{{Port: 1}}, []onion.ClientKey{{1}}
	if !s.sameButLive(&base) {
		t.Error("other ports and clients are a change")
	}
}

func TestOnionUsage(t *testing.T) {
	a := serviceAddress(t, 1).String()
	for _, v := range []struct {
		args []string
		says string
	}{
		{nil, "--port is needed"},
		{[]string{"--port", "http"}, "--port: \"http\""},
		{[]string{"--port", "80", "--port", "80:81"}, "port 80 stands there twice"},
		{[]string{"--port", "80", "--points", "21"}, "--points must be 1 to 20, not 21"},
		{[]string{"--port", "80", "--max-streams", "0"}, "--max-streams must be"},
		{[]string{"--port", "80", "--intro-rate", "300"}, "--intro-burst must be 300"},
		{[]string{"--port", "80", "--proxy-protocol", "v9"}, "--proxy-protocol"},
		{[]string{"--port", "80", "--single-hop"}, "say so with --not-anonymous too"},
		{[]string{"--port", "80", "--not-anonymous"}, "belongs to --single-hop"},
		{[]string{"--port", "80", "--front", "example.org"}, "--front: onion: bad address"},
		{[]string{"--port", "80", "--backend", a}, "--port: a front takes no streams"},
		{[]string{"--backend", a, "--front", a}, "it can be one of them"},
		{[]string{"--backend", "x"}, "--backend: onion"},
		{[]string{"--name", "../x", "--port", "80"}, "--name"},
		{[]string{"--config", "x.toml", "--port", "80"}, "--port is of one service"},
		{[]string{"--config", "x.toml", "--name", "y"}, "--name is of one service"},
		{[]string{"--config", "x.toml"}, "--config: x.toml does not exist"},
		{[]string{"--port", "80", "--guard-ports", "x"}, "--guard-ports"},
		{[]string{"--port", "80"}, "--network is needed"},
		{[]string{"stray"}, "takes no argument"},
		{[]string{"--prot", "80"}, "cepa onion --help"},
		{[]string{"status", "--timeout", "-1s"}, "--timeout"},
		{[]string{"status", "--timeout", "1h"}, "--timeout"},
		{[]string{"keys", "nonsense"}, "unknown command"},
		{[]string{"client-auth", "nonsense"}, "unknown command"},
	} {
		code, _, stderr := cepa(t, t.Context(), append([]string{"onion"}, v.args...)...)
		if code != exitUsage || !strings.Contains(stderr, v.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("cepa onion %v: exit code %d, %q, want %q", v.args, code, stderr, v.says)
		}
	}
	for _, args := range [][]string{{}, {"keys"}, {"client-auth"}, {"status"}, {"keys", "prepare"}, {"client-auth", "add"}} {
		code, stdout, _ := cepa(t, t.Context(), append(append([]string{"onion"}, args...), "--help")...)
		if code != exitOK || !strings.Contains(stdout, "Examples:") {
			t.Errorf("cepa onion %v --help: exit code %d, %q", args, code, stdout)
		}
	}
}
