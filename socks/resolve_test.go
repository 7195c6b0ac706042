package socks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cepa/virtual"
)

// Requests of SOCKS5 that look things up, in the forms in which Tor's own programs send them (port 0).
func resolve5(name string) string {
	return greetNone + "\x05\xf0\x00\x03" + string([]byte{byte(len(name))}) + name + "\x00\x00"
}

func ptr5(a string) string {
	b := netip.MustParseAddr(a).AsSlice()
	return greetNone + "\x05\xf1\x00" + map[int]string{4: "\x01", 16: "\x04"}[len(b)] + string(b) + "\x00\x00"
}

func resolve4(name string) string { return "\x04\xf0\x00\x00\x00\x00\x00\x01\x00" + name + "\x00" }

// answer5 is the reply of SOCKS5 that carries an answer, and answer4 that of SOCKS4.
func answer5(kind, answer string) string {
	return choseNone + "\x05\x00\x00" + kind + answer + "\x00\x00"
}
func answer4(a string) string { return "\x00\x5a\x00\x00" + a }

func TestResolve(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	v4in6, zoned := netip.AddrFrom16(v4.As16()), netip.MustParseAddr("fe80::1%eth0")
	wire4, wire6 := "\xc0\x00\x02\x07", "\x20\x01\x0d\xb8"+strings.Repeat("\x00", 11)+"\x07"
	lent := netip.MustParseAddr("127.200.1.1")
	none := choseNone + reply(ReplyHostUnreachable)
	for name, c := range map[string]struct {
		in     string
		result ResolveResult
		err    error
		out    string
		asked  string // what Resolve is asked for; empty for not at all
	}{
		"IPv4":            {in: resolve5("a.example"), result: ResolveResult{Addrs: []netip.Addr{v4, v6}}, out: answer5("\x01", wire4), asked: "RESOLVE a.example"},
		"IPv6":            {in: resolve5("a.example"), result: ResolveResult{Addrs: []netip.Addr{v6, v4}}, out: answer5("\x04", wire6), asked: "RESOLVE a.example"},
		"IPv4 in IPv6":    {in: resolve5("a.example"), result: ResolveResult{Addrs: []netip.Addr{v4in6}}, out: answer5("\x01", wire4), asked: "RESOLVE a.example"},
		"unusable first":  {in: resolve5("a.example"), result: ResolveResult{Addrs: []netip.Addr{{}, zoned, lent, v4}}, out: answer5("\x01", wire4), asked: "RESOLVE a.example"},
		"only unusable":   {in: resolve5("a.example"), result: ResolveResult{Addrs: []netip.Addr{{}, zoned, lent}}, out: none, asked: "RESOLVE a.example"},
		"nothing":         {in: resolve5("a.example"), out: none, asked: "RESOLVE a.example"},
		"unknown name":    {in: resolve5("a.example"), err: &net.DNSError{IsNotFound: true}, out: none, asked: "RESOLVE a.example"},
		"policy":          {in: resolve5("a.example"), err: &Error{Reply: ReplyNotAllowed}, out: choseNone + reply(ReplyNotAllowed), asked: "RESOLVE a.example"},
		"literal as name": {in: resolve5("192.0.2.7"), out: answer5("\x01", wire4)},
		"literal":         {in: greetNone + "\x05\xf0\x00\x04" + wire6 + "\x00\x00", out: answer5("\x04", wire6)},
		"onion":           {in: resolve5("a.onion"), out: none},
		"bad name":        {in: resolve5("a b"), out: choseNone + reply(ReplyGeneralFailure)},
		"data after it":   {in: resolve5("a.example") + "GET /", result: ResolveResult{Addrs: []netip.Addr{v4}}, out: answer5("\x01", wire4), asked: "RESOLVE a.example"},

		"SOCKS4":                {in: resolve4("a.example"), result: ResolveResult{Addrs: []netip.Addr{v4}}, out: answer4(wire4), asked: "RESOLVE a.example"},
		"SOCKS4, IPv6 first":    {in: resolve4("a.example"), result: ResolveResult{Addrs: []netip.Addr{v6, v4}}, out: answer4(wire4), asked: "RESOLVE a.example"},
		"SOCKS4, IPv6 only":     {in: resolve4("a.example"), result: ResolveResult{Addrs: []netip.Addr{v6}}, out: rejected, asked: "RESOLVE a.example"},
		"SOCKS4, unknown":       {in: resolve4("a.example"), err: errors.New("no"), out: rejected, asked: "RESOLVE a.example"},
		"SOCKS4, literal":       {in: resolve4("192.0.2.7"), out: answer4(wire4)},
		"SOCKS4, IPv6 literal":  {in: resolve4("2001:db8::7"), out: rejected},
		"SOCKS4, plain address": {in: "\x04\xf0\x00\x00" + wire4 + "\x00", out: answer4(wire4)},

		"PTR":                   {in: ptr5("192.0.2.7"), result: ResolveResult{Names: []string{"a.example", "b.example"}}, out: answer5("\x03", "\x09a.example"), asked: "RESOLVE_PTR 192.0.2.7"},
		"PTR of IPv6":           {in: ptr5("2001:db8::7"), result: ResolveResult{Names: []string{"a.example"}}, out: answer5("\x03", "\x09a.example"), asked: "RESOLVE_PTR 2001:db8::7"},
		"PTR, unusable first":   {in: ptr5("192.0.2.7"), result: ResolveResult{Names: []string{"", "a\x00b", "192.0.2.9", strings.Repeat("a", 256), "b.example"}}, out: answer5("\x03", "\x09b.example"), asked: "RESOLVE_PTR 192.0.2.7"},
		"PTR, nothing":          {in: ptr5("192.0.2.7"), result: ResolveResult{Addrs: []netip.Addr{v4}}, out: none, asked: "RESOLVE_PTR 192.0.2.7"},
		"PTR as name":           {in: strings.Replace(resolve5("192.0.2.7"), "\xf0", "\xf1", 1), result: ResolveResult{Names: []string{"a.example"}}, out: answer5("\x03", "\x09a.example"), asked: "RESOLVE_PTR 192.0.2.7"},
		"PTR of a name":         {in: strings.Replace(resolve5("a.example"), "\xf0", "\xf1", 1), out: choseNone + reply(ReplyAddressTypeNotSupported)},
		"PTR of an unknown one": {in: ptr5("127.200.1.1"), out: none},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := ""
				ln := serveMem(t, &Server{Virtual: newVirtual(t), Dial: noDial(t), Resolve: func(_ context.Context, r *Request) (ResolveResult, error) {
					asked += r.Command.String() + " " + r.Host
					return c.result, c.err
				}})
				if got := hold(t, ln.dial(), c.in, c.out, len(c.in)); got != c.out {
					t.Errorf("the client read\n%q, want\n%q", got, c.out)
				}
				synctest.Wait()
				if asked != c.asked {
					t.Errorf("Resolve was asked for %q, want %q", asked, c.asked)
				}
			})
		})
	}
}

