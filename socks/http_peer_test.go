package socks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// site is an origin server of other hands. It answers with what it was asked, and with as much as the query wants.
func site(t *testing.T) string {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			t.Errorf("the site read %v", err)
		}
		r.Header.Write(w)
		fmt.Fprintf(w, "host %s, from %d addresses, %d bytes, %x", r.Host, len(r.Header["X-Forwarded-For"]), n, hash.Sum(nil))
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		if r.FormValue("length") != "" {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		for rest := n; rest > 0; {
			piece := min(rest, 1+rand.IntN(50_000))
			w.Write(bytes.Repeat([]byte{'x'}, piece))
			rest -= piece
			if r.FormValue("flush") != "" {
				http.NewResponseController(w).Flush()
			}
		}
		if r.FormValue("break") != "" {
			panic(http.ErrAbortHandler)
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(ln)
	}()
	t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String()
}

// throughProxy returns a client of other hands that uses the proxy at addr.
func throughProxy(t *testing.T, addr string, user *url.Userinfo) *http.Client {
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: addr, User: user}), ExpectContinueTimeout: time.Second}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// Client and server of net/http, with us between them.
func TestHTTPBetweenOthers(t *testing.T) {
	siteAddr := site(t)
	var dials atomic.Int64
	addr := serveTCP(t, &Server{Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
		dials.Add(1)
		if r.Host != "site.example" || !r.IsName || r.Port != 80 && r.Port != 8080 {
			return nil, &Error{Reply: ReplyHostUnreachable}
		}
		return new(net.Dialer).DialContext(ctx, "tcp", siteAddr)
	}})
	c := throughProxy(t, addr, url.UserPassword("alice", "secret"))
	get := func(u string) (int, []byte) {
		t.Helper()
		resp, err := c.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body
	}
	if status, body := get("http://site.example/echo"); status != 200 ||
		string(body) != fmt.Sprintf("Accept-Encoding: gzip\r\nUser-Agent: Go-http-client/1.1\r\nhost site.example, from 0 addresses, 0 bytes, %x", sha256.Sum256(nil)) {
		t.Errorf("%d %q", status, body)
	}
	for _, n := range []int{0, 1, 4095, 4096, 4097, 32768, 65536, 1_000_000} {
		for _, mode := range []string{"", "&length=1", "&flush=1"} {
			if status, body := get(fmt.Sprintf("http://site.example/bytes?n=%d%s", n, mode)); status != 200 || len(body) != n {
				t.Errorf("%d%s: status %d, %d bytes", n, mode, status, len(body))
			}
		}
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(i * 7 >> 3)
		}
		want := fmt.Sprintf("%d bytes, %x", n, sha256.Sum256(data))
		for _, expect := range []string{"", "100-continue"} {
			for _, body := range []io.Reader{bytes.NewReader(data), io.MultiReader(bytes.NewReader(data))} { // with length, and in chunks
				req, err := http.NewRequest("POST", "http://site.example:8080/echo", body)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Expect", expect)
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.HasSuffix(got, []byte(want)) {
					t.Errorf("posting %d bytes: %q, %v", n, got, err)
				}
			}
		}
	}
	// All of it was one client connection at a time, and a kept connection behind it.
	if n := dials.Load(); n > 20 {
		t.Errorf("%d dials", n)
	}
	if status, body := get("http://other.example/"); status != 502 || !strings.Contains(string(body), "host unreachable") {
		t.Errorf("an unreachable host: %d %q", status, body)
	}
	for _, mode := range []string{"", "&flush=1"} {
		resp, err := c.Get("http://site.example/bytes?break=1&n=100000" + mode)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err == nil {
			t.Error("what the site broke off looks complete")
		}
	}
}

