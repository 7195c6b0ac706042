package client

import (
	"context"
	"errors"
	"fmt"
	"net"

	"cepa/cell"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/visit"
)

// Client is the network of onion/visit.
var _ visit.Network = (*Client)(nil)

// errNoIP is what a look-up of an onion service's address is told.
var errNoIP = errors.New("onion services have no IP addresses: have the program leave the name to the proxy (SOCKS5 with host names, SOCKS4a, HTTP)")

// newVisitor returns what reaches onion services.
func (c *Client) newVisitor() *visit.Visitor {
	return visit.New(visit.Config{Network: c, Auth: c.cfg.OnionAuth, Rand: c.cfg.Rand, Now: c.cfg.Now})
}

// Consensus waits for a valid consensus. Errors wrap ErrNotReady, or are ctx's.
func (c *Client) Consensus(ctx context.Context) (*directory.Consensus, error) {
	if c.expired() {
		c.lookAgain(ctx)
	}
	_, cons, err := c.paths(ctx)
	return cons, err
}

// PickMiddle chooses a relay by the weights of middles, such as a rendezvous point.
func (c *Client) PickMiddle(ctx context.Context) (identity.ID, error) {
	ch, _, err := c.paths(ctx)
	if err != nil {
		return identity.ID{}, err
	}
	r, err := ch.Middle(c.cfg.Rand, nil)
	if err != nil {
		return identity.ID{}, fmt.Errorf("client: %w", err)
	}
	return r.Identity, nil
}

// dialOnion opens a stream to an onion service.
func (c *Client) dialOnion(ctx context.Context, t Target) (net.Conn, error) {
	a, err := onion.ParseAddress(t.Host)
	if err != nil {
		err = &Error{PartyClient, err}
		c.tellFailure(err)
		return nil, err
	}
	s, err := c.visitor.Dial(ctx, a, t.Isolation, t.Port)
	if err != nil {
		err = c.onionError(ctx, err)
		c.tellFailure(err)
		return nil, err
	}
	return s, nil
}

// onionError says whose fault it is that there is no stream to an onion service. What the service said, and what its
// introduction points and the relays with its descriptor came to, is the service's: to whoever dials, that is all one.
func (c *Client) onionError(ctx context.Context, err error) error {
	var why cell.EndReason
	var guard *guardError
	var hop *hopError
	var visitErr *visit.Error
	switch {
	case errors.Is(err, visit.ErrClosed), errors.Is(err, ErrClosed), c.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return c.late(ctx, nil)
	case errors.As(err, &guard):
		return buildError(guard)
	case errors.As(err, &hop) && hop.hop == 1:
		return buildError(hop)
	case errors.Is(err, ErrNotReady):
		return &Error{PartyNetwork, c.noConsensus()}
	case errors.As(err, &visitErr):
		return &Error{PartyService, visitErr}
	case errors.As(err, &why):
		return &Error{PartyService, why}
	case errors.Is(err, visit.ErrBusy):
		return &Error{PartyClient, err}
	}
	return &Error{PartyNetwork, err}
}
