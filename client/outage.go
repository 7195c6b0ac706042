package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"cepa/circuit"
	"cepa/link"
)

// How outages are noticed and left; all ours.
const (
	// networkCheck is how often it is looked whether the machine has other addresses: a
	// cheap system call, and how late a change is noticed.
	networkCheck = 5 * time.Second
	// outageRetry bounds the pause after a failure that cost no relay anything: nothing
	// else notices that a login page was filled in, or a cable put in.
	outageRetry = 5 * time.Second
	// guardsRetry is the same when guards do not answer, in the first guardsSoon of
	// that: they may be down, and must not be knocked at by everybody when they are
	// back. A stream that is wanted tries at once, at any time.
	guardsRetry = 10 * time.Second
	guardsSoon  = time.Minute
	// linkCheck is how long a link may take to answer when it is doubted.
	linkCheck = 5 * time.Second
)

// outage is what keeps a client from the network as a whole.
type outage uint8

const (
	outageNone    outage = iota
	outageOffline        // the machine has no way to the internet
	outagePortal         // something answers in the place of guards
	outageGuards         // no guard answers
)

// errSilentLink is why a link is given up.
var errSilentLink = errors.New("client: the link does not answer any more, as after sleep or a change of network")

// outageOf says what an attempt to build a circuit met. That a later hop failed shows
// that the guard works.
func outageOf(err error) outage {
	var guard *guardError
	var hs *link.HandshakeError
	switch {
	case !errors.As(err, &guard):
		return outageNone
	case offline(guard.err):
		return outageOffline
	case errors.As(guard.err, &hs) && !hungUp(guard.err):
		return outagePortal
	}
	return outageGuards
}

// hungUp reports whether a handshake failed because the other end went away or said
// nothing, as a guard does that is starting or busy, and not for what it said.
func hungUp(err error) bool {
	for _, e := range []error{
		context.DeadlineExceeded, context.Canceled, os.ErrDeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE, link.ErrClosed,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// warning is what the user is told when an outage begins.
func (o outage) warning() string {
	return [...]string{
		outageOffline: "this machine is not connected to the internet; cepa goes on by itself when it is",
		outagePortal: "connections to guards are answered by something else, such as the login page of a hotel's network or a firewall: " +
			"log in with a browser that does not use cepa; cepa tries again every few seconds",
		outageGuards: "no guard answers: they are blocked, or the connection to the internet is down; cepa tries again every few seconds",
	}[o]
}

// noteOutage remembers what an attempt to build a circuit came to, and says when an
// outage begins and ends, once. A cause that lasts is not said again when it looks like
// another one for a moment.
func (c *Client) noteOutage(err error) {
	now := outageNone
	if err != nil {
		if now = outageOf(err); now == outageNone {
			return
		}
	}
	c.mu.Lock()
	before, since := c.outage, c.outageSince
	ready := c.phase == PhaseReady
	if before == outageNone {
		c.outageSince = time.Now()
	}
	told := c.outageTold[now]
	if now == outageNone {
		c.outageTold = [4]bool{}
	} else {
		c.outageTold[now] = true
	}
	c.outage = now
	c.mu.Unlock()
	switch {
	case now != outageNone && !told:
		c.cfg.Log.Warn(now.warning(), "err", err)
	case now == outageNone && before != outageNone && ready:
		c.cfg.Log.Info("the network is reached again", "took", time.Since(since).Round(time.Second))
	}
}

// pauseMax bounds the pause before circuits are built ahead of need again.
func (c *Client) pauseMax() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.outage == outageOffline || c.outage == outagePortal:
		return outageRetry
	case c.outage == outageGuards && time.Since(c.outageSince) < guardsSoon:
		return guardsRetry
	}
	return retryMax
}

// rest waits for d, or until something has changed for which it is worth to try again
// at once.
func (c *Client) rest(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.changed:
	case <-c.ctx.Done():
	}
}