// Many clients with keys of their own, many requests each: no stream carries two keys.
func TestHTTPIsolation(t *testing.T) {
	siteAddr := site(t)
	var mu sync.Mutex
	dialled := map[string]int{}
	addr := serveTCP(t, &Server{Dial: func(ctx context.Context, r *Request) (net.Conn, error) {
		mu.Lock()
		dialled[r.Username+"/"+r.Password+" to "+r.Host]++
		mu.Unlock()
		return new(net.Dialer).DialContext(ctx, "tcp", siteAddr)
	}})
	// One connection, whose requests change their key.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 9 {
		req, err := http.NewRequest("GET", "http://site.example/echo", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("any", fmt.Sprint(i/3))
		req.Header.Set("Proxy-Authorization", req.Header.Get("Authorization"))
		if err := req.WriteProxy(c); err != nil {
			t.Fatal(err)
		}
		if err := readResponse(c); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	for i := range 3 {
		if n := dialled[fmt.Sprintf("any/%d to site.example", i)]; n != 1 || len(dialled) != 3 {
			t.Errorf("key %d was dialled %d times: %v", i, n, dialled)
		}
	}
	mu.Unlock()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			client := throughProxy(t, addr, url.UserPassword("user", fmt.Sprint(i)))
			for j := range 10 {
				resp, err := client.Get(fmt.Sprintf("http://site%d.example/bytes?n=%d", j%2, i*1000+j))
				if err != nil {
					t.Error(err)
					return
				}
				if n, err := io.Copy(io.Discard, resp.Body); n != int64(i*1000+j) || err != nil {
					t.Errorf("client %d, request %d: %d bytes, %v", i, j, n, err)
				}
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	for i := range 20 {
		for j := range 2 {
			if dialled[fmt.Sprintf("user/%d to site%d.example", i, j)] == 0 {
				t.Errorf("client %d's key did not reach the dial for site %d: %v", i, j, dialled)
			}
		}
	}
}

// readResponse reads one response byte by byte, so that nothing of the next is lost.
func readResponse(c net.Conn) error {
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		head = append(head, b...)
	}
	for line := range strings.SplitSeq(string(head), "\r\n") {
		if length, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			n, err := strconv.ParseInt(length, 10, 64)
			if err != nil {
				return err
			}
			_, err = io.CopyN(io.Discard, c, n)
			return err
		}
	}
	return errors.New("no length")
}

// A page in a browser can send requests to our port. None of them may do anything, nor may it read an answer.
func TestWebPagesGetNothing(t *testing.T) {
	siteAddr := "127.0.0.1"
	hostile := []string{
		"\x05\x01\x00\x05\x01\x00\x03\x0bexample.org\x00\x50", "\x04\x01\x00\x50\xc0\x00\x02\x01\x00",
		"CONNECT example.org:443 HTTP/1.1\r\n\r\n", "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
	}
	addr := serveTCP(t, &Server{Virtual: newVirtual(t), Dial: noDial(t), Resolve: func(context.Context, *Request) (ResolveResult, error) {
		t.Error("something was looked up")
		return ResolveResult{}, nil
	}})
	for _, host := range []string{addr, "localhost:" + addr[len(siteAddr)+1:], "rebound.example:" + addr[len(siteAddr)+1:]} {
		for _, method := range []string{"GET", "POST", "OPTIONS", "PUT"} {
			for i, body := range append(slices.Clone(hostile), strings.Repeat(hostile[3], 100)) {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				length := fmt.Sprintf("Content-Length: %d\r\n", len(body))
				if i == 3 {
					length = "Content-Length: 0\r\n" // so that the body would be the next request
				}
				fmt.Fprintf(c, "%s /x HTTP/1.1\r\nHost: %s\r\nOrigin: http://evil.example\r\n%s\r\n%s", method, host, length, body)
				got, err := io.ReadAll(c)
				c.Close()
				if err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 400 ")) || bytes.Contains(got, []byte("Access-Control")) || bytes.Count(got, []byte("HTTP/1.1")) != 1 {
					t.Errorf("%s from a page of %s was answered %q, %v", method, host, got, err)
				}
				if strings.HasPrefix(host, "rebound") && bytes.Contains(got, []byte("cepa")) {
					t.Errorf("a rebound name is told %q", got)
				}
			}
		}
	}
}