func noDial(t *testing.T) func(context.Context, *Request) (net.Conn, error) {
	return func(_ context.Context, r *Request) (net.Conn, error) {
		t.Errorf("dialled %+v", r)
		return nil, errors.New("no")
	}
}

// Resolve gets the isolation key, and its time is bounded like that of a dial.
func TestResolveRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got *Request
		ln := serveMem(t, &Server{Dial: noDial(t), Resolve: func(ctx context.Context, r *Request) (ResolveResult, error) {
			got = r
			<-ctx.Done()
			return ResolveResult{}, ctx.Err()
		}})
		start := time.Now()
		in := greetPassword + alice + resolve5("a.example")[len(greetNone):]
		want := chosePassword + accepted + reply(ReplyTTLExpired)
		if out := hold(t, ln.dial(), in, want, len(in)); out != want {
			t.Errorf("read %q", out)
		}
		if d := time.Since(start); d != DefaultDialTimeout {
			t.Errorf("refused after %v", d)
		}
		wanted := &Request{Command: CommandResolve, Host: "a.example", IsName: true, Auth: true, Username: "alice", Password: "secret", Client: pipeAddr(), Local: pipeAddr()}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("the request (-want +got):\n%s", diff)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		cause := make(chan error, 1)
		ln := serveMem(t, &Server{Dial: noDial(t), Resolve: func(ctx context.Context, _ *Request) (ResolveResult, error) {
			<-ctx.Done()
			cause <- context.Cause(ctx)
			return ResolveResult{}, nil
		}})
		c := ln.dial()
		go io.Copy(io.Discard, c)
		io.WriteString(c, resolve5("a.example"))
		synctest.Wait()
		c.Close()
		if err := <-cause; !errors.Is(err, ErrClientGone) {
			t.Errorf("the lookup of a client that left ended by %v", err)
		}
	})
}

