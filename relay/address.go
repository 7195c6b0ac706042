package relay

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"cepa/directory"
	"cepa/pace"
)

// maxAddresses bounds how many addresses are remembered; beyond it new ones are
// served and not counted, which only somebody with more addresses than that
// gains by.
const maxAddresses = 1 << 16

// addressBook counts what clients have open from each address: links, and
// circuits that they create. It is there so that one machine cannot use up a
// relay; relays that proved their identity are not counted. Addresses are kept
// in memory only while there is something to count, and never logged.
type addressBook struct {
	params func() directory.Params // of the present consensus

	mu      sync.Mutex
	entries map[netip.Addr]*address
}

// address is what one address has open.
type address struct {
	links    int
	creation *rate.Limiter // circuits, once there are more than a few links
	share    *pace.Share   // of the relay's rate
}

func newAddressBook(params func() directory.Params) *addressBook {
	return &addressBook{params: params, entries: map[netip.Addr]*address{}}
}

// keyOf is what counts as one address: an IPv4 address, or an IPv6 /64, which
// is what one subscriber has. The zero Addr stands for what is not TCP.
func keyOf(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip, ok := netip.AddrFromSlice(t.IP)
	if !ok {
		return netip.Addr{}
	}
	if ip = ip.Unmap(); ip.Is4() {
		return ip
	}
	p, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// enter counts one more client link from a, unless that is more than an address
// may have.
func (b *addressBook) enter(a netip.Addr) bool {
	p := b.params()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[a]
	if e == nil {
		if len(b.entries) >= maxAddresses {
			return true
		}
		e = &address{creation: rate.NewLimiter(rate.Limit(p.Get(directory.ParamCircuitRate)), int(p.Get(directory.ParamCircuitBurst))), share: new(pace.Share)}
		b.entries[a] = e
	}
	if int64(e.links) >= p.Get(directory.ParamClientLinksPerAddress) {
		return false
	}
	e.links++
	return true
}

// share returns what circuits of clients at a have of the relay's rate together.
func (b *addressBook) share(a netip.Addr) *pace.Share {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[a]; e != nil {
		return e.share
	}
	return new(pace.Share)
}

// leave takes one enter back. An entry stays until its bucket has filled up
// again, so that closing links does not forgive.
func (b *addressBook) leave(a netip.Addr, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[a]; e != nil {
		e.links--
	}
	looked := 0
	for k, e := range b.entries { // a few each time, in random order
		if forgettable(e, now) {
			delete(b.entries, k)
		}
		if looked++; looked == 8 {
			return
		}
	}
}

func forgettable(e *address, now time.Time) bool {
	return e.links <= 0 && e.creation.TokensAt(now) >= float64(e.creation.Burst())
}

// mayCreate asks for one circuit for a client at a.
func (b *addressBook) mayCreate(a netip.Addr, now time.Time) bool {
	p := b.params()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[a]
	return e == nil || int64(e.links) <= p.Get(directory.ParamCircuitFreeLinks) || e.creation.AllowN(now, 1)
}
