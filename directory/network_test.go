package directory

import (
	"bytes"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestThreshold(t *testing.T) {
	for _, c := range []struct{ n, threshold, majority int }{
		{1, 1, 1}, {2, 2, 2}, {3, 3, 2}, {4, 3, 3}, {5, 4, 3}, {6, 5, 4}, {7, 5, 4}, {9, 7, 5}, {10, 7, 6},
	} {
		net := &Network{Authorities: make([]Authority, c.n)}
		if net.Threshold() != c.threshold || net.Majority() != c.majority {
			t.Errorf("%d authorities: threshold %d, majority %d, want %d, %d", c.n, net.Threshold(), net.Majority(), c.threshold, c.majority)
		}
	}
}

func TestPeriods(t *testing.T) {
	net := &Network{Interval: 10 * time.Second}
	at := time.Unix(1_000_000_009, 999).UTC()
	if p := net.Period(at); p != 100_000_000 || !net.PeriodStart(p).Equal(time.Unix(1_000_000_000, 0)) {
		t.Errorf("period %d from %v", p, net.PeriodStart(p))
	}
	if p := net.Period(time.Unix(-5, 0)); p != 0 {
		t.Errorf("before 1970 is period %d", p)
	}
	if s := net.PeriodStart(1 << 63); s.Unix() != maxUnixTime {
		t.Errorf("a distant period starts at %v", s)
	}
}

func TestNetworkFile(t *testing.T) {
	net, _ := testNetwork(t, 4)
	net.Params = Params{ParamLinkPadding: 0, "some-later-one": -7}
	net.Fallbacks = []Fallback{{Address: "cache.example.org:80", Identity: testKey(t, "relay").ID()}, {Address: "[2001:db8::1]:9030"}}
	text, err := net.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseNetwork(text)
	if err != nil || !reflect.DeepEqual(got, net) {
		t.Fatalf("parsed %+v, %v, want %+v from\n%s", got, err, net, text)
	}
	for _, part := range []string{"A consensus counts when 3 of these 4", "whether client links are padded", "127.0.0.4:7000", "interval = \"1h0m0s\""} {
		if !bytes.Contains(text, []byte(part)) {
			t.Errorf("the file lacks %q:\n%s", part, text)
		}
	}
	for a := range net.Authorities {
		if got, ok := net.Authority(net.Authorities[a].Identity); !ok || got != &net.Authorities[a] {
			t.Errorf("authority %d is not found by identity", a)
		}
	}
	if _, ok := net.Authority(testKey(t, "stranger").ID()); ok {
		t.Error("a stranger is an authority")
	}
	many := *net
	many.Fallbacks = make([]Fallback, MaxFallbacks+1)
	for i := range many.Fallbacks {
		many.Fallbacks[i].Address = "10.0.0.1:" + strconv.Itoa(i+1)
	}
	if err := many.Validate(); err == nil || !strings.Contains(err.Error(), "at most 128") {
		t.Errorf("%d fallback caches: %v", len(many.Fallbacks), err)
	}
	net.Name = "UPPER"
	if _, err := net.MarshalText(); err == nil {
		t.Error("a network that cannot be parsed is written")
	}
}

func TestNetworkFileRefuses(t *testing.T) {
	net, _ := testNetwork(t, 2)
	good := string(net.AppendTOML(nil))
	authority := good[strings.LastIndex(good, "[[authority]]"):]
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "network name"},
		{"unknown key", "nmae = \"x\"\n" + good, `line 1: unknown key "nmae"`},
		{"unknown key in a table", good + "adress = \"x\"\n", `unknown key "authority.adress"`},
		{"unknown table", good + "[relays]\nx = 1\n", `unknown key "relays"`},
		{"syntax", good + "x = \n", "line "},
		{"type", strings.Replace(good, `name = "test"`, "name = 7", 1), "line "},
		{"repeated key", "name = \"a\"\n" + good, "line "},
		{"name", strings.Replace(good, `"test"`, `"Test"`, 1), "network name"},
		{"interval", strings.Replace(good, `"1h0m0s"`, `"often"`, 1), "interval"},
		{"short interval", strings.Replace(good, `"1h0m0s"`, `"900ms"`, 1), "interval"},
		{"interval with fractions", strings.Replace(good, `"1h0m0s"`, `"1500ms"`, 1), "interval"},
		{"long interval", strings.Replace(good, `"1h0m0s"`, `"25h"`, 1), "interval"},
		{"identity", strings.Replace(good, `identity = "`, `identity = "0`, 1), "authority 1"},
		{"same authority", good + authority, "repeats"},
		{"address without port", strings.Replace(good, "127.0.0.1:7000", "127.0.0.1", 1), "host:port"},
		{"port 0", strings.Replace(good, "127.0.0.1:7000", "127.0.0.1:0", 1), "port"},
		{"URL", strings.Replace(good, "127.0.0.1:7000", "http://127.0.0.1:7000", 1), "host:port"},
		{"header injection", strings.Replace(good, "127.0.0.1:7000", `a\r\nb:1`, 1), "host:port"},
		{"no authority", "name = \"x\"\n", "authorities"},
		{"parameter out of bounds", "[params]\nlink-padding = 2\n", ""},
		{"large", good + "#" + strings.Repeat("x", MaxNetworkFile), ""},
	} {
		_, err := ParseNetwork([]byte(c.text))
		reason := ErrMalformed
		if c.name == "large" {
			reason = ErrTooLarge
		}
		wantReason(t, err, reason)
		if err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %q, want %q in it", c.name, err, c.want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%s: error has several lines: %q", c.name, err)
		}
	}
	withParam := strings.Replace(good, "\n[[authority]]", "\n[params]\nlink-padding = 2\n[[authority]]", 1)
	if _, err := ParseNetwork([]byte(withParam)); err == nil || !strings.Contains(err.Error(), "link-padding is 2") {
		t.Errorf("a parameter out of bounds: %v", err)
	}
}

