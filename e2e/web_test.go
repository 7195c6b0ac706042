//go:build e2e && linux

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Names of the web site. Every name in .test is its address, but nxdomain.test.
const (
	webName    = "web.test"
	noSuchName = "nxdomain.test"
)

// album is how many pictures and scripts the page at /album has, with as many of
// each.
const album = 60

// maxBytes is the largest file that the site has, in bytes.
const maxBytes = 20_000_000

// lastBytes is how much the server at web.last answers, after a number and a line
// end.
const lastBytes = 3_000_000

// web is the far end: an http and https site with a git repository, and the name
// server that knows it. Only exits reach it.
type web struct {
	host             *host
	http, https, dns string // addresses
	last             string // address of a server that answers after its client's last word
	ca               string // file with the site's certificate
	repository       string // what /git/repo.git is a copy of
	data             []byte // what /bytes/N is the beginning of

	mu   sync.Mutex
	hits map[string]int // requests by path
}

// startWeb starts the site on a host; it ends with the test.
func startWeb(t *testing.T, h *host) *web {
	t.Helper()
	dir := t.TempDir()
	w := &web{host: h, ca: filepath.Join(dir, "ca.pem"), repository: filepath.Join(dir, "repo"), hits: map[string]int{}, data: pattern(maxBytes)}
	cert, text := certificate(t)
	if err := os.WriteFile(w.ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	handler := w.handler(t, dir)
	plain, secure := h.listen(t, 0), h.listen(t, 0)
	w.http, w.https = plain.Addr().String(), secure.Addr().String()
	w.serve(t, plain, handler)
	w.serve(t, tls.NewListener(secure, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}), handler)
	last := h.listen(t, 0)
	w.last = last.Addr().String()
	go w.answerLast(last) // ends when the listener is closed
	pc := h.listenPacket(t, 0)
	w.dns = pc.LocalAddr().String()
	go w.answerNames(pc) // ends when the socket is closed
	return w
}

func (w *web) serve(t *testing.T, ln net.Listener, handler http.Handler) {
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	t.Cleanup(func() { srv.Close() })
	go srv.Serve(ln) // ends with Close
}

// answerLast serves connections whose client says all that it has to say, closes
// its direction, and only then is answered: how much came, and data.
func (w *web) answerLast(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			n, err := io.Copy(io.Discard, c)
			if err == nil {
				_, _ = fmt.Fprintf(c, "%d\n%s", n, w.data[:lastBytes]) // the client sees when it is not whole
			}
		}()
	}
}

// url returns the address of a page by one of the site's names.
func (w *web) url(name, path string) string { return "http://" + withPort(name, w.http) + path }

// httpsURL is url for https.
func (w *web) httpsURL(name, path string) string { return "https://" + withPort(name, w.https) + path }

// withPort returns name:port with the port of addr.
func withPort(name, addr string) string {
	_, port, _ := net.SplitHostPort(addr) // addr is a listener's
	return net.JoinHostPort(name, port)
}

// take returns how often each path was asked for since the last call.
func (w *web) take() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := maps.Clone(w.hits)
	clear(w.hits)
	return taken
}

func (w *web) handler(t *testing.T, dir string) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	page := func(pattern, kind string, body func(r *http.Request) ([]byte, error)) {
		mux.HandleFunc("GET "+pattern, func(rw http.ResponseWriter, r *http.Request) {
			b, err := body(r)
			if err != nil {
				http.Error(rw, err.Error(), http.StatusNotFound)
				return
			}
			rw.Header().Set("Content-Type", kind)
			rw.Header().Set("Cache-Control", "no-store") // what is asked for twice is counted twice
			_, _ = rw.Write(b)
		})
	}
	page("/{$}", "text/html", func(*http.Request) ([]byte, error) { return []byte("<html>It works</html>\n"), nil })
	mux.HandleFunc("GET /small", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Connection", "close") // a stream for each
		_, _ = io.WriteString(rw, "small\n")
	})
	page("/bytes/{n}", "application/octet-stream", func(r *http.Request) ([]byte, error) {
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil || n < 0 || n > maxBytes {
			return nil, fmt.Errorf("no size up to %d", maxBytes)
		}
		return w.data[:n], nil
	})
	page("/album", "text/html", func(*http.Request) ([]byte, error) { return albumPage(), nil })
	page("/album/style.css", "text/css", func(*http.Request) ([]byte, error) {
		return []byte("body{background:#fff;margin:8px}img{width:60px;height:40px;margin:2px}\n"), nil
	})
	page("/album/script/{n}", "text/javascript", func(r *http.Request) ([]byte, error) {
		return fmt.Appendf(nil, "document.title = %q;\n", r.PathValue("n")), nil
	})
	page("/album/picture/{n}", "image/png", func(r *http.Request) ([]byte, error) {
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil {
			return nil, err
		}
		return picture(n)
	})
	mux.Handle("/git/", w.gitHandler(t, dir))
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.hits[r.URL.Path]++
		w.mu.Unlock()
		mux.ServeHTTP(rw, r)
	})
}

