// Package virtual lends addresses to names that have none. A program that insists on an address before it connects asks for
// one (RESOLVE, DNS), gets a virtual address, and connects to it; whoever takes that connection asks the [Map] for the name
// again. Virtual addresses mean something to one Map only, for a limited time, and to nobody outside this machine.
package virtual

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// Defaults of [Config].
const (
	// DefaultIPv4 is a part of the loopback network, so that an address which gets past the proxy leads nowhere
	// (VirtualAddrNetworkIPv4 of Tor has the same default).
	DefaultIPv4 = "127.192.0.0/10"
	// DefaultIPv6 lies in the half of the unique local addresses that has no defined use (RFC 4193 section 3.1). Link-local
	// addresses would do as well, but programs refuse to connect to them without an interface.
	DefaultIPv6 = "fc00:ce9a::/32"
	// DefaultSuffix is the domain of our onion services; .alt is for names outside the DNS (RFC 9476).
	DefaultSuffix = "cepa.alt"
	// DefaultNames bounds all names; ours: a name costs at most about 1.5 KiB, so that a full Map takes 100 MB at worst
	// (longest names, each under its own key) and 30 MB usually.
	DefaultNames = 65536
	// DefaultNamesPerKey bounds the names of one key, so that one program cannot push out those of all others; ours.
	DefaultNamesPerKey = 4096
	// DefaultLifetime is how long an unused address is kept; ours. Programs keep addresses for as long as they run, but a
	// list of what was visited should not stay in memory for a day.
	DefaultLifetime = time.Hour
)

// Bounds of the ranges in leading bits: among at least 65,536 addresses a random one is nearly always free, as one key never
// holds more than half of them.
const (
	longestIPv4 = 16
	longestIPv6 = 112
)

// maxName is the longest name, in bytes (as in SOCKS and, with its dots, in the DNS).
const maxName = 255

var (
	// ErrName is what [Map.IPv4] and [Map.IPv6] return for a name that [Map.Covers] denies.
	ErrName = errors.New("virtual: no name that gets a virtual address")
	// ErrUnknown is what [Map.Name] returns for an address that it did not lend under this key, or so long ago that it forgot.
	ErrUnknown = errors.New("virtual: address is not in use, ask for the name's address again")
)

// Config says which names get which addresses, and for how long. The zero value means the defaults.
type Config struct {
	// IPv4 and IPv6 are the ranges that addresses are taken from: at least 65,536 addresses each. Nothing else on this machine
	// may use them. The zero Prefix means DefaultIPv4 or DefaultIPv6.
	IPv4, IPv6 netip.Prefix
	// Suffix is the domain whose names get addresses, without dots at its ends. Empty means DefaultSuffix.
	Suffix string
	// Names bounds all names and NamesPerKey those of one key (at most 32,768). Beyond them the one that was used least
	// recently is forgotten. Zero means DefaultNames and DefaultNamesPerKey.
	Names, NamesPerKey int
	// Lifetime is how long a name is kept after its last use. Zero means DefaultLifetime.
	Lifetime time.Duration
	// Rand chooses the addresses. Nil means crypto/rand.Reader.
	Rand io.Reader
}

// New returns an empty Map, or says what is wrong with the ranges or bounds in c.
func New(c Config) (*Map, error) {
	c, err := c.filled()
	if err != nil {
		return nil, err
	}
	switch {
	case !c.IPv4.IsValid() || !c.IPv4.Addr().Is4() || c.IPv4.Bits() > longestIPv4:
		return nil, fmt.Errorf("virtual: IPv4 range %v, want an IPv4 prefix of at most %d bits", c.IPv4, longestIPv4)
	case !c.IPv6.IsValid() || !c.IPv6.Addr().Is6() || c.IPv6.Addr().Is4In6() || c.IPv6.Bits() > longestIPv6:
		return nil, fmt.Errorf("virtual: IPv6 range %v, want an IPv6 prefix of at most %d bits", c.IPv6, longestIPv6)
	case c.Suffix != canonical(c.Suffix) || strings.HasPrefix(c.Suffix, ".") || c.Suffix == "":
		return nil, fmt.Errorf("virtual: suffix %q, want a domain in lower case without dots at its ends", c.Suffix)
	case c.Names < 1 || c.NamesPerKey < 1 || c.NamesPerKey > 1<<15:
		return nil, fmt.Errorf("virtual: bounds of %d names and %d a key, want at least 1, and at most %d a key", c.Names, c.NamesPerKey, 1<<15)
	case c.Lifetime < 0:
		return nil, fmt.Errorf("virtual: lifetime %v is negative", c.Lifetime)
	}
	c.IPv4, c.IPv6 = c.IPv4.Masked(), c.IPv6.Masked()
	return &Map{config: c, spaces: map[string]*space{}}, nil
}

// filled returns c with the defaults in the place of zeros.
func (c Config) filled() (Config, error) {
	for _, r := range []struct {
		prefix *netip.Prefix
		text   string
	}{{&c.IPv4, DefaultIPv4}, {&c.IPv6, DefaultIPv6}} {
		if *r.prefix != (netip.Prefix{}) {
			continue
		}
		p, err := netip.ParsePrefix(r.text)
		if err != nil {
			return c, fmt.Errorf("virtual: default range: %w", err)
		}
		*r.prefix = p
	}
	if c.Suffix == "" {
		c.Suffix = DefaultSuffix
	}
	if c.Names == 0 {
		c.Names = DefaultNames
	}
	if c.NamesPerKey == 0 {
		c.NamesPerKey = min(DefaultNamesPerKey, c.Names)
	}
	if c.Lifetime == 0 {
		c.Lifetime = DefaultLifetime
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c, nil
}

// canonical returns the form of a name in which equal names are equal strings: lower case, without the dot of the root.
func canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