// TestNetworkFileLine: errors about unknown keys lead to the line, in tables too.
func TestNetworkFileLine(t *testing.T) {
	net, _ := testNetwork(t, 1)
	text := string(net.AppendTOML(nil))
	lines := strings.Count(text, "\n")
	_, err := ParseNetwork([]byte(text + "\n  port = 7\n"))
	if want := "line " + strconv.Itoa(lines+2) + ": unknown key \"authority.port\""; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want %q in it", err, want)
	}
}

// FuzzNetwork: what is accepted can be written and is read again as the same.
func FuzzNetwork(f *testing.F) {
	net, _ := testNetwork(f, 4)
	f.Add(net.AppendTOML(nil))
	net.Fallbacks = []Fallback{{Address: "cache.example.org:80", Identity: testKey(f, "relay").ID()}, {Address: "[2001:db8::1]:9030"}}
	net.Params = Params{ParamLinkPadding: 1}
	f.Add(net.AppendTOML(nil))
	f.Add([]byte("name = \"x\"\n[[authority]]\n"))
	f.Add([]byte("a.b.c = 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		net, err := ParseNetwork(b)
		if err != nil {
			return
		}
		text, err := net.MarshalText()
		if err != nil {
			t.Fatalf("accepted but not writable: %v", err)
		}
		again, err := ParseNetwork(text)
		if err != nil || !reflect.DeepEqual(again, net) {
			t.Fatalf("%+v became %+v, %v", net, again, err)
		}
	})
}

// TestNetworkFileVersions: what the authorities say of versions goes into the file and comes back.
func TestNetworkFileVersions(t *testing.T) {
	net, _ := testNetwork(t, 2)
	net.Versions = Versions{Recommended: "0.3", Required: "0.2.1"}
	text, err := net.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseNetwork(text); err != nil || got.Versions != net.Versions {
		t.Errorf("%+v, %v from\n%s", got, err, text)
	}
	for _, bad := range []string{"3", "0.3-rc1", "v0.3", "0.03", "a.b", "1.2.3.4.5"} {
		_, err := ParseNetwork([]byte(strings.Replace(string(text), "0.2.1", bad, 1)))
		if wantReason(t, err, ErrMalformed); err != nil && !strings.Contains(err.Error(), "numbers with dots") {
			t.Errorf("version %s: %v", bad, err)
		}
	}
}
