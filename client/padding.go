package client

import (
	"context"

	"cepa/circuit"
	"cepa/directory"
	"cepa/link"
)

// keepalive is how the link to a guard avoids silence, as the present consensus and
// the user say.
func (c *Client) keepalive() link.Keepalive {
	p := c.params()
	if p.Get(directory.ParamLinkPadding) == 0 {
		return link.Unpadded()
	}
	k := link.Keepalive{Empty: c.cfg.ReducedPadding}
	if k.Min, k.Max = p.LinkPadding(); k.Empty {
		k.Min, k.Max = p.LinkPaddingReduced()
	}
	return k
}

// padSetup makes a circuit that has all its hops begin like any other: before it is
// used, and whatever for. A circuit of one hop is to the guard, which knows.
func (c *Client) padSetup(ctx context.Context, o *circuit.Origin) error {
	if o.Len() < 2 {
		return nil
	}
	return o.PadSetup(ctx, int(c.params().Get(directory.ParamCircuitPadding)), &c.steps)
}
