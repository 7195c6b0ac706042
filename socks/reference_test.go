package socks

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	refsocks "github.com/armon/go-socks5"
)

// side is all that can be seen of a server in one conversation.
type side struct {
	out     string // what the client reads
	asked   string // what was dialled, and names that were resolved on this machine, in turn
	hangsUp string // how the client's connection ends: "in order", "abruptly", "never" (within an hour), or "panics"
}

// comparison is one conversation, held with our server and with that of armon/go-socks5.
type comparison struct {
	in     string
	waits  bool // the client does not end its direction
	ours   side
	theirs *side  // nil if they do the same
	why    string // what the difference is for; empty if there is none
}

func comparisons() map[string]comparison {
	const inOrder, abruptly, never = "in order", "abruptly", "never"
	request := func(command byte, kind byte, host string, port byte) string {
		if kind == typeName {
			host = string([]byte{byte(len(host))}) + host
		}
		return "\x05" + string([]byte{command}) + "\x00" + string([]byte{kind}) + host + "\x00" + string([]byte{port})
	}
	v4, v6 := "\xc0\x00\x02\x01", "\x20\x01\x0d\xb8"+strings.Repeat("\x00", 11)+"\x01"
	connect := func(port byte) string { return request(1, typeIPv4, v4, port) }
	name := func(s string) string { return greetNone + request(1, typeName, s, 80) }
	ok := reply(ReplySucceeded)
	did := func(out, asked string) side { return side{out, asked, inOrder} }
	same := func(in, out, asked string) comparison { return comparison{in: in, ours: did(out, asked)} }
	differ := func(in string, ours, theirs side, why string) comparison {
		return comparison{in: in, ours: ours, theirs: &theirs, why: why}
	}
	const (
		asWritten = "Names go to the exit as they were written. They resolve them here, which tells the local network every destination."
		toldWhy   = "We tell the client why it is refused. They just close, or say nothing but what they find in the error's text."
		strict    = "A message that is not as the RFC has it is refused. They take it for what it may have meant."
		more      = "They do not know this protocol, and close."
		theTor    = "A command of Tor's. They resolve the name here, and then do not know the command."
	)
	return map[string]comparison{
		"IPv4":                   same(greetNone+connect(80), choseNone+ok, "dial 192.0.2.1:80"),
		"IPv4, data":             same(greetNone+connect(80)+"hello", choseNone+ok+"hello", "dial 192.0.2.1:80"),
		"IPv6":                   same(greetNone+request(1, typeIPv6, v6, 80)+"x", choseNone+ok+"x", "dial [2001:db8::1]:80"),
		"IPv4 in IPv6":           same(greetNone+request(1, typeIPv6, strings.Repeat("\x00", 10)+"\xff\xff"+v4, 80), choseNone+ok, "dial 192.0.2.1:80"),
		"port 0":                 same(greetNone+connect(0), choseNone+ok, "dial 192.0.2.1:0"),
		"password":               same(greetPassword+alice+connect(80)+"x", chosePassword+accepted+ok+"x", "dial 192.0.2.1:80"),
		"password offered first": same("\x05\x02\x02\x00"+alice+connect(80), chosePassword+accepted+ok, "dial 192.0.2.1:80"),
		"empty credentials":      same(greetPassword+"\x01\x00\x00"+connect(80), chosePassword+accepted+ok, "dial 192.0.2.1:80"),
		"unknown methods":        same("\x05\x02\x01\x03", choseNothing, ""),
		"no methods":             same("\x05\x00", choseNothing, ""),
		"BIND":                   same(greetNone+request(2, typeIPv4, v4, 80), choseNone+reply(ReplyCommandNotSupported), ""),
		"UDP ASSOCIATE":          same(greetNone+request(3, typeIPv4, "\x00\x00\x00\x00", 0), choseNone+reply(ReplyCommandNotSupported), ""),
		"unknown command":        same(greetNone+request(9, typeIPv4, v4, 80), choseNone+reply(ReplyCommandNotSupported), ""),
		"unknown address type":   same(greetNone+request(1, 2, v4, 80), choseNone+reply(ReplyAddressTypeNotSupported), ""),
		"refused":                same(greetNone+connect(1), choseNone+reply(ReplyConnectionRefused), "dial 192.0.2.1:1"),
		"network unreachable":    same(greetNone+connect(2), choseNone+reply(ReplyNetworkUnreachable), "dial 192.0.2.1:2"),
		"target ends first":      same(greetNone+connect(7), choseNone+ok+"bye", "dial 192.0.2.1:7"),
		"nothing at all":         same("", "", ""),
		"only a greeting":        same(greetNone, choseNone, ""),
		"half a greeting":        same(greetNone[:2], "", ""),
		"half a request":         same(greetNone+connect(80)[:6], choseNone, ""),
		"half of credentials":    same(greetPassword+alice[:4], chosePassword, ""),
		"neither protocol":       same("\x16\x03\x01\x02\x00", "", ""),

		"name": differ(name("example.org"), did(choseNone+ok, "dial example.org:80"), did(choseNone+ok, "resolve example.org, dial 192.0.2.10:80"), asWritten),
		"unknown name": differ(name("unknown.example"), did(choseNone+ok, "dial unknown.example:80"),
			did(choseNone+reply(ReplyHostUnreachable), "resolve unknown.example"), asWritten),
		"onion": differ(name("abc.onion"), did(choseNone+reply(ReplyHostUnreachable), ""), did(choseNone+reply(ReplyHostUnreachable), "resolve abc.onion"),
			"RFC 7686: a name in .onion must not be asked for in the DNS, neither here nor at the exit."),
		"name of our onion services": differ(name("abc.cepa.alt"), did(choseNone+ok, "dial abc.cepa.alt:80"),
			did(choseNone+reply(ReplyHostUnreachable), "resolve abc.cepa.alt"), asWritten),
		"literal as name": differ(name("192.0.2.1"), did(choseNone+ok, "dial 192.0.2.1:80"), did(choseNone+ok, "resolve 192.0.2.1, dial 192.0.2.1:80"),
			"A literal that is sent as a name counts as an address, so that all rules about addresses hold for it."),
		"brackets": differ(name("[2001:db8::1]"), did(choseNone+ok, "dial [2001:db8::1]:80"), did(choseNone+reply(ReplyHostUnreachable), "resolve [2001:db8::1]"),
			"The same; several programs send IPv6 addresses like this."),
		"BIND with a name": differ(greetNone+request(2, typeName, "example.org", 80), did(choseNone+reply(ReplyCommandNotSupported), ""),
			did(choseNone+reply(ReplyCommandNotSupported), "resolve example.org"), asWritten),
		"empty name": differ(name(""), did(choseNone+reply(ReplyGeneralFailure), ""), did(choseNone+ok, "dial :80"), strict),
		"NUL in a name": differ(name("a\x00b"), did(choseNone+reply(ReplyGeneralFailure), ""), did(choseNone+reply(ReplyHostUnreachable), "resolve a\x00b"),
			strict),
		"reserved byte": differ(greetNone+"\x05\x01\x01\x01"+v4+"\x00\x50", did(choseNone+reply(ReplyGeneralFailure), ""),
			did(choseNone+ok, "dial 192.0.2.1:80"), strict),

		"password offered last": differ("\x05\x02\x00\x02"+alice+connect(80), did(chosePassword+accepted+ok, "dial 192.0.2.1:80"),
			side{choseNone, "", inOrder}, "We ask for user name and password whenever they are offered: to go by the client's order would drop its isolation. "+
				"They go by the order, and here meet credentials where they want a request."),
		"password not chosen": differ("\x05\x02\x00\x02"+connect(80), did(chosePassword+"\x01\x01", ""), did(choseNone+ok, "dial 192.0.2.1:80"),
			"The same, seen by a client that offers what it does not have, or does not wait for our choice. It must wait (RFC 1928 section 3)."),
		"credentials of version 2": differ(greetPassword+"\x02"+alice[1:], did(chosePassword+"\x01\x01", ""), did(chosePassword, ""), toldWhy),
		"request of version 4":     differ(greetNone+"\x04"+connect(80)[1:], did(choseNone+reply(ReplyGeneralFailure), ""), did(choseNone, ""), toldWhy),
		"timeout":                  differ(greetNone+connect(3), did(choseNone+reply(ReplyTTLExpired), "dial 192.0.2.1:3"), did(choseNone+reply(ReplyHostUnreachable), "dial 192.0.2.1:3"), toldWhy),
		"another failure":          differ(greetNone+connect(4), did(choseNone+reply(ReplyGeneralFailure), "dial 192.0.2.1:4"), did(choseNone+reply(ReplyHostUnreachable), "dial 192.0.2.1:4"), toldWhy),
		"policy":                   differ(greetNone+connect(5), did(choseNone+reply(ReplyNotAllowed), "dial 192.0.2.1:5"), did(choseNone+reply(ReplyHostUnreachable), "dial 192.0.2.1:5"), toldWhy),

		"target fails": differ(greetNone+connect(6), side{choseNone + ok + "half", "dial 192.0.2.1:6", abruptly}, did(choseNone+ok+"half", "dial 192.0.2.1:6"),
			"What was cut short must not look complete, so we reset. Theirs looks like the end of the data."),
		"bound address": differ(greetNone+connect(8), did(choseNone+ok, "dial 192.0.2.1:8"), did(choseNone+"\x05\x00\x00\x01\xc0\x00\x02\x63\x12\x34", "dial 192.0.2.1:8"),
			"Where the stream leaves is not the client's business, and not known here."),
		"foreign address": differ(greetNone+connect(9), did(choseNone+ok, "dial 192.0.2.1:9"), side{choseNone, "dial 192.0.2.1:9", "panics"},
			"They want the address of the dialled connection to be one of TCP. Our streams have none."),

		"silence": {waits: true, ours: side{"", "", inOrder}, theirs: &side{"", "", never}, why: "We drop a client after HandshakeTimeout; they have no timeouts."},
		"a silent half": {
			in: greetNone + connect(80)[:6], waits: true, ours: side{choseNone, "", inOrder}, theirs: &side{choseNone, "", never},
			why: "The same.",
		},
		"joined and silent": {in: greetNone + connect(80), waits: true, ours: side{choseNone + ok, "dial 192.0.2.1:80", never}},

		"RESOLVE":         differ(greetNone+request(0xF0, typeName, "example.org", 0), did(answer5("\x01", "\xc0\x00\x02\x0a"), "exit resolves example.org"), did(choseNone+reply(ReplyCommandNotSupported), "resolve example.org"), theTor),
		"RESOLVE_PTR":     differ(greetNone+request(0xF1, typeIPv4, v4, 0), did(answer5("\x03", "\x0bexample.org"), "exit resolves 192.0.2.1"), did(choseNone+reply(ReplyCommandNotSupported), ""), theTor),
		"SOCKS4":          differ(connect4+v4+"\x00x", did(granted+"x", "dial 192.0.2.1:80"), did("", ""), more),
		"SOCKS4a":         differ(mark4+"\x00example.org\x00x", did(granted+"x", "dial example.org:80"), did("", ""), more),
		"SOCKS4 BIND":     differ("\x04\x02\x00\x50"+v4+"\x00", did(rejected, ""), did("", ""), more),
		"HTTP CONNECT":    differ("CONNECT example.org:80 HTTP/1.1\r\n\r\nx", did(established+"x", "dial example.org:80"), did("", ""), more),
		"HTTP, no tunnel": differ("GET / HTTP/1.1\r\n\r\n", did(errorPage(400, help), ""), did("", ""), more),
	}
}

