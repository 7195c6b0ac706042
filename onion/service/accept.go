package service

import (
	"fmt"
	"net"
	"slices"
	"strconv"

	"cepa/cell"
	"cepa/onion"
	"cepa/stream"
)

// Addr is the address of a service, and a port of it. It implements net.Addr.
type Addr struct {
	Address onion.Address
	Port    uint16 // 0: all of them
}

// Network implements net.Addr.
func (Addr) Network() string { return "cepa" }

// String returns the address, and the port unless it is 0.
func (a Addr) String() string {
	if a.Port == 0 {
		return a.Address.String()
	}
	return net.JoinHostPort(a.Address.String(), strconv.Itoa(int(a.Port)))
}

// Peer is all that is known of a client: which circuit it is on. It implements net.Addr.
type Peer struct {
	// Circuit is a number of this process. Streams with one number are of one client, which may have others.
	Circuit uint64
}

// Network implements net.Addr.
func (Peer) Network() string { return "cepa" }

// String names the circuit.
func (p Peer) String() string { return fmt.Sprintf("circuit %d", p.Circuit) }

// Conn is a client's stream. It has CloseWrite, and Reset.
type Conn struct {
	*stream.Stream
	local  Addr
	remote Peer
}

// LocalAddr returns the Addr that the client asked for.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the client's Peer.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// Accept waits for the next stream of a client, and tells the client that it is connected. The error is net.ErrClosed after Close.
func (s *Service) Accept() (net.Conn, error) {
	for {
		if s.ctx.Err() != nil {
			return nil, net.ErrClosed
		}
		select {
		case c := <-s.backlog:
			if err := c.Stream.Accept(cell.ConnectedBody{}); err != nil {
				c.Close() // the client has gone
				continue
			}
			s.counts.streams.Add(1)
			return c, nil
		case <-s.ctx.Done():
		}
	}
}

// Addr returns the service's Addr, without a port.
func (s *Service) Addr() net.Addr { return Addr{Address: s.address} }

// host takes what a client asks for on its joined circuit. Its methods are called on a link's reader.
type host struct {
	service *Service
	joined  *joined
}

// Begin implements stream.Handler.
func (h *host) Begin(st *stream.Stream, b cell.BeginBody) {
	s, j := h.service, h.joined
	switch {
	case s.cfg.EndOnStreams && j.streams() > s.cfg.MaxStreams:
		s.counts.denied.Add(1)
		st.Abort(cell.EndResource)
		s.spawn(j.circuit.Close) // apart: this is the circuit's own reader
		return
	case b.Host != onion.Host, s.cfg.Ports != nil && !slices.Contains(s.cfg.Ports, b.Port):
		s.counts.denied.Add(1)
		st.Abort(cell.EndRefused)
		return
	}
	address := s.address
	if s.cfg.Front != nil {
		address = *s.cfg.Front
	}
	select {
	case s.backlog <- &Conn{Stream: st, local: Addr{address, b.Port}, remote: Peer{j.id}}:
	default:
		s.counts.denied.Add(1)
		st.Abort(cell.EndResource)
	}
}

// BeginDir implements stream.Handler: services have no directory.
func (h *host) BeginDir(st *stream.Stream) {
	h.service.counts.denied.Add(1)
	st.Abort(cell.EndNoDirectory)
}

// Resolve implements stream.Handler: services resolve nothing.
func (h *host) Resolve(l *stream.Lookup, _ cell.ResolveBody) {
	h.service.counts.denied.Add(1)
	l.Answer(cell.ResolvedBody{Status: cell.EndPolicy})
}
