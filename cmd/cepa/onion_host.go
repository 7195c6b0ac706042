package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cepa/cell"
	"cepa/client"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/onion"
	"cepa/onion/forward"
	"cepa/onion/service"
	"cepa/state"
)

const (
	// progressEvery is how often it is looked how far a service has come.
	progressEvery = time.Second
	// filesPerStream is how many of the process's files a stream may take: one for its target, and one in reserve for links and
	// the rest.
	filesPerStream = 2
)

// hosted is one service of this process.
type hosted struct {
	spec     serviceSpec // as it was started: ports and clients may be others now
	dir      *state.Dir
	own      *state.Dir // dir, when it is not in the data directory, to be closed
	identity *identity.Key
	bundle   *onion.KeyBundle
	address  onion.Address

	mu      sync.Mutex // guards what follows
	ports   []forward.Port
	clients []onion.ClientKey
	test    onionTest
	ended   bool // no more tests

	listener *client.OnionListener
	forward  *forward.Forwarder // nil at a front
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// onionHost runs the services of a process.
type onionHost struct {
	client  *client.Client
	net     *directory.Network
	data    *state.Dir
	dataDir string
	log     *slog.Logger
	out     io.Writer
	load    func() ([]serviceSpec, error)

	changing chan struct{} // of capacity 1: held while services are changed, which takes its time
	mu       sync.Mutex    // guards services
	services []*hosted
}

// present returns the services that run.
func (h *onionHost) present() []*hosted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*hosted(nil), h.services...)
}

// find returns the service with a name, nil if none has it.
func find(all []*hosted, name string) *hosted {
	for _, s := range all {
		if s.spec.name == name {
			return s
		}
	}
	return nil
}

// prepare reads everything that a service needs. before is the service of this name that runs, if there is one.
func (h *onionHost) prepare(spec serviceSpec, before *hosted) (s *hosted, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("service %s: %w", spec.name, err)
		}
	}()
	s = &hosted{spec: spec, ports: spec.ports}
	if before != nil && before.spec.dir == spec.dir {
		s.dir, s.own = before.dir, before.own
	} else if s.dir, s.own, err = openService(h.data, &spec); err != nil {
		return nil, err
	} else if s.own != nil {
		defer func() {
			if err != nil {
				s.own.Close()
			}
		}()
	}
	if _, err := s.dir.Sub(clientsDir); err != nil { // for cepa onion client-auth, which cannot make it while this runs
		return nil, err
	}
	if s.clients, err = clientKeys(s.dir.Path(clientsDir), spec.clients); err != nil {
		return nil, err
	}
	if spec.keys == "" {
		if s.identity, err = serviceIdentity(s.dir); err != nil {
			return nil, err
		}
		s.address = onion.AddressOf(s.identity.ID())
	} else {
		if err := noIdentity(s.dir); err != nil {
			return nil, err
		}
		if s.bundle, err = readBundle(spec.keys); err != nil {
			return nil, err
		}
		if err := checkBundle(s.bundle, h.net, time.Now()); err != nil {
			return nil, fmt.Errorf("%s: %w", spec.keys, err)
		}
		s.address = s.bundle.Address
	}
	if spec.front != nil && *spec.front == s.address {
		return nil, errors.New("it is its own front: a backend has a key of its own, and the front's address in \"front\"")
	}
	if slices.Contains(spec.backends, s.address) {
		return nil, errors.New("it is its own backend: a backend has a key of its own")
	}
	if err := s.dir.Write(addressFile, []byte(s.address.String()+"\n")); err != nil {
		return nil, err
	}
	return s, nil
}

// checkBundle refuses prepared keys that are of no use now.
func checkBundle(b *onion.KeyBundle, n *directory.Network, now time.Time) error {
	if b.Network != n.Name {
		return fmt.Errorf("these keys are for the network %q, and this is %q", b.Network, n.Name)
	}
	present := service.PeriodOf(n.Interval, now)
	first, last := b.Keys[0].Period, b.Keys[len(b.Keys)-1].Period
	switch {
	case last < present:
		return fmt.Errorf("these keys ended at %s: prepare new ones where the identity is (cepa onion keys prepare)", dateOf(service.PeriodStart(n.Interval, last+1)))
	case first > present:
		return fmt.Errorf("these keys begin at %s only: see whether the clock is right", dateOf(service.PeriodStart(n.Interval, first)))
	}
	return nil
}

