// Package pipe joins two connections so that each receives what the other sends, and keeps the way in which they end: an end
// of one direction stays an end of one direction, and a failure stays a failure. A transfer that was cut short must never look
// like one that was complete.
package pipe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// ErrNoHalfClose is what [Join] returns when one direction ended while the other was still open, and the connection that had
// to pass this end on has no CloseWrite. It was closed as a whole instead, and what its peer still had to say is lost.
var ErrNoHalfClose = errors.New("pipe: one direction ended, and the other was cut off because the connection cannot be half-closed")

// Join copies from a to b and from b to a until both directions have ended, and returns the bytes that were copied each way.
// It owns both connections from the call on, and has closed them when it returns; the two goroutines that copied (one of them
// the caller's) are gone by then.
//
// The end of one direction is passed on with [CloseWrite] and leaves the other direction open, for as long as it likes: Join
// knows no timeout. When a read, a write or a CloseWrite fails, or ctx is done, both connections are ended with [Reset], so
// that neither peer can mistake the cut for the end of the data. A connection without CloseWrite can only be closed whole,
// and then the other one is reset: see [ErrNoHalfClose].
//
// The error is the first failure, or nil when both directions ended cleanly. Errors of package net hold addresses: decide by
// the error, do not log it.
func Join(ctx context.Context, a, b net.Conn) (aToB, bToA int64, err error) {
	j := &joint{a: a, b: b}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		j.fail(fmt.Errorf("pipe: joined connections closed: %w", context.Cause(ctx)))
	})
	back := make(chan struct{})
	go func() {
		defer close(back)
		bToA = j.run(a, b)
	}()
	aToB = j.run(b, a)
	<-back
	if !stop() {
		<-cancelled
	}
	// Nobody waits on these any more; a failure to say so was reported by CloseWrite.
	a.Close()
	b.Close()
	return aToB, bToA, j.failure()
}

// CloseWrite ends the writing direction of c, whose peer then reads io.EOF after all that was written. It returns
// errors.ErrUnsupported when c has no CloseWrite method.
func CloseWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Reset closes c in such a way that its peer reads an error and not io.EOF, where c offers one: a Reset method, or SetLinger
// as of [net.TCPConn] (the peer gets an RST instead of a FIN). Any other connection is just closed. What was written and has
// not left yet may be lost. Reset may be called while others read from and write to c.
func Reset(c net.Conn) {
	switch c := c.(type) {
	case interface{ Reset() }:
		c.Reset()
	case interface{ SetLinger(sec int) error }:
		// An error means that c is closed already, and then there is nothing left to say.
		_ = c.SetLinger(0)
	}
	c.Close()
}

// joint is two connections while they are joined.
//
//	open --end--> half --end--> ended        (clean: both directions said io.EOF)
//	open, half --fail--> failed              (sticky; both connections are reset)
type joint struct {
	a, b net.Conn

	mu     sync.Mutex
	err    error // the first failure
	ended  int   // directions whose source said io.EOF before any failure
	passed int   // those of them whose end was passed on
}

// run copies one direction and passes its end or its failure on.
func (j *joint) run(dst, src net.Conn) int64 {
	n, err := transfer(dst, src)
	if err != nil {
		j.fail(fmt.Errorf("pipe: copy: %w", err))
	} else {
		j.end(dst, src)
	}
	return n
}

// fail ends both connections abruptly, unless both directions are through or a failure came before.
func (j *joint) fail(err error) {
	j.mu.Lock()
	late := j.err != nil || j.passed == 2
	if !late {
		j.err = err
	}
	j.mu.Unlock()
	if late {
		return
	}
	// The failure is noted before the first Reset. Some connections read io.EOF after they were closed on this side, and end
	// must be able to tell this from the peer's word.
	Reset(j.a)
	Reset(j.b)
}

// end passes the end of src on to dst.
func (j *joint) end(dst, src net.Conn) {
	// Counted first: what the peer does when it sees the end may be quicker than this goroutine.
	j.mu.Lock()
	failed := j.err != nil
	if !failed {
		j.ended++
	}
	j.mu.Unlock()
	if failed {
		return
	}
	err := CloseWrite(dst)
	if errors.Is(err, errors.ErrUnsupported) {
		err = j.endWhole(dst, src)
	}
	if err != nil {
		j.fail(fmt.Errorf("pipe: pass an end on: %w", err))
		return
	}
	j.mu.Lock()
	j.passed++
	j.mu.Unlock()
}

// endWhole passes the end of src on to a dst that can only be closed as a whole. All that src said has been written, so dst
// is closed in order; src however may not have got all that dst's peer wanted to say.
func (j *joint) endWhole(dst, src net.Conn) error {
	j.mu.Lock()
	cut := j.err == nil && j.ended < 2
	if cut {
		j.err = ErrNoHalfClose
	}
	j.mu.Unlock()
	err := dst.Close()
	if cut {
		Reset(src)
	}
	return err
}

func (j *joint) failure() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}
