package client

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"cepa/cell"
	"cepa/directory"
	"cepa/link"
	"cepa/onion"
	"cepa/socket"
)

// Files keeps what must survive a restart. *state.Dir is one.
type Files interface {
	Read(name string, max int64) ([]byte, error)
	Write(name string, data []byte) error
	ReadJSON(name string, version int, max int64, v any) error
	WriteJSON(name string, version int, v any) error
}

// Config is what a Client is made of. Only Network is needed.
type Config struct {
	Network *directory.Network
	// Files keeps the guards and the consensus; nothing survives when nil.
	Files Files
	// Dial opens connections to the guard and, before there is a consensus,
	// to authorities; net.Dialer's when nil. It must heed its context.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Reachable tells which addresses of guards this machine can connect to, as far as it knows; all when nil. Guards
	// without any are passed over, and do not count as tried.
	Reachable func(netip.AddrPort) bool
	// Home names the place of Files, if it is not empty: another one with the same guards is a copy, which New warns of.
	Home string
	// Ready is how many unused circuits are kept, at most 32; 2 when 0.
	Ready int
	// AllowPrivateAddresses lets streams go to addresses that are nobody's on the
	// internet, and answers of exits name them: for networks on one machine.
	AllowPrivateAddresses bool
	// ReducedPadding makes the link to the guard cost less, and hide less: empty
	// records after longer silences instead of padding, in both directions.
	ReducedPadding bool
	// OnionAuth, unless nil, returns the keys that there are for an onion service that lets in only clients which it knows.
	OnionAuth func(onion.Address) []*onion.ClientSecret
	// OnProgress, unless nil, hears how far the client has come until it is ready: from one
	// goroutine, with what is new since the last call. Until it returns it hears no more.
	OnProgress func(Bootstrap)

	// Interfaces lists the addresses of the machine's interfaces, for noticing that the
	// network has changed. When nil, net.InterfaceAddrs if Dial is nil too, and else none.
	Interfaces func() ([]net.Addr, error)

	Pool    *cell.Pool
	Buffers *link.Buffers
	Rand    io.Reader        // crypto/rand when nil; safe for concurrent use
	Now     func() time.Time // the date, for validity; time.Now when nil
	Log     *slog.Logger     // nothing when nil
}

// complete fills in the defaults.
func (c *Config) complete() {
	if c.Dial == nil {
		if c.Interfaces == nil {
			c.Interfaces = net.InterfaceAddrs
		}
		c.Dial = new(net.Dialer).DialContext
	}
	c.Dial = socket.Dialer(c.Dial)
	if c.Ready == 0 {
		c.Ready = defaultReady
	}
	if c.Pool == nil {
		c.Pool = new(cell.Pool)
	}
	if c.Buffers == nil {
		c.Buffers = new(link.Buffers)
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}
