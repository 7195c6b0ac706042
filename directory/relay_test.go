package directory

import (
	"net/netip"
	"strings"
	"testing"
)

func TestFlagsText(t *testing.T) {
	for _, f := range []Flags{0, FlagRunning, FlagGuard | FlagExit, FlagMiddleOnly, AllFlags} {
		got, err := ParseFlags(f.String())
		if err != nil || got != f {
			t.Errorf("ParseFlags(%q) = %v, %v, want %v", f.String(), got, err, f)
		}
	}
	if got, want := AllFlags.String(), "Running Valid Guard Exit Fast Stable HSDir BadExit MiddleOnly"; got != want {
		t.Errorf("AllFlags is %q, want %q", got, want)
	}
	if got, want := (FlagValid | 1<<30).String(), "Valid 0x40000000"; got != want {
		t.Errorf("unknown bit is printed as %q, want %q", got, want)
	}
	for _, s := range []string{"guard", "Guard Guard", "Running,Valid", "0x1"} {
		if f, err := ParseFlags(s); err == nil {
			t.Errorf("ParseFlags(%q) = %v, want an error", s, f)
		}
	}
	if f := FlagGuard | FlagExit; !f.Has(FlagGuard) || !f.Has(FlagGuard|FlagExit) || f.Has(FlagGuard|FlagFast) || !f.Has(0) {
		t.Error("Has is not 'has all of'")
	}
}

func TestRelayValidate(t *testing.T) {
	good := func() Relay {
		return Relay{
			Nickname: "a", Suite: SuiteAESGCM, Version: "0.1.0-rc.1+x", Flags: FlagRunning, Weight: MaxWeight,
			Addresses: addrs("192.0.2.1:1", "[2001:db8::1]:65535"),
		}
	}
	for _, c := range []struct {
		name   string
		change func(*Relay)
		want   string // part of the error, "" for none
	}{
		{"good", func(*Relay) {}, ""},
		{"no nickname", func(r *Relay) { r.Nickname = "" }, "nickname"},
		{"19 letters", func(r *Relay) { r.Nickname = strings.Repeat("Z", 19) }, ""},
		{"20 letters", func(r *Relay) { r.Nickname = strings.Repeat("Z", 20) }, "nickname"},
		{"control character", func(r *Relay) { r.Nickname = "a\x1b[2J" }, "nickname"},
		{"umlaut", func(r *Relay) { r.Nickname = "ä" }, "nickname"},
		{"no version", func(r *Relay) { r.Version = "" }, "version"},
		{"long version", func(r *Relay) { r.Version = strings.Repeat("1", 33) }, "version"},
		{"version with a space", func(r *Relay) { r.Version = "1 2" }, "version"},
		{"suite 0", func(r *Relay) { r.Suite = 0 }, "cipher"},
		{"suite 3", func(r *Relay) { r.Suite = 3 }, "cipher"},
		{"unknown flag", func(r *Relay) { r.Flags |= AllFlags + 1 }, "flags"},
		{"heavy", func(r *Relay) { r.Weight++ }, "weight"},
		{"no address", func(r *Relay) { r.Addresses = nil }, "addresses"},
		{"5 addresses", func(r *Relay) { r.Addresses = addrs("1.1.1.1:1", "1.1.1.1:2", "1.1.1.1:3", "1.1.1.1:4", "1.1.1.1:5") }, "addresses"},
		{"same address", func(r *Relay) { r.Addresses = addrs("1.1.1.1:1", "1.1.1.1:1") }, "twice"},
		{"IPv6 first", func(r *Relay) { r.Addresses = addrs("[2001:db8::1]:1", "1.1.1.1:1") }, "first"},
		{"only IPv6", func(r *Relay) { r.Addresses = addrs("[2001:db8::1]:1") }, ""},
		{"port 0", func(r *Relay) { r.Addresses = addrs("1.1.1.1:0") }, "address"},
		{"unspecified", func(r *Relay) { r.Addresses = addrs("0.0.0.0:1") }, "address"},
		{"multicast", func(r *Relay) { r.Addresses = addrs("224.0.0.1:1") }, "address"},
		{"zero address", func(r *Relay) { r.Addresses = []netip.AddrPort{{}} }, "address"},
		{"mapped", func(r *Relay) { r.Addresses = addrs("[::ffff:1.2.3.4]:1") }, "IPv4 inside IPv6"},
		{"zone", func(r *Relay) { r.Addresses = addrs("[fe80::1%eth0]:1") }, "zone"},
		{"unsorted families", func(r *Relay) { r.Family = []FamilyID{{2}, {1}} }, "families"},
		{"same family", func(r *Relay) { r.Family = []FamilyID{{1}, {1}} }, "families"},
		{"17 families", func(r *Relay) {
			for i := range byte(17) {
				r.Family = append(r.Family, FamilyID{i})
			}
		}, "families"},
		{"touching ranges", func(r *Relay) { r.Exit.IPv4 = []PortRange{{1, 2}, {3, 4}} }, "touch"},
	} {
		r := good()
		c.change(&r)
		err := r.validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %q", c.name, err, c.want)
		}
	}
}

func TestInFamily(t *testing.T) {
	a, b, c := Relay{Family: []FamilyID{{1}, {2}}}, Relay{Family: []FamilyID{{2}, {3}}}, Relay{Family: []FamilyID{{3}}}
	if !a.InFamily(&b) || !b.InFamily(&a) || a.InFamily(&c) || (&Relay{}).InFamily(&Relay{}) {
		t.Error("InFamily is not 'has one in common'")
	}
}

func addrs(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}
