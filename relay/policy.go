package relay

import (
	"net/netip"

	"cepa/directory"
)

// addressPolicy decides about the addresses that an exit may connect to.
type addressPolicy struct {
	allowed []netip.Prefix // exceptions, for networks on one machine
	own     *ownAddresses  // what the machine itself has
}

// allows reports whether the exit may connect to a. What is reserved (doc/spec.md
// section 10) is not the internet's, and would let strangers reach the relay's own
// network; the machine's own addresses would let them reach what listens for
// itself only. IPv4 addresses in IPv6 form are judged as what they are, and
// addresses with a zone are of the relay's own network.
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
	return directory.IsPublic(a) && !p.own.has(a)
}
