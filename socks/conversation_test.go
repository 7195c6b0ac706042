package socks

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// conversation is all that a client sends, and all that it must read in turn. A request that reaches the dial is joined to
// an echo.
type conversation struct {
	in, out string
	request *Request // what must reach the dial; nil if nothing must
}

func conversations() map[string]conversation {
	get := &Request{Command: CommandConnect, Host: "example.org", Port: 443, IsName: true}
	with := func(username, password string) *Request {
		r := *get
		r.Auth, r.Username, r.Password = true, username, password
		return &r
	}
	to := func(host string, isName bool, port uint16) *Request {
		return &Request{Command: CommandConnect, Host: host, Port: port, IsName: isName}
	}
	by := func(user string, r *Request) *Request {
		r.Auth, r.Username = true, user
		return r
	}
	ok := reply(ReplySucceeded)
	name := func(s string) string {
		return greetNone + "\x05\x01\x00\x03" + string([]byte{byte(len(s))}) + s + "\x00\x50"
	}
	failed := conversation{out: choseNone + reply(ReplyGeneralFailure)}
	bad := func(s string) conversation { c := failed; c.in = name(s); return c }
	long := strings.Repeat("a", 255)
	return map[string]conversation{
		"name":             {greetNone + connectName, choseNone + ok, get},
		"data ahead":       {greetNone + connectName + "hello", choseNone + ok + "hello", get},
		"IPv4":             {greetNone + "\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", choseNone + ok, to("192.0.2.1", false, 80)},
		"IPv6":             {greetNone + "\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x1f\x90", choseNone + ok, to("2001:db8::1", false, 8080)},
		"IPv4 in IPv6":     {greetNone + "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01\x00\x50", choseNone + ok, to("192.0.2.1", false, 80)},
		"IPv4 as name":     {name("192.0.2.1"), choseNone + ok, to("192.0.2.1", false, 80)},
		"IPv6 as name":     {name("2001:DB8:0::1"), choseNone + ok, to("2001:db8::1", false, 80)},
		"brackets":         {name("[2001:db8::1]"), choseNone + ok, to("2001:db8::1", false, 80)},
		"trailing dot":     {name("Example.org."), choseNone + ok, to("Example.org.", true, 80)},
		"UTF-8":            {name("bücher.example"), choseNone + ok, to("bücher.example", true, 80)},
		"longest name":     {name(long), choseNone + ok, to(long, true, 80)},
		"almost a literal": {name("192.0.2"), choseNone + ok, to("192.0.2", true, 80)},

		"password":               {greetPassword + alice + connectName, chosePassword + accepted + ok, with("alice", "secret")},
		"password, data ahead":   {greetPassword + alice + connectName + "hello", chosePassword + accepted + ok + "hello", with("alice", "secret")},
		"password offered last":  {"\x05\x03\x00\x01\x02" + alice + connectName, chosePassword + accepted + ok, with("alice", "secret")},
		"password offered first": {"\x05\x02\x02\x00" + alice + connectName, chosePassword + accepted + ok, with("alice", "secret")},
		"no username":            {greetPassword + "\x01\x00\x06secret" + connectName, chosePassword + accepted + ok, with("", "secret")},
		"no password":            {greetPassword + "\x01\x05alice\x00" + connectName, chosePassword + accepted + ok, with("alice", "")},
		"neither":                {greetPassword + "\x01\x00\x00" + connectName, chosePassword + accepted + ok, with("", "")},
		"longest credentials":    {greetPassword + "\x01\xff" + long + "\xff" + long + connectName, chosePassword + accepted + ok, with(long, long)},
		"binary credentials":     {greetPassword + "\x01\x02\x00\xff\x01\n" + connectName, chosePassword + accepted + ok, with("\x00\xff", "\n")},
		"all methods":            {"\x05\xff" + allMethods() + alice + connectName, chosePassword + accepted + ok, with("alice", "secret")},
		"no known method":        {"\x05\x02\x01\x03" + connectName, choseNothing, nil},
		"no method":              {"\x05\x00" + connectName, choseNothing, nil},
		"credentials of v2":      {greetPassword + "\x02\x05alice\x06secret" + connectName, chosePassword + "\x01\x01", nil},

		"BIND":                 {greetNone + "\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50", choseNone + reply(ReplyCommandNotSupported), nil},
		"UDP ASSOCIATE":        {greetNone + "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", choseNone + reply(ReplyCommandNotSupported), nil},
		"command 0":            {greetNone + "\x05\x00\x00\x01\xc0\x00\x02\x01\x00\x50", choseNone + reply(ReplyCommandNotSupported), nil},
		"unknown command":      {greetNone + "\x05\x77\x00\x03\x01a\x00\x50", choseNone + reply(ReplyCommandNotSupported), nil},
		"address type 0":       {greetNone + "\x05\x01\x00\x00\xc0\x00\x02\x01\x00\x50", choseNone + reply(ReplyAddressTypeNotSupported), nil},
		"address type 2":       {greetNone + "\x05\x01\x00\x02\xc0\x00\x02\x01\x00\x50", choseNone + reply(ReplyAddressTypeNotSupported), nil},
		"request of version 4": {greetNone + "\x04\x01\x00\x01\xc0\x00\x02\x01\x00\x50", failed.out, nil},
		"reserved byte":        {greetNone + "\x05\x01\x01\x01\xc0\x00\x02\x01\x00\x50", failed.out, nil},

		"empty name":         bad(""),
		"NUL":                bad("example.org\x00.evil"),
		"space":              bad("example org"),
		"newline":            bad("example.org\r\nX: y"),
		"DEL":                bad("example\x7f.org"),
		"not UTF-8":          bad("example\xff.org"),
		"right to left":      bad("example\u202egro.elpmaxe"),
		"wide space":         bad("example\u3000org"),
		"name with port":     bad("example.org:80"),
		"zone":               bad("fe80::1%eth0"),
		"zone in brackets":   bad("[fe80::1%eth0]"),
		"IPv4 in brackets":   bad("[192.0.2.1]"),
		"name in brackets":   bad("[example.org]"),
		"only brackets":      bad("[]"),
		"one bracket":        bad("[2001:db8::1"),
		"space after a dot":  bad("example.org. "),
		"IPv6 without a end": bad("2001:db8::1:"),

		"RESOLVE without a resolver":     {greetNone + "\x05\xf0\x00\x03\x01a\x00\x00", choseNone + reply(ReplyCommandNotSupported), nil},
		"RESOLVE_PTR without a resolver": {greetNone + "\x05\xf1\x00\x01\xc0\x00\x02\x01\x00\x00", choseNone + reply(ReplyCommandNotSupported), nil},
		"onion":                          {name("Abc.ONION"), choseNone + reply(ReplyHostUnreachable), nil},
		"onion with the root's dot":      {name("abc.onion."), choseNone + reply(ReplyHostUnreachable), nil},
		"almost onion":                   {name("onion.example"), choseNone + ok, to("onion.example", true, 80)},

		"SOCKS4":              {connect4 + "\xc0\x00\x02\x01\x00", granted, to("192.0.2.1", false, 80)},
		"SOCKS4, data ahead":  {connect4 + "\xc0\x00\x02\x01\x00hello", granted + "hello", to("192.0.2.1", false, 80)},
		"SOCKS4, user":        {connect4 + "\xc0\x00\x02\x01us\xffer\x00", granted, by("us\xffer", to("192.0.2.1", false, 80))},
		"SOCKS4, longest":     {connect4 + "\xc0\x00\x02\x01" + long + "\x00", granted, by(long, to("192.0.2.1", false, 80))},
		"SOCKS4, too long":    {connect4 + "\xc0\x00\x02\x01" + long + "a", rejected, nil},
		"SOCKS4, no address":  {connect4 + "\x00\x00\x00\x00\x00", granted, to("0.0.0.0", false, 80)},
		"SOCKS4a":             {mark4 + "\x00example.org\x00", granted, to("example.org", true, 80)},
		"SOCKS4a, data ahead": {mark4 + "\x00example.org\x00hello", granted + "hello", to("example.org", true, 80)},
		"SOCKS4a, user":       {mark4 + "user\x00example.org\x00", granted, by("user", to("example.org", true, 80))},
		"SOCKS4a, any mark":   {connect4 + "\x00\x00\x00\xff\x00example.org\x00", granted, to("example.org", true, 80)},
		"SOCKS4a, no mark":    {connect4 + "\x00\x00\x01\x01\x00example.org\x00", granted + "example.org\x00", to("0.0.1.1", false, 80)},
		"SOCKS4a, literal":    {mark4 + "\x002001:db8::1\x00", granted, to("2001:db8::1", false, 80)},
		"SOCKS4a, longest":    {mark4 + "\x00" + long + "\x00", granted, to(long, true, 80)},
		"SOCKS4a, too long":   {mark4 + "\x00" + long + "a", rejected, nil},
		"SOCKS4a, no name":    {mark4 + "\x00\x00", rejected, nil},
		"SOCKS4a, space":      {mark4 + "\x00a b\x00", rejected, nil},
		"SOCKS4a, onion":      {mark4 + "\x00a.onion\x00", rejected, nil},
		"SOCKS4 BIND":         {"\x04\x02\x00\x50\xc0\x00\x02\x01\x00", rejected, nil},
		"SOCKS4 RESOLVE":      {"\x04\xf0\x00\x00\x00\x00\x00\x01\x00example.org\x00", rejected, nil},
		"SOCKS4 RESOLVE_PTR":  {"\x04\xf1\x00\x00\xc0\x00\x02\x01\x00", rejected, nil},
		"SOCKS4 UDP":          {"\x04\x03\x00\x00\xc0\x00\x02\x01\x00", rejected, nil},

		"HTTP CONNECT": {"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\nhello", established + "hello", to("example.org", true, 443)},
		"HTTP GET /":   {"GET / HTTP/1.1\r\n\r\n", errorPage(400, help), nil},
		"HTTP OPTIONS": {"OPTIONS * HTTP/1.1\r\n\r\n", errorPage(400, help), nil},
		"shouting":     {"HELLO WORLD\r\n", errorPage(400, "This is not a request of HTTP/1.1 or HTTP/1.0."), nil},
		"long word":    {"PROPFINDPROPFINDPROPFINDX / HTTP/1.1\r\n", "", nil},
		"lower case":   {"get / HTTP/1.1\r\n\r\n", "", nil},
		"mixed case":   {"GeT / HTTP/1.1\r\n\r\n", "", nil},
		"TLS":          {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "", nil},
		"zeros":        {"\x00\x00\x00\x00", "", nil},
		"SOCKS6":       {"\x06\x01\x00", "", nil},
	}
}

