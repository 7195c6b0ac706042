package socks

import (
	"errors"
	"net/netip"
	"strings"
)

// errOtherNetwork is why names in .onion (RFC 7686) are refused here: an exit would ask the DNS for them, and so tell others.
var errOtherNetwork = errors.New("socks: .onion names belong to the Tor network, which this is not")

// place finds out where r leads: a virtual address leads to the name that it was lent for, and .onion names lead nowhere.
func (v *service) place(r *Request) error {
	if r.IsName {
		if isOnion(r.Host) {
			return &Error{Reply: ReplyOnionAddressInvalid, Err: errOtherNetwork}
		}
		return nil
	}
	a, virtual := v.virtual(r)
	if !virtual {
		return nil
	}
	name, err := v.Virtual.Name(v.isolation(r), a)
	if err != nil {
		return &Error{Reply: ReplyHostUnreachable, Err: err}
	}
	r.Host, r.IsName = name, true
	return nil
}

// virtual says whether r's host is an address of the virtual ranges.
func (v *service) virtual(r *Request) (netip.Addr, bool) {
	if v.Virtual == nil {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(r.Host)
	return a, err == nil && v.Virtual.Contains(a)
}

// isolation returns what must be equal for two requests to share anything.
func (v *service) isolation(r *Request) string {
	switch {
	case v.Isolation != nil:
		return v.Isolation(r)
	case !r.Auth:
		return ""
	default:
		// A user name has at most 255 bytes, so that its length takes one, and no two pairs are equal.
		return string([]byte{1, byte(len(r.Username))}) + r.Username + r.Password
	}
}

func isOnion(name string) bool {
	name = strings.ToLower(strings.TrimRight(name, "."))
	return name == "onion" || strings.HasSuffix(name, ".onion")
}
