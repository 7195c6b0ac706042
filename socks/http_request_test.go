package socks

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	for s, want := range map[string]string{
		"a.example": "a.example name 80", "a.example:": "a.example name 80", "a.example:0": "a.example name 0", "a.example:00443": "a.example name 443",
		"192.0.2.1:65535": "192.0.2.1 65535", "[2001:DB8::1]": "2001:db8::1 80", "[2001:db8::1]:8": "2001:db8::1 8", "[::ffff:192.0.2.1]:8": "192.0.2.1 8",
		"bücher.example:1": "bücher.example name 1",
		"":                 "", ":80": "", "a:65536": "", "a:-1": "", "a:+1": "", "a: 1": "", "a:1 ": "", "a:0x1": "", "a:b:1": "", "::1": "", "2001:db8::1:80": "",
		"[192.0.2.1]:80": "", "[a.example]:80": "", "[::1": "", "::1]": "", "[::1]80": "", "[::1]x:80": "", "[::1%eth0]:80": "", "[]:80": "",
		"user@a.example": "", "user:pw@a.example:80": "", "a/b:80": "", "a?b": "", "a#b": "", `a\b`: "", "a b": "", "a\r\nb": "", "a\x00": "",
	} {
		host, isName, port, err := parseAuthority(s, 80)
		got := ""
		if err == nil {
			got = host + map[bool]string{true: " name "}[isName] + map[bool]string{false: " "}[isName] + strconv.Itoa(int(port))
		}
		if got != want {
			t.Errorf("%q is %q, %v, want %q", s, got, err, want)
		}
		if _, _, _, err := parseAuthority(s, -1); err == nil && (!strings.Contains(s, ":") || strings.HasSuffix(s, ":") || strings.HasSuffix(s, "]")) {
			t.Errorf("%q was accepted without a port", s)
		}
	}
}

func TestEndToEnd(t *testing.T) {
	h := http.Header{"Connection": {"a, b ,", ",C"}, "A": {"1"}, "B": {"1"}, "C": {"1"}, "D": {"1"}, "Te": {"x"}, "Proxy-Authorization": {"secret"}, "Proxy-Status": {"kept"}}
	endToEnd(h)
	if len(h) != 2 || h.Get("D") == "" || h.Get("Proxy-Status") == "" {
		t.Errorf("%v is left", h)
	}
}

func TestCredentials(t *testing.T) {
	long := strings.Repeat("x", 255)
	for _, c := range []struct{ user, password string }{{"alice", "secret"}, {"", ""}, {"", "a:b:c"}, {"\x00\xff", "\n"}, {long, long}} {
		var r Request
		ok, err := r.credentials([]string{"Basic " + base64.StdEncoding.EncodeToString([]byte(c.user+":"+c.password))})
		if !ok || err != nil || r.Username != c.user || r.Password != c.password {
			t.Errorf("%q, %q became %+v, %t, %v", c.user, c.password, r, ok, err)
		}
	}
	if ok, err := new(Request).credentials(nil); ok || err != nil {
		t.Errorf("none at all: %t, %v", ok, err)
	}
}

// What is fit to be forwarded is one request when the origin server reads it, has the target, host and length that were meant,
// and tells nothing that was for us.
func FuzzForward(f *testing.F) {
	for _, c := range talks() {
		if len(c.in) < 1000 {
			f.Add([]byte(c.in))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		secret := req.Header.Get("Proxy-Authorization")
		fw, err := parseForward(req)
		if err != nil {
			if p, ok := err.(*page); !ok || p.status < 400 || p.status > 505 {
				t.Fatalf("%q is refused with %v", in, err)
			}
			return
		}
		r := fw.request
		if host, isName, err := parseHost(r.Host); err != nil || host != r.Host || isName != r.IsName || r.Command != CommandConnect {
			t.Fatalf("%q leads to %+v", in, r)
		}
		if len(r.Username) > maxField || len(r.Password) > maxField || r.Auth != (secret != "") {
			t.Fatalf("%q has credentials %+v", in, r)
		}
		if req.Method == http.MethodConnect {
			return
		}
		out := fw.head()
		rest := bufio.NewReader(bytes.NewReader(append(bytes.Clone(out), "!"...)))
		sent, err := http.ReadRequest(rest)
		if err != nil {
			t.Fatalf("%q is sent as %q: %v", in, out, err)
		}
		if sent.Method != req.Method || sent.RequestURI != fw.path || sent.ContentLength != max(req.ContentLength, -1) || sent.Proto != "HTTP/1.1" || rest.Buffered() != 1 {
			t.Fatalf("%q is sent as %q, which reads %+v", in, out, sent)
		}
		host, isName, port, err := parseAuthority(fw.host, 80)
		if err != nil || host != r.Host || isName != r.IsName || port != r.Port || bytes.Count(out, []byte("\r\nHost: ")) != 1 {
			t.Fatalf("%q is sent as %q, to %s", in, out, net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))))
		}
		for name := range sent.Header {
			switch name {
			case "Proxy-Authorization", "Proxy-Connection", "Connection", "Upgrade", "Keep-Alive", "Te":
				t.Fatalf("%q is sent as %q", in, out)
			}
		}
	})
}