// start runs a service that was prepared.
func (h *onionHost) start(s *hosted) (err error) {
	log := h.log.With("service", s.spec.name)
	if len(s.spec.backends) == 0 {
		s.forward, err = forward.New(forward.Config{Ports: s.spec.ports, Proxy: s.spec.proxy, MaxStreams: streamLimit(), Log: log})
		if err != nil {
			return err
		}
	}
	s.listener, err = h.client.StartOnion(client.OnionConfig{
		Identity: s.identity, Keys: s.bundle, Clients: s.clients, // nobody else has s yet
		Points: s.spec.points, MaxCircuits: s.spec.maxClients, MaxStreams: s.spec.maxStreams,
		IntroRate: s.spec.introRate, IntroBurst: s.spec.introBurst, Work: s.spec.work, Front: s.spec.front, Backends: s.spec.backends, SingleHop: s.spec.singleHop,
	})
	if err != nil {
		return fmt.Errorf("service %s: %w", s.spec.name, err)
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.running.Go(func() { h.announce(ctx, s) })
	if s.forward != nil {
		s.running.Go(func() {
			if err := closedIsFine(s.forward.Serve(ctx, s.accept)); err != nil {
				log.Error("the service takes no more streams", "err", err)
			}
		})
	}
	return nil
}

// streamLimit bounds the streams of a service by the files that this process may have open.
func streamLimit() int {
	if n := maxFiles(); n > 0 {
		return max(min(forward.DefaultMaxStreams, n/filesPerStream), 1)
	}
	return forward.DefaultMaxStreams
}

// stop ends a service. Its directory is left open.
func (s *hosted) stop() {
	if s.listener == nil {
		return
	}
	s.mu.Lock()
	s.ended = true
	if s.test.cancel != nil {
		s.test.cancel()
	}
	s.mu.Unlock()
	s.cancel()
	s.listener.Close()
	s.running.Wait()
}

// accept returns the next stream, for the forwarder.
func (s *hosted) accept() (forward.Stream, error) {
	c, err := s.listener.AcceptUnanswered()
	if err != nil {
		return nil, err
	}
	return forwarded{c}, nil
}

// forwarded is a stream of a service as the forwarder wants it.
type forwarded struct{ *service.Conn }

// Port implements forward.Stream.
func (f forwarded) Port() uint16 {
	a, _ := f.LocalAddr().(service.Addr)
	return a.Port
}

// Circuit implements forward.Stream.
func (f forwarded) Circuit() uint64 {
	p, _ := f.RemoteAddr().(service.Peer)
	return p.Circuit
}

// Accept implements forward.Stream.
func (f forwarded) Accept() error { return f.Stream.Accept(cell.ConnectedBody{}) }

// Refuse implements forward.Stream.
func (f forwarded) Refuse(why cell.EndReason) {
	_ = f.Abort(why) // it fails when the circuit has gone, and then nobody waits
}

// announce prints how far a service has come, and its address once it is reachable.
func (h *onionHost) announce(ctx context.Context, s *hosted) {
	ready := make(chan error, 1)
	readyCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.running.Go(func() { ready <- s.listener.Ready(readyCtx) })
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	said, problem, told := "", "", time.Time{}
	for {
		select {
		case err := <-ready:
			if err == nil {
				fmt.Fprintf(h.out, "service %s is reachable at %s%s\n", s.spec.name, s.address, s.describe())
			}
			return
		case <-tick.C:
		}
		st := s.listener.Status()
		if text := progressOf(&st, s.spec.points); text != "" && text != said {
			said = text
			fmt.Fprintf(h.out, "service %s: %s\n", s.spec.name, text)
		}
		if st.Problem != "" && st.Problem != problem && time.Since(told) >= problemEvery {
			problem, told = st.Problem, time.Now()
			fmt.Fprintf(h.out, "service %s is not reachable yet: %s\n", s.spec.name, oneLine(problem))
		}
	}
}

// describe is what follows the address.
func (s *hosted) describe() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := ""
	switch {
	case s.forward == nil:
	case len(s.ports) == 1:
		text = ", port " + portList(s.ports)
	default:
		text = ", ports " + portList(s.ports)
	}
	if n := len(s.clients); n > 0 {
		text += fmt.Sprintf(", for %s on its list", countOf(n, "client"))
	}
	return text
}

// progressOf is how far a service has come, for people; nothing before the first consensus.
func progressOf(st *service.Status, points int) string {
	if len(st.Periods) == 0 {
		return ""
	}
	up := 0
	for _, p := range st.Points {
		if p.State == service.PointUp {
			up++
		}
	}
	held, all := uploads(st)
	if len(st.Backends) > 0 {
		known := 0
		for _, b := range st.Backends {
			if b.Age >= 0 {
				known++
			}
		}
		return fmt.Sprintf("%d of %s found, descriptor at %d of %s", known, countOf(len(st.Backends), "backend"), held, countOf(all, "relay"))
	}
	return fmt.Sprintf("%d of %s, descriptor at %d of %s", up, countOf(points, "introduction point"), held, countOf(all, "relay"))
}

// uploads counts the relays that hold the present descriptor, of those that should, over all periods.
func uploads(st *service.Status) (held, all int) {
	for _, p := range st.Periods {
		for _, u := range p.Uploads {
			all++
			if u.Age >= 0 && u.Current {
				held++
			}
		}
	}
	return held, all
}
