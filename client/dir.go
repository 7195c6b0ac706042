package client

import (
	"context"
	"fmt"
	"net"

	"cepa/circuit"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/stream"
)

// newMirror returns what keeps the consensus fresh. Before there is one, the
// authorities are asked; later the guard, over the link that it has anyway, so
// that nobody else sees the client.
func (c *Client) newMirror() (*mirror.Mirror, error) {
	cfg := mirror.Config{
		Network: c.cfg.Network, Dial: c.cfg.Dial, Rand: c.cfg.Rand, Now: c.cfg.Now, Log: c.cfg.Log,
		Sources: func(current *directory.Consensus) []mirror.Source {
			if current == nil || current.CheckTime(c.cfg.Now()) != nil {
				return nil
			}
			return []mirror.Source{{Name: "guard", Address: "guard:80", Dial: c.dialDir}}
		},
	}
	if c.cfg.Files != nil {
		cfg.Store = c.cfg.Files
	}
	m, err := mirror.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return m, nil
}

// dialDir opens a stream to the guard's directory, over a circuit of one hop
// that ends with it.
func (c *Client) dialDir(ctx context.Context, _, _ string) (net.Conn, error) {
	if !c.begin() { // net/http dials apart from who asked for it
		return nil, ErrClosed
	}
	defer c.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	chooser, _, err := c.paths(ctx)
	if err != nil {
		return nil, err
	}
	guard, l, err := c.guardLink(ctx, chooser)
	if err != nil {
		return nil, err
	}
	o, err := c.openOrigin(ctx, l, []*directory.Relay{guard}, nil)
	if err != nil {
		return nil, err
	}
	s, err := o.Mux().OpenDir()
	if err == nil {
		err = s.Connected(ctx)
	}
	if err != nil {
		o.Close()
		return nil, fmt.Errorf("client: directory of guard %s: %w", guard.Nickname, err)
	}
	return &dirConn{s, o}, nil
}

// dirConn ends its circuit when it is closed.
type dirConn struct {
	*stream.Stream
	origin *circuit.Origin
}

// Close implements net.Conn.
func (d *dirConn) Close() error {
	err := d.Stream.Close()
	d.origin.Close()
	return err
}
