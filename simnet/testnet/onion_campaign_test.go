package testnet_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/service"
	"cepa/simnet"
	"cepa/simnet/testnet"
	"cepa/state"
)

// onionSite is an onion service with a client of its own, on a machine of its own.
type onionSite struct {
	n    *testnet.Net
	h    *simnet.Host // nil on loopback
	dir  string       // nothing is kept when it is empty
	cfg  client.OnionConfig
	f    func(net.Conn)
	c    *client.Client
	l    *client.OnionListener
	kept *state.Dir

	Address string
}

// newOnionKey returns the identity of a service.
func newOnionKey(t *testing.T) *identity.Key {
	t.Helper()
	k, err := identity.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newOnionSite makes one that is not started; f serves each connection.
func newOnionSite(t *testing.T, n *testnet.Net, dir string, cfg client.OnionConfig, f func(net.Conn)) *onionSite {
	t.Helper()
	if cfg.Identity == nil && cfg.Keys == nil {
		cfg.Identity = newOnionKey(t)
	}
	s := &onionSite{n: n, dir: dir, cfg: cfg, f: f}
	if n.Sim() != nil {
		s.h = n.NewHost("service")
	}
	if cfg.Identity != nil {
		s.Address = onion.AddressOf(cfg.Identity.ID()).String()
	} else {
		s.Address = cfg.Keys.Address.String()
	}
	return s
}

// start starts the service and does not wait until it is reachable.
func (s *onionSite) start() (err error) {
	cfg := client.Config{}
	if s.h != nil {
		cfg.Dial = s.h.Dial
	}
	if s.dir != "" {
		if s.kept, err = state.Open(s.dir); err != nil {
			return err
		}
		cfg.Files = s.kept
	}
	if s.c, err = s.n.NewClient(cfg); err != nil {
		return err
	}
	if s.l, err = s.c.StartOnion(s.cfg); err != nil {
		return err
	}
	l := s.l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s.f(c)
			}()
		}
	}()
	return nil
}

// stop ends it, and everything that was open breaks. A crash says nothing before.
func (s *onionSite) stop(crash bool) {
	if crash && s.h != nil {
		s.h.Crash()
	}
	s.l.Close()
	s.c.Close()
	if s.kept != nil {
		s.kept.Close()
	}
}

// hostOnion starts a service and waits until clients can find it.
func hostOnion(t *testing.T, n *testnet.Net, cfg client.OnionConfig, f func(net.Conn)) *onionSite {
	t.Helper()
	s := newOnionSite(t, n, "", cfg, f)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if err := s.l.Ready(within(t, 5*time.Minute)); err != nil {
		t.Fatalf("the service: %v", err)
	}
	return s
}

// circuits counts identities of visitors, so that each visit has its own.
var onionVisits atomic.Uint64

// knock dials a service, with circuits of its own when isolation is empty, and has
// an echo come back.
func knock(c *client.Client, address, isolation string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if isolation == "" {
		isolation = fmt.Sprintf("visit %d", onionVisits.Add(1))
	}
	conn, err := c.DialTarget(ctx, client.Target{Host: address, Port: 80, Isolation: isolation})
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	return roundTrip(conn, "knock, knock")
}

// reach visits a service until it answers, for as long as limit, and returns how long
// that took.
func reach(c *client.Client, address, isolation string, limit time.Duration) (time.Duration, error) {
	began := time.Now()
	for {
		err := knock(c, address, isolation, 20*time.Second)
		took := time.Since(began)
		if err == nil || took > limit {
			return took, err
		}
		time.Sleep(time.Second)
	}
}

// pointsOf returns the introduction points of a service that are up.
func (s *onionSite) pointsOf() (ids []identity.ID) {
	for _, p := range s.l.Status().Points {
		if p.State == service.PointUp {
			ids = append(ids, p.Relay)
		}
	}
	return ids
}

// dirsOf returns the relays that hold its descriptor of the present period.
func (s *onionSite) dirsOf() (ids []identity.ID) {
	for _, p := range s.l.Status().Periods {
		if !p.Current {
			continue
		}
		for _, u := range p.Uploads {
			if u.Current {
				ids = append(ids, u.Relay)
			}
		}
	}
	return ids
}

// percentile returns the value below or at which a share of them are.
func percentile(list []time.Duration, share float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return list[min(int(share*float64(len(list))), len(list)-1)]
}

// errWrong says that something came that nobody sent.
var errWrong = errors.New("other bytes came back")

// echoes sends what nobody can guess through a connection to an echo and compares.
func echoes(c io.ReadWriter, n int) error {
	sent, got := make([]byte, n), make([]byte, n)
	_, _ = rand.Read(sent) // never fails
	if _, err := c.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !slices.Equal(sent, got) {
		return errWrong
	}
	return nil
}
