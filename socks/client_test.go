package socks

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	refsocks "github.com/armon/go-socks5"
	"golang.org/x/net/proxy"
)

// The client of golang.org/x/net is a second opinion on our server.
func TestServerWithAnotherClient(t *testing.T) {
	requests := make(chan *Request, 1)
	addr := serveTCP(t, &Server{Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
		requests <- r
		if r.Host == "refused.example" {
			return nil, &Error{Reply: ReplyConnectionRefused}
		}
		return echo(ctx, r)
	}})
	for _, auth := range []*proxy.Auth{nil, {User: "alice", Password: "secret"}} {
		d, err := proxy.SOCKS5("tcp", addr, auth, proxy.Direct)
		if err != nil {
			t.Fatal(err)
		}
		for dst, want := range map[string]Request{
			"example.org:443":    {Host: "example.org", Port: 443, IsName: true},
			"192.0.2.1:80":       {Host: "192.0.2.1", Port: 80},
			"[2001:db8::1]:8080": {Host: "2001:db8::1", Port: 8080},
		} {
			c, err := d.Dial("tcp", dst)
			if err != nil {
				t.Errorf("%s: %v", dst, err)
				continue
			}
			r := <-requests
			if r.Host != want.Host || r.Port != want.Port || r.IsName != want.IsName || r.Auth != (auth != nil) {
				t.Errorf("%s: the request is %+v", dst, r)
			}
			if auth != nil && (r.Username != auth.User || r.Password != auth.Password) {
				t.Errorf("%s: the isolation key is %q, %q", dst, r.Username, r.Password)
			}
			if r.Client.String() == "" || r.Local.String() != addr {
				t.Errorf("%s: client %v, local %v", dst, r.Client, r.Local)
			}
			go io.WriteString(c, "hello")
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Errorf("%s: %v", dst, err)
			}
			c.Close()
		}
		if _, err := d.Dial("tcp", "refused.example:1"); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("a refused dial gave %v", err)
		}
		<-requests
	}
}