// answering is a connection with a local address of its choosing.
type answering struct {
	*duplex
	local net.Addr
}

func (a answering) LocalAddr() net.Addr { return a.local }

// dialled is what both servers dial: the port decides what comes of it.
func dialled(port uint16) (net.Conn, error) {
	near, far := newDuplex()
	var local net.Addr = &net.TCPAddr{IP: net.IPv4zero}
	switch port {
	case 1:
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	case 2:
		return nil, os.NewSyscallError("connect", syscall.ENETUNREACH)
	case 3:
		return nil, context.DeadlineExceeded
	case 4:
		return nil, errors.New("broken")
	case 5:
		return nil, &Error{Reply: ReplyNotAllowed}
	case 6:
		go func() {
			io.WriteString(far, "half")
			far.Reset()
		}()
	case 7:
		go func() {
			io.WriteString(far, "bye")
			far.CloseWrite()
			io.Copy(io.Discard, far)
			far.Close()
		}()
	case 8:
		local = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 99), Port: 0x1234}
	case 9:
		local = near.LocalAddr()
	}
	if port < 6 || port > 7 {
		go func() {
			io.Copy(far, far)
			far.CloseWrite()
		}()
	}
	return answering{near, local}, nil
}

// observe holds one conversation with serve, in a bubble.
func (c comparison) observe(serve func(conn net.Conn, asked func(string)) (panicked bool)) (seen side) {
	client, server := newDuplex()
	var asked []string
	served := make(chan bool, 1)
	go func() { served <- serve(server, func(s string) { asked = append(asked, s) }) }()
	if c.in != "" { // a pipe would deliver nothing as a read of no bytes
		go io.WriteString(client, c.in)
	}
	ended := make(chan error, 1)
	var out strings.Builder
	go func() {
		_, err := io.Copy(&out, client)
		ended <- err
	}()
	synctest.Wait()
	if !c.waits {
		client.CloseWrite()
	}
	select {
	case err := <-ended:
		seen.hangsUp = "in order"
		if err != nil {
			seen.hangsUp = "abruptly"
		}
	case <-time.After(time.Hour):
		seen.hangsUp = "never"
	}
	client.Close()
	synctest.Wait()
	if <-served {
		seen.hangsUp = "panics"
	}
	seen.out, seen.asked = out.String(), strings.Join(asked, ", ")
	return seen
}

