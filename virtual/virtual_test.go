package virtual

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newMap(t testing.TB, c Config) *Map {
	t.Helper()
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func lend(t testing.TB, m *Map, key, name string) netip.Addr {
	t.Helper()
	a, err := m.IPv4(key, name)
	if err != nil {
		t.Fatalf("IPv4(%q, %q): %v", key, name, err)
	}
	return a
}

func TestThereAndBack(t *testing.T) {
	m := newMap(t, Config{})
	for _, c := range []struct {
		lend  func(key, name string) (netip.Addr, error)
		where string
	}{{m.IPv4, "127.192.0.0/10"}, {m.IPv6, "fc00:ce9a::/32"}} {
		a, err := c.lend("k", "Abc.cepa.alt.")
		if err != nil {
			t.Fatal(err)
		}
		if !netip.MustParsePrefix(c.where).Contains(a) || !m.Contains(a) {
			t.Errorf("%v is not of %s", a, c.where)
		}
		if name, err := m.Name("k", a); name != "abc.cepa.alt" || err != nil {
			t.Errorf("Name(%v) = %q, %v", a, name, err)
		}
		// The same name, however it is written, keeps its address.
		for _, same := range []string{"abc.cepa.alt", "ABC.CEPA.ALT", "abc.Cepa.alt."} {
			if again, err := c.lend("k", same); again != a || err != nil {
				t.Errorf("%s got %v, %v, want %v", same, again, err, a)
			}
		}
	}
	if m.Len() != 1 {
		t.Errorf("one name with two addresses counts %d", m.Len())
	}
	// IPv4 in IPv6 is IPv4.
	a := lend(t, m, "k", "abc.cepa.alt")
	if name, err := m.Name("k", netip.AddrFrom16(a.As16())); name != "abc.cepa.alt" || err != nil || !m.Contains(netip.AddrFrom16(a.As16())) {
		t.Errorf("mapped into IPv6: %q, %v", name, err)
	}
}

func TestKeysAreApart(t *testing.T) {
	m := newMap(t, Config{})
	a := lend(t, m, "alice", "x.cepa.alt")
	for _, key := range []string{"", "bob", "alice ", "Alice"} {
		if name, err := m.Name(key, a); !errors.Is(err, ErrUnknown) {
			t.Errorf("key %q knows alice's address as %q, %v", key, name, err)
		}
	}
	if b := lend(t, m, "bob", "x.cepa.alt"); a == b {
		t.Errorf("two keys got the same random address %v", a)
	}
	if name, err := m.Name("alice", a); name != "x.cepa.alt" || err != nil {
		t.Errorf("alice's own address: %q, %v", name, err)
	}
}

func TestCovers(t *testing.T) {
	m := newMap(t, Config{})
	long := strings.Repeat("a", maxName-len(".cepa.alt"))
	for name, want := range map[string]bool{
		"a.cepa.alt": true, "www.a.cepa.alt": true, "A.CEPA.ALT.": true, long + ".cepa.alt": true,
		"cepa.alt": false, ".cepa.alt": false, "cepa.alt.": false, "..cepa.alt": false, "": false, ".": false,
		"acepa.alt": false, "a.cepa.alt.org": false, "a.cepa.alt..": false, "a.onion": false, "a.alt": false,
		"a" + long + ".cepa.alt": false,
	} {
		if got := m.Covers(name); got != want {
			t.Errorf("Covers(%q) = %t", name, got)
		}
		for _, lend := range []func(key, name string) (netip.Addr, error){m.IPv4, m.IPv6} {
			if _, err := lend("k", name); errors.Is(err, ErrName) == want {
				t.Errorf("an address for %q: %v", name, err)
			}
		}
	}
}

func TestContains(t *testing.T) {
	m := newMap(t, Config{})
	for addr, want := range map[string]bool{
		"127.192.0.0": true, "127.255.255.255": true, "127.191.255.255": false, "127.0.0.1": false, "128.0.0.0": false,
		"fc00:ce9a::": true, "fc00:ce9a:ffff::1": true, "fc00:ce9b::": false, "fc00:ce9a::1%eth0": true, "::ffff:127.192.0.1": true,
		"::": false, "0.0.0.0": false,
	} {
		if got := m.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Contains(%s) = %t", addr, got)
		}
	}
	if m.Contains(netip.Addr{}) {
		t.Error("the zero address is contained")
	}
	if _, err := m.Name("k", netip.MustParseAddr("127.192.3.4")); !errors.Is(err, ErrUnknown) {
		t.Errorf("an address that was never lent: %v", err)
	}
}

