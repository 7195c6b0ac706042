package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cepa/cell"
	"cepa/directory"
	"cepa/directory/mirror"
)

// TestResolve: what RESOLVE answers, and what it keeps to itself.
func TestResolve(t *testing.T) {
	t.Parallel()
	var twenty []string
	for i := range 20 {
		twenty = append(twenty, fmt.Sprintf("9.9.9.%d", i+1))
	}
	for _, c := range []struct {
		name  string
		flags cell.BeginFlags
		addrs []string
		want  []string
		err   error
	}{
		{"example.org", 0, []string{"9.9.9.9", "2606::1", "::ffff:9.9.9.8"}, []string{"9.9.9.9", "9.9.9.8"}, nil},
		{"example.org", cell.BeginIPv6, []string{"2606::1", "9.9.9.9"}, []string{"9.9.9.9", "2606::1"}, nil},
		{"example.org", cell.BeginIPv6 | cell.BeginPreferIPv6, []string{"9.9.9.9", "2606::1"}, []string{"2606::1", "9.9.9.9"}, nil},
		{"example.org", 0, []string{"2606::1"}, nil, cell.EndNotFound},
		{"example.org", 0, twenty, twenty[:cell.MaxAnswers], nil},
		{"mixed.example", 0, []string{"10.0.0.1", "9.9.9.9", "127.0.0.1"}, []string{"9.9.9.9"}, nil},
		{"printer.corp.example", 0, []string{"192.168.1.9"}, nil, cell.EndPolicy},
	} {
		run(t, func(w *world) {
			g, e := w.relay("guard", nil), w.relay("exit", exitWith(answer(c.addrs...), hang()))
			w.agree()
			got, err := w.path(g, e).Mux().Resolve(w.within(time.Minute), cell.ResolveBody{Flags: c.flags, Name: c.name})
			var texts []string
			for _, a := range got.Addrs {
				texts = append(texts, a.String())
			}
			if !errors.Is(err, c.err) || !slices.Equal(texts, c.want) {
				t.Errorf("%s of %v: %v, %v, want %v, %v", c.name, c.addrs, texts, err, c.want, c.err)
			}
			if err == nil && got.TTL != answerTTL {
				t.Errorf("it holds for %d s", got.TTL)
			}
		})
	}
}

// undotted is names without their final dots.
func undotted(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strings.TrimSuffix(n, ".")
	}
	return out
}

// TestBrackets: an IPv6 address in brackets is that address, and no host with any
// other brackets is asked of a name server.
func TestBrackets(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host    string
		dialled string
		begin   error
		reverse string // what RESOLVE asks
		resolve error
	}{
		{"2606:4700::1", "[2606:4700::1]:80", cell.EndRefused, "2606:4700::1", nil},
		{"[2606:4700::1]", "[2606:4700::1]:80", cell.EndRefused, "2606:4700::1", nil},
		{"[2606:4700:0:0::1]", "[2606:4700::1]:80", cell.EndRefused, "2606:4700::1", nil},
		{"[::ffff:9.9.9.9]", "9.9.9.9:80", cell.EndRefused, "9.9.9.9", nil},
		{"[2001:db8::1]", "", cell.EndPolicy, "", cell.EndPolicy},
		{"[::1]", "", cell.EndPolicy, "", cell.EndPolicy},
		{"[::ffff:127.0.0.1]", "", cell.EndPolicy, "", cell.EndPolicy},
		{"[fe80::1%eth0]", "", cell.EndPolicy, "", cell.EndPolicy},
		{"[9.9.9.9]", "", cell.EndNotFound, "", cell.EndNotFound},
		{"[example.org]", "", cell.EndNotFound, "", cell.EndNotFound},
		{"[2606:4700::1", "", cell.EndNotFound, "", cell.EndNotFound},
		{"2606:4700::1]", "", cell.EndNotFound, "", cell.EndNotFound},
		{"[[2606:4700::1]]", "", cell.EndNotFound, "", cell.EndNotFound},
		{"[2606:4700::1].", "", cell.EndNotFound, "", cell.EndNotFound},
		{"[2606:4700::1]:80", "", cell.EndNotFound, "", cell.EndNotFound},
		{"a[b].example", "", cell.EndNotFound, "", cell.EndNotFound},
		{"[]", "", cell.EndNotFound, "", cell.EndNotFound},
		{"[", "", cell.EndNotFound, "", cell.EndNotFound},
	} {
		t.Run(c.host, func(t *testing.T) {
			run(t, func(w *world) {
				d := refuse(syscall.ECONNREFUSED)
				r := &names{
					addrs: func(string) ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("9.9.9.7")}, nil },
					ptrs:  func(string) ([]string, error) { return []string{"dns.example."}, nil },
				}
				g, e := w.relay("guard", nil), w.relay("exit", exitWith(r, d))
				w.agree()
				o := w.path(g, e)
				w.wantOpen(o, c.host, 80, c.begin)
				if got := strings.Join(d.dialled(), " "); got != c.dialled {
					t.Errorf("dialled %q, want %q", got, c.dialled)
				}
				if _, err := o.Mux().Resolve(w.within(time.Minute), cell.ResolveBody{Name: c.host}); !errors.Is(err, c.resolve) {
					t.Errorf("RESOLVE: %v, want %v", err, c.resolve)
				}
				if got := strings.Join(r.queries(), " "); got != c.reverse {
					t.Errorf("the resolver was asked for %q, want %q", got, c.reverse)
				}
				if err := o.Err(); err != nil {
					t.Errorf("the circuit was lost: %v", err)
				}
			})
		})
	}
}

