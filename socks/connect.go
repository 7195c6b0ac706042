package socks

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"cepa/pipe"
)

// longPast is a deadline that ends a blocked Read at once.
const longPast = 1 // second of the Unix epoch

// errJoined stands for what ended a joined connection, which may tell of the destination.
var errJoined = errors.New("socks: joined connection failed")

// answerer makes a client's protocol out of how its request ended; nil is success.
type answerer func(err error) []byte

// connect dials what r asks for, tells the client, and joins the two connections. What the client sent ahead of the reply is
// the first that the dialled side gets.
func (v *service) connect(ctx context.Context, c *conn, r *Request, answer answerer) error {
	target, err := v.dial(ctx, c, r)
	if err != nil {
		return v.fail(ctx, c, err, answer)
	}
	c.SetWriteDeadline(time.Now().Add(v.HandshakeTimeout))
	if _, err := c.Write(answer(nil)); err != nil {
		pipe.Reset(target)
		return err
	}
	c.SetDeadline(time.Time{})
	client := c.Conn
	if c.ahead.Buffered() > 0 {
		client = c
	}
	if _, _, err := pipe.Join(ctx, client, target); err != nil {
		return errJoined
	}
	return nil
}

// fail tells the client, if it is still there, why its request failed, and returns what may be logged of it.
func (v *service) fail(ctx context.Context, c *conn, err error, answer answerer) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, ErrClientGone) {
		return ErrClientGone
	}
	v.lastWord(c, answer(err))
	return &Error{Reply: ReplyTo(err)}
}

// dial finds out where r leads, and calls Dial.
func (v *service) dial(ctx context.Context, c *conn, r *Request) (net.Conn, error) {
	if err := v.place(r); err != nil {
		return nil, err
	}
	var target net.Conn
	err := v.attend(ctx, c, func(ctx context.Context) (err error) {
		target, err = v.Dial(ctx, r)
		return err
	})
	switch {
	case errors.Is(err, ErrClientGone) && target != nil:
		pipe.Reset(target)
		return nil, err
	case err != nil:
		return nil, err
	case target == nil:
		return nil, errors.New("socks: Dial returned neither a connection nor an error")
	}
	return target, nil
}

// attend calls do with a context that ends when the client leaves, or after DialTimeout. Its error is that of do, or
// ErrClientGone.
func (v *service) attend(ctx context.Context, c *conn, do func(context.Context) error) error {
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timed, stop := context.WithTimeout(watched, v.DialTimeout)
	defer stop()
	c.SetDeadline(time.Time{})
	unwatch := c.watch(func() {
		if ctx.Err() == nil { // else it was the end of Serve that closed the connection
			cancel(ErrClientGone)
		}
	})
	err := do(timed)
	if unwatch() {
		return ErrClientGone
	}
	return err
}

// watch reads ahead, up to the bound of the buffer, and calls gone if the client leaves. stop ends the reading and says
// whether the client has left.
func (c *conn) watch(gone func()) (stop func() bool) {
	ended := make(chan struct{})
	left := false
	go func() {
		defer close(ended)
		if left = c.left(); left {
			gone()
		}
	}()
	return func() bool {
		c.SetReadDeadline(time.Unix(longPast, 0))
		<-ended
		c.SetReadDeadline(time.Time{})
		return left
	}
}

// left reads ahead until the client has left (true), or reading is stopped by a deadline, or the buffer is full.
func (c *conn) left() bool {
	for {
		_, err := c.ahead.Peek(c.ahead.Buffered() + 1)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, bufio.ErrBufferFull):
			return false
		case errors.Is(err, io.EOF):
			// A client that has sent all it has to say and closed that direction waits for an answer. One that ends without
			// a word has left: TCP cannot tell the two apart.
			return c.ahead.Buffered() == 0
		default:
			return true
		}
	}
}
