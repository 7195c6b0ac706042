package socks

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ResolveResult is what [Server.Resolve] found.
type ResolveResult struct {
	// Addrs are the addresses of a name, the preferred one first. A client is told one only: the first, or the first IPv4
	// address if its protocol knows no other.
	Addrs []netip.Addr
	// Names are the names of an address, of which a client is told the first.
	Names []string
	// TTL is how long the answer holds. No protocol of this package can say it; it is here for others that use the same
	// function.
	TTL time.Duration
}

// errNoAnswer is what a client is refused with when the name or address exists, perhaps, but not what it asked for.
var errNoAnswer = errors.New("socks: nothing of the kind that was asked for was found")

// found makes a client's protocol out of an answer; err is as in answerer.
type found func(e endpoint, err error) []byte

// resolve holds what follows a request for RESOLVE or RESOLVE_PTR (Tor's socks-extensions.txt, section 2): one reply, which
// carries the answer in the place of the bound endpoint, and the end of the connection.
func (v *service) resolve(ctx context.Context, c *conn, r *Request, accept func(netip.Addr) bool, answer found) error {
	e, err := v.lookUp(ctx, c, r, accept)
	if err != nil {
		return v.fail(ctx, c, err, func(err error) []byte { return answer(endpoint{host: unspecified}, err) })
	}
	v.lastWord(c, answer(e, nil))
	return nil
}

// lookUp answers r: from itself, from the virtual addresses, or by Resolve. accept says which addresses the client can read.
func (v *service) lookUp(ctx context.Context, c *conn, r *Request, accept func(netip.Addr) bool) (endpoint, error) {
	if v.Resolve == nil && v.Virtual == nil {
		return endpoint{}, &Error{Reply: ReplyCommandNotSupported}
	}
	if r.Command == CommandResolvePTR && r.IsName {
		return endpoint{}, &Error{Reply: ReplyAddressTypeNotSupported, Err: errors.New("RESOLVE_PTR of a name, want an address")}
	}
	virtual, isVirtual := v.virtual(r)
	switch {
	case r.Command == CommandResolve && !r.IsName:
		a, err := netip.ParseAddr(r.Host)
		if err != nil || !accept(a) {
			return endpoint{}, &Error{Reply: ReplyHostUnreachable, Err: errNoAnswer}
		}
		return endpoint{host: r.Host}, nil
	case isVirtual:
		name, err := v.Virtual.Name(v.isolation(r), virtual)
		if err != nil {
			return endpoint{}, &Error{Reply: ReplyHostUnreachable, Err: err}
		}
		return endpoint{host: name, isName: true}, nil
	case v.Virtual != nil && r.IsName && v.Virtual.Covers(r.Host):
		// IPv4, which every client can read, though a name may have both.
		a, err := v.Virtual.IPv4(v.isolation(r), r.Host)
		return endpoint{host: a.String()}, err
	}
	if err := v.place(r); err != nil {
		return endpoint{}, err
	}
	if v.Resolve == nil {
		return endpoint{}, &Error{Reply: ReplyCommandNotSupported}
	}
	var result ResolveResult
	err := v.attend(ctx, c, func(ctx context.Context) (err error) {
		result, err = v.Resolve(ctx, r)
		return err
	})
	if err != nil {
		return endpoint{}, err
	}
	return v.choose(r, result, accept)
}

// choose takes from result the one answer that the client gets. The result may come from a stranger: a virtual address would
// let it choose a name for the client, and not everything that is called a name is one.
func (v *service) choose(r *Request, result ResolveResult, accept func(netip.Addr) bool) (endpoint, error) {
	if r.Command == CommandResolvePTR {
		for _, name := range result.Names {
			if host, isName, err := parseHost(name); err == nil && isName {
				return endpoint{host: host, isName: true}, nil
			}
		}
		return endpoint{}, &Error{Reply: ReplyHostUnreachable, Err: errNoAnswer}
	}
	i := slices.IndexFunc(result.Addrs, func(a netip.Addr) bool {
		return a.IsValid() && a.Zone() == "" && accept(a.Unmap()) && (v.Virtual == nil || !v.Virtual.Contains(a))
	})
	if i < 0 {
		return endpoint{}, &Error{Reply: ReplyHostUnreachable, Err: fmt.Errorf("%d addresses: %w", len(result.Addrs), errNoAnswer)}
	}
	return endpoint{host: result.Addrs[i].Unmap().String()}, nil
}
