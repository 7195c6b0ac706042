package service

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"cepa/crypto/identity"
	"cepa/crypto/layer"
	"cepa/onion"
	"cepa/onion/work"
)

// Defaults and bounds of a Config; ours.
const (
	// DefaultPoints is how many introduction points a service has: one may fail, and one be replaced, and clients still find one.
	DefaultPoints = 3
	// DefaultIntroRate and DefaultIntroBurst are how many introductions a second, and at once, a point is asked to let through:
	// above what a service can answer (work.Capacity), so that there is something to choose from when it is flooded.
	DefaultIntroRate  = 25
	DefaultIntroBurst = 200
	// MaxIntroRate bounds both.
	MaxIntroRate = 1 << 20
	// DefaultMaxStreams is how many streams one joined circuit carries at a time: one client's.
	DefaultMaxStreams = 64
	// MaxMaxStreams bounds it.
	MaxMaxStreams = 1024
	// DefaultMaxCircuits is how many clients are joined, or about to be, at a time.
	DefaultMaxCircuits = 512
	// MaxMaxCircuits bounds it.
	MaxMaxCircuits = 1 << 16
	// DefaultBacklog is how many streams wait for Accept.
	DefaultBacklog = 128
	// MaxBacklog bounds it.
	MaxBacklog = 4096
	// DefaultIdle is after how long without streams a joined circuit ends: somewhat more than clients use one for.
	DefaultIdle = 15 * time.Minute
)

// Config is what a Service is made of. Network, and Identity or Keys, are needed.
type Config struct {
	Network Network
	// Identity is the service's, when it is online; Keys are what stands in for it when it is not. One of them.
	Identity *identity.Key
	Keys     *onion.KeyBundle
	// Front, unless nil, is the address whose clients this service answers too: it is a backend. Its own address works as well,
	// and is where the front fetches this service's points.
	Front *onion.Address
	// Backends, unless empty, are the addresses of the services that answer for this one, which has no points of its own then, and
	// accepts nothing. Fetch gets the newest descriptor of one. Their layers must have this service's Suite.
	Backends []onion.Address
	Fetch    func(ctx context.Context, a onion.Address) (*onion.Descriptor, error)
	// Points is how many introduction points there are, 1 to onion.MaxPoints; DefaultPoints when 0.
	Points int
	// Clients lets in only clients with these keys; everybody who knows the address when empty. See SetClients.
	Clients []onion.ClientKey
	// Ports are those to which streams are taken; all when nil. Others are refused.
	Ports []uint16
	// MaxStreams is how many streams a joined circuit carries at a time; DefaultMaxStreams when 0. More are refused, or, with
	// EndOnStreams, the circuit is ended.
	MaxStreams   int
	EndOnStreams bool
	// MaxCircuits is how many clients are served at a time; DefaultMaxCircuits when 0. Others wait, those with most work first.
	MaxCircuits int
	// Backlog is how many streams wait for Accept; DefaultBacklog when 0. More are refused.
	Backlog int
	// Idle is after how long without streams a joined circuit ends; DefaultIdle when 0.
	Idle time.Duration
	// IntroRate and IntroBurst are how many introductions a second, and at once, each point lets through; the defaults when both
	// are 0. A negative rate is no limit.
	IntroRate, IntroBurst int
	// Work asks clients for proof of work when more come than can be answered.
	Work bool
	// Capacity is how many introductions a second the service can answer, for Work; work.Capacity when 0.
	Capacity float64
	// SingleHop gives the service's place away: its circuits go straight to its points and to where clients wait. Its descriptor
	// says so. It is faster, for services that need not hide.
	SingleHop bool
	// Suite is the cipher of the layer between client and service; layer.AES256GCM when 0.
	Suite layer.Suite
	// Probe visits the service through the network, as a client does, with auth, unless nil, as its key; Test fails when nil.
	Probe func(ctx context.Context, auth *onion.ClientSecret) error
	Rand  io.Reader        // crypto/rand when nil; safe for concurrent use
	Now   func() time.Time // the date, for keys and descriptors; time.Now when nil
	Log   *slog.Logger     // nothing when nil
}

// complete fills in the defaults, and says what cannot be.
func (c *Config) complete() error {
	switch {
	case c.Network == nil:
		return errors.New("service: a network is needed")
	case (c.Identity == nil) == (c.Keys == nil):
		return errors.New("service: an identity or keys of periods are needed, and not both")
	case len(c.Backends) > 0 && c.Fetch == nil:
		return errors.New("service: a front needs a way to fetch the descriptors of its backends")
	case len(c.Backends) > 0 && c.Front != nil:
		return errors.New("service: a service is a front or a backend, not both")
	case len(c.Backends) > onion.MaxPoints:
		return fmt.Errorf("service: %d backends: at most %d are possible, since each needs an introduction point", len(c.Backends), onion.MaxPoints)
	case c.Suite != 0 && !c.Suite.Valid():
		return fmt.Errorf("service: %v", c.Suite)
	}
	if c.IntroRate == 0 && c.IntroBurst == 0 {
		c.IntroRate, c.IntroBurst = DefaultIntroRate, DefaultIntroBurst
	}
	for _, b := range []struct {
		what      string
		v         *int
		or, least int
		most      int
	}{
		{"introduction points", &c.Points, DefaultPoints, 1, onion.MaxPoints},
		{"streams of a circuit", &c.MaxStreams, DefaultMaxStreams, 1, MaxMaxStreams},
		{"circuits", &c.MaxCircuits, DefaultMaxCircuits, 1, MaxMaxCircuits},
		{"streams in the backlog", &c.Backlog, DefaultBacklog, 1, MaxBacklog},
		{"introductions a second", &c.IntroRate, DefaultIntroRate, -1, MaxIntroRate},
		{"introductions at once", &c.IntroBurst, DefaultIntroBurst, 1, MaxIntroRate},
	} {
		if *b.v == 0 {
			*b.v = b.or
		}
		if *b.v < b.least || *b.v > b.most {
			return fmt.Errorf("service: %d %s: %d to %d are possible", *b.v, b.what, b.least, b.most)
		}
	}
	if err := checkClients(c.Clients); err != nil {
		return err
	}
	if c.Idle <= 0 {
		c.Idle = DefaultIdle
	}
	if c.Capacity <= 0 {
		c.Capacity = work.Capacity
	}
	if c.Suite == 0 {
		c.Suite = layer.AES256GCM
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// MaxClients is how many clients can be let in by name: one is the service itself, when it tests whether it is reached.
const MaxClients = onion.MaxClients - 1

func checkClients(clients []onion.ClientKey) error {
	if len(clients) > MaxClients {
		return fmt.Errorf("service: %d clients: at most %d can be let in by name", len(clients), MaxClients)
	}
	return nil
}
