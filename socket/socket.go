// Package socket makes TCP connections cheap to use in small pieces. The
// runtime assumes that a system call may take long: it notes the call, and wakes
// a watcher thread for it when the process was at rest. A node that is woken for
// each of many small reads and writes pays more for that than for the calls.
// Sockets are in non-blocking mode, so their calls never take long, and [Wrap]
// makes them without the ceremony, on Linux. Waiting is left to the runtime as
// before. doc/benchmarks.md has the figures.
//
// It also keeps the system from taking more to send than it can send soon: what
// it has taken is beyond the reach of who sends what is urgent first.
package socket

import (
	"context"
	"net"
)

// Unsent is how many bytes that it has not sent yet, to the nearest write, a
// wrapped connection lets the system hold; then it waits until half are gone.
// Ours: two of a link's batches, so that the wire never waits for one.
const Unsent = 128 << 10

// Wrap returns a connection that does what c does, for less, and that offers
// TryWrite(p []byte) (n int, err error): a Write of as much of p as the socket
// takes at once, perhaps nothing, which must not be called while a Write is under
// way. It owns c. If there is nothing to gain, because c is no TCP connection or the
// system is not Linux, it returns c.
func Wrap(c net.Conn) net.Conn {
	if t, ok := c.(*net.TCPConn); ok {
		return wrap(t)
	}
	return c
}

// Dialer returns a dial function whose connections are wrapped.
func Dialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return Wrap(c), nil
	}
}
