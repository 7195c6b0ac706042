package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"cepa/cell"
)

// lookup returns the addresses of a host, in the order in which to try them;
// IPv4 addresses in IPv6 form as what they are.
func (e *exitNode) lookup(ctx context.Context, host string, flags cell.BeginFlags) ([]netip.Addr, cell.EndReason) {
	switch a, isName, ok := parseHost(host); {
	case !ok:
		return nil, cell.EndNotFound
	case isName:
	case a.Zone() != "":
		return nil, cell.EndPolicy
	default:
		return []netip.Addr{a.Unmap()}, 0
	}
	if !e.lookups.enter(e.relay.limits.lookups) {
		return nil, cell.EndResource
	}
	defer e.lookups.leave()
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := e.resolver.LookupNetIP(ctx, "ip", rooted(host))
	if err != nil {
		return nil, resolveReason(err)
	}
	var v4, v6 []netip.Addr
	for _, a := range found {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else if flags&cell.BeginIPv6 != 0 {
			v6 = append(v6, a)
		}
	}
	first, second := v4, v6
	if flags&cell.BeginPreferIPv6 != 0 {
		first, second = v6, v4
	}
	all := append(first, second...)
	if len(all) == 0 {
		return nil, cell.EndNotFound
	}
	return all, 0
}

// parseHost tells whether a host of BEGIN or name of RESOLVE is an address in text
// form, and which. IPv6 addresses should stand without brackets and are taken with
// them too. Other hosts with brackets are not ok: they are neither an address nor a
// name, and what somebody meant as an address must not be asked of name servers.
func parseHost(host string) (a netip.Addr, isName, ok bool) {
	inner, bracketed := host, false
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		inner, bracketed = host[1:len(host)-1], true
	}
	if a, err := netip.ParseAddr(inner); err == nil && (a.Is6() || !bracketed) {
		return a, false, true
	}
	if strings.ContainsAny(host, "[]") {
		return netip.Addr{}, false, false
	}
	return netip.Addr{}, true, true
}

// rooted ends a name with a dot, so that the resolver does not look for it in the
// search domains of the relay's own network.
func rooted(name string) string {
	if strings.HasSuffix(name, ".") {
		return name
	}
	return name + "."
}

// resolve answers RESOLVE. Names lead to addresses, and addresses to names. What
// no stream may go to is not told either: it would map the relay's own network.
func (e *exitNode) resolve(ctx context.Context, b cell.ResolveBody) cell.ResolvedBody {
	switch a, isName, ok := parseHost(b.Name); {
	case !ok:
		return cell.ResolvedBody{Status: cell.EndNotFound}
	case !isName:
		return e.reverse(ctx, a)
	}
	addrs, why := e.lookup(ctx, b.Name, b.Flags)
	if why != 0 {
		return cell.ResolvedBody{Status: why}
	}
	var allowed []netip.Addr
	for _, a := range addrs {
		if len(allowed) < cell.MaxAnswers && e.addrs.allows(a) {
			allowed = append(allowed, a)
		}
	}
	if len(allowed) == 0 {
		return cell.ResolvedBody{Status: cell.EndPolicy}
	}
	return cell.ResolvedBody{TTL: answerTTL, Addrs: allowed}
}

// reverse looks the names of an address up.
func (e *exitNode) reverse(ctx context.Context, a netip.Addr) cell.ResolvedBody {
	if !e.addrs.allows(a) {
		return cell.ResolvedBody{Status: cell.EndPolicy}
	}
	if !e.lookups.enter(e.relay.limits.lookups) {
		return cell.ResolvedBody{Status: cell.EndResource}
	}
	defer e.lookups.leave()
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := e.resolver.LookupAddr(ctx, a.Unmap().String())
	if err != nil {
		return cell.ResolvedBody{Status: resolveReason(err)}
	}
	var names []string
	for _, n := range found {
		// What is in the DNS may be anything, and what the wire cannot carry
		// was not found. The final dot is the resolver's way of writing.
		n = strings.TrimSuffix(n, ".")
		if len(names) < cell.MaxAnswers && cell.ValidHost(n) {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return cell.ResolvedBody{Status: cell.EndNotFound}
	}
	return cell.ResolvedBody{TTL: answerTTL, Names: names}
}

// resolveReason turns a resolver's error into a reason of the wire. Whatever is
// the resolver's fault, and not the name's, says so: another exit may do better.
func resolveReason(err error) cell.EndReason {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return cell.EndNotFound
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return cell.EndTimeout
	default:
		return cell.EndInternal
	}
}

// dialReason turns a dial error into a reason of the wire. What this machine
// forbids or lacks is told apart from what the destination did.
func dialReason(err error) cell.EndReason {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return cell.EndRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return cell.EndNetwork
	case errors.Is(err, syscall.EHOSTUNREACH):
		return cell.EndHost
	case errors.Is(err, syscall.ECONNRESET):
		return cell.EndReset
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM): // its firewall
		return cell.EndPolicy
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
		errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EADDRNOTAVAIL):
		return cell.EndResource
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return cell.EndTimeout
	default:
		return cell.EndHost
	}
}
