package forward

import (
	"fmt"
	"strings"
	"testing"
)

func TestParsePort(t *testing.T) {
	for text, want := range map[string]Port{
		"80":                       {80, "tcp", "127.0.0.1:80"},
		"80:8080":                  {80, "tcp", "127.0.0.1:8080"},
		"80:127.0.0.1:8080":        {80, "tcp", "127.0.0.1:8080"},
		"65535:[::1]:1":            {65535, "tcp", "[::1]:1"},
		"1:[2001:DB8::0:1]:443":    {1, "tcp", "[2001:db8::1]:443"},
		"22:unix:/run/ssh.sock":    {22, "unix", "/run/ssh.sock"},
		"22:unix:/run/with:colons": {22, "unix", "/run/with:colons"},
	} {
		p, err := ParsePort(text)
		if err != nil || p != want {
			t.Errorf("%q: %+v, error %v, want %+v", text, p, err, want)
		}
	}
	for text, says := range map[string]string{
		"":                                     "before the first colon",
		"0":                                    "1 to 65535",
		"65536":                                "1 to 65535",
		"080:80":                               "1 to 65535",
		"+80":                                  "1 to 65535",
		" 80":                                  "1 to 65535",
		"-1:127.0.0.1:1":                       "1 to 65535",
		"http:127.0.0.1:80":                    "1 to 65535",
		"80:":                                  "port of the target",
		"80:0":                                 "port of the target",
		"80:127.0.0.1":                         "port of the target",
		"80:127.0.0.1:":                        "IP address and a port",
		"80:127.0.0.1:0":                       "has no port",
		"80:127.0.0.1:99999":                   "IP address and a port",
		"80:localhost:80":                      "write 127.0.0.1 or [::1]",
		"80:example.org:80":                    "must be an IP address",
		"80:::1:80":                            "must be an IP address",
		"80:0.0.0.0:80":                        "nothing can be connected",
		"80:[::]:80":                           "nothing can be connected",
		"80:224.0.0.1:80":                      "nothing can be connected",
		"80:unix:":                             "must be absolute",
		"80:unix:run/web.sock":                 "must be absolute",
		"80:unix:/a\x00b":                      "must be absolute",
		"80:unix:/" + strings.Repeat("a", 103): "shorter",
		"80:127.0.0.1:80\n":                    "IP address and a port",
	} {
		p, err := ParsePort(text)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %+v, error %v, want one about %q", text, p, err, says)
		}
	}
}

func TestParsePorts(t *testing.T) {
	ports, err := ParsePorts([]string{"80", "22:unix:/s", "443:[::1]:8443"})
	if err != nil || len(ports) != 3 || ports[1].Network != "unix" {
		t.Errorf("%v, error %v", ports, err)
	}
	var many []string
	for i := range MaxPorts {
		many = append(many, fmt.Sprint(i+1))
	}
	if _, err := ParsePorts(many); err != nil {
		t.Error(err)
	}
	for says, texts := range map[string][]string{
		"1 to 128 ports":     {},
		"port 80 stands":     {"80:8080", "81", "80:8081"},
		"more than 128":      append(many, "1000"),
		"before the first c": {"80", "x"},
	} {
		if _, err := ParsePorts(texts); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want one about %q", err, says)
		}
	}
}

func TestLocal(t *testing.T) {
	for text, want := range map[string]bool{
		"80": true, "80:127.9.9.9:1": true, "80:[::1]:1": true, "80:[::ffff:127.0.0.1]:1": true, "80:unix:/s": true,
		"80:192.168.1.2:80": false, "80:[fd00::1]:80": false,
	} {
		p, err := ParsePort(text)
		if err != nil || p.Local() != want {
			t.Errorf("%q: local is %v, error %v", text, p.Local(), err)
		}
	}
}

// What is read is written in a way that is read as the same.
func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "80:8080", "80:127.0.0.1:8080", "22:unix:/run/ssh.sock", "1:[::1]:2", "1:[fe80::1%eth0]:2", "0", "80:unix:", "80::::", "65536:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePort(text)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		again, err := ParsePort(p.String())
		if err != nil || again != p {
			t.Fatalf("%q is %+v, written %q, and read as %+v, error %v", text, p, p, again, err)
		}
		if err := checkPorts([]Port{p}); err != nil {
			t.Fatal(err)
		}
	})
}
