package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"cepa/cell"
	"cepa/onion"
	"cepa/path"
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
	PartyClient      Party = "client"      // this program: the request is against its rules
	PartyNetwork     Party = "network"     // no consensus, no connection to the internet, no path
	PartyGuard       Party = "guard"       // the first relay does not answer
	PartyCircuit     Party = "circuit"     // a relay on the way
	PartyExit        Party = "exit"        // the last relay, or its policy
	PartyDestination Party = "destination" // what the user asked for
	PartyService     Party = "service"     // an onion service, or the relays that lead to it
)

// Error is why a Dial or Resolve failed. It names the party and never the
// destination.
type Error struct {
	Party Party
	Err   error // wraps a cell.EndReason for exits and destinations
}

// Error implements error.
func (e *Error) Error() string { return string(e.Party) + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// Errors of requests that no circuit is used for.
var (
	errHost    = errors.New("client: the host name or port is not valid")
	errForeign = fmt.Errorf("names of other networks (.onion, .alt but for .cepa.alt) lead nowhere here: %w", cell.EndNotFound)
	// errPrivate is why a literal address is refused: what it means to the user, it
	// means to no exit, and a program that asks for it tells what its machine knows.
	errPrivate = fmt.Errorf("a private address, which leads nowhere from an exit: let the program connect to it without the proxy: %w", cell.EndPolicy)
)

// Dial opens a stream to host:port, whose name the exit resolves, or to the onion service with that address. network must
// be "tcp". The stream has CloseWrite. Errors are *Error, ctx's, ErrClosed, and
// others when the arguments are wrong.
func (c *Client) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "tcp" {
		return nil, fmt.Errorf("client: network %q is not supported, only tcp is", network)
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, errHost // SplitHostPort's error would name the destination
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, errHost
	}
	return c.DialTarget(ctx, Target{Host: host, Port: uint16(port)})
}

