// Package socks is a proxy server for programs of this machine, which speak SOCKS5 (RFC 1928) with user name and password
// (RFC 1929), SOCKS4, SOCKS4a, Tor's extensions of these, or HTTP to it, all on one port; and a small client of SOCKS5. It
// speaks the protocols and nothing else: one function dials, another looks names up. Names reach them as the client wrote them
// and are never resolved here. User name and password are not a login but a label by which these functions may keep streams
// apart (isolation), so they are always asked for when the client has any to offer, and any are accepted.
//
// The first byte of a connection decides which conversation is held (conn.go); each protocol's conversation is one file. All of
// them find out in the same way where a request leads (names.go), dial and join (connect.go); what follows a request of HTTP
// that is not CONNECT is in http_forward.go.
package socks

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"cepa/socket"
	"cepa/virtual"
)

// Defaults of [Server]; ours.
const (
	DefaultHandshakeTimeout = 10 * time.Second // many times what a client on the same machine needs
	DefaultDialTimeout      = 2 * time.Minute  // the most that programs wait for a connection (Tor's SocksTimeout)
	DefaultIdleTimeout      = time.Minute      // about as long as other proxies; package managers pause between requests
	DefaultResponseTimeout  = 5 * time.Minute  // long polls of web pages take one or two
	DefaultMaxConns         = 4096             // connections; each costs one file descriptor and 20 to 100 KiB
)

// Delays between two attempts to accept after a temporary failure; ours, as in net/http.
const (
	firstAcceptDelay = 5 * time.Millisecond
	lastAcceptDelay  = time.Second
)

// ErrNoDial is what [Server.Serve] returns when [Server.Dial] is nil.
var ErrNoDial = errors.New("socks: Server.Dial is nil, set it to the function that dials for the clients")

// ErrClientGone is the cause (see [context.Cause]) of the end of a dial's context when the client left.
var ErrClientGone = errors.New("socks: the client left while its connection was being dialled")

// Server serves SOCKS and HTTP. The zero value works once Dial is set. The fields must not be changed after the first call of Serve;
// one Server may serve several listeners at the same time.
type Server struct {
	// Dial opens the connection that r asks for; required. It is called from many goroutines at once, and keeps r if it
	// likes. It must return soon after ctx ends: when the client leaves (ErrClientGone), after DialTimeout, or when Serve
	// ends. The connection that it returns belongs to the Server, and must not end with ctx. It should offer CloseWrite and
	// Reset methods as described in package pipe, so that half-closing and failures pass through.
	//
	// The client is told of success as soon as Dial returns. An [Error] in the chain of Dial's error chooses what the client
	// is told otherwise; see [ReplyTo] for other errors. The text of errors is never sent nor logged.
	//
	// Names in .onion, which belong to another network, and virtual addresses that were not lent do not get as far as Dial.
	Dial func(ctx context.Context, r *Request) (net.Conn, error)

	// Resolve looks up the addresses of r.Host (CommandResolve, a name) or its names (CommandResolvePTR, an address); the
	// terms are those of Dial. What it returns is passed on to the client, so it should drop addresses that no honest exit
	// tells (loopback, private ones); those of the ranges of Virtual, and names that cannot be, are dropped here. Nil means
	// that these commands are refused as not supported, but for what Virtual answers.
	Resolve func(ctx context.Context, r *Request) (ResolveResult, error)

	// Virtual lends addresses to names that have none. RESOLVE of a name that it covers gets one, RESOLVE_PTR of that the
	// name, and a connection to it goes to the name: Dial gets to see the name only. Nil means no virtual addresses.
	Virtual *virtual.Map

	// Isolation returns what must be equal for two requests to share virtual addresses, or (one client's HTTP requests) a
	// connection. It is to look at credentials and addresses of the client, not at the destination. Nil means by Auth,
	// Username and Password.
	Isolation func(r *Request) string

	// ExtendedErrors says that SOCKS5 clients are told the replies that Tor added, from ReplyOnionDescriptorNotFound on. Most
	// clients do not know them, and so they are told [Reply.General] otherwise (Tor's flag of the same name).
	ExtendedErrors bool

	// HandshakeTimeout bounds all that comes before the dial (each request's fields, in HTTP), and then the writing of the
	// reply. Zero means DefaultHandshakeTimeout. There is no timeout on the joined connections.
	HandshakeTimeout time.Duration

	// DialTimeout bounds one call of Dial or Resolve. Zero means DefaultDialTimeout.
	DialTimeout time.Duration

	// IdleTimeout is how long a client's HTTP connection is kept open for another request. Zero means DefaultIdleTimeout.
	// (A connection to an origin server is kept for a few seconds of that.)
	IdleTimeout time.Duration

	// ResponseTimeout is how long an origin server may take to begin its response to a forwarded HTTP request. Zero means
	// DefaultResponseTimeout. There is no timeout on the response as a whole.
	ResponseTimeout time.Duration

	// MaxConns bounds the clients of one listener; more are accepted and closed at once, so that they notice. Zero means
	// DefaultMaxConns.
	MaxConns int

	// Log receives warnings about the listener, and at debug level why conversations failed. It never gets destinations,
	// addresses of clients or credentials. Nil means no log.
	Log *slog.Logger
}

