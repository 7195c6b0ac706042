package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"cepa/cell"
)

// Target is where a stream goes, and with whom it may share a circuit.
type Target struct {
	Host string // a name, resolved by the exit, or an address in text form
	Port uint16
	// Isolation keeps streams apart: those of different keys never share a
	// circuit.
	Isolation string
}

// Party says who failed.
type Party string

// The parties of a stream.
const (
	PartyNetwork     Party = "network"     // no consensus, no guard
	PartyCircuit     Party = "circuit"     // a relay on the way
	PartyExit        Party = "exit"        // the last relay, or its policy
	PartyDestination Party = "destination" // what the user asked for
)

// Error is why a Dial failed. It names the party and never the destination.
type Error struct {
	Party Party
	Err   error // a cell.EndReason for exits and destinations
}

// Error implements error.
func (e *Error) Error() string { return string(e.Party) + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// Dial opens a stream to host:port, whose name the exit resolves. network must
// be "tcp". The stream has CloseWrite. Errors are *Error, ctx's and ErrClosed.
func (c *Client) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "tcp" {
		return nil, fmt.Errorf("client: network %q is not supported, only tcp is", network)
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("client: %q is not a port number", portText)
	}
	return c.DialTarget(ctx, Target{Host: host, Port: uint16(port)})
}

// DialTarget opens a stream. Where a circuit breaks before anything was
// connected, or its exit's policy refuses, another one is tried.
func (c *Client) DialTarget(ctx context.Context, t Target) (net.Conn, error) {
	if !cell.ValidHost(t.Host) || t.Port == 0 {
		return nil, errors.New("client: the host name or port is not valid")
	}
	var last error
	tried := map[uint64]bool{}
	for range maxAttempts {
		x, err := c.circuitFor(ctx, t.Isolation, t.Port, tried)
		if err != nil {
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case errors.Is(err, ErrClosed):
				return nil, ErrClosed
			case last != nil:
				return nil, last // no other exit: what the first one said
			}
			last = &Error{PartyNetwork, err}
			continue
		}
		tried[x.id] = true
		conn, err := c.open(ctx, x, t)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var e *Error
		if errors.As(err, &e) && e.Party == PartyDestination {
			return nil, err
		}
		last = err
	}
	return nil, last
}

// open opens one stream on one circuit.
func (c *Client) open(ctx context.Context, x *circ, t Target) (net.Conn, error) {
	s, err := x.origin.Mux().Open(cell.BeginBody{Flags: cell.BeginIPv6, Port: t.Port, Host: t.Host})
	if err != nil {
		return nil, &Error{PartyCircuit, err}
	}
	waitCtx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	err = s.Connected(waitCtx)
	if err == nil {
		return s, nil
	}
	s.Close()
	var why cell.EndReason
	switch {
	case errors.As(err, &why):
		return nil, &Error{partyOf(why), why}
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return nil, &Error{PartyExit, cell.EndTimeout}
	default:
		return nil, &Error{PartyCircuit, err}
	}
}

// partyOf says who failed when an exit ends a stream with why.
func partyOf(why cell.EndReason) Party {
	switch why {
	case cell.EndNotFound, cell.EndRefused, cell.EndTimeout, cell.EndHost, cell.EndNetwork, cell.EndReset:
		return PartyDestination
	default:
		return PartyExit
	}
}

// Resolve looks a name up at an exit, or the name of an address.
func (c *Client) Resolve(ctx context.Context, name, isolation string) (cell.ResolvedBody, error) {
	x, err := c.circuitFor(ctx, isolation, 0, nil)
	if err != nil {
		return cell.ResolvedBody{}, &Error{PartyNetwork, err}
	}
	r, err := x.origin.Mux().Resolve(ctx, cell.ResolveBody{Flags: cell.BeginIPv6, Name: name})
	var why cell.EndReason
	if errors.As(err, &why) {
		err = &Error{partyOf(why), why}
	}
	return r, err
}
