package service

import (
	"context"
	"fmt"
	"io"
	"net"

	"cepa/circuit"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/stream"
)

// Network gives a service circuits and the consensus. Its methods are called from many goroutines at once.
type Network interface {
	// Current returns the newest consensus, nil before the first, and Changed a channel that is closed when the next one comes.
	Current() *directory.Consensus
	Changed() <-chan struct{}
	// Circuit returns a circuit to a relay. It waits for ctx at most. The service closes it.
	Circuit(ctx context.Context, to Hop) (Circuit, error)
	// PickPoint chooses a relay by the weights of middles, and by nothing that tells who the guard is.
	PickPoint(rand io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error)
}

// Hop is the last hop of a circuit.
type Hop struct {
	Relay identity.ID
	// Foreign says that somebody else chose it.
	Foreign bool
	// Direct asks for the shortest way, which hides nothing.
	Direct bool
}

// Circuit is what a service does with a circuit. Origin makes one of a circuit.Origin.
type Circuit interface {
	// Exporter returns the secret that the last relay shares with this end.
	Exporter() [32]byte
	// EstablishIntro, IntroWork and Rendezvous are as of circuit.Origin; so are Done and Close.
	EstablishIntro(ctx context.Context, payload []byte, introduced func(payload []byte)) error
	IntroWork(payload []byte) error
	Rendezvous(payload []byte, cfg circuit.JoinConfig, open func(first []byte) (forward, backward [32]byte, err error)) (*stream.Mux, error)
	// OpenDir opens a stream to the directory of the last relay.
	OpenDir(ctx context.Context) (net.Conn, error)
	Done() <-chan struct{}
	Close()
}

// Origin makes a Circuit of o, whose hops all stand.
func Origin(o *circuit.Origin) Circuit { return origin{o} }

type origin struct{ *circuit.Origin }

// Exporter implements Circuit.
func (o origin) Exporter() [32]byte { return o.Origin.Exporter(o.Len()) }

// Close implements Circuit.
func (o origin) Close() { o.Origin.Close() }

// OpenDir implements Circuit.
func (o origin) OpenDir(ctx context.Context) (net.Conn, error) {
	s, err := o.Mux().OpenDir()
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if err := s.Connected(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("service: the relay's directory: %w", err)
	}
	return s, nil
}