// Serve accepts clients from ln until ctx is done, and returns nil when all connections have ended and their goroutines are
// gone; the end of ctx ends them abruptly. If ln fails for good, Serve ends its connections in the same way and returns the
// failure; a temporary one (no file descriptor left, say) is waited out. Serve closes ln in any case.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	if s.Dial == nil {
		return ErrNoDial
	}
	v := s.service()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	release := onDone(inner, func() { ln.Close() })
	err := v.accept(inner, ln)
	cancel()
	release()
	v.conns.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// service is what one call of Serve works with.
type service struct {
	Server // with the defaults filled in

	conns  sync.WaitGroup // one for each client
	active atomic.Int64   // clients
}

func (s *Server) service() *service {
	v := &service{Server: *s}
	if v.HandshakeTimeout == 0 {
		v.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if v.DialTimeout == 0 {
		v.DialTimeout = DefaultDialTimeout
	}
	if v.IdleTimeout == 0 {
		v.IdleTimeout = DefaultIdleTimeout
	}
	if v.ResponseTimeout == 0 {
		v.ResponseTimeout = DefaultResponseTimeout
	}
	if v.MaxConns == 0 {
		v.MaxConns = DefaultMaxConns
	}
	if v.Log == nil {
		v.Log = slog.New(slog.DiscardHandler)
	}
	return v
}

// accept starts a conversation with each client, until ctx is done or ln fails for good.
func (v *service) accept(ctx context.Context, ln net.Listener) error {
	var delay time.Duration
	full := false // so that a flood of refused clients is one warning
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return ctx.Err()
		}
		if err != nil {
			if !temporary(err) {
				return err
			}
			if delay == 0 {
				v.Log.Warn("cannot accept proxy clients for now; raise the limit of open files if this stays", "err", err)
			}
			delay = min(max(2*delay, firstAcceptDelay), lastAcceptDelay)
			pause(ctx, delay)
			continue
		}
		delay = 0
		if v.active.Load() >= int64(v.MaxConns) {
			if !full {
				v.Log.Warn("too many proxy clients at once, further ones are refused", "limit", v.MaxConns)
			}
			full = true
			c.Close()
			continue
		}
		full = false
		v.active.Add(1)
		c = socket.Wrap(c)
		v.conns.Go(func() {
			defer v.active.Add(-1)
			v.converse(ctx, c)
		})
	}
}

// temporary says whether an accept that failed with err is worth another attempt. (net.Error has this method too, deprecated
// because it means little for anything but accept.)
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// pause waits for d or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// onDone calls f once ctx is done. release prevents that, or waits for f if it came too late; call it exactly once.
func onDone(ctx context.Context, f func()) (release func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		f()
	})
	return func() {
		if !stop() {
			<-ended
		}
	}
}
