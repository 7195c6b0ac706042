package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	"cepa/socks"
)

func TestParseListeners(t *testing.T) {
	for _, c := range []struct {
		args []string
		base rules
		want string // what is listened on, or part of the error
		ok   bool
	}{
		{[]string{"127.0.0.1:9250"}, rules{}, "127.0.0.1:9250", true},
		{[]string{"127.0.0.1:9250", "127.0.0.1:9251,isolate-dest-host,isolate-dest-port"}, rules{}, "127.0.0.1:9250 127.0.0.1:9251 (isolate-dest-host, isolate-dest-port)", true},
		{[]string{"[::1]:0,isolate-dest", "[::1]:0"}, rules{safe: true}, "[::1]:0 (isolate-dest-host, isolate-dest-port, safe-socks) [::1]:0 (safe-socks)", true},
		{[]string{":1,share-users,share-clients"}, rules{destHost: true}, ":1 (isolate-dest-host, share-users, share-clients)", true},
		{[]string{"localhost:1"}, rules{}, "localhost:1", true},
		{nil, rules{}, "1 to 32 times, not 0", false},
		{make([]string, 33), rules{}, "not 33", false},
		{[]string{"127.0.0.1"}, rules{}, "an address and a port", false},
		{[]string{"127.0.0.1:"}, rules{}, "an address and a port", false},
		{[]string{""}, rules{}, "an address and a port", false},
		{[]string{"example.org:80"}, rules{}, "is not an IP address", false},
		{[]string{"127.0.0.1:65536"}, rules{}, "is not a port", false},
		{[]string{"127.0.0.1:socks"}, rules{}, "is not a port", false},
		{[]string{"127.0.0.1:1,"}, rules{}, `"" is no rule`, false},
		{[]string{"127.0.0.1:1, isolate-dest"}, rules{}, "is no rule; there are isolate-dest-host, ", false},
		{[]string{"127.0.0.1:1,isolate-dest-hosts"}, rules{}, "is no rule", false},
		{[]string{"127.0.0.1:1,safe-socks,safe-socks"}, rules{}, "stands there twice", false},
		{[]string{"127.0.0.1:1", "127.0.0.1:1,safe-socks"}, rules{}, "stands there twice", false},
	} {
		all, err := parseListeners(c.args, c.base)
		var texts []string
		for _, l := range all {
			texts = append(texts, describe(l.addr, l.rules))
		}
		switch got := strings.Join(texts, " "); {
		case c.ok && (err != nil || got != c.want):
			t.Errorf("%q: %q, %v, want %q", c.args, got, err, c.want)
		case !c.ok && (err == nil || !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q: %q, %v, want an error with %q", c.args, got, err, c.want)
		}
	}
	for text, want := range map[string]rules{"no": {}, "host": {destHost: true}, "port": {destPort: true}, "both": {destHost: true, destPort: true}} {
		var r rules
		if err := parseIsolateDest(text, &r); err != nil || r != want {
			t.Errorf("--isolate-dest %s: %v, %v", text, r, err)
		}
	}
	if err := parseIsolateDest("Host", new(rules)); err == nil {
		t.Error("--isolate-dest Host is accepted")
	}
}

// asked is one way in which requests differ.
func asked(user, pass string, auth bool, from, host string, port uint16) *socks.Request {
	return &socks.Request{
		Command: socks.CommandConnect, Auth: auth, Username: user, Password: pass, Host: host, IsName: true, Port: port,
		Client: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from)),
	}
}

// TestIsolationKeys: keys are the same exactly when all that counts is.
func TestIsolationKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	parts := func(r *socks.Request, i isolation) string { // what counts, in another form
		s := fmt.Sprintf("%d", i.listener)
		if !i.rules.shareUsers {
			s += fmt.Sprintf(" %v %q %q", r.Auth, r.Username, r.Password)
		}
		if !i.rules.shareClients {
			s += " " + r.Client.(*net.TCPAddr).AddrPort().Addr().Unmap().String()
		}
		if i.rules.destHost {
			s += fmt.Sprintf(" host %q", strings.TrimSuffix(strings.ToLower(r.Host), "."))
		}
		if i.rules.destPort {
			s += fmt.Sprintf(" port %d", r.Port)
		}
		return s
	}
	for range 50 {
		rule := rules{shareUsers: rng.IntN(4) == 0, shareClients: rng.IntN(4) == 0, destHost: rng.IntN(2) == 0, destPort: rng.IntN(2) == 0}
		keys, whose := map[string]string{}, map[string]string{}
		for range 2000 {
			auth := rng.IntN(4) > 0
			user, pass := "", ""
			if auth {
				// Among them such as a key without lengths would mix up.
				user, pass = pick("", "a", "ab", "ac1", "\x00", "n"), pick("", "b", "bb", "\x00\x01b", "n")
			}
			i := isolation{rng.IntN(3), rule}
			r := asked(user, pass, auth, pick("127.0.0.1:1", "127.0.0.1:2", "[::ffff:127.0.0.1]:3", "127.0.0.2:1", "[::1]:1"),
				pick("a.example", "A.example.", "b.example", "p\x00P"), []uint16{80, 443, 0x5000}[rng.IntN(3)])
			what, key := parts(r, i), i.stream(r)
			if old, ok := keys[what]; ok && old != key {
				t.Fatalf("%s has two keys, %q and %q", what, old, key)
			}
			if old, ok := whose[key]; ok && old != what {
				t.Fatalf("%s and %s have the same key %q", what, old, key)
			}
			keys[what], whose[key] = key, what
		}
		if len(keys) < 2 {
			t.Fatalf("%v: the test looks at %d keys only", rule, len(keys))
		}
	}
	// Who asks is told apart, and where to is not, where connections and virtual
	// addresses are kept.
	i := isolation{0, rules{destHost: true, destPort: true}}
	if a, b := asked("u", "p", true, "127.0.0.1:1", "a", 80), asked("u", "p", true, "127.0.0.1:9", "b", 443); i.origin(a) != i.origin(b) {
		t.Error("one program's virtual addresses go by where it asks to")
	}
	if a, b := asked("u", "p", true, "127.0.0.1:1", "a", 80), asked("v", "p", true, "127.0.0.1:1", "a", 80); i.origin(a) == i.origin(b) {
		t.Error("two users share virtual addresses")
	}
}

func FuzzParseListener(f *testing.F) {
	for _, s := range []string{"127.0.0.1:9250", "[::1]:9251,isolate-dest-host,isolate-dest-port", ":0,safe-socks", "x,,", "127.0.0.1:1,share-users,share-clients"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parseListener(text, rules{})
		if err != nil {
			return
		}
		again := l.addr
		if r := l.rules.String(); r != "" {
			again += "," + strings.ReplaceAll(r, ", ", ",")
		}
		if m, err := parseListener(again, rules{}); err != nil || m != l {
			t.Errorf("%q is %v, and written again %q is %v, %v", text, l, again, m, err)
		}
	})
}
