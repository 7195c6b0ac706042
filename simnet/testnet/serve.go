package testnet

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"cepa/simnet"
)

// ListenSite opens a listener that exits reach as name and port, and nobody
// else by that name: on a simnet on a host of its own, on loopback on a port of
// 127.0.0.1. The name may be an address, as for Sites.Add. The listener ends
// with the network at the latest. Errors are those of listening, and ErrClosed.
func (n *Net) ListenSite(name string, port uint16) (net.Listener, error) {
	addr := n.Sites.Add(name)
	at := netip.AddrPortFrom(addr, port)
	var ln net.Listener
	var err error
	if n.cfg.Sim != nil {
		ln, err = n.siteHost(name, addr).Listen("tcp", at.String())
	} else {
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("testnet: site %s: %w", name, err)
	}
	if err := n.begin(); err != nil {
		ln.Close()
		return nil, err
	}
	s := &siteListener{Listener: ln}
	if n.cfg.Sim == nil {
		n.Sites.Route(name, port, ln.Addr().String())
	}
	s.closed = sync.OnceValue(func() error {
		n.Sites.unroute(at, ln.Addr().String())
		return ln.Close()
	})
	go func() {
		defer n.wg.Done()
		<-n.ctx.Done()
		_ = s.Close() // it may be closed already
	}()
	return s, nil
}

// siteListener is a listener whose route ends with it.
type siteListener struct {
	net.Listener
	closed func() error
}

// Close ends the listener.
func (s *siteListener) Close() error { return s.closed() }

// siteHost returns the simnet host of a site's address.
func (n *Net) siteHost(name string, addr netip.Addr) *simnet.Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.sites[addr.String()]
	if h == nil {
		_, h = n.machine(name, addr)
		n.sites[addr.String()] = h
	}
	return h
}

// SiteHost returns the machine of a site, to change its links; nil on loopback.
func (n *Net) SiteHost(name string) *simnet.Host {
	if n.cfg.Sim == nil {
		return nil
	}
	return n.siteHost(name, n.Sites.Add(name))
}

// ServeSite serves h at http://name:port/ until the network closes, as
// ListenSite says, and returns the server, which may be closed earlier.
func (n *Net) ServeSite(name string, port uint16, h http.Handler) (*http.Server, error) {
	ln, err := n.ListenSite(name, port)
	if err != nil {
		return nil, err
	}
	if err := n.begin(); err != nil {
		ln.Close()
		return nil, err
	}
	var conns sync.WaitGroup
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed, http.StateHijacked:
				conns.Done()
			}
		},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln) // ends with Close
	}()
	go func() {
		defer n.wg.Done()
		select {
		case <-n.ctx.Done():
			_ = srv.Close() // its error is that of closing listeners, which are gone either way
		case <-served:
		}
		<-served
		conns.Wait()
	}()
	return srv, nil
}
