package socks

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"cepa/pipe"
)

// longestInterim bounds the interim responses (status 1xx) to one request; ours.
const longestInterim = 16

// sender is one exchange. Its goroutine sends the request and then waits for the client to leave, and so is the only one that
// reads from the client and writes to the origin server; the others are its owner's.
type sender struct {
	*forward
	client  *conn
	up      *upstream
	timeout time.Duration // for the response, once the request is sent

	mu       sync.Mutex
	answered bool // the response has begun: there is no deadline any more

	continued bool // the client was told to continue; the owner's

	sent     chan struct{} // closed when complete is known
	complete bool          // the whole request was read from the client and sent

	ended chan struct{} // closed when gone is known, and the goroutine ends
	gone  bool          // the client has left, or what it sent is malformed
}

// send begins an exchange over h.up. stop must be called, once.
func (h *httpConn) send(f *forward) *sender {
	s := &sender{
		forward: f, client: h.conn, up: h.up, timeout: h.ResponseTimeout,
		sent: make(chan struct{}), ended: make(chan struct{}),
	}
	go s.run()
	return s
}

func (s *sender) run() {
	defer close(s.ended)
	readErr, writeErr := s.sendAll()
	s.complete = readErr == nil && writeErr == nil
	close(s.sent)
	if s.complete {
		s.expectAnswer()
	}
	if readErr != nil {
		s.gone = !errors.Is(readErr, os.ErrDeadlineExceeded)
	} else {
		// Even if the origin server does not listen any more: it may still be speaking.
		s.gone = s.client.left()
	}
	if s.gone {
		pipe.Reset(s.up)
	}
}

func (s *sender) sendAll() (readErr, writeErr error) {
	if _, err := s.up.Write(s.head()); err != nil {
		return nil, err
	}
	switch {
	case s.chunked():
		body := &chunks{conn: s.client}
		return copyBody(s.up, body, true, &body.trailer)
	case s.http.Body == http.NoBody:
		return nil, nil
	default:
		return copyBody(s.up, s.http.Body, false, nil)
	}
}

// expectAnswer gives the origin server its time, unless it has answered ahead.
func (s *sender) expectAnswer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.answered {
		s.up.SetReadDeadline(time.Now().Add(s.timeout))
	}
}

// wait waits for the request to be sent, but not for long: the response has come, and more of it will hardly be read.
func (s *sender) wait() (complete bool) {
	t := time.NewTimer(lingerTimeout)
	defer t.Stop()
	select {
	case <-s.sent:
		return s.complete
	case <-t.C:
		return false
	}
}

// stop ends the goroutine, which reset of s.up keeps from waiting for the origin server, and says whether the client is gone.
func (s *sender) stop() (gone bool) {
	s.client.SetReadDeadline(time.Unix(longPast, 0))
	<-s.ended
	s.client.SetReadDeadline(time.Time{})
	return s.gone
}

// response reads the final response up to its body, and passes those before it to the client. An error is errStale, a page,
// os.ErrDeadlineExceeded, or any other if the connection is lost.
func (s *sender) response() (*http.Response, error) {
	bad := &page{http.StatusBadGateway, "The site's answer is not of HTTP/1.1, or its fields are longer than 64 KiB."}
	for n := 0; ; n++ {
		s.up.limit(headerSize)
		if _, err := s.up.ahead.Peek(1); err != nil {
			if n == 0 && s.up.used && s.repeatable() && !errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, errStale
			}
			return nil, err
		}
		s.up.bound.failed = nil
		resp, err := http.ReadResponse(s.up.ahead, s.http)
		s.up.unlimit()
		switch {
		case err != nil && s.up.bound.failed != nil:
			return nil, s.up.bound.failed
		case err != nil || resp.ProtoMajor != 1 || resp.StatusCode < 100 || resp.StatusCode == http.StatusSwitchingProtocols,
			!validNames(resp.Header), !printable(resp.Status), n >= longestInterim:
			return nil, bad
		case resp.StatusCode == http.StatusProxyAuthRequired:
			// The client would take it for ours, and ask its user for a password.
			return nil, &page{http.StatusBadGateway, "The site asks for a password as only a proxy may."}
		case resp.StatusCode >= 200:
			s.mu.Lock()
			defer s.mu.Unlock()
			s.answered = true
			s.up.SetReadDeadline(time.Time{})
			return resp, nil
		}
		if err := s.interim(resp); err != nil {
			return nil, err
		}
	}
}

// interim passes a response before the final one to the client, if it can read such.
func (s *sender) interim(resp *http.Response) error {
	if !s.http.ProtoAtLeast(1, 1) {
		return nil
	}
	s.continued = s.continued || resp.StatusCode == http.StatusContinue
	endToEnd(resp.Header)
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 " + resp.Status + "\r\n")
	_ = resp.Header.Write(&b) // writing to a bytes.Buffer does not fail
	b.WriteString("\r\n")
	_, err := s.client.Write(b.Bytes())
	return err
}

// deliver passes the response to the client. keep says that it told the client that another request may follow.
func (s *sender) deliver(resp *http.Response) (keep bool, err error) {
	keep = s.keep
	if contains(tokens(s.http.Header["Expect"]), "100-continue") && !s.continued {
		// Nobody knows whether the body will come.
		select {
		case <-s.sent:
		default:
			keep = false
		}
	}
	bodyless := s.http.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified
	length := ""
	switch {
	case resp.StatusCode == http.StatusNoContent:
	case bodyless && resp.Header.Get("Content-Length") != "":
		length = resp.Header.Get("Content-Length") // what a GET would have brought
	case !bodyless && resp.ContentLength >= 0:
		length = strconv.FormatInt(resp.ContentLength, 10)
	}
	// A client of HTTP/1.0 knows no chunks: the end of its connection, which is not kept, is the end of the body.
	chunked := !bodyless && resp.ContentLength < 0 && s.http.ProtoAtLeast(1, 1)
	endToEnd(resp.Header)
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 " + resp.Status + "\r\n")
	_ = resp.Header.Write(&b) // writing to a bytes.Buffer does not fail
	if length != "" {
		b.WriteString("Content-Length: " + length + "\r\n")
	}
	if chunked {
		b.WriteString("Transfer-Encoding: chunked\r\n" + announced(resp.Trailer))
	}
	if !keep {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	if _, err := s.client.Write(b.Bytes()); err != nil {
		return false, err
	}
	var body io.Reader = resp.Body
	trailer := new(http.Header)
	if len(resp.TransferEncoding) > 0 && !bodyless {
		c := &chunks{conn: s.up.conn}
		body, trailer = c, &c.trailer
	}
	readErr, writeErr := copyBody(s.client, body, chunked, trailer)
	return keep, errors.Join(readErr, writeErr)
}