// connect4 and mark4 begin a CONNECT of SOCKS4 and of SOCKS4a to port 80.
const (
	connect4 = "\x04\x01\x00\x50"
	mark4    = connect4 + "\x00\x00\x00\x01"
)

func allMethods() string {
	b := make([]byte, 255)
	for i := range b {
		b[i] = byte(254 - i)
	}
	return string(b)
}

// hold sends in, in pieces of n bytes, and returns all that comes back. The client ends its direction only when it has read
// what it expects: to leave during the dial is another test.
func hold(t *testing.T, c *duplex, in, want string, n int) string {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for rest := in; rest != ""; {
			piece := rest[:min(n, len(rest))]
			if _, err := io.WriteString(c, piece); err != nil {
				return // refused before we were through
			}
			rest = rest[len(piece):]
		}
	}()
	got := make([]byte, len(want))
	k, err := io.ReadFull(c, got)
	if err != nil {
		c.Close()
		<-sent
		return string(got[:k])
	}
	<-sent
	c.CloseWrite()
	more, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("the conversation ended with %v", err)
	}
	c.Close()
	return string(got) + string(more)
}

func TestConversations(t *testing.T) {
	for name, conv := range conversations() {
		for pieces, n := range map[string]int{"at once": len(conv.in), "byte by byte": 1, "in threes": 3} {
			t.Run(name+"/"+pieces, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var dialled []*Request
					ln := serveMem(t, &Server{Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
						dialled = append(dialled, r)
						return echo(ctx, r)
					}})
					got := hold(t, ln.dial(), conv.in, conv.out, n)
					if got != conv.out {
						t.Errorf("the client read\n%q, want\n%q", got, conv.out)
					}
					synctest.Wait()
					var want []*Request
					if conv.request != nil {
						r := *conv.request
						r.Client, r.Local = pipeAddr(), pipeAddr()
						want = append(want, &r)
					}
					if diff := cmp.Diff(want, dialled); diff != "" {
						t.Errorf("requests that were dialled (-want +got):\n%s", diff)
					}
				})
			})
		}
	}
}