// TestReverse: names of addresses, whatever stands in the DNS.
func TestReverse(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("name%d.example.", i))
	}
	bad := slices.Repeat([]string{"two words.example."}, 2*cell.MaxAnswers)
	for _, c := range []struct {
		name  string
		addr  string
		names []string
		asked string
		want  []string
		err   error
	}{
		{"one", "9.9.9.9", []string{"dns9.example."}, "9.9.9.9", []string{"dns9.example"}, nil},
		{"many", "2606:4700::1", many, "2606:4700::1", undotted(many[:cell.MaxAnswers]), nil},
		{"IPv4 in IPv6 form", "::ffff:9.9.9.9", []string{"dns9.example."}, "9.9.9.9", []string{"dns9.example"}, nil},
		{"what no message can carry", "9.9.9.9", []string{"", "two words.example.", "n\u00fcl.example.", "a\x00b", strings.Repeat("x", 256), "ok.example."}, "9.9.9.9", []string{"ok.example"}, nil},
		{"many such before one that can", "9.9.9.9", append(bad, "ok.example."), "9.9.9.9", []string{"ok.example"}, nil},
		{"only such", "9.9.9.9", []string{"two words.example."}, "9.9.9.9", nil, cell.EndNotFound},
		{"none", "9.9.9.9", nil, "9.9.9.9", nil, cell.EndNotFound},
		{"private", "192.168.1.1", []string{"printer."}, "", nil, cell.EndPolicy},
		{"private in IPv6 form", "::ffff:192.168.1.1", []string{"printer."}, "", nil, cell.EndPolicy},
		{"zone", "fe80::1%eth0", []string{"printer."}, "", nil, cell.EndPolicy},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				r := &names{ptrs: func(string) ([]string, error) { return c.names, nil }}
				g, e := w.relay("guard", nil), w.relay("exit", exitWith(r, hang()))
				w.agree()
				o := w.path(g, e)
				got, err := o.Mux().Resolve(w.within(time.Minute), cell.ResolveBody{Name: c.addr})
				if !errors.Is(err, c.err) || !slices.Equal(got.Names, c.want) {
					t.Errorf("%q, %v, want %q, %v", got.Names, err, c.want, c.err)
				}
				if asked := strings.Join(r.queries(), " "); asked != c.asked {
					t.Errorf("the resolver was asked for %q, want %q", asked, c.asked)
				}
				if err := o.Err(); err != nil {
					t.Errorf("the circuit was lost: %v", err)
				}
			})
		})
	}
}

// TestResolveErrors: whose fault it was, for RESOLVE and BEGIN alike.
func TestResolveErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want error
	}{
		{&net.DNSError{Err: "no such host", IsNotFound: true}, cell.EndNotFound},
		{&net.DNSError{Err: "i/o timeout", IsTimeout: true}, cell.EndTimeout},
		{&net.DNSError{Err: "server misbehaving", IsTemporary: true}, cell.EndInternal},
		{syscall.ENETUNREACH, cell.EndInternal},
	} {
		run(t, func(w *world) {
			r := &names{
				addrs: func(string) ([]netip.Addr, error) { return nil, c.err },
				ptrs:  func(string) ([]string, error) { return nil, c.err },
			}
			g, e := w.relay("guard", nil), w.relay("exit", exitWith(r, hang()))
			w.agree()
			o := w.path(g, e)
			w.wantOpen(o, "example.org", 80, c.want)
			for _, name := range []string{"example.org", "9.9.9.9"} {
				if _, err := o.Mux().Resolve(w.within(time.Minute), cell.ResolveBody{Name: name}); !errors.Is(err, c.want) {
					t.Errorf("Resolve of %s: %v, want %v", name, err, c.want)
				}
			}
		})
	}
}