// DialTarget opens a stream, to an onion service if its address is the host or a domain above it. Where a circuit breaks before anything was
// connected, or its exit refuses, another one is tried; what the destination
// says is final. Errors are as of Dial.
func (c *Client) DialTarget(ctx context.Context, t Target) (net.Conn, error) {
	if err := checkHost(t.Host); err != nil {
		return nil, err
	}
	if t.Port == 0 {
		return nil, errHost
	}
	if onion.IsAddress(t.Host) {
		return c.dialOnion(ctx, t)
	}
	if err := c.checkAddress(t.Host); err != nil {
		c.tellFailure(err)
		return nil, err
	}
	w := want{key: t.Isolation, port: t.Port}
	if a, err := literal(t.Host); err == nil {
		w.ipv6 = a.Is6()
	}
	var conn net.Conn
	err := c.try(ctx, w, func(ctx context.Context, x *circ) error {
		s, err := x.origin.Mux().Open(cell.BeginBody{Flags: cell.BeginIPv6, Port: t.Port, Host: t.Host})
		if err != nil {
			return err
		}
		if err = s.Connected(ctx); err != nil {
			s.Close()
			return err
		}
		conn = s
		return nil
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// checkHost refuses what no exit could do anything with, and what must not get
// to one.
func checkHost(host string) error {
	if !cell.ValidHost(host) {
		return errHost
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.HasSuffix(name, ".onion") || strings.HasSuffix(name, ".alt") && !onion.IsAddress(host) {
		return &Error{PartyDestination, errForeign}
	}
	return nil
}

// try runs f on a circuit for w, and on others while that can help. f's ctx ends
// after streamTimeout.
func (c *Client) try(ctx context.Context, w want, f func(context.Context, *circ) error) error {
	err := c.attempts(ctx, w, f)
	c.tellFailure(err)
	return err
}

func (c *Client) attempts(ctx context.Context, w want, f func(context.Context, *circ) error) error {
	c.mu.Lock()
	epoch := c.epoch
	c.mu.Unlock()
	if c.expired() {
		// Nor are the circuits that there are used: who may be in them was
		// agreed for that time only.
		c.lookAgain(ctx)
		if _, err := c.validConsensus(ctx); err != nil {
			return c.unready(ctx, err)
		}
	}
	var last *Error
	t := trail{circuits: map[uint64]bool{}, epoch: epoch}
	for len(t.circuits)-t.lost < maxAttempts && t.failures < maxFailures && t.lost < maxFailures {
		if t.failures > 0 {
			// Relays that were just started, or that are behind with the
			// consensus, need a moment.
			sleep(ctx, min(buildPause<<(t.failures-1), maxBuildPause))
		}
		x, err := c.circuitFor(ctx, w, &t)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return c.late(ctx, last)
		case errors.Is(err, ErrClosed) || c.ctx.Err() != nil:
			return ErrClosed
		case last != nil && last.Party == PartyExit:
			return last // there is no other exit: what the one there was said
		case last != nil && errors.Is(err, path.ErrNoPath):
			// All that could be tried instead has failed too: start over.
			t.avoid = nil
			t.failures++
			continue
		default:
			if last = buildError(err); final(err) {
				return last
			}
			// A relay that was not reached is not tried again for this stream. (Who
			// says so is the relay before it. It could as well fail until it likes
			// the choice, and has maxFailures for either.)
			if hop := (*hopError)(nil); errors.As(err, &hop) && hop.hop > 1 {
				t.avoid = append(t.avoid, hop.relay.Identity)
			}
			t.failures++
			continue
		}
		t.circuits[x.id] = true
		if last = c.attempt(ctx, x, f); last == nil {
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return c.late(ctx, nil)
		case last.Party == PartyDestination:
			return last
		case last.Party == PartyExit:
			t.avoid = append(t.avoid, x.exit().Identity)
		case last.Party == PartyCircuit:
			// When a guard goes, all that was ready goes with it, one after the other.
			t.lost++
		}
	}
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return last
}

// lookAgain has a consensus fetched soon, and waits a little for it: the pauses
// between attempts have grown long when the network was away for long.
func (c *Client) lookAgain(ctx context.Context) {
	c.mirror.Wake() // the machine may just have woken
	if c.mirror.Problem() == nil {
		return
	}
	c.mirror.Hurry()
	ctx, cancel := context.WithTimeout(ctx, consensusRetry)
	defer cancel()
	c.mirror.Wait(ctx) // whether there is one is asked next
}

// unready is the error of a request that found no valid consensus.
func (c *Client) unready(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return c.late(ctx, nil)
	case c.ctx.Err() != nil:
		return ErrClosed
	}
	return &Error{PartyNetwork, err}
}

// late is ctx's error, with what stood in the way as far as it is known.
func (c *Client) late(ctx context.Context, last *Error) error {
	c.mu.Lock()
	problem := c.problemLocked()
	c.mu.Unlock()
	if last != nil {
		problem = last
	}
	if problem == nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w; the last problem: %w", ctx.Err(), problem)
}

// attempt runs f once and says whose fault it is when it fails.
func (c *Client) attempt(ctx context.Context, x *circ, f func(context.Context, *circ) error) *Error {
	tctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	err := f(tctx, x)
	var why cell.EndReason
	switch {
	case err == nil:
		return nil
	case errors.As(err, &why):
		return &Error{partyOf(why), why}
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		// Something on the way swallows what it gets.
		c.retire(x)
		return &Error{PartyExit, cell.EndTimeout}
	default:
		return &Error{PartyCircuit, err}
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

// buildError says who failed when there is no circuit. That no exit opens streams
// to a port is what their policies say.
func buildError(err error) *Error {
	var hop *hopError
	var guard *guardError
	var none *path.NoPathError
	switch {
	case errors.As(err, &guard) && offline(guard.err):
		return &Error{PartyNetwork, err}
	case errors.As(err, &guard), errors.As(err, &hop) && hop.hop == 1:
		return &Error{PartyGuard, err}
	case errors.As(err, &hop):
		return &Error{PartyCircuit, err}
	case errors.As(err, &none) && none.Position == path.PositionExit && none.Refusing > 0:
		return &Error{PartyExit, fmt.Errorf("%w: %w", cell.EndPolicy, err)}
	}
	return &Error{PartyNetwork, err}
}

// final reports whether another attempt to build a circuit would meet the same.
func final(err error) bool {
	return errors.Is(err, ErrNotReady) || errors.Is(err, path.ErrNoPath) || errors.Is(err, errBusy)
}