// pipeAddr is the address of every net.Pipe.
func pipeAddr() net.Addr {
	c, d := net.Pipe()
	defer c.Close()
	defer d.Close()
	return c.LocalAddr()
}

// A client that ends anywhere before its request is complete gets what was due by then and an end, and nothing is dialled.
func TestEveryTruncation(t *testing.T) {
	for _, conv := range []conversation{
		{in: greetPassword + alice + connectName, out: chosePassword + accepted},
		{in: greetNone + "\x05\x01\x00\x04" + strings.Repeat("\x11", 18), out: choseNone},
		{in: greetNone + "\x05\x01\x00\x01" + strings.Repeat("\x11", 6), out: choseNone},
		{in: connect4 + "\xc0\x00\x02\x01user\x00", out: ""},
		{in: mark4 + "user\x00example.org\x00", out: ""},
		{in: "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", out: ""},
		{in: "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n", out: ""},
	} {
		for n := range len(conv.in) {
			synctest.Test(t, func(t *testing.T) {
				ln := serveMem(t, &Server{Dial: func(context.Context, *Request) (net.Conn, error) {
					t.Errorf("dialled after %d of %d bytes", n, len(conv.in))
					return nil, errors.New("no")
				}})
				c := ln.dial()
				go func() {
					io.WriteString(c, conv.in[:n])
					c.CloseWrite()
				}()
				got, err := io.ReadAll(iotest.OneByteReader(c))
				if err != nil || !strings.HasPrefix(conv.out, string(got)) {
					t.Errorf("after %d of %d bytes the client read %q, %v", n, len(conv.in), got, err)
				}
			})
		}
	}
}