// reconsider is called when the machine may be elsewhere than before: it has slept, or
// has other addresses. What was learnt about the way to guards is doubted.
func (c *Client) reconsider() {
	c.times.reset()
	for _, l := range c.links.Links() {
		c.checkLink(l)
	}
	c.mirror.Wake()
	c.wantMore()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// checkLink asks the guard at the other end for a circuit, and gives the link up if
// nothing at all comes back: TCP would take a quarter of an hour to say so.
func (c *Client) checkLink(l *link.Link) {
	id, _ := l.Peer()
	cons := c.mirror.Current()
	if cons == nil {
		return
	}
	guard, ok := cons.Lookup(id)
	if !ok {
		return
	}
	c.mu.Lock()
	busy := c.checking[id]
	c.checking[id] = true
	c.mu.Unlock()
	if busy {
		return
	}
	c.spawn(func() {
		defer func() {
			c.mu.Lock()
			delete(c.checking, id)
			c.mu.Unlock()
		}()
		ctx, cancel := context.WithTimeout(c.ctx, linkCheck)
		defer cancel()
		before := l.Stats().BytesRead
		o := circuit.NewOrigin(circuit.OriginConfig{Pool: c.cfg.Pool, Rand: c.cfg.Rand, Flow: circuit.FlowOf(c.params().Get)})
		out, err := l.Open(o)
		if err != nil {
			return
		}
		o.Attach(out)
		err = o.Extend(ctx, specOf(guard))
		o.Close()
		if err != nil && c.ctx.Err() == nil && l.Stats().BytesRead == before {
			c.cfg.Log.Info("a link does not answer any more and is made anew", "relay", guard.Nickname, "id", id.Short())
			l.Abort(errSilentLink)
			c.wantMore()
		}
	})
}

// watchNetwork looks at the addresses of the machine until Close.
func (c *Client) watchNetwork() {
	before, _ := c.addresses()
	tick := time.NewTicker(networkCheck)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
		now, err := c.addresses()
		if err != nil || slices.Equal(now, before) {
			continue
		}
		before = now
		if len(now) == 0 {
			continue // there is nothing to try; attempts will say so
		}
		c.cfg.Log.Info("this machine has other addresses than before; links are checked")
		c.reconsider()
	}
}

// addresses returns those of the machine by which it may reach others.
func (c *Client) addresses() ([]netip.Addr, error) {
	list, err := c.cfg.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		p, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(p.IP); ok && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			out = append(out, ip.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// failures are how often each party failed since that was last logged.
type failures struct {
	told  time.Time
	count int
}

// failureEvery is how often at most the log says that one party has failed.
const failureEvery = time.Minute

// next is what cepa does when a party fails, and the user may do.
func (p Party) next() string {
	switch p {
	case PartyClient:
		return "the request is refused and goes nowhere"
	case PartyNetwork:
		return "trying again by itself; cepa status says what stands in the way"
	case PartyGuard:
		return "the next guard is tried; check the connection to the internet if this goes on"
	case PartyCircuit:
		return "new streams take circuits through other relays"
	case PartyExit:
		return "other exits were tried, and new streams may find one"
	case PartyService:
		return "other relays that lead to it were tried; it may be down, or the address be wrong"
	}
	return "nothing, as every exit would meet the same"
}

// tellFailure logs which party kept a stream from opening and what is done about it: never
// where the stream was to go, and once a minute for each party.
func (c *Client) tellFailure(err error) {
	var e *Error
	if !errors.As(err, &e) {
		return
	}
	now := time.Now()
	c.mu.Lock()
	f := c.failures[e.Party]
	f.count++
	due := f.told.IsZero() || now.Sub(f.told) >= failureEvery
	n := f.count
	if due {
		f = failures{told: now}
	}
	c.failures[e.Party] = f
	c.mu.Unlock()
	if due {
		c.cfg.Log.Info("streams could not be opened", "party", string(e.Party), "count", n, "reason", e.Err, "next", e.Party.next())
	}
}