// Names are forgotten a lifetime after their last use, whichever way they were used.
func TestLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMap(t, Config{Lifetime: time.Minute})
		start := time.Now()
		at := func(d time.Duration) { <-time.After(d - time.Since(start)) }
		a, b := lend(t, m, "k", "a.cepa.alt"), lend(t, m, "k", "b.cepa.alt")
		at(50 * time.Second)
		if _, err := m.Name("k", a); err != nil {
			t.Fatal(err)
		}
		at(60 * time.Second)
		if _, err := m.Name("k", b); !errors.Is(err, ErrUnknown) {
			t.Errorf("b was not used for its lifetime: %v", err)
		}
		at(109 * time.Second)
		if got := lend(t, m, "k", "a.cepa.alt"); got != a {
			t.Errorf("a got another address %v before it was forgotten", got)
		}
		at(169 * time.Second)
		if m.Len() != 0 {
			t.Errorf("%d names are kept", m.Len())
		}
		if len(m.spaces) != 0 {
			t.Errorf("%d keys are kept without names", len(m.spaces))
		}
	})
}

func TestBounds(t *testing.T) {
	m := newMap(t, Config{Names: 5, NamesPerKey: 2})
	known := func(key string, a netip.Addr) bool {
		_, err := m.Name(key, a)
		return err == nil
	}
	a1, a2 := lend(t, m, "a", "1.cepa.alt"), lend(t, m, "a", "2.cepa.alt")
	b1 := lend(t, m, "b", "1.cepa.alt")
	lend(t, m, "a", "1.cepa.alt") // used again
	a3 := lend(t, m, "a", "3.cepa.alt")
	if !known("a", a1) || known("a", a2) || !known("a", a3) {
		t.Errorf("of one key the name least recently used must go, kept %t %t %t", known("a", a1), known("a", a2), known("a", a3))
	}
	if !known("b", b1) {
		t.Error("a key pushed out the name of another, though it alone had too many")
	}
	c1, c2 := lend(t, m, "c", "1.cepa.alt"), lend(t, m, "c", "2.cepa.alt")
	// a1, a3, b1, c1, c2 are all that fits; a1 was used least recently.
	d1 := lend(t, m, "d", "1.cepa.alt")
	if m.Len() != 5 || known("a", a1) || !known("a", a3) || !known("b", b1) || !known("c", c1) || !known("c", c2) || !known("d", d1) {
		t.Errorf("%d names, kept a1 %t a3 %t b1 %t", m.Len(), known("a", a1), known("a", a3), known("b", b1))
	}
	for i := range 100 {
		lend(t, m, fmt.Sprint("key", i), "x.cepa.alt")
		if m.Len() > 5 || len(m.spaces) > 5 {
			t.Fatalf("%d names under %d keys", m.Len(), len(m.spaces))
		}
	}
	one := newMap(t, Config{Names: 1})
	first := lend(t, one, "k", "1.cepa.alt")
	second := lend(t, one, "k", "2.cepa.alt")
	if _, err := one.Name("k", first); err == nil || one.Len() != 1 {
		t.Errorf("a Map for one name has %d", one.Len())
	}
	if name, err := one.Name("k", second); name != "2.cepa.alt" || err != nil {
		t.Errorf("its name is %q, %v", name, err)
	}
}

