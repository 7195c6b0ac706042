package socks

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"cepa/pipe"
)

// errStale is about a kept connection that the origin server closed just when it was to be used again.
var errStale = errors.New("socks: kept connection was closed")

// upstream is a connection to an origin server.
type upstream struct {
	*conn
	key     string // the isolation key that it was dialled under
	host    string
	port    uint16
	used    bool   // it has answered a request before
	release func() // ends the wait for the end of Serve
}

// serves says whether u leads where r wants to go, under r's isolation key.
func (u *upstream) serves(key string, r *Request) bool {
	return u != nil && u.key == key && u.host == r.Host && u.port == r.Port
}

// end closes u.
func (u *upstream) end() {
	u.release()
	u.Close()
}

// watch waits for u to end, or to say something without being asked, and closes it then. stop ends that and says whether it
// came so far.
func (u *upstream) watch() (stop func() bool) {
	ended := make(chan struct{})
	spoiled := false
	go func() {
		defer close(ended)
		_, err := u.ahead.Peek(1)
		if spoiled = !errors.Is(err, os.ErrDeadlineExceeded); spoiled {
			u.Close()
		}
	}()
	return func() bool {
		u.SetReadDeadline(time.Unix(longPast, 0))
		<-ended
		u.SetReadDeadline(time.Time{})
		return spoiled
	}
}

// forward forwards one request and its response. again says that the client may send another.
func (h *httpConn) forward(ctx context.Context, f *forward) (again bool, err error) {
	answer := func(err error) []byte { return pageFor(err).response(f.http.Method) }
	wasName := f.request.IsName
	if err := h.place(f.request); err != nil {
		return false, h.fail(ctx, h.conn, err, answer)
	}
	if !wasName && f.request.IsName {
		// The virtual address is nobody's business but ours.
		f.host = f.request.Host
		if f.request.Port != 80 {
			f.host = net.JoinHostPort(f.request.Host, strconv.Itoa(int(f.request.Port)))
		}
	}
	key := h.isolation(f.request)
	for {
		if !h.up.serves(key, f.request) {
			h.drop()
			nc, err := h.dial(ctx, h.conn, f.request)
			if err != nil {
				return false, h.fail(ctx, h.conn, err, answer)
			}
			h.up = &upstream{
				conn: newConn(nc, pieceSize), key: key, host: f.request.Host, port: f.request.Port,
				release: onDone(ctx, func() { pipe.Reset(nc) }),
			}
		}
		h.conn.SetDeadline(time.Time{})
		again, err := h.exchange(f)
		if errors.Is(err, errStale) {
			h.drop() // and the next one is fresh
			continue
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return again, err
	}
}

// exchange sends f over h.up and passes the response to the client.
func (h *httpConn) exchange(f *forward) (again bool, err error) {
	s := h.send(f)
	resp, err := s.response()
	if err != nil {
		h.up.Reset()
		switch gone := s.stop(); {
		case gone:
			return false, ErrClientGone
		case errors.Is(err, errStale):
			return false, err
		}
		var p *page
		if !errors.As(err, &p) {
			p = &page{http.StatusBadGateway, "The site closed the connection without an answer."}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				p = &page{http.StatusGatewayTimeout, "The site did not answer in time."}
			}
		}
		h.lastWord(h.conn, p.response(f.http.Method))
		return false, errExchange
	}
	keep, err := s.deliver(resp)
	if err != nil {
		h.up.Reset()
		s.stop()
		h.conn.Reset() // so that what is cut short does not look complete
		return false, errExchange
	}
	if !s.wait() {
		h.up.Reset()
	}
	if gone := s.stop(); gone || !s.complete || !keep {
		h.drop()
		h.lastWord(h.conn, nil)
		return false, nil
	}
	h.up.used = true
	if resp.Close {
		h.drop()
	}
	return true, nil
}

// head returns the first line and the fields of f as the origin server gets them. The fields are in alphabetical order, which
// is the same for all programs; their values are as they came.
func (f *forward) head() []byte {
	var b bytes.Buffer
	b.WriteString(f.http.Method + " " + f.path + " HTTP/1.1\r\nHost: " + f.host + "\r\n")
	// Writing to a bytes.Buffer does not fail.
	_ = f.http.Header.Write(&b)
	switch {
	case f.chunked():
		b.WriteString("Transfer-Encoding: chunked\r\n" + announced(f.http.Trailer))
	case f.http.ContentLength > 0 || f.declared:
		b.WriteString("Content-Length: " + strconv.FormatInt(f.http.ContentLength, 10) + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// chunked says that the length of the body is not known beforehand.
func (f *forward) chunked() bool { return f.http.ContentLength < 0 }

// repeatable says that f may be sent again when it is not known what became of it (RFC 9110 section 9.2.2): its method changes
// nothing the second time, and its body has not been used up.
func (f *forward) repeatable() bool {
	switch f.http.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return f.http.Body == http.NoBody
	}
	return false
}