func serveOurs(conn net.Conn, asked func(string)) bool {
	s := &Server{
		Dial: func(_ context.Context, r *Request) (net.Conn, error) {
			asked("dial " + net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))))
			return dialled(r.Port)
		},
		Resolve: func(_ context.Context, r *Request) (ResolveResult, error) {
			asked("exit resolves " + r.Host)
			return ResolveResult{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}, Names: []string{"example.org"}}, nil
		},
	}
	s.service().converse(context.Background(), conn)
	return false
}

// localNames resolves two names where a system's resolver would, and notes it.
type localNames struct{ asked func(string) }

func (l localNames) Resolve(ctx context.Context, name string) (context.Context, net.IP, error) {
	l.asked("resolve " + name)
	switch name {
	case "example.org":
		return ctx, net.IPv4(192, 0, 2, 10), nil
	case "192.0.2.1":
		return ctx, net.IPv4(192, 0, 2, 1), nil
	}
	return ctx, nil, errors.New("no such name")
}

// anyone accepts all credentials, as we do.
type anyone struct{}

func (anyone) Valid(string, string) bool { return true }

func serveTheirs(conn net.Conn, asked func(string)) (panicked bool) {
	defer func() {
		if recover() != nil {
			panicked = true
			conn.Close()
		}
	}()
	ref, err := refsocks.New(&refsocks.Config{
		AuthMethods: []refsocks.Authenticator{refsocks.NoAuthAuthenticator{}, refsocks.UserPassAuthenticator{Credentials: anyone{}}},
		Resolver:    localNames{asked},
		Logger:      log.New(io.Discard, "", 0),
		Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			asked("dial " + addr)
			_, port, _ := net.SplitHostPort(addr)
			n, _ := strconv.ParseUint(port, 10, 16)
			return dialled(uint16(n))
		},
	})
	if err != nil {
		panic(err)
	}
	_ = ref.ServeConn(conn) // its errors are part of the conversations
	return false
}

// Every difference between the two servers is in the table, with its reason; any other fails.
func TestAgainstReference(t *testing.T) {
	for name, c := range comparisons() {
		t.Run(name, func(t *testing.T) {
			theirs := c.ours
			if c.theirs != nil {
				theirs = *c.theirs
			}
			if differs := theirs != c.ours; differs != (c.why != "") || differs != (c.theirs != nil) {
				t.Errorf("the table says that they differ: %t, and why: %q", differs, c.why)
			}
			synctest.Test(t, func(t *testing.T) {
				if seen := c.observe(serveOurs); seen != c.ours {
					t.Errorf("ours did\n%+q, want\n%+q", seen, c.ours)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				if seen := c.observe(serveTheirs); seen != theirs {
					t.Errorf("theirs did\n%+q, want\n%+q", seen, theirs)
				}
			})
		})
	}
}
