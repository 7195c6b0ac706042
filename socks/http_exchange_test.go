package socks

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// expect reads want from r, and nothing else.
func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got[:n], err, want)
	}
}

// write writes s in the background, for as long as anybody reads it.
func write(w io.Writer, s string) { go io.WriteString(w, s) }

// isReset says whether the end of r is a failure and not an end in order.
func isReset(r io.Reader) bool {
	_, err := io.Copy(io.Discard, r)
	return err != nil
}

func TestHTTPIdle(t *testing.T) {
	for _, c := range []struct{ configured, upstream, client time.Duration }{
		{0, upstreamIdle, DefaultIdleTimeout}, {time.Hour, upstreamIdle, time.Hour}, {3 * time.Second, 3 * time.Second, 3 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			dial, targets := dialer()
			ln := serveMem(t, &Server{Dial: dial, IdleTimeout: c.configured})
			client := ln.dial()
			write(client, getA)
			far := <-targets
			expect(t, far, sentA)
			write(far, ok5)
			expect(t, client, ok5)
			start := time.Now()
			if _, err := far.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the origin server read %v", err)
			}
			if d := time.Since(start); d != c.upstream {
				t.Errorf("the origin server's connection was kept for %v, want %v", d, c.upstream)
			}
			if _, err := client.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the client read %v", err)
			}
			if d := time.Since(start); d != c.client {
				t.Errorf("the client's connection was kept for %v, want %v", d, c.client)
			}
			far.Close()
		})
	}
}

// A request that comes late finds another connection, and must be complete in the time of a handshake.
func TestHTTPAfterIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		client := ln.dial()
		for range 3 {
			write(client, getA)
			far := <-targets
			expect(t, far, sentA)
			write(far, ok5)
			expect(t, client, ok5)
			<-time.After(59 * time.Second)
			far.Close()
		}
		write(client, getA[:len(getA)-2])
		start := time.Now()
		if n, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %d, %v", n, err)
		}
		if d := time.Since(start); d != DefaultHandshakeTimeout {
			t.Errorf("dropped after %v", d)
		}
	})
}

// An origin server that ends an idle connection, or breaks its silence, loses it at once, and the client does not notice.
func TestHTTPUpstreamEndsWhileIdle(t *testing.T) {
	for name, end := range map[string]func(*duplex){
		"close": func(d *duplex) { d.Close() }, "reset": func(d *duplex) { d.Reset() }, "half-close": func(d *duplex) { d.CloseWrite() },
		"speak": func(d *duplex) { write(d, ok5) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dial, targets := dialer()
				ln := serveMem(t, &Server{Dial: dial})
				client := ln.dial()
				write(client, getA)
				far := <-targets
				expect(t, far, sentA)
				write(far, ok5)
				expect(t, client, ok5)
				synctest.Wait()
				start := time.Now()
				end(far.duplex)
				io.Copy(io.Discard, far)
				if d := time.Since(start); d != 0 {
					t.Errorf("our side of it was kept for %v", d)
				}
				write(client, getA)
				again := <-targets
				expect(t, again, sentA)
				write(again, ok5)
				expect(t, client, ok5)
				client.Close()
			})
		})
	}
}

// A tunnel leaves no use for the connection that was kept.
func TestHTTPConnectEndsUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		client := ln.dial()
		write(client, getA)
		far := <-targets
		expect(t, far, sentA)
		write(far, ok5)
		expect(t, client, ok5)
		write(client, "CONNECT a.example:80 HTTP/1.1\r\n\r\n")
		tunnelled := <-targets
		expect(t, client, established)
		start := time.Now()
		if n, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the origin server read %d, %v", n, err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("it was kept for %v", d)
		}
		client.Close()
		far.Close()
		tunnelled.Close()
	})
}

