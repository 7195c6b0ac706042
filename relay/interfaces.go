package relay

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// interfacesEvery is how often at most the addresses of the machine's interfaces
// are listed; ours: they change seldom, and a stream should not cost a system call.
const interfacesEvery = time.Minute

// ownAddresses are the addresses of the machine's own interfaces. It is safe for
// concurrent use.
type ownAddresses struct {
	list func() ([]net.Addr, error)
	log  *slog.Logger

	mu     sync.Mutex // guards what follows; not held while listing
	listed time.Time  // when the last listing began
	addrs  []netip.Addr
}

// newOwnAddresses lists the addresses for the first time. Without them an exit
// could not tell its own machine from the internet.
func newOwnAddresses(list func() ([]net.Addr, error), log *slog.Logger) (*ownAddresses, error) {
	o := &ownAddresses{list: list, log: log, listed: time.Now()}
	var err error
	if o.addrs, err = o.read(); err != nil {
		return nil, fmt.Errorf("the addresses of this machine's interfaces, to which an exit must not connect, cannot be listed: %w", err)
	}
	return o, nil
}

// has reports whether a, not in IPv6 form when it is IPv4, is an address of the
// machine. Whoever asks first after a minute lists them anew and waits for it; when
// that fails, those that were known stay.
func (o *ownAddresses) has(a netip.Addr) bool {
	now := time.Now()
	o.mu.Lock()
	due := now.Sub(o.listed) >= interfacesEvery
	if due {
		o.listed = now
	}
	addrs := o.addrs
	o.mu.Unlock()
	if due {
		fresh, err := o.read()
		if err != nil {
			o.log.Warn("the addresses of this machine's interfaces could not be listed; streams to new ones are not refused: restart the relay if this goes on", "err", err)
		} else {
			addrs = fresh
			o.mu.Lock()
			o.addrs = fresh
			o.mu.Unlock()
		}
	}
	return slices.Contains(addrs, a)
}

// read lists the addresses.
func (o *ownAddresses) read() ([]netip.Addr, error) {
	found, err := o.list()
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(found))
	for _, f := range found {
		var ip net.IP
		switch f := f.(type) {
		case *net.IPNet:
			ip = f.IP
		case *net.IPAddr: // how some systems tell anycast addresses
			ip = f.IP
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs, nil
}
