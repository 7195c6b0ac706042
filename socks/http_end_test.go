package socks

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestHTTPClientLeaves(t *testing.T) {
	for when, script := range map[string]struct{ in, sent, answer, read string }{
		"before the answer":       {getA, sentA, "", ""},
		"with the next request":   {getA, sentA, "HTTP/1.1 200 OK\r\n", ""},
		"in the answer":           {getA, sentA, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe"},
		"in its own fields":       {"POST http://a.example/ HTTP/1.1\r\nContent-Length: 9\r\n\r\n", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\n", "", ""},
		"in its own body":         {"POST http://a.example/ HTTP/1.1\r\nContent-Length: 9\r\n\r\nab", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\nab", "", ""},
		"in a chunk, and answers": {"POST http://a.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe"},
		"with a malformed chunk":  {"POST http://a.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n", "", ""},
	} {
		for how, leave := range map[string]func(*duplex){"close": func(d *duplex) { d.Close() }, "reset": func(d *duplex) { d.Reset() }, "half-close": func(d *duplex) { d.CloseWrite() }} {
			t.Run(when+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dial, targets := dialer()
					ln := serveMem(t, &Server{Dial: dial})
					client := ln.dial()
					write(client, script.in)
					far := <-targets
					expect(t, far, script.sent)
					write(far, script.answer)
					expect(t, client, script.read)
					synctest.Wait()
					start := time.Now()
					leave(client)
					go io.Copy(io.Discard, client)
					if !isReset(far) {
						t.Error("the origin server takes the request for complete")
					}
					if d := time.Since(start); d != 0 {
						t.Errorf("it noticed after %v", d)
					}
					client.Close()
				})
			})
		}
	}
}

// What is cut short does not look complete to the client, however its end would be told.
func TestHTTPAnswerCutShort(t *testing.T) {
	for name, c := range map[string]struct{ request, answer, read string }{
		"length": {getA, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"},
		"chunks": {getA, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"},
		"end":    {"GET http://a.example/ HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nhello", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"},
	} {
		for how, end := range map[string]func(*duplex){"reset": func(d *duplex) { d.Reset() }, "close": func(d *duplex) { d.Close() }} {
			if name == "end" && how == "close" {
				continue // which is how a complete answer ends
			}
			t.Run(name+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dial, targets := dialer()
					ln := serveMem(t, &Server{Dial: dial})
					client := ln.dial()
					write(client, c.request)
					far := <-targets
					expect(t, far, sentA)
					write(far, c.answer)
					expect(t, client, c.read)
					end(far.duplex)
					if !isReset(client) {
						t.Error("the client takes the answer for complete")
					}
				})
			})
		}
	}
}

// An origin server may answer before it has read the request, and stop reading.
func TestHTTPEarlyAnswer(t *testing.T) {
	const refusal = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n"
	for name, c := range map[string]struct {
		request, sent string
		after         func(far *duplex)
		told          string        // what the client reads
		took          time.Duration // until its connection ends
	}{
		"and closes": {
			"POST http://a.example/ HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n",
			func(far *duplex) { far.Close() }, refusal, lingerTimeout,
		},
		"and does not read": {
			"POST http://a.example/ HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n",
			func(*duplex) {}, refusal, 2 * lingerTimeout,
		},
		"instead of 100": {
			"POST http://a.example/ HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n", "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n",
			func(*duplex) {}, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n", 2 * lingerTimeout,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dial, targets := dialer()
				ln := serveMem(t, &Server{Dial: dial})
				client := ln.dial()
				written := make(chan struct{})
				go func() {
					defer close(written)
					io.WriteString(client, c.request)
					if strings.Contains(c.request, "Expect") {
						return
					}
					for {
						if _, err := client.Write(make([]byte, 100)); err != nil {
							return
						}
						<-time.After(time.Second / 2)
					}
				}()
				far := <-targets
				expect(t, far, c.sent)
				start := time.Now()
				go func() {
					io.WriteString(far, refusal)
					c.after(far.duplex)
				}()
				expect(t, client, c.told)
				if d := time.Since(start); d != 0 {
					t.Errorf("the answer took %v", d)
				}
				if got, err := io.ReadAll(client); len(got) > 0 || err != nil {
					t.Errorf("then the client read %q, %v", got, err)
				}
				for deadline := time.After(time.Minute); ; {
					if _, err := client.Write([]byte("x")); err != nil {
						break
					}
					select {
					case <-time.After(time.Second / 10):
					case <-deadline:
						t.Fatal("the client's connection does not end")
					}
				}
				if d := time.Since(start); d > c.took+time.Second/2 {
					t.Errorf("the client's connection ended after %v, want %v", d, c.took)
				}
				<-written
				far.Close()
			})
		})
	}
}

// The answer may come, and the request end, in any order: the connections are used again.
func TestHTTPAnswerMeetsUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		client := ln.dial()
		const post = "POST http://a.example/ HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc"
		const posted = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 6\r\n\r\nabc"
		write(client, post)
		far := <-targets
		for range 3 {
			expect(t, far, posted)
			write(far, ok5)
			expect(t, client, ok5)
			<-time.After(lingerTimeout / 2)
			go io.WriteString(client, "def"+post)
			expect(t, far, "def")
		}
		client.Close()
		far.Close()
	})
}

// The end of Serve ends what HTTP has open in whatever state.
func TestServeEndsHTTP(t *testing.T) {
	for name, c := range map[string]struct{ in, sent, answer, read string }{
		"in the fields":     {in: getA[:20]},
		"before the answer": {getA, sentA, "", ""},
		"in the body":       {"POST http://a.example/ HTTP/1.1\r\nContent-Length: 9\r\n\r\nab", "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\nab", "", ""},
		"in the answer":     {getA, sentA, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe"},
		"pipelined":         {getA + strings.Repeat(getA, 100), sentA, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe"},
		"idle":              {getA, sentA, ok5, ok5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dial, targets := dialer()
				ln := newMemListener()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- (&Server{Dial: dial}).Serve(ctx, ln) }()
				client := ln.dial()
				write(client, c.in)
				var far net.Conn
				if c.sent != "" {
					far = <-targets
					expect(t, far, c.sent)
					write(far, c.answer)
					expect(t, client, c.read)
				}
				synctest.Wait()
				start := time.Now()
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Serve = %v", err)
				}
				if d := time.Since(start); d != 0 {
					t.Errorf("Serve ended after %v", d)
				}
				if !isReset(client) || far != nil && !isReset(far) {
					t.Error("a connection ended as if in order")
				}
			})
		})
	}
}
