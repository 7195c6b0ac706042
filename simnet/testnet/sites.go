package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
)

// Where test sites live: ranges that no internet host has.
const (
	siteRange  = "198.18.0.0/15" // RFC 2544, benchmarks
	siteRange6 = "2001:2::/48"   // RFC 5180, the same for IPv6
)

// Sites are names that only the exits of a test network can reach: a resolver
// that answers in 198.18.0.0/15, and, on loopback, a map from there to listeners
// on this machine. It is safe for concurrent use.
type Sites struct {
	mu     sync.Mutex // guards what follows
	names  map[string]netip.Addr
	routes map[netip.AddrPort]string
}

func newSites() *Sites {
	return &Sites{names: map[string]netip.Addr{}, routes: map[netip.AddrPort]string{}}
}

// isSite reports whether a is in the ranges of test sites.
func isSite(a netip.Addr) bool {
	return netip.MustParsePrefix(siteRange).Contains(a) || netip.MustParsePrefix(siteRange6).Contains(a)
}

// Add names a site and returns its address. Further calls for the same name
// return the same. A name that is an address in 198.18.0.0/15 or 2001:2::/48
// stands for itself, without a name.
func (s *Sites) Add(name string) netip.Addr {
	if a, err := netip.ParseAddr(name); err == nil && isSite(a) {
		return a
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name = canonical(name)
	if a, ok := s.names[name]; ok {
		return a
	}
	a := netip.MustParsePrefix(siteRange).Addr()
	for range len(s.names) + 1 {
		a = a.Next()
	}
	s.names[name] = a
	return a
}

// canonical is a name as the resolver compares it.
func canonical(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// Route sends what exits of a network on loopback open to the site's port to a
// listener at target, host:port. On a simnet sites have hosts of their own: see
// Net.ListenSite.
func (s *Sites) Route(name string, port uint16, target string) {
	a := s.Add(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes[netip.AddrPortFrom(a, port)] = target
}

// unroute takes a route back, unless another one has taken its place.
func (s *Sites) unroute(at netip.AddrPort, target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.routes[at] == target {
		delete(s.routes, at)
	}
}

// LookupNetIP implements relay.Resolver.
func (s *Sites) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.names[canonical(host)]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{a}, nil
}

// LookupAddr implements relay.Resolver.
func (s *Sites) LookupAddr(_ context.Context, addr string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, a := range s.names {
		if a.String() == addr {
			return []string{name}, nil
		}
	}
	return nil, &net.DNSError{Err: "no such host", Name: addr, IsNotFound: true}
}

// dialer wraps dial, of this machine, so that addresses of sites lead to their
// listeners. Where nobody listens, a site refuses.
func (s *Sites) dialer(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, fmt.Errorf("testnet: %w", err)
		}
		s.mu.Lock()
		target, ok := s.routes[ap]
		s.mu.Unlock()
		switch {
		case ok:
			return dial(ctx, network, target)
		case isSite(ap.Addr()):
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		default:
			return dial(ctx, network, addr)
		}
	}
}