// A kept connection that ends when it is used again is not the client's problem, unless a repetition could do harm.
func TestHTTPStaleUpstream(t *testing.T) {
	for _, c := range []struct {
		method, body string
		repeated     bool
	}{
		{"GET", "", true},
		{"HEAD", "", true},
		{"OPTIONS", "", true},
		{"TRACE", "", true},
		{"DELETE", "", true},
		{"PUT", "", true},
		{"PUT", "Content-Length: 1\r\n\r\nx", false},
		{"GET", "Content-Length: 1\r\n\r\nx", false},
		{"POST", "", false},
		{"PATCH", "", false},
		{"get", "", false},
	} {
		t.Run(c.method+c.body, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if c.body == "" {
					c.body = "\r\n"
				}
				dial, targets := dialer()
				ln := serveMem(t, &Server{Dial: dial})
				client := ln.dial()
				write(client, getA)
				far := <-targets
				expect(t, far, sentA)
				write(far, ok5)
				expect(t, client, ok5)
				write(client, c.method+" http://a.example/ HTTP/1.1\r\n"+c.body)
				expect(t, far, c.method+" / HTTP/1.1\r\nHost: a.example\r\n"+c.body)
				go far.Close()
				if c.repeated {
					again := <-targets
					expect(t, again, c.method+" / HTTP/1.1\r\nHost: a.example\r\n"+c.body)
					again.Close() // a fresh one that ends is no reason to try once more
				}
				want := errorPage(502, "The site closed the connection without an answer.")
				expect(t, client, want[:strings.Index(want, "\r\n\r\n")])
				client.Close()
			})
		})
	}
}

func TestHTTPResponseTimeout(t *testing.T) {
	for _, c := range []struct{ configured, want time.Duration }{{0, DefaultResponseTimeout}, {time.Second, time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			dial, targets := dialer()
			ln := serveMem(t, &Server{Dial: dial, ResponseTimeout: c.configured})
			client := ln.dial()
			start := time.Now()
			go func() {
				io.WriteString(client, "POST http://a.example/ HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
				for _, b := range []byte("abc") {
					<-time.After(time.Hour) // a slow upload is not a slow answer
					client.Write([]byte{b})
				}
			}()
			far := <-targets
			go io.Copy(io.Discard, far)
			expect(t, client, errorPage(504, "The site did not answer in time."))
			if d := time.Since(start) - 3*time.Hour; d != c.want {
				t.Errorf("given up %v after the request, want %v", d, c.want)
			}
			client.Close()
		})
	}
}

// Once the answer has begun, it may take its time.
func TestHTTPSlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		client := ln.dial()
		write(client, getA)
		far := <-targets
		expect(t, far, sentA)
		synctest.Wait() // the time for the answer has begun
		const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		write(far, head)
		expect(t, client, head)
		for i := range 5 {
			<-time.After(24 * time.Hour)
			piece := fmt.Sprintf("6\r\nevent%d\r\n", i)
			write(far, piece)
			start := time.Now()
			expect(t, client, piece) // nothing is held back
			if d := time.Since(start); d != 0 {
				t.Errorf("a piece took %v", d)
			}
		}
		write(far, "0\r\n\r\n")
		expect(t, client, "0\r\n\r\n")
		client.Close()
	})
}

// The body goes on as it comes.
func TestHTTPSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		client := ln.dial()
		write(client, "PUT http://a.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
		far := <-targets
		expect(t, far, "PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range 5 {
			<-time.After(24 * time.Hour)
			write(client, "5\r\npiece\r\n")
			expect(t, far, "5\r\npiece\r\n")
		}
		write(client, "0\r\n\r\n")
		expect(t, far, "0\r\n\r\n")
		write(far, ok5)
		expect(t, client, ok5)
		client.Close()
	})
}

// Why a connection could not be made, in the words of HTTP.
func TestHTTPErrorPages(t *testing.T) {
	status := map[Reply]int{ReplyNotAllowed: 403, ReplyOnionAuthMissing: 403, ReplyOnionAuthWrong: 403, ReplyTTLExpired: 504, ReplyOnionIntroductionTimeout: 504}
	for i := 1; i < 256; i++ {
		r := Reply(i)
		want := status[r]
		if want == 0 {
			want = 502
		}
		p := pageFor(fmt.Errorf("secret: %w", &Error{Reply: r, Err: errors.New("secret")}))
		if p.status != want || !strings.Contains(p.text, r.String()) || strings.Contains(p.text, "secret") {
			t.Errorf("%v is told as %d %q, want %d", r, p.status, p.text, want)
		}
		if more := strings.Contains(p.text, "\n\n"); more != (r >= ReplyOnionDescriptorNotFound && r <= ReplyOnionIntroductionTimeout) {
			t.Errorf("%v is told as %q", r, p.text)
		}
	}
	for _, in := range []string{getA, "CONNECT a.example:443 HTTP/1.1\r\n\r\n", "HEAD http://a.example/ HTTP/1.1\r\n\r\n"} {
		synctest.Test(t, func(t *testing.T) {
			ln := serveMem(t, &Server{Dial: func(context.Context, *Request) (net.Conn, error) { return nil, &Error{Reply: ReplyNotAllowed} }})
			want := errorPage(403, "The connection could not be made: not allowed by the rules.")
			if strings.HasPrefix(in, "HEAD") {
				want, _, _ = strings.Cut(want, "cepa: ")
			}
			if got := hold(t, ln.dial(), in, want, len(in)); got != want {
				t.Errorf("read %q", got)
			}
		})
	}
}

