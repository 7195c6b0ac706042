// Package forward carries the streams that an onion service accepts to the programs behind its ports: a map from port to
// target, a dial with a time limit, the header of the PROXY protocol where one is wanted, and then a copy both ways that keeps
// half-closes and failures what they are. It knows nothing of circuits: whoever accepts streams hands them over as a [Stream].
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"cepa/cell"
	"cepa/pipe"
)

const (
	// DialTimeout is how long a target may take to accept a connection: targets are near.
	DialTimeout = 10 * time.Second
	// headerTimeout is how long a target may take to take the header of the PROXY protocol, which is always less than a socket holds.
	headerTimeout = 10 * time.Second
	// DefaultMaxStreams is how many streams may be open at once when Config does not say: each has a connection to a target
	// and two goroutines.
	DefaultMaxStreams = 4096
	// MaxStreams bounds Config.MaxStreams.
	MaxStreams = 1 << 20
	// warnEvery is how often the log says that the target of one port fails, with a count.
	warnEvery = time.Minute
)

// Stream is one accepted stream. Until it is answered with Accept or Refuse its client waits, and nothing may be written.
type Stream interface {
	net.Conn
	// Port is the port that the client asked for.
	Port() uint16
	// Circuit is the number of the circuit that it came over.
	Circuit() uint64
	// Accept tells the client that it is connected.
	Accept() error
	// Refuse ends the stream, and tells the client why.
	Refuse(why cell.EndReason)
}

// Config is what a Forwarder is made of. Ports is needed.
type Config struct {
	Ports []Port
	// Proxy is what each connection to a target starts with.
	Proxy Proxy
	// MaxStreams bounds the open streams; DefaultMaxStreams when 0.
	MaxStreams int
	// Dial connects to targets; net.Dialer's when nil. It must heed its context.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger // nothing when nil
}

// Forwarder forwards the streams of one service. Its methods are safe for concurrent use.
type Forwarder struct {
	cfg Config

	mu       sync.Mutex // guards what follows
	ports    map[uint16]*portState
	open     int
	accepted uint64
	unknown  uint64 // refused: no such port
	full     uint64 // refused: too many
}

// portState is one port. It outlives its target: SetPorts gives it another one.
type portState struct {
	target   Port
	open     int
	accepted uint64
	failed   map[cell.EndReason]uint64
	untold   uint64 // failures that the log does not know of
	told     time.Time
}

// Status is what a Forwarder tells about itself. It says nothing about clients.
type Status struct {
	Open     int          `json:"open_streams"`
	Accepted uint64       `json:"accepted"`
	Unknown  uint64       `json:"refused_unknown_port"`
	Full     uint64       `json:"refused_full"`
	Ports    []PortStatus `json:"ports"` // by number
}

// PortStatus is one port of a Status.
type PortStatus struct {
	Port     uint16 `json:"port"`
	Target   string `json:"target"`
	Open     int    `json:"open_streams"`
	Accepted uint64 `json:"accepted"`
	// Failed counts the streams that were refused because the target could not be reached.
	Failed uint64 `json:"failed"`
}

// New returns a Forwarder. Errors say which part of the configuration cannot be used.
func New(cfg Config) (*Forwarder, error) {
	if cfg.MaxStreams < 0 || cfg.MaxStreams > MaxStreams {
		return nil, fmt.Errorf("forward: %d streams: 1 to %d are possible", cfg.MaxStreams, MaxStreams)
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = DefaultMaxStreams
	}
	if cfg.Proxy > ProxyV2 {
		return nil, fmt.Errorf("forward: %v is no version of the PROXY protocol", cfg.Proxy)
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{cfg: cfg}
	return f, f.SetPorts(cfg.Ports)
}

// SetPorts replaces the ports. Streams that are open stay where they are.
func (f *Forwarder) SetPorts(ports []Port) error {
	if err := checkPorts(ports); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	next := make(map[uint16]*portState, len(ports))
	for _, p := range ports {
		s := f.ports[p.Port]
		if s == nil {
			s = &portState{failed: map[cell.EndReason]uint64{}}
		}
		s.target = p
		next[p.Port] = s
	}
	f.ports = next
	return nil
}

// Status returns a snapshot.
func (f *Forwarder) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{Open: f.open, Accepted: f.accepted, Unknown: f.unknown, Full: f.full}
	for _, port := range slices.Sorted(maps.Keys(f.ports)) {
		p := f.ports[port]
		ps := PortStatus{Port: port, Target: p.target.String()[len(fmt.Sprint(port))+1:], Open: p.open, Accepted: p.accepted}
		for _, n := range p.failed {
			ps.Failed += n
		}
		s.Ports = append(s.Ports, ps)
	}
	return s
}