// TestResolveTimeout: a resolver that says nothing costs exactly its time.
func TestResolveTimeout(t *testing.T) {
	t.Parallel()
	run(t, func(w *world) {
		g, e := w.relay("guard", nil), w.relay("exit", exitWith(new(names), hang()))
		w.agree()
		o := w.path(g, e)
		for _, name := range []string{"example.org", "9.9.9.9"} {
			began := time.Now()
			_, err := o.Mux().Resolve(w.within(time.Minute), cell.ResolveBody{Name: name})
			if took := time.Since(began); !errors.Is(err, cell.EndTimeout) || took < resolveTimeout || took > resolveTimeout+time.Second {
				t.Errorf("%s: %v after %v, want that it timed out after %v", name, err, took, resolveTimeout)
			}
		}
		began := time.Now()
		w.wantOpen(o, "example.org", 80, cell.EndTimeout)
		if took := time.Since(began); took < resolveTimeout || took > resolveTimeout+time.Second {
			t.Errorf("BEGIN: after %v, want %v", took, resolveTimeout)
		}
	})
}

// FuzzExitHost: whatever a host is called and its name resolves to, what is dialled
// is an address of the internet that the exit may reach, written as an address.
func FuzzExitHost(f *testing.F) {
	for _, host := range []string{
		"example.org", "9.9.9.9", "127.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1%eth0", "[::1]", "[2606:4700::1]", "[9.9.9.9]", "a[b", "127.1", "0x7f.1", "1.1.1.1:80", "a..b", ".", "::ffff:9.9.9.9", "localhost.",
	} {
		f.Add(host, []byte{127, 0, 0, 1, 9, 9, 9, 9}, uint16(80), uint8(3))
	}
	f.Add("own.example", []byte{9, 9, 9, 1, 9, 9, 9, 2}, uint16(80), uint8(0))
	f.Add("x", []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1}, uint16(443), uint8(1))
	relayAddr := netip.MustParseAddr("20.0.0.1")
	f.Fuzz(func(t *testing.T, host string, raw []byte, port uint16, flags uint8) {
		b := cell.BeginBody{Flags: cell.BeginFlags(flags & 3), Port: port, Host: host}
		if !cell.ValidHost(host) || port == 0 {
			return // the wire does not carry it
		}
		var found []netip.Addr
		for len(raw) >= 4 {
			n := 4
			if len(raw) >= 16 {
				n = 16
			}
			a, _ := netip.AddrFromSlice(raw[:n])
			found = append(found, a)
			raw = raw[n:]
		}
		d := refuse(syscall.ECONNREFUSED)
		m, err := mirror.New(mirror.Config{Network: fuzzNetwork(t)})
		if err != nil {
			t.Fatal(err)
		}
		r := &Relay{limits: defaultLimits(), mirror: m, cfg: Config{Addresses: []netip.AddrPort{netip.AddrPortFrom(relayAddr, 9001)}}}
		e, err := newExitNode(r, &Exit{
			Interfaces: interfaces("9.9.9.1"),
			Policy:     directory.PortPolicy{IPv4: []directory.PortRange{{Lo: 1, Hi: 1000}}, IPv6: []directory.PortRange{{Lo: 1, Hi: 500}}}, Dial: d.Dial,
			Resolver: &names{addrs: func(string) ([]netip.Addr, error) { return found, nil }},
		})
		if err != nil {
			t.Fatal(err)
		}
		c, _, why := e.connect(context.Background(), b)
		if c != nil || why == 0 || why == cell.EndDone {
			t.Fatalf("connect returned %v, %v", c, why)
		}
		if len(d.dialled()) > maxExitAddrs {
			t.Errorf("dialled %v", d.dialled())
		}
		for _, to := range d.dialled() {
			ap, err := netip.ParseAddrPort(to)
			if err != nil {
				t.Fatalf("dialled %q, which is no address: %v", to, err)
			}
			a := ap.Addr()
			if ap.Port() != port || a.Is4() && port > 1000 || a.Is6() && port > 500 {
				t.Errorf("dialled %v for port %d", to, port)
			}
			// Judged by other rules than the exit's own.
			if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4In6() || a.Zone() != "" || a == relayAddr || a == netip.AddrFrom4([4]byte{9, 9, 9, 1}) {
				t.Errorf("dialled %v", to)
			}
			if a.Is6() && a.As16()[0]>>5 != 1 {
				t.Errorf("dialled %v, outside 2000::/3", to)
			}
		}
		for _, q := range e.resolver.(*names).queries() {
			if !strings.HasSuffix(q, ".") || strings.ContainsAny(q, "[]") {
				t.Errorf("asked for %q, which is no name with a dot at its end", q)
			}
		}
	})
}

func fuzzNetwork(t *testing.T) *directory.Network {
	w := world{T: t}
	return &directory.Network{Name: "test", Interval: time.Hour, Authorities: []directory.Authority{
		{Nickname: "auth", Identity: w.key("authority").ID(), Address: "10.0.0.1:7000"},
	}}
}
