package socks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// Bounds of a client's HTTP connection; ours.
const (
	longestMethod = 24               // bytes; the longest registered one is UPDATEREDIRECTREF
	headerSize    = 64 << 10         // bytes of a request's or a response's first line and fields
	upstreamIdle  = 10 * time.Second // how long an unused connection to an origin server is kept: it holds a stream for others to see
)

// errExchange stands for what ended a forwarded exchange, which may tell of the destination.
var errExchange = errors.New("socks: forwarded exchange failed")

// httpConn is a client's connection while it speaks HTTP, and the one connection to an origin server that is kept for its next
// request. It is never used for another client's connection nor under another isolation key.
type httpConn struct {
	*service
	conn *conn
	up   *upstream // nil if none is open
}

// http holds the conversation of an HTTP proxy (RFC 9112 section 3.2, RFC 9110 section 9.3.6):
//
//	client                                server                       origin server
//	CONNECT host:port           ------>   dials                ------>
//	                            <------   200, or an error page
//	bytes                       <----->   bytes                <----->  bytes
//
//	GET http://host/path        ------>   dials, or has dialled
//	                                      GET /path            ------>
//	                            <------   response             <------
//	the next request, or the end
//
// Any web page can make a browser of this machine send requests to this port, so these must do nothing. Browsers write a
// method first, and so never the first byte of SOCKS; they send requests in origin-form ("GET /"), which are refused, and the
// connection is closed, so that a body that looks like another request never becomes one; CONNECT and absolute-form are sent
// only by who is set up to use this proxy. No answer of ours allows other origins to read it, and a name that was bound to this
// address (DNS rebinding) is told nothing.
func (v *service) http(ctx context.Context, c *conn) error {
	ok, err := isHTTP(c.ahead)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("first bytes are of no known protocol: %w", errMalformed)
	}
	h := &httpConn{service: v, conn: c}
	defer h.drop()
	for {
		again, err := h.serve(ctx)
		if err != nil || !again {
			return err
		}
		if err := h.await(); errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(v.HandshakeTimeout))
	}
}

// serve reads one request and answers it. again says that the client may send another.
func (h *httpConn) serve(ctx context.Context) (again bool, err error) {
	req, err := h.read()
	if err != nil {
		return false, h.refuse(http.MethodGet, err)
	}
	f, err := parseForward(req)
	if err != nil {
		return false, h.refuse(req.Method, err)
	}
	f.request.Client, f.request.Local = h.conn.RemoteAddr(), h.conn.LocalAddr()
	if req.Method == http.MethodConnect {
		h.drop()
		return false, h.connect(ctx, h.conn, f.request, tunnel)
	}
	return h.forward(ctx, f)
}

// read reads a request up to its body, which stays in the connection.
func (h *httpConn) read() (*http.Request, error) {
	h.conn.limit(headerSize)
	defer h.conn.unlimit()
	h.conn.bound.failed = nil
	req, err := http.ReadRequest(h.conn.ahead)
	switch {
	case err == nil:
		return req, nil
	case errors.Is(err, errTooLong):
		return nil, &page{http.StatusRequestHeaderFieldsTooLarge, "The request's fields are longer than 64 KiB."}
	case h.conn.bound.failed != nil:
		return nil, h.conn.bound.failed
	default:
		return nil, &page{http.StatusBadRequest, "This is not a request of HTTP/1.1 or HTTP/1.0."} // err quotes it
	}
}

// refuse tells the client why if err is a page; it returns err.
func (h *httpConn) refuse(method string, err error) error {
	var p *page
	if errors.As(err, &p) {
		h.lastWord(h.conn, p.response(method))
	}
	return err
}

// await waits for the client's next request, and lets go of the connection to the origin server when that takes long, or when
// the origin server does. It fails with io.EOF or os.ErrDeadlineExceeded when there will be no next request.
func (h *httpConn) await() error {
	rest := h.IdleTimeout
	if h.up != nil {
		first := min(upstreamIdle, rest)
		rest -= first
		stop := h.up.watch()
		h.conn.SetReadDeadline(time.Now().Add(first))
		_, err := h.conn.ahead.Peek(1)
		if spoiled := stop(); spoiled || err != nil {
			h.drop()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	h.conn.SetReadDeadline(time.Now().Add(rest))
	_, err := h.conn.ahead.Peek(1)
	return err
}

// drop closes the connection to the origin server, if there is one.
func (h *httpConn) drop() {
	if h.up != nil {
		h.up.end()
		h.up = nil
	}
}

// isHTTP looks, byte by byte, at what may be an HTTP method and the space behind it (RFC 9112 section 3). Any method will do:
// what follows is for http.ReadRequest to judge.
func isHTTP(r *bufio.Reader) (bool, error) {
	for n := 1; n <= longestMethod+1; n++ {
		b, err := r.Peek(n)
		if err != nil {
			return false, err
		}
		switch last := b[n-1]; {
		case last == ' ':
			return n > 1, nil
		case !isUpper(last) && last != '-':
			return false, nil
		}
	}
	return false, nil
}

func isUpper(b byte) bool { return 'A' <= b && b <= 'Z' }