func TestConfig(t *testing.T) {
	p := netip.MustParsePrefix
	for _, c := range []Config{
		{IPv4: p("10.0.0.0/17")},
		{IPv4: p("fc00::/8")},
		{IPv4: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 99)},
		{IPv6: p("10.0.0.0/8")},
		{IPv6: p("fc00::/113")},
		{IPv6: p("::ffff:10.0.0.0/104")},
		{Suffix: ".cepa.alt"},
		{Suffix: "cepa.alt."},
		{Suffix: "Cepa.alt"},
		{Suffix: "."},
		{Names: -1},
		{NamesPerKey: -1},
		{NamesPerKey: 1<<15 + 1},
		{Lifetime: -1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	m := newMap(t, Config{IPv4: p("10.9.8.7/16"), IPv6: p("fd00::1:0:0/112"), Suffix: "test"})
	for range 50 {
		name := fmt.Sprint(rand.Uint64(), ".test")
		four := lend(t, m, "k", name)
		six, err := m.IPv6("k", name)
		if !p("10.9.0.0/16").Contains(four) || !p("fd00::1:0:0/112").Contains(six) || err != nil {
			t.Fatalf("%v and %v, %v", four, six, err)
		}
		if last := four.As4()[3]; last == 0 || last == 255 {
			t.Fatalf("%v looks like a network's address", four)
		}
	}
}

// Randomness decides, so it can be given, and its end is an error that leaves nothing behind.
func TestRand(t *testing.T) {
	m := newMap(t, Config{Rand: bytes.NewReader([]byte{1, 2, 3, 4, 1, 2, 3, 4, 9, 9, 9, 255, 0, 0, 0, 5})})
	if a := lend(t, m, "k", "a.cepa.alt"); a.String() != "127.194.3.4" {
		t.Errorf("the first address is %v", a)
	}
	// One in use and one that ends in 255 are passed over.
	if a := lend(t, m, "k", "b.cepa.alt"); a.String() != "127.192.0.5" {
		t.Errorf("the second address is %v", a)
	}
	if a, err := m.IPv4("k", "c.cepa.alt"); err == nil {
		t.Errorf("without randomness an address is %v", a)
	}
	if a, err := m.IPv6("other", "c.cepa.alt"); err == nil || m.Len() != 2 || len(m.spaces) != 1 {
		t.Errorf("without randomness an address is %v; %d names", a, m.Len())
	}
	stuck := newMap(t, Config{Rand: bytes.NewReader(make([]byte, 1<<20))})
	if a, err := stuck.IPv4("k", "a.cepa.alt"); err == nil {
		t.Errorf("broken randomness made %v", a)
	}
}

// FuzzMap holds the Map, with random uses, against the plainest model of it that has no bounds.
func FuzzMap(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 200, 201, 202})
	f.Add(bytes.Repeat([]byte{0x10, 0x21, 0x32, 0x93}, 20))
	f.Fuzz(func(t *testing.T, ops []byte) {
		m := newMap(t, Config{})
		type id struct{ key, name string }
		addrs := map[id]map[bool]netip.Addr{}
		for _, op := range ops {
			u := id{fmt.Sprint(op & 3), fmt.Sprint(op>>2&15) + ".cepa.alt"}
			six := op&64 != 0
			lend := m.IPv4
			if six {
				lend = m.IPv6
			}
			a, err := lend(u.key, u.name)
			if err != nil {
				t.Fatal(err)
			}
			if addrs[u] == nil {
				addrs[u] = map[bool]netip.Addr{}
			}
			if old, ok := addrs[u][six]; ok && old != a {
				t.Fatalf("%v moved from %v to %v", u, old, a)
			}
			addrs[u][six] = a
		}
		back := map[id]map[bool]netip.Addr{}
		for u, both := range addrs {
			for six, a := range both {
				name, err := m.Name(u.key, a)
				if err != nil {
					t.Fatal(err)
				}
				b := id{u.key, name}
				if back[b] == nil {
					back[b] = map[bool]netip.Addr{}
				}
				back[b][six] = a
			}
		}
		if diff := cmp.Diff(addrs, back, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || m.Len() != len(addrs) {
			t.Fatalf("the way back differs, %d names for %d:\n%s", m.Len(), len(addrs), diff)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	m := newMap(t, Config{Names: 64, NamesPerKey: 16})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				key, name := fmt.Sprint(g%4), fmt.Sprint(i%40, ".cepa.alt")
				a, err := m.IPv4(key, name)
				if err != nil {
					t.Error(err)
				}
				// Another goroutine may have pushed it out already, but it is never somebody else's.
				if back, err := m.Name(key, a); err == nil && back != name {
					t.Errorf("%s came back as %s", name, back)
				}
			}
		})
	}
	wg.Wait()
	if m.Len() > 64 {
		t.Errorf("%d names", m.Len())
	}
}

func BenchmarkIPv4(b *testing.B) {
	m := newMap(b, Config{})
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprint(i, ".cepa.alt")
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		lend(b, m, "k", names[i%len(names)])
	}
}
