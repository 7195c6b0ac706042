package relay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"cepa/directory"
)

func testBook(p directory.Params) *addressBook {
	return newAddressBook(func() directory.Params { return p })
}

func TestAddressLinks(t *testing.T) {
	t.Parallel()
	b := testBook(nil)
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range 50 {
		if !b.enter(one) {
			t.Fatalf("link %d of an address was refused", i+1)
		}
	}
	if b.enter(one) {
		t.Error("an address has 51 links")
	}
	if !b.enter(other) {
		t.Error("the limit of one address stops another")
	}
	b.leave(one, time.Now())
	if !b.enter(one) {
		t.Error("a link that ended still counts")
	}
	small := testBook(directory.Params{directory.ParamClientLinksPerAddress: 2})
	var took [3]bool
	for i := range took {
		took[i] = small.enter(one)
	}
	if took != [3]bool{true, true, false} {
		t.Errorf("with a limit of 2, links were taken: %v", took)
	}
}

// TestAddressCircuits: up to 3 links are free; with more, a burst of 60 and
// then 2 a second.
func TestAddressCircuits(t *testing.T) {
	t.Parallel()
	b := testBook(nil)
	a, now := netip.MustParseAddr("192.0.2.1"), time.Now()
	for range 3 {
		b.enter(a)
	}
	for range 1000 {
		if !b.mayCreate(a, now) {
			t.Fatal("circuits over 3 links are limited")
		}
	}
	b.enter(a)
	n := 0
	for range 1000 {
		if b.mayCreate(a, now) {
			n++
		}
	}
	if n != 60 {
		t.Errorf("%d circuits at once over 4 links, want 60", n)
	}
	later := now.Add(10 * time.Second)
	for n = 0; b.mayCreate(a, later); n++ {
	}
	if n != 20 {
		t.Errorf("%d circuits after 10 s, want 20", n)
	}
	// Closing links and coming back does not fill the bucket.
	for range 4 {
		b.leave(a, later)
	}
	for range 4 {
		b.enter(a)
	}
	if b.mayCreate(a, later) {
		t.Error("reconnecting forgave the rate")
	}
	if other := netip.MustParseAddr("192.0.2.9"); !b.mayCreate(other, now) {
		t.Error("another address is limited")
	}
}

// TestAddressForgotten: nothing is kept about who is gone.
func TestAddressForgotten(t *testing.T) {
	t.Parallel()
	b := testBook(nil)
	now := time.Now()
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		b.enter(a)
		b.leave(a, now)
	}
	for range 100 {
		b.enter(netip.MustParseAddr("198.51.100.1"))
		b.leave(netip.MustParseAddr("198.51.100.1"), now)
	}
	if n := len(b.entries); n > 0 {
		t.Errorf("%d addresses without links are remembered", n)
	}
}

func TestKeyOf(t *testing.T) {
	t.Parallel()
	key := func(ip string) netip.Addr { return keyOf(&net.TCPAddr{IP: net.ParseIP(ip), Port: 1}) }
	if key("192.0.2.1") != key("::ffff:192.0.2.1") {
		t.Error("a mapped IPv4 address is another")
	}
	if key("2001:db8:1:2::1") != key("2001:db8:1:2:ffff::9") {
		t.Error("one /64 is two addresses")
	}
	if key("2001:db8:1:2::1") == key("2001:db8:1:3::1") {
		t.Error("two /64 are one address")
	}
	if key("192.0.2.1") == key("192.0.2.2") {
		t.Error("two IPv4 addresses are one")
	}
}

// TestHandshakePlaces: the oldest makes way.
func TestHandshakePlaces(t *testing.T) {
	t.Parallel()
	h := handshakes{limit: 2}
	conns := make([]net.Conn, 4)
	dones := make([]func(), 4)
	for i := range conns {
		conns[i], _ = net.Pipe()
		dones[i] = h.enter(conns[i])
		if i == 2 {
			dones[1]() // its handshake is done: it does not make way later
		}
	}
	closed := func(c net.Conn) bool { return c.SetDeadline(time.Now()) != nil }
	for i, want := range []bool{true, false, false, false} {
		if closed(conns[i]) != want {
			t.Errorf("connection %d: closed %v, want %v", i, !want, want)
		}
	}
	for _, done := range dones {
		done()
	}
	if h.conns.Len() != 0 {
		t.Errorf("%d places are still taken", h.conns.Len())
	}
}

func TestLimitsFitFiles(t *testing.T) {
	t.Parallel()
	for _, files := range []int{64, 256, 1024, 1 << 20} {
		l := defaultLimits()
		l.fit(files)
		if sum := l.clientLinks + int64(l.handshaking) + l.streams; sum > int64(files)*4/5 {
			t.Errorf("%d files: clients, handshakes and streams may take %d", files, sum)
		}
		if l.links <= l.clientLinks {
			t.Errorf("%d files: nothing is kept for relays", files)
		}
	}
}