// Serve forwards what accept returns until accept fails, and returns its error; when ctx ends it ends the open streams, which
// look cut off to both ends. accept must fail when ctx ends. All streams have ended when Serve returns.
func (f *Forwarder) Serve(ctx context.Context, accept func() (Stream, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	for {
		s, err := accept()
		if err != nil {
			return err
		}
		p, why := f.enter(s.Port())
		if p == nil {
			s.Refuse(why)
			continue
		}
		open.Go(func() {
			defer f.leave(p)
			f.forward(ctx, s, p)
		})
	}
}

// enter counts a stream in. There is no port when it is refused, and why.
func (f *Forwarder) enter(port uint16) (*portState, cell.EndReason) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.ports[port]
	switch {
	case p == nil:
		f.unknown++
		return nil, cell.EndRefused
	case f.open >= f.cfg.MaxStreams:
		f.full++
		return nil, cell.EndResource
	}
	f.open++
	p.open++
	return p, 0
}

func (f *Forwarder) leave(p *portState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	p.open--
}

// forward takes one stream to its target.
func (f *Forwarder) forward(ctx context.Context, s Stream, p *portState) {
	f.mu.Lock()
	target := p.target
	f.mu.Unlock()
	conn, err := f.connect(ctx, target, s.Circuit(), s.Port())
	if err != nil {
		if ctx.Err() != nil { // we are ending: not the target's fault
			s.Refuse(cell.EndInternal)
			return
		}
		why := reasonFor(err)
		f.note(p, target.Port, why)
		s.Refuse(why)
		return
	}
	if err := s.Accept(); err != nil { // its circuit has gone
		pipe.Reset(conn)
		s.Close()
		return
	}
	f.mu.Lock()
	f.accepted++
	p.accepted++
	f.mu.Unlock()
	// Why a stream ended is known to both of its ends.
	_, _, _ = pipe.Join(ctx, s, conn)
}

// connect dials a target and tells it who comes.
func (f *Forwarder) connect(ctx context.Context, target Port, circuit uint64, port uint16) (net.Conn, error) {
	dialCtx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	conn, err := f.cfg.Dial(dialCtx, target.Network, target.Address)
	if err != nil || f.cfg.Proxy == ProxyNone {
		return conn, err
	}
	err = conn.SetWriteDeadline(time.Now().Add(headerTimeout))
	if err == nil {
		_, err = conn.Write(f.cfg.Proxy.AppendHeader(nil, circuit, port))
	}
	err = errors.Join(err, conn.SetWriteDeadline(time.Time{}))
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// note counts a failure, and tells the operator once in a while: it is something that he can change. Neither the target nor
// the client is named: the port is enough to find the line of the configuration.
func (f *Forwarder) note(p *portState, port uint16, why cell.EndReason) {
	f.mu.Lock()
	p.failed[why]++
	p.untold++
	count := p.untold
	tell := time.Since(p.told) >= warnEvery
	if tell {
		p.told, p.untold = time.Now(), 0
	}
	f.mu.Unlock()
	if tell {
		f.cfg.Log.Warn("the target of a port takes no connections, and its streams are refused", "port", port, "reason", why.Error(), "count", count, "next", adviceFor(why))
	}
}
