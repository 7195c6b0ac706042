package relay

import "net/netip"

// forbidden returns ranges that an exit never connects to, whatever its
// policy: they are not the internet's, and would let strangers reach the
// relay's own network. Of IPv6 only 2000::/3 has been given out; what is outside
// holds loopback, link-local, unique local and multicast addresses, and the
// forms that hide an IPv4 address (::/96, ::ffff:0:0:0/96, 64:ff9b::/96).
// Sources: the IANA special-purpose address registries (RFC 6890 and its
// successors) and RFC 4291 section 2.4.
func forbidden() []netip.Prefix {
	texts := [...]string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"::/3", "4000::/2", "8000::/1",
		// Within 2000::/3: Teredo and other protocols' own, documentation, 6to4.
		"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	}
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

// addressPolicy decides about the addresses that an exit may connect to.
type addressPolicy struct {
	forbidden []netip.Prefix
	allowed   []netip.Prefix // exceptions, for networks on one machine
}

// allows reports whether the exit may connect to a. IPv4 addresses in IPv6
// form are judged as what they are, and addresses with a zone are of the
// relay's own network.
func (p *addressPolicy) allows(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	for _, x := range p.allowed {
		if x.Contains(a) {
			return true
		}
	}
	for _, x := range p.forbidden {
		if x.Contains(a) {
			return false
		}
	}
	return true
}
