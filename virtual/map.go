package virtual

import (
	"container/list"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// attempts is how often a random address may be in use already, before we give up. Each attempt fails with a chance of at
// most one half (see longestIPv4), so that this many never do but with a broken source of randomness.
const attempts = 64

// Map is a two-way table of names and the virtual addresses that were lent for them. It may be used from many goroutines at
// once. Each key has a table of its own: an address means nothing, and a name is a different one, under any other key.
type Map struct {
	config Config

	mu     sync.Mutex
	spaces map[string]*space // by key; none is empty
	order  list.List         // of all *entry, the most recently used first, which is the order of expiry too
}

// space is the table of one key.
type space struct {
	key    string
	byName map[string]*entry
	byAddr map[netip.Addr]*entry
	order  list.List // of *entry, the most recently used first
}

// entry is one name; an address that nobody asked for is invalid.
type entry struct {
	space    *space
	name     string
	v4, v6   netip.Addr
	used     time.Time
	all, own *list.Element // in Map.order and space.order
}

// Covers says whether name gets virtual addresses: a name of 1..255 bytes below the suffix, whatever its case, and with or
// without the dot of the root. It does not say that there is such a name.
func (m *Map) Covers(name string) bool {
	if len(name) > maxName {
		return false
	}
	host, ok := strings.CutSuffix(canonical(name), "."+m.config.Suffix)
	return ok && host != "" && !strings.HasPrefix(host, ".")
}

// Contains says whether a (IPv4 in IPv6 is IPv4) lies in one of the ranges, in use or not. No such address may be dialled.
func (m *Map) Contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return m.config.IPv4.Contains(a) || m.config.IPv6.Contains(a)
}

// IPv4 returns the IPv4 address of name under key, and lends one if there is none yet. It fails with ErrName, or when Rand
// does.
func (m *Map) IPv4(key, name string) (netip.Addr, error) { return m.address(key, name, false) }

// IPv6 is IPv4 for an IPv6 address; a name may have both.
func (m *Map) IPv6(key, name string) (netip.Addr, error) { return m.address(key, name, true) }

// Name returns the name, in lower case and without the dot of the root, for which a was lent under key, or ErrUnknown.
func (m *Map) Name(key string, a netip.Addr) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.expire(now)
	s := m.spaces[key]
	if s == nil || s.byAddr[a.Unmap()] == nil {
		return "", ErrUnknown
	}
	e := s.byAddr[a.Unmap()]
	m.use(e, now)
	return e.name, nil
}

// Len returns the number of names that are kept.
func (m *Map) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expire(time.Now())
	return m.order.Len()
}

func (m *Map) address(key, name string, six bool) (netip.Addr, error) {
	if !m.Covers(name) {
		return netip.Addr{}, ErrName
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.expire(now)
	s := m.spaces[key]
	if s == nil {
		s = &space{key: key, byName: map[string]*entry{}, byAddr: map[netip.Addr]*entry{}}
	}
	e := s.byName[canonical(name)]
	if e == nil {
		e = &entry{space: s, name: canonical(name)}
	}
	addr, prefix := &e.v4, m.config.IPv4
	if six {
		addr, prefix = &e.v6, m.config.IPv6
	}
	if !addr.IsValid() {
		a, err := s.free(prefix, m.config.Rand)
		if err != nil {
			return netip.Addr{}, err
		}
		*addr = a
	}
	if e.own == nil {
		m.add(e)
	}
	s.byAddr[*addr] = e
	m.use(e, now)
	return *addr, nil
}

// add takes e into the tables, and others out of them where they are full.
func (m *Map) add(e *entry) {
	s := e.space
	if s.order.Len() >= m.config.NamesPerKey {
		m.remove(s.order.Back().Value.(*entry))
	}
	if m.order.Len() >= m.config.Names {
		m.remove(m.order.Back().Value.(*entry))
	}
	m.spaces[s.key] = s // it may have been empty, and so not been there
	s.byName[e.name] = e
	e.all, e.own = m.order.PushFront(e), s.order.PushFront(e)
}

func (m *Map) remove(e *entry) {
	s := e.space
	m.order.Remove(e.all)
	s.order.Remove(e.own)
	delete(s.byName, e.name)
	delete(s.byAddr, e.v4)
	delete(s.byAddr, e.v6)
	if s.order.Len() == 0 {
		delete(m.spaces, s.key)
	}
}

// use begins the lifetime of e anew.
func (m *Map) use(e *entry, now time.Time) {
	e.used = now
	m.order.MoveToFront(e.all)
	e.space.order.MoveToFront(e.own)
}

// expire forgets what was not used for its lifetime.
func (m *Map) expire(now time.Time) {
	for back := m.order.Back(); back != nil; back = m.order.Back() {
		e := back.Value.(*entry)
		if now.Sub(e.used) < m.config.Lifetime {
			return
		}
		m.remove(e)
	}
}

// free returns a random address of the range that is not in use in s. Chance, not order: a program that still holds a
// forgotten address should not meet another name there.
func (s *space) free(p netip.Prefix, random io.Reader) (netip.Addr, error) {
	for range attempts {
		b := make([]byte, p.Addr().BitLen()/8)
		if _, err := io.ReadFull(random, b); err != nil {
			return netip.Addr{}, fmt.Errorf("virtual: choose an address: %w", err)
		}
		a := within(p, b)
		// Programs take addresses that end like this for those of a network or a broadcast.
		if last := b[len(b)-1]; a.Is4() && (last == 0 || last == 255) {
			continue
		}
		if s.byAddr[a] == nil {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("virtual: no free address in %d random ones; is the source of randomness broken?", attempts)
}

// within returns the address of p's range whose other bits are those of b.
func within(p netip.Prefix, b []byte) netip.Addr {
	for i, fixed := range p.Addr().AsSlice() {
		free := byte(0xFF)
		switch {
		case p.Bits() >= 8*(i+1):
			free = 0
		case p.Bits() > 8*i:
			free = 0xFF >> (p.Bits() - 8*i)
		}
		b[i] = fixed&^free | b[i]&free
	}
	a, _ := netip.AddrFromSlice(b) // b is as long as an address
	return a
}