// pattern returns n bytes that do not repeat soon.
func pattern(n int) []byte {
	b := make([]byte, 0, n+32)
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, "%d the quick brown fox\n", i)
	}
	return b[:n]
}

// albumPage is a page with 2·album + 1 resources.
func albumPage() []byte {
	b := []byte(`<!doctype html><html><head><title>album</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/album/style.css">` + "\n")
	for i := range album {
		b = fmt.Appendf(b, "<script src=\"/album/script/%d\"></script>\n", i)
	}
	b = append(b, "</head><body>\n"...)
	for i := range album {
		b = fmt.Appendf(b, "<img src=\"/album/picture/%d\" alt=\"\">\n", i)
	}
	return append(b, "</body></html>\n"...)
}

// albumPaths returns the paths that a browser asks for that shows the page.
func albumPaths() []string {
	all := []string{"/album", "/album/style.css"}
	for i := range album {
		all = append(all, fmt.Sprintf("/album/script/%d", i), fmt.Sprintf("/album/picture/%d", i))
	}
	return all
}

// pictureColor is the one colour of a picture of the album.
func pictureColor(n int) color.RGBA {
	return color.RGBA{R: uint8(4 * n), G: uint8(255 - 3*n), B: uint8(64 + 90*(n%3)), A: 255}
}

func picture(n int) ([]byte, error) {
	m := image.NewPaletted(image.Rect(0, 0, 60, 40), color.Palette{pictureColor(n)})
	var b bytes.Buffer
	err := png.Encode(&b, m)
	return b.Bytes(), err
}

// gitHandler makes a repository and returns what serves it as git's own servers
// do.
func (w *web) gitHandler(t *testing.T, dir string) http.Handler {
	t.Helper()
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "--quiet", w.repository)
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(w.repository, fmt.Sprintf("file%d", i)), pattern(10_000*(i+1)), 0o600); err != nil {
			t.Fatal(err)
		}
		git("-C", w.repository, "add", ".")
		git("-C", w.repository, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message", fmt.Sprint(i))
	}
	root := filepath.Join(dir, "git")
	git("clone", "--quiet", "--bare", w.repository, filepath.Join(root, "repo.git"))
	return &cgi.Handler{
		Path: filepath.Join(git("--exec-path"), "git-http-backend"), Root: "/git",
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir},
	}
}

// certificate makes a certificate that signs itself, for all names of the site.
func certificate(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: webName}, DNSNames: []string{webName, "*." + webName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// answerNames is the name server: names in .test are the site's address, all
// else is not found. It ends when the socket is closed.
func (w *web) answerNames(pc net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer, err := w.answerName(buf[:n]); err == nil {
			_, _ = pc.WriteTo(answer, from) // who asks asks again
		}
	}
}

func (w *web) answerName(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	header.Response, header.Authoritative, header.RCode = true, true, dnsmessage.RCodeSuccess
	name := strings.ToLower(q.Name.String())
	addr := w.host.addr.As4()
	reverse := fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", addr[3], addr[2], addr[1], addr[0])
	known := name == reverse || strings.HasSuffix(name, ".test.") && name != noSuchName+"."
	if !known {
		header.RCode = dnsmessage.RCodeNameError
	}
	b := dnsmessage.NewBuilder(nil, header)
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q); err != nil {
		return nil, err
	}
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	resource := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}
	switch {
	case known && name != reverse && q.Type == dnsmessage.TypeA:
		err = b.AResource(resource, dnsmessage.AResource{A: addr})
	case known && name == reverse && q.Type == dnsmessage.TypePTR:
		err = b.PTRResource(resource, dnsmessage.PTRResource{PTR: dnsmessage.MustNewName(webName + ".")})
	}
	if err != nil {
		return nil, err
	}
	return b.Finish()
}
