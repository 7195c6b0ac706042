package directory

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxPortRanges is the highest number of port ranges in a PortPolicy, for each of IPv4 and IPv6: more than the longest of
// the usual reduced exit policies needs.
const MaxPortRanges = 96

// PortRange is the ports from Lo to Hi, both included; 1 ≤ Lo ≤ Hi.
type PortRange struct{ Lo, Hi uint16 }

// PortPolicy sums up an exit policy: the ports to which a relay opens streams, for IPv4 and for IPv6. The zero value accepts
// nothing. The ranges are sorted, and separated by at least one refused port, so that a policy has one form only.
//
// Its text form is the ports of both ("80,443,1000-2000", "*" for all, "none"), or, where they differ, those of IPv4, a
// slash, those of IPv6 ("80,443/443", "*/none").
type PortPolicy struct{ IPv4, IPv6 []PortRange }

// AllowsPort reports whether streams to port are accepted, over IPv6 or else over IPv4.
func (p PortPolicy) AllowsPort(port uint16, v6 bool) bool {
	ranges := p.IPv4
	if v6 {
		ranges = p.IPv6
	}
	_, ok := slices.BinarySearchFunc(ranges, port, func(r PortRange, port uint16) int {
		switch {
		case r.Hi < port:
			return -1
		case r.Lo > port:
			return 1
		}
		return 0
	})
	return ok
}

// IsZero reports whether the policy accepts nothing at all.
func (p PortPolicy) IsZero() bool { return len(p.IPv4) == 0 && len(p.IPv6) == 0 }

// Equal reports whether both policies accept the same ports.
func (p PortPolicy) Equal(q PortPolicy) bool {
	return slices.Equal(p.IPv4, q.IPv4) && slices.Equal(p.IPv6, q.IPv6)
}

// String returns the text form, which ParsePortPolicy reads.
func (p PortPolicy) String() string {
	if slices.Equal(p.IPv4, p.IPv6) {
		return formatPorts(p.IPv4)
	}
	return formatPorts(p.IPv4) + "/" + formatPorts(p.IPv6)
}

// ParsePortPolicy parses the text form. It accepts ranges in any order and merges those that touch.
func ParsePortPolicy(s string) (PortPolicy, error) {
	v4, v6, both := strings.Cut(s, "/")
	ranges, err := parsePorts(v4)
	if err != nil {
		return PortPolicy{}, fmt.Errorf("port policy %q: %w", clip(s), err)
	}
	if !both {
		return PortPolicy{IPv4: ranges, IPv6: slices.Clone(ranges)}, nil
	}
	p := PortPolicy{IPv4: ranges}
	if p.IPv6, err = parsePorts(v6); err != nil {
		return PortPolicy{}, fmt.Errorf("port policy %q: %w", clip(s), err)
	}
	return p, nil
}

// AllPorts returns the policy that accepts every port.
func AllPorts() PortPolicy {
	return PortPolicy{IPv4: []PortRange{{1, 65535}}, IPv6: []PortRange{{1, 65535}}}
}

// validate checks bounds and that the ranges have their one form.
func (p PortPolicy) validate() error {
	return errors.Join(checkRanges(p.IPv4), checkRanges(p.IPv6))
}

func checkRanges(ranges []PortRange) error {
	if len(ranges) > MaxPortRanges {
		return fmt.Errorf("%d port ranges: at most %d are allowed", len(ranges), MaxPortRanges)
	}
	for i, r := range ranges {
		if r.Lo == 0 || r.Lo > r.Hi {
			return fmt.Errorf("port range %d-%d is not one", r.Lo, r.Hi)
		}
		if i > 0 && int(r.Lo) <= int(ranges[i-1].Hi)+1 {
			return errors.New("port ranges are not sorted or touch each other")
		}
	}
	return nil
}

func formatPorts(ranges []PortRange) string {
	if len(ranges) == 0 {
		return "none"
	}
	if ranges[0] == (PortRange{1, 65535}) {
		return "*"
	}
	var b []byte
	for i, r := range ranges {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(r.Lo), 10)
		if r.Hi != r.Lo {
			b = append(b, '-')
			b = strconv.AppendUint(b, uint64(r.Hi), 10)
		}
	}
	return string(b)
}

func parsePorts(s string) ([]PortRange, error) {
	switch s {
	case "none":
		return nil, nil
	case "*":
		return []PortRange{{1, 65535}}, nil
	}
	var ranges []PortRange
	for part := range strings.SplitSeq(s, ",") {
		if len(ranges) == 4*MaxPortRanges {
			return nil, fmt.Errorf("more than %d port ranges", 4*MaxPortRanges)
		}
		lo, hi, isRange := strings.Cut(part, "-")
		var r PortRange
		var err error
		if r.Lo, err = parsePort(lo); err != nil {
			return nil, err
		}
		r.Hi = r.Lo
		if isRange {
			if r.Hi, err = parsePort(hi); err != nil {
				return nil, err
			}
		}
		if r.Lo > r.Hi {
			return nil, fmt.Errorf("port range %d-%d goes backwards", r.Lo, r.Hi)
		}
		ranges = append(ranges, r)
	}
	ranges = mergeRanges(ranges)
	return ranges, checkRanges(ranges)
}

// parsePort reads a port from 1 to 65535 in its one decimal form.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", clip(s))
	}
	return uint16(n), nil
}

// mergeRanges sorts the ranges and joins those that overlap or touch.
func mergeRanges(ranges []PortRange) []PortRange {
	slices.SortFunc(ranges, func(a, b PortRange) int { return int(a.Lo) - int(b.Lo) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && int(r.Lo) <= int(out[n-1].Hi)+1 {
			out[n-1].Hi = max(out[n-1].Hi, r.Hi)
			continue
		}
		out = append(out, r)
	}
	return out
}
