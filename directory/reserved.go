package directory

import "net/netip"

// reservedRange is why nobody has an address of these ranges on the internet.
type reservedRange struct {
	what   string // as in doc/spec.md section 10
	ranges []netip.Prefix
}

// reserved is the table of doc/spec.md section 10, which reserved_test.go holds against it: no relay has such an address, and
// no exit connects to one. Sources: the IANA special-purpose address registries (RFC 6890 and its successors), RFC 4291
// section 2.4, and for what was withdrawn RFC 3879 (site-local), RFC 7526 (6to4 relays) and RFC 4843 (the first ORCHID).
var reserved = []reservedRange{
	{"unspecified, this network", []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("::/128")}},
	{"private", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16")}},
	{"unique local", []netip.Prefix{netip.MustParsePrefix("fc00::/7")}},
	{"site-local", []netip.Prefix{netip.MustParsePrefix("fec0::/10")}},
	{"behind a carrier's NAT", []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}},
	{"loopback", []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}},
	{"link-local", []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10")}},
	{"multicast", []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}},
	{"reserved", []netip.Prefix{netip.MustParsePrefix("240.0.0.0/4")}},
	{"broadcast", []netip.Prefix{netip.MustParsePrefix("255.255.255.255/32")}},
	{"of protocols", []netip.Prefix{netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("2001::/23")}},
	{"Teredo", []netip.Prefix{netip.MustParsePrefix("2001::/32")}},
	{"benchmarks", []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:2::/48")}},
	{"ORCHID", []netip.Prefix{netip.MustParsePrefix("2001:10::/28"), netip.MustParsePrefix("2001:20::/28")}},
	{"documentation", []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"),
		netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("3fff::/20"),
	}},
	{"6to4 and its relays", []netip.Prefix{netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("192.88.99.0/24")}},
	{"NAT64", []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48")}},
	{"IPv4 in IPv6: mapped, compatible, translated", []netip.Prefix{
		netip.MustParsePrefix("::ffff:0:0/96"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0:0/96"),
	}},
	{"discarded", []netip.Prefix{netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("100:0:0:1::/64")}},
	{"segments of SRv6", []netip.Prefix{netip.MustParsePrefix("5f00::/16")}},
	{"given to nobody: outside 2000::/3", []netip.Prefix{netip.MustParsePrefix("::/3"), netip.MustParsePrefix("4000::/2"), netip.MustParsePrefix("8000::/1")}},
}

// IsPublic reports whether a can be somebody's address on the internet. IPv4 in IPv6 form is none: who takes it for the IPv4
// address asks about that (Unmap). Neither is one with a zone, nor the zero Addr.
func IsPublic(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	for _, r := range reserved {
		for _, p := range r.ranges {
			if p.Contains(a) {
				return false
			}
		}
	}
	return true
}
