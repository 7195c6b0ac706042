package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/path"
	"cepa/stream"
)

// maxDirStrikes is after how often in a row a guard had no newer consensus, or a bad
// one, when there was a newer one elsewhere, it is no longer asked for any.
const maxDirStrikes = 3

// dirRelays is how many relays are asked after the guard, over circuits.
const dirRelays = 2

// newMirror returns what keeps the consensus fresh. Before there is one, fallback
// caches and authorities are asked; later the guard, over the link that it has anyway,
// so that nobody else sees the client. A guard that has nothing newer is not believed:
// then other relays are asked, over whole circuits. Only when the consensus has lost
// half of its time, who can be reached without a circuit is asked too.
func (c *Client) newMirror() (*mirror.Mirror, error) {
	cfg := mirror.Config{
		Network: c.cfg.Network, Dial: c.cfg.Dial, Rand: c.cfg.Rand, Now: c.cfg.Now, Log: c.cfg.Log,
		Sources: c.dirSources, OnProgress: c.fetching,
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

func (c *Client) dirSources(current *directory.Consensus) []mirror.Source {
	if current == nil || current.CheckTime(c.cfg.Now()) != nil {
		return nil
	}
	d := &dirDial{client: c}
	list := []mirror.Source{{Name: "guard", Address: "guard:80", Dial: d.guard, Done: d.done}}
	for i := range dirRelays {
		list = append(list, mirror.Source{Name: "relay", Address: fmt.Sprintf("relay%d:80", i+1), Rank: 1, Dial: c.dialRelayDir})
	}
	return list
}

// dirDial opens a stream to the guard's directory, and remembers what came of it.
type dirDial struct {
	client *Client

	mu  sync.Mutex
	who identity.ID // zero before the stream is open
}

// errBadDirectory is why a guard is passed over as a directory.
var errBadDirectory = errors.New("client: the guard's directory has been of no use and is passed over")

// errNoLink is why no directory can be asked over a link.
var errNoLink = errors.New("client: there is no link to a guard")

func (d *dirDial) guard(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, who, err := d.client.dialDir(ctx, 1)
	if err != nil {
		return nil, err // which says nothing about what it would have served
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.who = who
	return conn, nil
}

// done counts what speaks against the guard's directory. That it has nothing newer does
// only when another one has.
func (d *dirDial) done(err error) {
	d.mu.Lock()
	who := d.who
	d.mu.Unlock()
	if who.IsZero() {
		return
	}
	c := d.client
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		delete(c.dirStrikes, who)
	case errors.Is(err, mirror.ErrNotModified) || c.ctx.Err() != nil:
	default:
		if len(c.dirStrikes) >= path.SampleSize {
			clear(c.dirStrikes)
		}
		c.dirStrikes[who]++
	}
}

// dialRelayDir opens a stream to the directory of a relay at the end of a circuit.
func (c *Client) dialRelayDir(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, _, err := c.dialDir(ctx, hops)
	return conn, err
}

// dialDir opens a stream to the directory at the end of a circuit of so many hops,
// which ends with it, and returns whose it is.
func (c *Client) dialDir(ctx context.Context, length int) (net.Conn, identity.ID, error) {
	if !c.begin() { // net/http dials apart from who asked for it
		return nil, identity.ID{}, ErrClosed
	}
	defer c.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	// The link is there because circuits are kept ready. To find a guard that answers
	// is for who builds those: two that look would knock twice as often.
	select {
	case <-c.ready:
	case <-ctx.Done():
	}
	if len(c.links.Links()) == 0 {
		return nil, identity.ID{}, errNoLink
	}
	chooser, _, err := c.paths(ctx)
	if err != nil {
		return nil, identity.ID{}, err
	}
	guard, l, err := c.guardLink(ctx, chooser)
	if err != nil {
		return nil, identity.ID{}, err
	}
	relays := []*directory.Relay{guard}
	if length > 1 {
		if relays, err = chooser.Pick(c.cfg.Rand, path.Request{Guard: guard, Length: length}); err != nil {
			return nil, identity.ID{}, fmt.Errorf("client: %w", err)
		}
	} else {
		c.mu.Lock()
		bad := c.dirStrikes[guard.Identity] >= maxDirStrikes
		c.mu.Unlock()
		if bad {
			return nil, guard.Identity, errBadDirectory
		}
	}
	last := relays[len(relays)-1]
	o, err := c.openOrigin(ctx, l, relays, nil)
	if err != nil {
		return nil, last.Identity, err
	}
	s, err := o.Mux().OpenDir()
	if err == nil {
		err = s.Connected(ctx)
	}
	if err != nil {
		o.Close()
		return nil, last.Identity, fmt.Errorf("client: directory of %s: %w", last.Nickname, err)
	}
	return &dirConn{s, o}, last.Identity, nil
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
