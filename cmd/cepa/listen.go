package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"cepa/socks"
)

// maxListeners bounds --socks: each is a port with a server of its own.
const maxListeners = 32

// defaultSocks is where a client listens when nothing else is said.
const defaultSocks = "127.0.0.1:9250"

// rules say what must be equal for two requests at one listener to share a circuit, and
// which requests it takes. Listeners never share any.
type rules struct {
	shareUsers, shareClients bool // users and passwords, or addresses of programs, are left out
	destHost, destPort       bool
	safe                     bool // literal addresses are refused
}

// ruleNames are the rules as people write them.
var ruleNames = []string{"isolate-dest-host", "isolate-dest-port", "isolate-dest", "share-users", "share-clients", "safe-socks"}

// set adds the rule with a name, if there is one.
func (r *rules) set(name string) bool {
	switch name {
	case "isolate-dest-host":
		r.destHost = true
	case "isolate-dest-port":
		r.destPort = true
	case "isolate-dest":
		r.destHost, r.destPort = true, true
	case "share-users":
		r.shareUsers = true
	case "share-clients":
		r.shareClients = true
	case "safe-socks":
		r.safe = true
	default:
		return false
	}
	return true
}

// listener is a SOCKS and HTTP port with its rules.
type listener struct {
	addr  string
	rules rules
}

// parseListener reads ADDRESS:PORT[,RULE]..., strictly. base are the rules of all
// listeners.
func parseListener(text string, base rules) (listener, error) {
	addr, rest, more := strings.Cut(text, ",")
	l := listener{addr, base}
	if host, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return l, usagef("--socks %s: want an address and a port, such as %s, and rules behind commas", text, defaultSocks)
	} else if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return l, usagef("--socks %s: %q is not an IP address; 127.0.0.1 is for the programs of this machine", text, host)
	} else if _, err := netip.ParseAddrPort("0.0.0.0:" + port); err != nil {
		return l, usagef("--socks %s: %q is not a port, which is 0 to 65535", text, port)
	}
	var seen []string
	for more {
		var name string
		name, rest, more = strings.Cut(rest, ",")
		switch {
		case slices.Contains(seen, name):
			return l, usagef("--socks %s: the rule %s stands there twice", text, name)
		case !l.rules.set(name):
			return l, usagef("--socks %s: %q is no rule; there are %s", text, name, strings.Join(ruleNames, ", "))
		}
		seen = append(seen, name)
	}
	return l, nil
}

// parseListeners reads all --socks of a command line.
func parseListeners(texts []string, base rules) ([]listener, error) {
	if len(texts) == 0 || len(texts) > maxListeners {
		return nil, usagef("--socks may be given 1 to %d times, not %d", maxListeners, len(texts))
	}
	var all []listener
	for _, text := range texts {
		l, err := parseListener(text, base)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(all, func(m listener) bool { return m.addr == l.addr && !strings.HasSuffix(l.addr, ":0") }); i >= 0 {
			return nil, usagef("--socks %s: the address stands there twice", text)
		}
		all = append(all, l)
	}
	return all, nil
}

// parseIsolateDest reads --isolate-dest.
func parseIsolateDest(text string, r *rules) error {
	switch text {
	case "no":
	case "host":
		r.destHost = true
	case "port":
		r.destPort = true
	case "both":
		r.destHost, r.destPort = true, true
	default:
		return usagef("--isolate-dest is %q: it may be host, port, both or no", text)
	}
	return nil
}

// String lists the rules as they are written.
func (r rules) String() string {
	var on []string
	for _, x := range []struct {
		is   bool
		name string
	}{
		{r.destHost, "isolate-dest-host"},
		{r.destPort, "isolate-dest-port"},
		{r.shareUsers, "share-users"},
		{r.shareClients, "share-clients"},
		{r.safe, "safe-socks"},
	} {
		if x.is {
			on = append(on, x.name)
		}
	}
	return strings.Join(on, ", ")
}

// isolation makes isolation keys for the requests at one listener.
type isolation struct {
	listener int // its number; no two of a process have the same
	rules    rules
}

// origin is who asks: listener, user and password, address of the program. No two that
// differ give the same key.
func (i isolation) origin(r *socks.Request) string {
	// Each part has its length before it, or one length.
	b := []byte{'s', byte(i.listener)}
	switch {
	case i.rules.shareUsers:
		b = append(b, 'a')
	case !r.Auth:
		b = append(b, 'n')
	default:
		b = appendPart(appendPart(append(b, 'u'), r.Username), r.Password)
	}
	if i.rules.shareClients {
		return string(append(b, 'a'))
	}
	return string(appendPart(append(b, 'c'), clientAddress(r.Client)))
}

// stream is what must be equal for two streams to share a circuit.
func (i isolation) stream(r *socks.Request) string {
	b := []byte(i.origin(r))
	if i.rules.destHost {
		// Names that differ in case or in the dot at their end are the same.
		b = appendPart(append(b, 'h'), strings.ToLower(strings.TrimSuffix(r.Host, ".")))
	}
	if i.rules.destPort && r.Command == socks.CommandConnect { // look-ups have none
		b = append(b, 'p', byte(r.Port>>8), byte(r.Port))
	}
	return string(b)
}

// appendPart appends s behind its length, which no part of a request exceeds.
func appendPart(b []byte, s string) []byte {
	return append(append(b, byte(len(s)>>8), byte(len(s))), s...)
}

// clientAddress is the address of a program's machine, without the port.
func clientAddress(a net.Addr) string {
	if a == nil {
		return ""
	}
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().String()
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// describe is a line about a listener.
func describe(addr string, r rules) string {
	if text := r.String(); text != "" {
		return fmt.Sprintf("%s (%s)", addr, text)
	}
	return addr
}
