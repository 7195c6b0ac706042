package relay

import (
	"net/netip"
	"testing"
)

// TestForbidden: every range that is not the internet's, at both ends and in every
// notation that leads to an address of it.
func TestForbidden(t *testing.T) {
	t.Parallel()
	p := addressPolicy{own: ownOf(t, interfaces())}
	for _, c := range []struct {
		what string
		in   []string // must be refused
		out  []string // its neighbours, that must not
	}{
		{"this network", []string{"0.0.0.0", "0.0.0.1", "0.255.255.255", "::ffff:0.0.0.0"}, []string{"1.0.0.0"}},
		{"private, class A", []string{"10.0.0.0", "10.1.2.3", "10.255.255.255", "::ffff:10.0.0.1", "::ffff:a00:1"}, []string{"9.255.255.255", "11.0.0.0"}},
		{"shared (carrier NAT)", []string{"100.64.0.0", "100.127.255.255", "::ffff:100.64.0.1"}, []string{"100.63.255.255", "100.128.0.0"}},
		{"loopback", []string{"127.0.0.0", "127.0.0.1", "127.1.2.3", "127.255.255.255", "::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:ffff:7f00:0001"}, []string{"126.255.255.255", "128.0.0.0"}},
		{"link-local, and the clouds' metadata", []string{"169.254.0.0", "169.254.169.254", "169.254.255.255", "::ffff:169.254.169.254"}, []string{"169.253.255.255", "169.255.0.0"}},
		{"private, class B", []string{"172.16.0.0", "172.31.255.255", "::ffff:172.16.0.1"}, []string{"172.15.255.255", "172.32.0.0"}},
		{"protocol assignments", []string{"192.0.0.0", "192.0.0.255"}, []string{"191.255.255.255", "192.0.1.0"}},
		{"documentation 1", []string{"192.0.2.0", "192.0.2.255"}, []string{"192.0.1.255", "192.0.3.0"}},
		{"6to4 relay anycast", []string{"192.88.99.0", "192.88.99.255"}, []string{"192.88.98.255", "192.88.100.0"}},
		{"private, class C", []string{"192.168.0.0", "192.168.255.255", "::ffff:192.168.1.1"}, []string{"192.167.255.255", "192.169.0.0"}},
		{"benchmarks", []string{"198.18.0.0", "198.19.255.255", "::ffff:198.18.0.1"}, []string{"198.17.255.255", "198.20.0.0"}},
		{"documentation 2", []string{"198.51.100.0", "198.51.100.255"}, []string{"198.51.99.255", "198.51.101.0"}},
		{"documentation 3", []string{"203.0.113.0", "203.0.113.255"}, []string{"203.0.112.255", "203.0.114.0"}},
		{"multicast, reserved, broadcast", []string{"224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.255", "::ffff:255.255.255.255"}, []string{"223.255.255.255"}},
		{"unspecified", []string{"::", "0:0:0:0:0:0:0:0"}, nil},
		{"loopback in IPv6", []string{"::1", "0::1"}, nil},
		{"IPv4-compatible", []string{"::127.0.0.1", "::7f00:1", "::10.0.0.1", "::8.8.8.8", "::2"}, nil},
		{"IPv4-translated", []string{"::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"}, nil},
		{"NAT64", []string{"64:ff9b::", "64:ff9b::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "64:ff9b:1:ffff::10.0.0.1"}, nil},
		{"discard", []string{"100::", "100::1", "100:0:0:1::1"}, nil},
		{"below the global range", []string{"1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"2000::"}},
		{"protocol assignments in IPv6", []string{"2001::", "2001::1", "2001:2::1", "2001:20::1", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"2001:200::"}},
		{"Teredo", []string{"2001:0:4136:e378:8000:63bf:3fff:fdd2"}, nil},
		{"documentation in IPv6", []string{"2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"}},
		{"6to4", []string{"2002::", "2002:7f00:1::", "2002:0a00:0001::1", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"}},
		{"documentation 2 in IPv6", []string{"3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"}},
		{"above the global range", []string{"4000::", "5f00::1", "8000::", "a000::1", "c000::1", "e000::1", "f000::1"}, []string{"3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
		{"unique local", []string{"fc00::", "fd00::1", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, nil},
		{"link-local in IPv6", []string{"fe80::", "fe80::1", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, nil},
		{"site-local", []string{"fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, nil},
		{"multicast in IPv6", []string{"ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, nil},
		{"with a zone", []string{"fe80::1%eth0", "2606:4700::1%eth0", "::1%lo", "::ffff:8.8.8.8%1"}, []string{"2606:4700::1"}},
		{"the internet", nil, []string{"1.1.1.1", "8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111", "2a00:1450::1", "223.255.255.255", "192.31.196.1", "2620:4f:8000::1"}},
	} {
		for _, s := range c.in {
			if p.allows(netip.MustParseAddr(s)) {
				t.Errorf("%s: %s is allowed", c.what, s)
			}
		}
		for _, s := range c.out {
			if !p.allows(netip.MustParseAddr(s)) {
				t.Errorf("%s: %s is refused", c.what, s)
			}
		}
	}
	if p.allows(netip.Addr{}) {
		t.Error("no address is allowed")
	}
}

// TestAllowed: an exception opens its range, in any notation, and nothing beside it.
func TestAllowed(t *testing.T) {
	t.Parallel()
	p := addressPolicy{own: ownOf(t, interfaces()), allowed: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd00::/16")}}
	for s, want := range map[string]bool{
		"198.18.0.1": true, "::ffff:198.19.255.255": true, "198.17.255.255": true, "198.20.0.0": true,
		"127.0.0.1": false, "::198.18.0.1": false, "64:ff9b::198.18.0.1": false, "2002:c612:1::": false,
		"fd00::1": true, "fd01::1": false, "fd00::1%eth0": false,
	} {
		if got := p.allows(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: allowed %v, want %v", s, got, want)
		}
	}
}
