package relay

import "net/netip"

// forbidden returns ranges that an exit never connects to, whatever its
// policy: they are not the internet's, and would let strangers reach the
// relay's own network. Sources: the IANA special-purpose address registries
// (RFC 6890 and its successors).
func forbidden() []netip.Prefix {
	texts := [...]string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
		"198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"::/128", "::1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32",
		"2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
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
// form are judged as what they are.
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
