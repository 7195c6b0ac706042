package client

import (
	"context"
	"fmt"
	"io"
	"time"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/service"
)

// OnionConfig says which onion service to run. Identity or Keys are needed, and one of them only; the zero values of all else work.
type OnionConfig struct {
	// Identity is the service's key, whose address it has. Keys are what stands in for it when it is kept offline: see
	// service.Prepare.
	Identity *identity.Key
	Keys     *onion.KeyBundle
	// Clients lets in only clients with these keys; everybody who knows the address when empty.
	Clients []onion.ClientKey
	// Ports are those to which streams are taken; all when nil.
	Ports []uint16
	// Points is how many introduction points the service has; 3 when 0, 20 at most.
	Points int
	// MaxCircuits is how many clients are served at a time, 512 when 0; MaxStreams how many streams of one, 64 when 0. With
	// EndOnStreams, a client that asks for more is cut off. Backlog is how many streams wait for Accept, 128 when 0.
	MaxCircuits, MaxStreams int
	EndOnStreams            bool
	Backlog                 int
	// Idle is after how long without streams a client's circuit ends; 15 minutes when 0.
	Idle time.Duration
	// IntroRate and IntroBurst are how many clients a second, and at once, each introduction point lets through: 25 and 200 when
	// both are 0. A negative rate is no limit.
	IntroRate, IntroBurst int
	// Work has clients prove work when more of them come than can be answered: Capacity a second, 20 when 0.
	Work     bool
	Capacity float64
	// Front, unless nil, is the address of the service whose clients this one answers, too: it is a backend. Backends, unless empty,
	// are the addresses of those that answer for this one, which answers nobody then.
	Front    *onion.Address
	Backends []onion.Address
	// SingleHop gives away where the service is, for one that need not hide: its circuits are one hop long, which is faster.
	// Clients stay hidden. The descriptor says so.
	SingleHop bool
}

// OnionListener is a net.Listener at an onion address. What it accepts are *service.Conn: their local address is the one that the
// client asked for, and the remote one the number of the client's circuit.
type OnionListener struct{ *service.Service }

// Listen runs an onion service and returns when clients can find it, or ctx ends; then nothing is left of it. The service ends when
// the listener is closed, and with the client.
func (c *Client) Listen(ctx context.Context, cfg OnionConfig) (*OnionListener, error) {
	l, err := c.StartOnion(cfg)
	if err != nil {
		return nil, err
	}
	if err := l.Ready(ctx); err != nil {
		l.Close()
		if c.ctx.Err() != nil {
			return nil, ErrClosed
		}
		return nil, fmt.Errorf("client: %w", err)
	}
	return l, nil
}

// StartOnion is Listen without waiting: Ready of the listener waits, and its Status says how far it is.
func (c *Client) StartOnion(cfg OnionConfig) (*OnionListener, error) {
	if !c.begin() {
		return nil, ErrClosed
	}
	defer c.wg.Done()
	var address onion.Address
	switch {
	case cfg.Identity != nil:
		address = onion.AddressOf(cfg.Identity.ID())
	case cfg.Keys != nil:
		address = cfg.Keys.Address
	}
	s, err := service.New(service.Config{
		Network: onionNetwork{c}, Identity: cfg.Identity, Keys: cfg.Keys, Front: cfg.Front, Backends: cfg.Backends,
		Points: cfg.Points, Clients: cfg.Clients, Ports: cfg.Ports, MaxStreams: cfg.MaxStreams, EndOnStreams: cfg.EndOnStreams,
		MaxCircuits: cfg.MaxCircuits, Backlog: cfg.Backlog, Idle: cfg.Idle, IntroRate: cfg.IntroRate, IntroBurst: cfg.IntroBurst,
		Work: cfg.Work, Capacity: cfg.Capacity, SingleHop: cfg.SingleHop,
		Fetch: c.visitor.Descriptor,
		Probe: func(ctx context.Context, auth *onion.ClientSecret) error { return c.visitor.Reach(ctx, address, auth) },
		Rand:  c.cfg.Rand, Now: c.cfg.Now, Log: c.cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	ended := c.spawn(func() {
		select {
		case <-c.ctx.Done():
			s.Close()
		case <-s.Done():
		}
	})
	if !ended {
		s.Close()
		return nil, ErrClosed
	}
	return &OnionListener{s}, nil
}

// onionNetwork is the service.Network of a Client.
type onionNetwork struct{ client *Client }

// Current implements service.Network.
func (n onionNetwork) Current() *directory.Consensus { return n.client.mirror.Current() }

// Changed implements service.Network.
func (n onionNetwork) Changed() <-chan struct{} { return n.client.mirror.Changed() }

// Circuit implements service.Network.
func (n onionNetwork) Circuit(ctx context.Context, to service.Hop) (service.Circuit, error) {
	var o *circuit.Origin
	var err error
	switch {
	case to.Direct:
		o, err = n.client.DirectCircuit(ctx, to.Relay)
	case to.Foreign: // to a visitor
		o, err = n.client.vanguardWithin(ctx, maxVanguardCircuits-keptVanguardCircuits, to.Relay, true, nil)
	default:
		o, err = n.client.VanguardCircuit(ctx, to.Relay, false, nil)
	}
	if err != nil {
		return nil, err
	}
	return service.Origin(o), nil
}

// PickPoint implements service.Network.
func (n onionNetwork) PickPoint(rand io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error) {
	ch, _, err := n.client.paths(n.client.ctx)
	if err != nil {
		return nil, err
	}
	return ch.Middle(rand, exclude)
}

// DirectCircuit returns a circuit of one hop, which hides nothing: for onion services that say of themselves that they need not be
// hidden. The caller closes it. Errors are those of building a circuit, ErrClosed and ctx's.
func (c *Client) DirectCircuit(ctx context.Context, to identity.ID) (*circuit.Origin, error) {
	if !c.begin() {
		return nil, ErrClosed
	}
	defer c.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	_, cons, err := c.paths(ctx)
	if err != nil {
		return nil, err
	}
	r, ok := cons.Lookup(to)
	if !ok {
		return nil, fmt.Errorf("client: relay %s is not in the consensus", to.Short())
	}
	l, err := c.links.Get(ctx, r.Identity, reachable(c.cfg.Reachable, r))
	if err != nil {
		return nil, &hopError{1, r, err}
	}
	o := circuit.NewOrigin(circuit.OriginConfig{Pool: c.cfg.Pool, Rand: c.cfg.Rand, Flow: circuit.FlowOf(c.params().Get)})
	out, err := l.Open(o)
	if err != nil {
		return nil, &hopError{1, r, err}
	}
	o.Attach(out)
	if err := o.Extend(ctx, specOf(r)); err != nil {
		o.Close()
		return nil, &hopError{1, r, err}
	}
	return o, nil
}
