package directory

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"cepa/crypto/identity"
)

// Bounds of a network and its schedule.
const (
	// MaxNetworkName is the longest name of a network in bytes.
	MaxNetworkName = 32
	// MaxAuthorities is the highest number of authorities of a network.
	MaxAuthorities = 32
	// MinInterval and MaxInterval bound the interval between consensuses.
	MinInterval = time.Second
	MaxInterval = 24 * time.Hour
	// DefaultInterval is that of a network file that names none.
	DefaultInterval = time.Hour
	// ValidPeriods is how many intervals a consensus is valid; it is fresh for one.
	ValidPeriods = 24

	// MaxFallbacks is the highest number of fallback caches of a network.
	MaxFallbacks = 128

	// maxAuthorityAddress is the longest address of an authority or a fallback cache in bytes: a DNS name and a port.
	maxAuthorityAddress = 260
)

// Network is what a node must know before it knows anything: the content of network.toml. Whoever holds it can tell a
// consensus of the network from everything else.
type Network struct {
	// Name tells networks apart: 1 to MaxNetworkName bytes of [a-z0-9-]. Documents are bound to it.
	Name string
	// Interval is the time from one consensus to the next, in whole seconds.
	Interval time.Duration
	// Params are what the authorities vote for; nodes use them only as they come back in the consensus.
	Params Params
	// Versions are what the authorities vote for, as Params.
	Versions Versions
	// Authorities sign the consensus: 1 to MaxAuthorities, of different identities, nicknames and addresses. Real networks have
	// at least 4: fewer cannot do without any single one, or outvote it.
	Authorities []Authority
	// Fallbacks are where clients get their first consensus, before they ask the authorities: at most MaxFallbacks, of different addresses, and none that is
	// an authority's. Nobody believes them: what they serve is signed.
	Fallbacks []Fallback
}

// Fallback is a cache that serves the consensus over HTTP to everybody: a relay with --dir-listen, or any web cache before one.
type Fallback struct {
	// Address is where it serves HTTP: host:port.
	Address string
	// Identity is that of the relay, for people and logs; zero if it is none, or does not matter.
	Identity identity.ID
}

// Authority is one of those who agree on the consensus.
type Authority struct {
	// Nickname is for people; it obeys the rules for relays.
	Nickname string
	// Identity certifies the keys that sign for the authority.
	Identity identity.ID
	// Address is where it serves HTTP: host:port.
	Address string
}

// Threshold is the number of signatures that a consensus needs, and of votes from which it is computed: ⌊2n/3⌋ + 1 of n
// authorities. Any two sets of that size share an honest member as long as fewer than a third are not.
func (n *Network) Threshold() int { return 2*len(n.Authorities)/3 + 1 }

// Majority is more than half of all configured authorities, whether they voted or not.
func (n *Network) Majority() int { return len(n.Authorities)/2 + 1 }

// Authority returns the authority with the identity.
func (n *Network) Authority(id identity.ID) (*Authority, bool) {
	for i := range n.Authorities {
		if n.Authorities[i].Identity == id {
			return &n.Authorities[i], true
		}
	}
	return nil, false
}

// Period returns the number of the period that t lies in; times before 1970 lie in period 0.
func (n *Network) Period(t time.Time) uint64 {
	return uint64(max(t.Unix(), 0)) / uint64(n.Interval/time.Second)
}

// PeriodStart returns when a period starts. Periods that start after the year 9999 are moved there.
func (n *Network) PeriodStart(period uint64) time.Time {
	seconds := uint64(n.Interval / time.Second)
	if period > maxUnixTime/seconds {
		return time.Unix(maxUnixTime, 0).UTC()
	}
	return time.Unix(int64(period*seconds), 0).UTC()
}

// Validate checks everything that the comments of the fields promise.
func (n *Network) Validate() error {
	if err := errors.Join(checkNetworkName(n.Name), n.Params.validate(), n.Versions.validate()); err != nil {
		return err
	}
	if n.Interval < MinInterval || n.Interval > MaxInterval || n.Interval%time.Second != 0 {
		return fmt.Errorf("interval %v: whole seconds from %v to %v are allowed", n.Interval, MinInterval, MaxInterval)
	}
	if len(n.Authorities) == 0 || len(n.Authorities) > MaxAuthorities {
		return fmt.Errorf("%d authorities: 1 to %d are allowed", len(n.Authorities), MaxAuthorities)
	}
	for name, v := range n.Params {
		if spec, ok := findParam(name); ok && (v < spec.Min || v > spec.Max) {
			return fmt.Errorf("parameter %s is %d: %d to %d %s are allowed", name, v, spec.Min, spec.Max, spec.Unit)
		}
	}
	for i := range n.Authorities {
		a := &n.Authorities[i]
		if err := a.validate(); err != nil {
			return fmt.Errorf("authority %d: %w", i+1, err)
		}
		for _, b := range n.Authorities[:i] {
			if a.Nickname == b.Nickname || a.Identity == b.Identity || a.Address == b.Address {
				return fmt.Errorf("authority %d (%s) repeats nickname, identity or address of %s", i+1, a.Nickname, b.Nickname)
			}
		}
	}
	return n.validateFallbacks()
}

func (n *Network) validateFallbacks() error {
	if len(n.Fallbacks) > MaxFallbacks {
		return fmt.Errorf("%d fallback caches: at most %d are allowed", len(n.Fallbacks), MaxFallbacks)
	}
	seen := make(map[string]bool)
	for _, a := range n.Authorities {
		seen[a.Address] = true
	}
	for i, f := range n.Fallbacks {
		err := checkHostPort(f.Address)
		if err == nil && !f.Identity.IsZero() {
			err = f.Identity.Check()
		}
		if err != nil {
			return fmt.Errorf("fallback %d: %w", i+1, err)
		}
		if seen[f.Address] {
			return fmt.Errorf("fallback %d: the address %s is that of an authority, or of another fallback", i+1, f.Address)
		}
		seen[f.Address] = true
	}
	return nil
}

func (a *Authority) validate() error {
	return cmp.Or(errors.Join(checkNickname(a.Nickname), a.Identity.Check()), checkHostPort(a.Address))
}

// checkHostPort refuses what is not a host and a port other than 0.
func checkHostPort(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || len(address) > maxAuthorityAddress {
		return fmt.Errorf("address %q is not host:port", clip(address))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("address %q has no port from 1 to 65535", clip(address))
	}
	for _, c := range []byte(host) {
		if !isAlphanumeric(c) && c != '.' && c != '-' && c != ':' {
			return fmt.Errorf("address %q is not host:port", clip(address))
		}
	}
	return nil
}

func checkNetworkName(s string) error {
	if s == "" || len(s) > MaxNetworkName {
		return fmt.Errorf("network name has %d bytes: 1 to %d are allowed", len(s), MaxNetworkName)
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("network name %q: only a-z, 0-9 and - are allowed", s)
		}
	}
	return nil
}