// The origin server gets to see the name that a virtual address stands for, never the address.
func TestHTTPVirtualAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newVirtual(t)
		a, err := m.IPv4("", "abc.cepa.alt")
		if err != nil {
			t.Fatal(err)
		}
		in := "GET http://" + a.String() + "/ HTTP/1.1\r\n\r\nGET http://" + a.String() + ":81/ HTTP/1.1\r\n\r\nGET http://abc.cepa.alt:81/ HTTP/1.1\r\n\r\nGET http://127.200.0.1/ HTTP/1.1\r\n\r\n"
		dial, wait := play(t, []origin{
			{to: "abc.cepa.alt:80", steps: [][2]string{{"GET / HTTP/1.1\r\nHost: abc.cepa.alt\r\n\r\n", ok5}}},
			{to: "abc.cepa.alt:81", steps: [][2]string{{"GET / HTTP/1.1\r\nHost: abc.cepa.alt:81\r\n\r\n", ok5}, {"GET / HTTP/1.1\r\nHost: abc.cepa.alt:81\r\n\r\n", ok5}}},
		})
		ln := serveMem(t, &Server{Dial: dial, Virtual: m})
		want := ok5 + ok5 + ok5 + errorPage(502, "This address stands for a name, but it is not known for which any more. Look the name up again.")
		if got := hold(t, ln.dial(), in, want, len(in)); got != want {
			t.Errorf("the client read\n%q, want\n%q", got, want)
		}
		wait()
	})
}

// Two clients never share a connection, though they want the same under the same key.
func TestHTTPClientsShareNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, targets := dialer()
		ln := serveMem(t, &Server{Dial: dial})
		for range 3 {
			client := ln.dial()
			defer client.Close()
			write(client, getA)
			far := <-targets // one each
			defer far.Close()
			expect(t, far, sentA)
			write(far, ok5)
			expect(t, client, ok5)
		}
	})
}

// Whatever an origin server says: the client reads whole responses and then an end, or a failure, and no field that is between
// the server and us.
func FuzzHTTPResponse(f *testing.F) {
	for _, c := range talks() {
		for _, o := range c.origins {
			for _, step := range o.steps {
				f.Add([]byte(step[1]), "GET", true)
				f.Add([]byte(step[1]+step[1]), "HEAD", false)
			}
		}
	}
	f.Fuzz(func(t *testing.T, said []byte, method string, modern bool) {
		if ok, _ := isHTTP(bufio.NewReader(strings.NewReader(method + " "))); !ok || method == "CONNECT" {
			return
		}
		version := "0"
		if modern {
			version = "1"
		}
		client := newScripted([]byte(method+" http://a.example/ HTTP/1."+version+"\r\n\r\n"), 1000, os.ErrDeadlineExceeded)
		s := &Server{Dial: func(context.Context, *Request) (net.Conn, error) { return newScripted(said, 7, io.EOF), nil }}
		s.service().converse(t.Context(), client)
		out := bufio.NewReader(bytes.NewReader(client.out.Bytes()))
		for n := 0; ; n++ {
			if _, err := out.Peek(1); err != nil {
				return
			}
			resp, err := http.ReadResponse(out, &http.Request{Method: method})
			if err != nil || n > longestInterim {
				t.Fatalf("response %d of %q: %v", n, client.out.String(), err)
			}
			for _, name := range []string{"Keep-Alive", "Proxy-Authenticate", "Upgrade", "Te", "Proxy-Connection"} {
				if resp.Header[name] != nil {
					t.Fatalf("%s came through: %q", name, client.out.String())
				}
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil && !strings.Contains(err.Error(), "EOF") {
				t.Fatalf("body of %q: %v", client.out.String(), err)
			}
			if resp.StatusCode >= 200 && out.Buffered() > 0 {
				t.Fatalf("more than one response in %q", client.out.String())
			}
		}
	})
}