// The server of armon/go-socks5 is a second opinion on our client.
func TestClientWithAnotherServer(t *testing.T) {
	site, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer site.Close()
	go func() {
		for {
			c, err := site.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	ref, err := refsocks.New(&refsocks.Config{
		AuthMethods: []refsocks.Authenticator{
			refsocks.UserPassAuthenticator{Credentials: refsocks.StaticCredentials{"alice": "secret"}},
		},
		Resolver: nowhere{},
		Logger:   log.New(io.Discard, "", 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, password, host string
		want                 func(error) bool
	}{
		{"alice", "secret", "127.0.0.1", func(err error) bool { return err == nil }},
		{"alice", "secret", "site.example", func(err error) bool { return err == nil }},
		{"alice", "wrong", "127.0.0.1", func(err error) bool { return errors.Is(err, ErrMethod) }},
		{"", "", "127.0.0.1", func(err error) bool { return errors.Is(err, ErrMethod) }},
		{"alice", "secret", "unknown.example", func(err error) bool {
			var refused *Error
			return errors.As(err, &refused) && refused.Reply == ReplyHostUnreachable
		}},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			if conn, err := ln.Accept(); err == nil {
				_ = ref.ServeConn(conn) // its error is ours to cause
			}
		}()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		err = ClientHandshake(conn, c.user, c.password, c.host, uint16(site.Addr().(*net.TCPAddr).Port))
		if !c.want(err) {
			t.Errorf("%s/%s to %s: %v", c.user, c.password, c.host, err)
		}
		if err == nil {
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		}
		conn.Close()
		<-served
		ln.Close()
	}
}

// nowhere resolves one name, without asking anyone.
type nowhere struct{}

func (nowhere) Resolve(ctx context.Context, name string) (context.Context, net.IP, error) {
	if name == "site.example" {
		return ctx, net.IPv4(127, 0, 0, 1), nil
	}
	return ctx, nil, errors.New("no such name")
}

// What the client makes of every kind of answer. The server's bytes are all there from the start.
func TestClientHandshakeAnswers(t *testing.T) {
	type outcome func(error) bool
	isNil := func(err error) bool { return err == nil }
	is := func(want error) outcome { return func(err error) bool { return errors.Is(err, want) } }
	refused := func(r Reply) outcome {
		return func(err error) bool {
			var e *Error
			return errors.As(err, &e) && e.Reply == r
		}
	}
	malformed := func(err error) bool {
		var e *Error
		return errors.Is(err, errMalformed) && !errors.As(err, &e)
	}
	for name, c := range map[string]struct {
		user, answers, sent string
		want                outcome
	}{
		"success":             {"", choseNone + reply(0), greetNone + connectName, isNil},
		"success with user":   {"alice", chosePassword + accepted + reply(0), greetPassword + alice + connectName, isNil},
		"bound to a name":     {"", choseNone + "\x05\x00\x00\x03\x01a\x00\x01", greetNone + connectName, isNil},
		"bound to IPv6":       {"", choseNone + "\x05\x00\x00\x04" + strings.Repeat("\x00", 18), greetNone + connectName, isNil},
		"refused":             {"", choseNone + reply(ReplyOnionAuthWrong), greetNone + connectName, refused(ReplyOnionAuthWrong)},
		"unknown reply":       {"", choseNone + reply(99), greetNone + connectName, refused(99)},
		"no method":           {"", choseNothing, greetNone, is(ErrMethod)},
		"other method":        {"", chosePassword, greetNone, malformed},
		"dropped user":        {"alice", choseNone + reply(0), greetPassword, malformed},
		"refused user":        {"alice", chosePassword + "\x01\x01", greetPassword + alice, is(ErrMethod)},
		"odd answer to user":  {"alice", chosePassword + "\x05\x00", greetPassword + alice, malformed},
		"HTTP":                {"", "HTTP/1.1 400 Bad Request\r\n\r\n", greetNone, malformed},
		"SOCKS4":              {"", "\x00\x5b\x00\x00\x00\x00\x00\x00", greetNone, malformed},
		"odd reply":           {"", choseNone + "\x04" + reply(0)[1:], greetNone + connectName, malformed},
		"odd address":         {"", choseNone + "\x05\x00\x00\x09\x00\x00", greetNone + connectName, malformed},
		"silence":             {"", "", greetNone, is(io.ErrUnexpectedEOF)},
		"end after method":    {"", choseNone, greetNone + connectName, is(io.ErrUnexpectedEOF)},
		"end after password":  {"alice", chosePassword, greetPassword + alice, is(io.ErrUnexpectedEOF)},
		"end within the port": {"", choseNone + reply(0)[:9], greetNone + connectName, is(io.ErrUnexpectedEOF)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := newDuplex()
				sent := make(chan string, 1)
				go func() {
					b, _ := io.ReadAll(server)
					sent <- string(b)
				}()
				answers := c.answers
				if c.want(nil) {
					answers += "!" // belongs to the stream and must be left there
				}
				wrote := make(chan struct{})
				go func() {
					defer close(wrote)
					io.WriteString(server, answers)
					server.CloseWrite()
				}()
				password := ""
				if c.user != "" {
					password = "secret"
				}
				err := ClientHandshake(client, c.user, password, "example.org", 443)
				if !c.want(err) {
					t.Errorf("ClientHandshake = %v", err)
				}
				if err == nil {
					if rest, err := io.ReadAll(client); string(rest) != "!" || err != nil {
						t.Errorf("the stream begins with %q, %v", rest, err)
					}
				}
				client.Close()
				<-wrote
				if got := <-sent; got != c.sent {
					t.Errorf("the client sent %q, want %q", got, c.sent)
				}
			})
		})
	}
}

func TestClientHandshakeArguments(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, c := range []struct{ user, password, host string }{
		{long, "", "example.org"}, {"", long, "example.org"}, {"", "", ""}, {"", "", long}, {"", "", "a b"}, {"", "", "a:80"},
	} {
		// There is no connection: nothing must be sent.
		if err := ClientHandshake(nil, c.user, c.password, c.host, 80); err == nil {
			t.Errorf("%d, %d, %q was accepted", len(c.user), len(c.password), c.host)
		}
	}
}

// Our client against our server: what is asked for arrives as it was meant.
func TestClientHandshakeHosts(t *testing.T) {
	for host, want := range map[string]string{
		"example.org.": "example.org.", "192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::1", "[2001:db8::1]": "2001:db8::1",
		"::ffff:192.0.2.1": "192.0.2.1",
	} {
		synctest.Test(t, func(t *testing.T) {
			dial, targets := dialer()
			ln := serveMem(t, &Server{Dial: dial})
			c := ln.dial()
			if err := ClientHandshake(c, "", "p", host, 65535); err != nil {
				t.Fatal(err)
			}
			far := <-targets
			if r := far.request; r.Host != want || r.IsName != (host == "example.org.") || r.Port != 65535 || !r.Auth || r.Password != "p" {
				t.Errorf("%s arrived as %+v", host, r)
			}
			far.Close()
			c.Close()
		})
	}
}
