package client

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"cepa/cell"
	"cepa/directory"
	"cepa/onion"
)

// Limits of look-ups; ours.
const (
	// minTTL and maxTTL bound how long an answer of an exit holds, whatever it says:
	// no exit makes a client ask for each stream, nor remember what it said for longer
	// than a circuit takes new streams.
	minTTL = time.Minute
	maxTTL = maxDirty
	// maxNames bounds the answers that are kept for one circuit.
	maxNames = 256
)

// answer is what an exit said about a name.
type answer struct {
	body  cell.ResolvedBody
	until time.Time
}

// Resolve looks a name up at an exit, or the name of an address. An answer is used
// again on its circuit alone: another circuit's streams would otherwise show what this
// one's exit had said. Errors are as of Dial.
func (c *Client) Resolve(ctx context.Context, name, isolation string) (cell.ResolvedBody, error) {
	if err := checkHost(name); err != nil {
		return cell.ResolvedBody{}, err
	}
	if onion.IsAddress(name) {
		err := &Error{PartyClient, errNoIP}
		c.tellFailure(err)
		return cell.ResolvedBody{}, err
	}
	if err := c.checkAddress(name); err != nil {
		c.tellFailure(err)
		return cell.ResolvedBody{}, err
	}
	// Names that differ in case or in the dot at their end are the same.
	key := strings.ToLower(strings.TrimSuffix(name, "."))
	var found cell.ResolvedBody
	err := c.try(ctx, want{key: isolation}, func(ctx context.Context, x *circ) error {
		now := time.Now()
		c.mu.Lock()
		known, ok := x.names[key]
		c.mu.Unlock()
		if ok && now.Before(known.until) {
			found = known.body
			found.TTL = uint32((known.until.Sub(now) + time.Second - 1) / time.Second) // 0 would say that it is over
			return nil
		}
		body, err := x.origin.Mux().Resolve(ctx, cell.ResolveBody{Flags: cell.BeginIPv6, Name: name})
		if err != nil {
			return err
		}
		found = c.clean(body)
		if len(found.Addrs) > 0 || len(found.Names) > 0 {
			c.remember(x, key, found)
		}
		return nil
	})
	if err != nil {
		return cell.ResolvedBody{}, err
	}
	found.Addrs, found.Names = slices.Clone(found.Addrs), slices.Clone(found.Names)
	return found, nil
}

// clean takes from an answer the addresses that no honest exit tells, and puts its TTL
// within bounds.
func (c *Client) clean(b cell.ResolvedBody) cell.ResolvedBody {
	if !c.cfg.AllowPrivateAddresses {
		b.Addrs = slices.DeleteFunc(slices.Clone(b.Addrs), func(a netip.Addr) bool { return !directory.IsPublic(a.Unmap()) })
	}
	b.TTL = min(max(b.TTL, uint32(minTTL/time.Second)), uint32(maxTTL/time.Second))
	return b
}

// remember keeps an answer for the streams of one circuit.
func (c *Client) remember(x *circ, key string, b cell.ResolvedBody) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.names == nil || len(x.names) >= maxNames {
		x.names = map[string]answer{}
	}
	x.names[key] = answer{b, time.Now().Add(time.Duration(b.TTL) * time.Second)}
}

// literal reads host as an address, with or without brackets.
func literal(host string) (netip.Addr, error) {
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	a, err := netip.ParseAddr(host)
	return a.Unmap(), err
}

// checkAddress refuses literal addresses that are nobody's on the internet, and names
// that every machine has for itself (RFC 6761).
func (c *Client) checkAddress(host string) error {
	if c.cfg.AllowPrivateAddresses {
		return nil
	}
	a, err := literal(host)
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if err == nil && !directory.IsPublic(a) || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return &Error{PartyClient, errPrivate}
	}
	return nil
}
