package testnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
)

// siteRange is where test sites live (RFC 2544's benchmark range, which no
// internet host has).
const siteRange = "198.18.0.0/15"

// Sites are names that only the exits of a test network can reach: a resolver
// that answers in 198.18.0.0/15, and a map from there to listeners on this
// machine. It is safe for concurrent use.
type Sites struct {
	mu     sync.Mutex
	names  map[string]netip.Addr
	routes map[netip.AddrPort]string
}

func newSites() *Sites {
	return &Sites{names: map[string]netip.Addr{}, routes: map[netip.AddrPort]string{}}
}

// Add names a site and returns its address. Further calls for the same name
// return the same.
func (s *Sites) Add(name string) netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	name = strings.ToLower(name)
	if a, ok := s.names[name]; ok {
		return a
	}
	base := netip.MustParsePrefix(siteRange).Addr().As4()
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+uint32(len(s.names))+1)
	a := netip.AddrFrom4(b)
	s.names[name] = a
	return a
}

// Route sends what exits open to the site's port to a listener at target,
// host:port.
func (s *Sites) Route(name string, port uint16, target string) {
	a := s.Add(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes[netip.AddrPortFrom(a, port)] = target
}

// LookupNetIP implements relay.Resolver.
func (s *Sites) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.names[strings.TrimSuffix(strings.ToLower(host), ".")]
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

// dialer wraps dial so that addresses of sites lead to their listeners.
func (s *Sites) dialer(dial dialFunc) dialFunc {
	sites := netip.MustParsePrefix(siteRange)
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
		case sites.Contains(ap.Addr()):
			return nil, &net.OpError{Op: "dial", Net: network, Err: refused()}
		default:
			return dial(ctx, network, addr)
		}
	}
}
