package socks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"cepa/pipe"
)

// Bounds of one client's connection; ours.
const (
	aheadSize     = 4 << 10         // bytes that are read ahead; at least the longest SOCKS message, and a TLS ClientHello or a short request
	lingerTimeout = 2 * time.Second // how long a client may take to read our last word
	lingerSize    = 64 << 10        // bytes that a client may still send in that time
)

// errMalformed is the kind of every error about what a client or server sent. Their texts hold nothing of it but
// protocol numbers, and may be logged.
var errMalformed = errors.New("malformed message")

// errTooLong is what a bounded reader says when its bound is reached.
var errTooLong = fmt.Errorf("message is longer than its bound: %w", errMalformed)

// unbounded is the bound of a bounded reader that has none.
const unbounded = -1

// bounded is a reader that can be told how many bytes may be read from it. It stands between a connection and its
// bufio.Reader, so that what net/http reads through that has a bound.
type bounded struct {
	r      io.Reader
	left   int   // bytes; unbounded for no bound
	failed error // the last failure of r, by which it differs from a failure of what was read
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errTooLong
	}
	if b.left > 0 && len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	if b.left > 0 {
		b.left -= n
	}
	b.failed = err
	return n, err
}

// conn is a connection with the bytes that were read ahead.
type conn struct {
	net.Conn
	bound *bounded      // of Conn
	ahead *bufio.Reader // of bound
}

func newConn(nc net.Conn, ahead int) *conn {
	b := &bounded{r: nc, left: unbounded}
	return &conn{Conn: nc, bound: b, ahead: bufio.NewReaderSize(b, ahead)}
}

// Read returns the bytes that were read ahead first.
func (c *conn) Read(p []byte) (int, error) {
	if c.ahead.Buffered() > 0 {
		return c.ahead.Read(p)
	}
	return c.Conn.Read(p)
}

// CloseWrite is that of the connection beneath.
func (c *conn) CloseWrite() error { return pipe.CloseWrite(c.Conn) }

// Reset is that of the connection beneath.
func (c *conn) Reset() { pipe.Reset(c.Conn) }

// limit bounds what may be read from now on, including what was read ahead, to n bytes.
func (c *conn) limit(n int) { c.bound.left = max(0, n-c.ahead.Buffered()) }

// unlimit ends that.
func (c *conn) unlimit() { c.bound.left = unbounded }

// converse holds the whole conversation with one client and returns when its connection is closed.
func (v *service) converse(ctx context.Context, nc net.Conn) {
	defer nc.Close()
	c := newConn(nc, aheadSize)
	release := onDone(ctx, c.Reset)
	defer release()
	c.SetDeadline(time.Now().Add(v.HandshakeTimeout))
	if err := v.dispatch(ctx, c); err != nil {
		v.Log.Debug("proxy conversation failed", "reason", reason(err))
	}
}

// dispatch chooses the protocol by the first byte, which it leaves unread.
func (v *service) dispatch(ctx context.Context, c *conn) error {
	b, err := c.ahead.Peek(1)
	if err != nil {
		return err
	}
	switch first := b[0]; {
	case first == version5:
		return v.socks5(ctx, c)
	case first == version4:
		return v.socks4(ctx, c)
	case isUpper(first):
		return v.http(ctx, c)
	default:
		return fmt.Errorf("first byte is of no known protocol: %w", errMalformed)
	}
}

// lastWord writes last, which may be empty, and closes the connection so that the client gets to read it: closing while there
// is something unread would send a TCP reset, which overtakes what was written.
func (v *service) lastWord(c *conn, last []byte) {
	var err error
	if len(last) > 0 {
		c.SetWriteDeadline(time.Now().Add(v.HandshakeTimeout))
		_, err = c.Write(last)
	}
	if err == nil {
		err = c.CloseWrite()
	}
	if err == nil {
		c.SetReadDeadline(time.Now().Add(lingerTimeout))
		// The client's leaving, the deadline and the bound are all good reasons to stop.
		_, _ = io.CopyN(io.Discard, c.Conn, lingerSize)
	}
	c.Close()
}

// reason says why a conversation failed in words that may be logged: errors of package net hold addresses, and those of Dial
// may hold anything.
func reason(err error) string {
	var refused *Error
	switch {
	case errors.Is(err, errMalformed):
		return err.Error()
	case errors.As(err, &refused):
		return refused.Reply.String()
	case errors.Is(err, ErrClientGone):
		return "client left during the dial"
	case errors.Is(err, errJoined):
		return "joined connection failed"
	case errors.Is(err, errExchange):
		return "forwarded exchange failed"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	default:
		return "connection lost"
	}
}