// A name without an address gets one, which leads to the name: by every protocol, and under the same isolation key only.
func TestVirtualAddresses(t *testing.T) {
	const name = "abc.cepa.alt"
	connect5 := func(a string) string { return "\x05\x01\x00\x01" + a + "\x00\x50" }
	for _, resolver := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var dialled []string
			s := &Server{
				Virtual: newVirtual(t), ExtendedErrors: true,
				Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
					if !r.IsName {
						return nil, errors.New("an address was dialled")
					}
					dialled = append(dialled, r.Host)
					return echo(ctx, r)
				},
			}
			if resolver {
				s.Resolve = func(_ context.Context, r *Request) (ResolveResult, error) {
					t.Errorf("%s left this machine", r.Host)
					return ResolveResult{}, nil
				}
			}
			ln := serveMem(t, s)
			say := func(in, want string) {
				t.Helper()
				if got := hold(t, ln.dial(), in, want, len(in)); got != want {
					t.Errorf("%q was answered\n%q, want\n%q", in, got, want)
				}
			}
			lend := func(in string, addressAt int) string {
				t.Helper()
				c := ln.dial()
				go io.WriteString(c, in)
				got, err := io.ReadAll(c)
				c.Close()
				if err != nil || len(got) < addressAt+4 {
					t.Fatalf("%q was answered %q, %v", in, got, err)
				}
				a := netip.AddrFrom4([4]byte(got[addressAt:]))
				if !netip.MustParsePrefix(virtual.DefaultIPv4).Contains(a) {
					t.Fatalf("%q was answered %q, no virtual address", in, got)
				}
				return string(a.AsSlice())
			}
			a := lend(resolve5("ABC.cepa.alt."), len(choseNone)+4)
			if again := lend(resolve4(name), 4); again != a {
				t.Errorf("SOCKS4 was told %q, SOCKS5 %q", again, a)
			}
			ok := reply(ReplySucceeded)
			literal := netip.AddrFrom4([4]byte([]byte(a))).String()
			say(greetNone+connect5(a)+"x", choseNone+ok+"x")
			say(connect4+a+"\x00x", granted+"x")
			say(mark4+"\x00"+literal+"\x00x", granted+"x")
			say("CONNECT "+literal+":80 HTTP/1.1\r\n\r\nx", established+"x")
			synctest.Wait()
			if diff := cmp.Diff([]string{name, name, name, name}, dialled); diff != "" {
				t.Errorf("names that were dialled (-want +got):\n%s", diff)
			}
			say(ptr5(literal), answer5("\x03", "\x0cabc.cepa.alt"))
			say(resolve5(literal), answer5("\x01", a))
			// For others there is nothing there.
			refused := reply(ReplyHostUnreachable)
			say(greetPassword+alice+connect5(a), chosePassword+accepted+refused)
			say(connect4+a+"user\x00", rejected)
			say(greetPassword+alice+ptr5(literal)[len(greetNone):], chosePassword+accepted+refused)
			// The same user name and password mean the same key, whatever the protocol.
			b := lend("\x04\xf0\x00\x00\x00\x00\x00\x01user\x00"+name+"\x00", 4)
			say("CONNECT "+netip.AddrFrom4([4]byte([]byte(b))).String()+":80 HTTP/1.1\r\nProxy-Authorization: Basic dXNlcjo=\r\n\r\nx", established+"x")
			if len(dialled) != 5 {
				t.Errorf("dialled %q", dialled)
			}
			// An hour later it is forgotten.
			<-time.After(virtual.DefaultLifetime)
			say(greetNone+connect5(a), choseNone+refused)
		})
	}
}

func TestIsolationIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Virtual: newVirtual(t), Dial: echo, Isolation: func(r *Request) string { return r.Username }}
		ln := serveMem(t, s)
		if _, err := s.Virtual.IPv4("alice", "abc.cepa.alt"); err != nil {
			t.Fatal(err)
		}
		c := ln.dial()
		go io.WriteString(c, greetPassword+"\x01\x05alice\x05other"+resolve5("abc.cepa.alt")[len(greetNone):])
		io.ReadAll(c)
		c.Close()
		if n := s.Virtual.Len(); n != 1 {
			t.Errorf("%d names for one key", n)
		}
	})
}

func TestDefaultIsolation(t *testing.T) {
	v := new(Server).service()
	seen := map[string]Request{}
	for _, r := range []Request{
		{},
		{Auth: true},
		{Auth: true, Username: "a"},
		{Auth: true, Password: "a"},
		{Auth: true, Username: "ab"},
		{Auth: true, Username: "a", Password: "b"},
		{Auth: true, Username: "\x01", Password: "a"},
		{Auth: true, Username: strings.Repeat("a", 255)},
	} {
		key := v.isolation(&r)
		if other, ok := seen[key]; ok {
			t.Errorf("%+v and %+v share a key", r, other)
		}
		seen[key] = r
	}
	if a, b := v.isolation(&Request{Host: "a"}), v.isolation(&Request{Host: "b"}); a != b {
		t.Error("the key depends on the destination")
	}
}

// The extended code for an address that is none of ours is told to those who know it.
func TestOnionWithExtendedErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := serveMem(t, &Server{Dial: noDial(t), ExtendedErrors: true})
		want := choseNone + reply(ReplyOnionAddressInvalid)
		in := greetNone + "\x05\x01\x00\x03\x07a.onion\x00\x50"
		if got := hold(t, ln.dial(), in, want, len(in)); got != want {
			t.Errorf("read %q", got)
		}
		const text = "Names that end in .onion belong to another network, Tor. They cannot be reached through this one, whose onion services end in .cepa.alt."
		for _, in := range []string{"CONNECT a.onion:443 HTTP/1.1\r\n\r\n", "GET http://a.onion/ HTTP/1.1\r\n\r\n"} {
			want := errorPage(502, text)
			if got := hold(t, ln.dial(), in, want, len(in)); got != want {
				t.Errorf("%q was answered %q", in, got)
			}
		}
	})
}

// What can be read of SOCKS4 can be written, and reads as the same again; no message is longer than its format allows.
func FuzzReadRequest4(f *testing.F) {
	for _, conv := range conversations() {
		if conv.in[0] == version4 {
			f.Add([]byte(conv.in))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.NewReader(data)
		command, e, user, err := readRequest4(in)
		if used := len(data) - in.Len(); used > 8+256+256 {
			t.Fatalf("a request of %d bytes", used)
		}
		if err != nil {
			return
		}
		out := []byte{version4, byte(command), byte(e.port >> 8), byte(e.port)}
		if a, err := netip.ParseAddr(e.host); !e.isName && err == nil && a.Is4() && !strings.HasPrefix(e.host, "0.0.0.") {
			out = append(append(append(out, a.AsSlice()...), user...), 0)
		} else if e.host == "0.0.0.0" {
			out = append(append(append(out, 0, 0, 0, 0), user...), 0)
		} else {
			out = append(append(append(out, 0, 0, 0, 1), user...), 0)
			out = append(append(out, e.host...), 0)
		}
		rest := bytes.NewReader(out)
		again, e2, user2, err := readRequest4(rest)
		if err != nil || again != command || e2 != e || user2 != user || rest.Len() != 0 {
			t.Fatalf("%v %+v of %q was written as %q, which reads %v %+v of %q, %v", command, e, user, out, again, e2, user2, err)
		}
	})
}
