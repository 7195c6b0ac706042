package socks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// origin is one connection to an origin server: where it leads, what must be sent over it in turn, and what is answered each
// time. If closes, the server ends its direction after the last answer.
type origin struct {
	to     string // host:port, and after a space the isolation key if there is one
	steps  [][2]string
	closes bool
}

// talk is all that a client sends, what must happen behind us, and all that the client must read.
type talk struct {
	in      string
	origins []origin
	out     string
}

const (
	ok5     = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
	closed5 = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
	getA    = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
	sentA   = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
)

func one(to, sent, answered string) []origin {
	return []origin{{to: to, steps: [][2]string{{sent, answered}}}}
}

// to80 is one exchange with a.example.
func to80(sent, answered string) []origin { return one("a.example:80", sent, answered) }

func talks() map[string]talk {
	request := func(line, fields string) string { return line + "\r\nHost: a.example\r\n" + fields + "\r\n" }
	get := func(fields string) string { return request("GET http://a.example/ HTTP/1.1", fields) }
	sent := func(fields string) string { return request("GET / HTTP/1.1", fields) }
	post := func(fields string) string { return request("POST http://a.example/ HTTP/1.1", fields) }
	posted := func(fields string) string { return request("POST / HTTP/1.1", fields) }
	bad := func(in, text string) talk { return talk{in: in, out: errorPage(400, text)} }
	const (
		unreadable = "This is not a request of HTTP/1.1 or HTTP/1.0."
		noTarget   = "The request target is neither a path nor a URL."
		noHost     = "The URL has no host, or one that cannot be, or a user name."
		noPort     = "CONNECT wants a host and a port, like example.org:443."
		badAnswer  = "The site's answer is not of HTTP/1.1, or its fields are longer than 64 KiB."
		noAnswer   = "The site closed the connection without an answer."
	)
	all := map[string]talk{
		"GET":            {getA, to80(sentA, ok5), ok5},
		"path and query": {"GET http://a.example/p%20q/..?x=1&y=%zz;z HTTP/1.1\r\nHost: a.example\r\n\r\n", to80("GET /p%20q/..?x=1&y=%zz;z HTTP/1.1\r\nHost: a.example\r\n\r\n", ok5), ok5},
		"no path":        {"GET http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n", to80(sentA, ok5), ok5},
		"only a query":   {"GET http://a.example?x HTTP/1.1\r\nHost: a.example\r\n\r\n", to80("GET /?x HTTP/1.1\r\nHost: a.example\r\n\r\n", ok5), ok5},
		"fragment":       {"GET http://a.example/x#y HTTP/1.1\r\nHost: a.example\r\n\r\n", to80("GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n", ok5), ok5},
		"port":           {"GET http://a.example:8080/ HTTP/1.1\r\nHost: a.example\r\n\r\n", one("a.example:8080", "GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n", ok5), ok5},
		"empty port":     {"GET http://a.example:/ HTTP/1.1\r\n\r\n", to80("GET / HTTP/1.1\r\nHost: a.example:\r\n\r\n", ok5), ok5},
		"IPv6":           {"GET http://[2001:DB8::1]/ HTTP/1.1\r\nHost: a.example\r\n\r\n", one("[2001:db8::1]:80", "GET / HTTP/1.1\r\nHost: [2001:DB8::1]\r\n\r\n", ok5), ok5},
		"scheme's case":  {"GET HTTP://A.example/ HTTP/1.1\r\n\r\n", one("A.example:80", "GET / HTTP/1.1\r\nHost: A.example\r\n\r\n", ok5), ok5},
		"the URL counts": {"GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n", to80(sentA, ok5), ok5},
		"OPTIONS":        {"OPTIONS http://a.example HTTP/1.1\r\n\r\n", to80("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", ok5), ok5},
		"any method":     {"VERSION-CONTROL http://a.example/ HTTP/1.1\r\n\r\n", to80("VERSION-CONTROL / HTTP/1.1\r\nHost: a.example\r\n\r\n", ok5), ok5},
		"bare newlines":  {"GET http://a.example/ HTTP/1.1\nHost: a.example\nA: b\n\n", to80(sent("A: b\r\n"), ok5), ok5},

		"fields stay": {
			get("User-Agent: Wget/1.21\r\nAccept: */*\r\nAccept-Encoding: identity\r\nCookie: a=b\r\nAuthorization: Basic eDp5\r\nX-Forwarded-For: 192.0.2.1\r\nVia: 1.1 x\r\nExtra: \xfc\r\n"),
			to80(sent("Accept: */*\r\nAccept-Encoding: identity\r\nAuthorization: Basic eDp5\r\nCookie: a=b\r\nExtra: \xfc\r\nUser-Agent: Wget/1.21\r\nVia: 1.1 x\r\nX-Forwarded-For: 192.0.2.1\r\n"), ok5), ok5,
		},
		"fields for us go": {
			get("Connection: keep-alive, Secret ,close-not\r\nSecret: s\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nProxy-Authenticate: x\r\nKept: k\r\n"),
			to80(sent("Kept: k\r\n"), ok5), ok5,
		},
		"answer's fields": {
			getA, to80(sentA, "HTTP/1.1 200 Very OK\r\nServer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nConnection: keep-alive, gone\r\nGone: g\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"),
			"HTTP/1.1 200 Very OK\r\nServer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
		},
		"credentials stay here": {
			get("Proxy-Authorization: Basic YWxpY2U6c2U6Y3JldA==\r\n"),
			one("a.example:80 alice/se:cret", sentA, ok5), ok5,
		},
		"credentials of CONNECT": {
			"CONNECT a.example:443 HTTP/1.1\r\nproxy-authorization: basic  Og==\r\n\r\nx",
			one("a.example:443 /", "x", "y"), established + "y",
		},

		"CONNECT, IPv6": {
			"CONNECT [2001:DB8::1]:443 HTTP/1.1\r\n\r\nx", one("[2001:db8::1]:443", "x", "y"), established + "y",
		},
		"CONNECT, IPv4 in IPv6": {
			"CONNECT [::ffff:192.0.2.1]:443 HTTP/1.1\r\n\r\nx", one("192.0.2.1:443", "x", "y"), established + "y",
		},

		"body":            {post("Content-Length: 3\r\n") + "abc", to80(posted("Content-Length: 3\r\n")+"abc", ok5), ok5},
		"empty body":      {post("Content-Length: 0\r\n"), to80(posted("Content-Length: 0\r\n"), ok5), ok5},
		"body of a GET":   {get("Content-Length: 3\r\n") + "abc", to80(sent("Content-Length: 3\r\n")+"abc", ok5), ok5},
		"POST without":    {post(""), to80(posted(""), ok5), ok5},
		"chunked body":    {post("Transfer-Encoding: chunked\r\n") + "01 ;ext=1\r\na\r\n00;x\r\n\r\n", to80(posted("Transfer-Encoding: chunked\r\n")+"1\r\na\r\n0\r\n\r\n", ok5), ok5},
		"chunks and size": {post("Transfer-Encoding: chunked\r\nContent-Length: 99\r\n") + "1\r\na\r\n0\r\n\r\n", to80(posted("Transfer-Encoding: chunked\r\n")+"1\r\na\r\n0\r\n\r\n", ok5), ok5},
		"trailer": {
			post("Transfer-Encoding: chunked\r\nTrailer: Sum\r\n") + "1\r\na\r\n0\r\nSum: 1\r\nHost: x\r\n\r\n",
			to80(posted("Transfer-Encoding: chunked\r\nTrailer: Sum\r\n")+"1\r\na\r\n0\r\nSum: 1\r\n\r\n", ok5), ok5,
		},

		"chunked answer": {
			getA, to80(sentA, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		},
		"answer's trailer": {
			getA, to80(sentA, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n5\r\nhello\r\n0\r\nSum: 5\r\nContent-Length: 7\r\n\r\n"),
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n5\r\nhello\r\n0\r\nSum: 5\r\n\r\n",
		},
		"answer until the end": {
			getA,
			[]origin{{"a.example:80", [][2]string{{sentA, "HTTP/1.1 200 OK\r\n\r\nhello"}}, true}},
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		},
		"answer of HTTP/1.0": {
			getA, []origin{{"a.example:80", [][2]string{{sentA, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"}}, true}}, ok5,
		},
		"HEAD": {
			"HEAD http://a.example/ HTTP/1.1\r\n\r\n" + getA,
			[]origin{{to: "a.example:80", steps: [][2]string{{"HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"}, {sentA, ok5}}}},
			"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + ok5,
		},
		"304": {
			getA + getA,
			[]origin{{to: "a.example:80", steps: [][2]string{{sentA, "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nEtag: x\r\n\r\n"}, {sentA, ok5}}}},
			"HTTP/1.1 304 Not Modified\r\nEtag: x\r\nContent-Length: 99\r\n\r\n" + ok5,
		},
		"204": {getA, to80(sentA, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"), "HTTP/1.1 204 No Content\r\n\r\n"},
		"continue": {
			post("Expect: 100-continue\r\nContent-Length: 3\r\n") + "abc",
			to80(posted("Expect: 100-continue\r\nContent-Length: 3\r\n")+"abc", "HTTP/1.1 100 Continue\r\nConnection: x\r\nX: y\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: l\r\n\r\n"+ok5),
			"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: l\r\n\r\n" + ok5,
		},

		"two requests": {
			getA + getA, []origin{{to: "a.example:80", steps: [][2]string{{sentA, ok5}, {sentA, ok5}}}}, ok5 + ok5,
		},
		"two ports": {
			getA + "GET http://a.example:81/ HTTP/1.1\r\n\r\n" + getA,
			[]origin{{to: "a.example:80", steps: [][2]string{{sentA, ok5}}}, {to: "a.example:81", steps: [][2]string{{"GET / HTTP/1.1\r\nHost: a.example:81\r\n\r\n", ok5}}}, {to: "a.example:80", steps: [][2]string{{sentA, ok5}}}},
			ok5 + ok5 + ok5,
		},
		"two isolation keys": {
			get("Proxy-Authorization: Basic YTox\r\n") + get("Proxy-Authorization: Basic YToy\r\n") + get(""),
			[]origin{{to: "a.example:80 a/1", steps: [][2]string{{sentA, ok5}}}, {to: "a.example:80 a/2", steps: [][2]string{{sentA, ok5}}}, {to: "a.example:80", steps: [][2]string{{sentA, ok5}}}},
			ok5 + ok5 + ok5,
		},
		"the site closes": {
			getA + getA,
			[]origin{{to: "a.example:80", steps: [][2]string{{sentA, closed5}}}, {to: "a.example:80", steps: [][2]string{{sentA, ok5}}}},
			ok5 + ok5,
		},
		"the site says too much": {
			getA + getA,
			[]origin{{to: "a.example:80", steps: [][2]string{{sentA, ok5 + ok5}}}, {to: "a.example:80", steps: [][2]string{{sentA, ok5}}}},
			ok5 + ok5,
		},
		"GET, then CONNECT": {
			getA + "CONNECT b.example:443 HTTP/1.1\r\n\r\nx",
			[]origin{{to: "a.example:80", steps: [][2]string{{sentA, ok5}}}, {to: "b.example:443", steps: [][2]string{{"x", "y"}}}},
			ok5 + established + "y",
		},
		"GET, then garbage": {getA + "garbage\r\n\r\n", to80(sentA, ok5), ok5 + errorPage(400, unreadable)},
		"close":             {get("Connection: close\r\n") + getA, to80(sentA, ok5), closed5},
		"proxy close":       {get("Proxy-Connection: Close\r\n") + getA, to80(sentA, ok5), closed5},
		"HTTP/1.0":          {"GET http://a.example/ HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n" + getA, to80(sentA, "HTTP/1.1 102 Processing\r\n\r\n"+ok5), closed5},
		"chunks for HTTP/1.0": {
			"GET http://a.example/ HTTP/1.0\r\n\r\n", to80(sentA, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
			"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
		},

		"site asks for the proxy's password": {getA, to80(sentA, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"), errorPage(502, "The site asks for a password as only a proxy may.")},
		"site switches protocols":            {getA, to80(sentA, "HTTP/1.1 101 Switching Protocols\r\n\r\n"), errorPage(502, badAnswer)},
		"site is no site":                    {getA, to80(sentA, "SSH-2.0-OpenSSH_9.9\r\n"), errorPage(502, badAnswer)},
		"site of HTTP/2":                     {getA, to80(sentA, "HTTP/2.0 200 OK\r\n\r\n"), errorPage(502, badAnswer)},
		"site's control character":           {getA, to80(sentA, "HTTP/1.1 200 OK\r\nA: \x1b[2J\r\n\r\n"), errorPage(502, badAnswer)},
		"site's control reason":              {getA, to80(sentA, "HTTP/1.1 200 \x1b[2J\r\n\r\n"), errorPage(502, badAnswer)},
		"site's two lengths":                 {getA, to80(sentA, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), errorPage(502, badAnswer)},
		"site's long fields":                 {getA, to80(sentA, "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("x", headerSize)), errorPage(502, badAnswer)},
		"site's endless interim":             {getA, to80(sentA, strings.Repeat("HTTP/1.1 103 E\r\n\r\n", 17)), strings.Repeat("HTTP/1.1 103 E\r\n\r\n", 16) + errorPage(502, badAnswer)},
		"site is silent":                     {getA, []origin{{"a.example:80", [][2]string{{sentA, ""}}, true}}, errorPage(502, noAnswer)},
		"site stops early":                   {getA, []origin{{"a.example:80", [][2]string{{sentA, "HTTP/1.1 200 OK\r\nA: b"}}, true}}, errorPage(502, noAnswer)},

		"origin-form":          bad("GET /x HTTP/1.1\r\nHost: 127.0.0.1:9250\r\n\r\n"+getA, help),
		"origin-form, IPv6":    bad("GET / HTTP/1.1\r\nHost: [::1]:9250\r\n\r\n", help),
		"origin-form, local":   bad("GET / HTTP/1.1\r\nHost: localhost:9250\r\n\r\n", help),
		"origin-form, rebound": bad("GET / HTTP/1.1\r\nHost: evil.example:9250\r\n\r\n", ""),
		"origin-form, POST":    bad("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"+getA+"CONNECT a.example:80 HTTP/1.1\r\n\r\n", help),
		"origin-form, CONNECT": bad("CONNECT / HTTP/1.1\r\nHost: localhost\r\n\r\n", help),
		"origin-form, HEAD":    {in: "HEAD / HTTP/1.1\r\n\r\n", out: strings.TrimSuffix(errorPage(400, help), "cepa: "+help+"\n")},

		"no target":           bad("GET example HTTP/1.1\r\n\r\n", unreadable),
		"authority-form":      bad("GET a.example:80 HTTP/1.1\r\n\r\n", noTarget),
		"no host":             bad("GET http:/// HTTP/1.1\r\n\r\n", noHost),
		"user name":           bad("GET http://user:pw@a.example/ HTTP/1.1\r\n\r\n", noHost),
		"large port":          bad("GET http://a.example:65536/ HTTP/1.1\r\n\r\n", noHost),
		"named port":          bad("GET http://a.example:http/ HTTP/1.1\r\n\r\n", unreadable),
		"bare IPv6":           bad("GET http://2001:db8::1/ HTTP/1.1\r\n\r\n", unreadable),
		"zone":                bad("GET http://[fe80::1%25eth0]/ HTTP/1.1\r\n\r\n", noHost),
		"IPv4 in brackets":    bad("GET http://[192.0.2.1]/ HTTP/1.1\r\n\r\n", unreadable),
		"name in brackets":    bad("GET http://[a.example]/ HTTP/1.1\r\n\r\n", unreadable),
		"one bracket":         bad("GET http://[2001:db8::1/ HTTP/1.1\r\n\r\n", unreadable),
		"two brackets":        bad("CONNECT [[2001:db8::1]]:443 HTTP/1.1\r\n\r\n", unreadable),
		"CONNECT, bracketed":  bad("CONNECT [192.0.2.1]:443 HTTP/1.1\r\n\r\n", unreadable),
		"CONNECT, bare IPv6":  bad("CONNECT 2001:db8::1 HTTP/1.1\r\n\r\n", unreadable),
		"CONNECT, zone":       bad("CONNECT [fe80::1%25eth0]:443 HTTP/1.1\r\n\r\n", noPort),
		"backslash":           bad("GET http://a.example\\@b.example/ HTTP/1.1\r\n\r\n", unreadable),
		"https":               bad("GET https://a.example/ HTTP/1.1\r\n\r\n", "This proxy does not encrypt for you: use CONNECT for https."),
		"ftp":                 {in: "GET ftp://a.example/ HTTP/1.1\r\n\r\n", out: errorPage(501, "This proxy forwards http, and everything else through CONNECT.")},
		"websocket":           {in: get("Connection: upgrade\r\nUpgrade: WebSocket\r\n"), out: errorPage(501, "This proxy carries WebSocket through CONNECT only.")},
		"HTTP/2":              {in: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", out: errorPage(505, "This proxy speaks HTTP/1.1 and HTTP/1.0.")},
		"no version":          bad("GET http://a.example/\r\n\r\n", unreadable),
		"NUL in a field":      bad(get("A: b\x00c\r\n"), unreadable),
		"bare CR in a field":  bad(get("A: b\rHost: c\r\n"), unreadable),
		"space in a name":     bad(get("A B: c\r\n"), "A field's name has a character that no name may have."),
		"space after a name":  bad(get("Content-Length : 3\r\n")+"abc", "A field's name has a character that no name may have."),
		"site's odd name":     {getA, to80(sentA, "HTTP/1.1 200 OK\r\nA B: c\r\n\r\n"), errorPage(502, badAnswer)},
		"no colon":            bad(get("Abc\r\n"), unreadable),
		"two lengths":         bad(get("Content-Length: 1\r\nContent-Length: 2\r\n"), unreadable),
		"negative length":     bad(get("Content-Length: -1\r\n"), unreadable),
		"gzip coding":         bad(get("Transfer-Encoding: gzip\r\n"), unreadable),
		"two codings":         bad(get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), unreadable),
		"two Hosts":           bad("GET http://a.example/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", unreadable),
		"CONNECT, no port":    bad("CONNECT a.example HTTP/1.1\r\n\r\n", noPort),
		"CONNECT, empty port": bad("CONNECT a.example: HTTP/1.1\r\n\r\n", noPort),
		"CONNECT, URL":        bad("CONNECT http://a.example/ HTTP/1.1\r\n\r\n", noPort),
		"CONNECT, no host":    bad("CONNECT :443 HTTP/1.1\r\n\r\n", noPort),
		"CONNECT, body":       bad("CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "CONNECT has no body."),
		"CONNECT, chunks":     bad("CONNECT a.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "CONNECT has no body."),

		"digest":             bad(get("Proxy-Authorization: Digest x\r\n"), "Proxy-Authorization must be of the Basic scheme. Any user name and password will do: they keep circuits apart."),
		"two credentials":    bad(get("Proxy-Authorization: Basic YTox\r\nProxy-Authorization: Basic YTox\r\n"), "There is more than one Proxy-Authorization."),
		"no base64":          bad(get("Proxy-Authorization: Basic ?\r\n"), "The credentials in Proxy-Authorization are not base64."),
		"credentials, colon": bad(get("Proxy-Authorization: Basic YWxpY2U=\r\n"), "The credentials in Proxy-Authorization must be user name, colon, password, with at most 255 bytes each."),
		"long credentials":   bad(get("Proxy-Authorization: Basic "+strings.Repeat("YWFh", 86)+"Og==\r\n"), "The credentials in Proxy-Authorization must be user name, colon, password, with at most 255 bytes each."),
		"long fields":        {in: get("A: " + strings.Repeat("x", headerSize)), out: errorPage(431, "The request's fields are longer than 64 KiB.")},
		"many fields":        {in: get(strings.Repeat("A: b\r\n", headerSize/6)), out: errorPage(431, "The request's fields are longer than 64 KiB.")},
		"endless line":       {in: "GET " + strings.Repeat("x", headerSize), out: errorPage(431, "The request's fields are longer than 64 KiB.")},
	}
	longest := "A: " + strings.Repeat("x", headerSize-len(get("A: \r\n"))) + "\r\n"
	all["longest fields"] = talk{get(longest) + getA, []origin{{to: "a.example:80", steps: [][2]string{{sent(longest), ok5}, {sentA, ok5}}}}, ok5 + ok5}
	return all
}

// play serves talk's origins, in turn, as a dial func. The error that it sends when all is over says what was not as written.
func play(t *testing.T, origins []origin) (dial func(context.Context, *Request) (net.Conn, error), wait func()) {
	next := 0
	var done []chan struct{}
	dial = func(_ context.Context, r *Request) (net.Conn, error) {
		to := net.JoinHostPort(r.Host, fmt.Sprint(r.Port))
		if r.Auth {
			to += " " + r.Username + "/" + r.Password
		}
		if next == len(origins) || origins[next].to != to || r.Command != CommandConnect {
			t.Errorf("dialled %s, of %d others", to, next)
			return nil, errors.New("no")
		}
		o := origins[next]
		next++
		near, far := newDuplex()
		ended := make(chan struct{})
		done = append(done, ended)
		go func() {
			defer close(ended)
			defer far.Close()
			for _, step := range o.steps {
				got := make([]byte, len(step[0]))
				if n, err := io.ReadFull(far, got); err != nil || string(got) != step[0] {
					t.Errorf("%s was sent\n%q, %v, want\n%q", o.to, got[:n], err, step[0])
					return
				}
				io.WriteString(far, step[1]) // may be cut short where it is too much
			}
			if o.closes {
				far.CloseWrite()
			}
			if more, _ := io.ReadAll(far); len(more) > 0 {
				t.Errorf("%s was sent %q more", o.to, more)
			}
		}()
		return near, nil
	}
	return dial, func() {
		t.Helper()
		for _, ended := range done {
			<-ended
		}
		if next != len(origins) {
			t.Errorf("%d of %d origins were dialled", next, len(origins))
		}
	}
}

func TestHTTPConversations(t *testing.T) {
	for name, c := range talks() {
		for pieces, n := range map[string]int{"at once": len(c.in), "byte by byte": 1, "in sevens": 7} {
			if n < 7 && len(c.in) > 10_000 {
				continue
			}
			t.Run(name+"/"+pieces, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dial, wait := play(t, c.origins)
					ln := serveMem(t, &Server{Dial: dial})
					start := time.Now()
					if got := hold(t, ln.dial(), c.in, c.out, n); got != c.out {
						t.Errorf("the client read\n%q, want\n%q", got, c.out)
					}
					wait()
					if d := time.Since(start); d != 0 {
						t.Errorf("it took %v", d)
					}
				})
			})
		}
	}
}
