package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	// demoHost is the demo site's name. Only exits know it.
	demoHost = "demo.test"
	// demoMaxBytes bounds what one request for bytes may ask for.
	demoMaxBytes = 1 << 30
	// demoCAFile is where the certificate of its https side lies.
	demoCAFile = "demo-ca.pem"
)

const demoPage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cepa demo</title><style>body{font:1.1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:3rem auto;padding:0 1rem}</style></head>
<body><h1>It works</h1>
<p>This page came through three relays. The first knows your computer and not this site, the last knows this site and not
your computer, and the one between them knows neither.</p>
<p>This site exists only inside your test network: no resolver but the exits' knows its name.</p>
<p><a href="/bytes/10000000">10 MB of data</a> to try the speed; <a href="/sha256/10000000">their SHA-256</a>.</p>
</body></html>
`

// onionPage is the page of the demo onion service.
const onionPage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cepa onion demo</title><style>body{font:1.1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:3rem auto;padding:0 1rem}</style></head>
<body><h1>It works</h1>
<p>This page came from an onion service: you met it at a relay that you chose, over three relays of yours and three of its own. Neither of you knows
where the other is, and nothing between you can read this.</p>
<p><a href="/bytes/10000000">10 MB of data</a> to try the speed; <a href="/sha256/10000000">their SHA-256</a>.</p>
</body></html>
`

// demoSite is a small web site over http and https on loopback listeners.
type demoSite struct {
	httpAddr, httpsAddr string
	certPEM             []byte
	servers             []*http.Server
}

// startDemo starts the site; it ends with close.
func startDemo() (*demoSite, error) {
	cert, certPEM, err := demoCertificate()
	if err != nil {
		return nil, fmt.Errorf("demo site: %w", err)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("demo site: %w", err)
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		plain.Close()
		return nil, fmt.Errorf("demo site: %w", err)
	}
	d := &demoSite{httpAddr: plain.Addr().String(), httpsAddr: secure.Addr().String(), certPEM: certPEM}
	for _, ln := range []net.Listener{plain, tls.NewListener(secure, &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"},
	})} {
		srv := &http.Server{Handler: demoHandler(demoPage), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
		d.servers = append(d.servers, srv)
		go srv.Serve(ln) // ends with close
	}
	return d, nil
}

func (d *demoSite) close() {
	for _, s := range d.servers {
		s.Close()
	}
}

func demoHandler(page string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, page)
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := demoSize(w, r); ok {
			// Not the request's context: the server ends that when a client
			// closes its half, which must not cut the answer.
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
			demoBytes(context.WithoutCancel(r.Context()), w, n)
		}
	})
	mux.HandleFunc("GET /sha256/{n}", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := demoSize(w, r); ok {
			h := sha256.New()
			demoBytes(r.Context(), h, n)
			fmt.Fprintln(w, hex.EncodeToString(h.Sum(nil)))
		}
	})
	return mux
}

func demoSize(w http.ResponseWriter, r *http.Request) (int64, bool) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil || n < 0 || n > demoMaxBytes {
		http.Error(w, fmt.Sprintf("the size must be 0 to %d bytes", demoMaxBytes), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

// demoBytes writes the first n bytes of a fixed sequence that does not
// compress.
func demoBytes(ctx context.Context, w io.Writer, n int64) {
	src := mathrand.NewChaCha8([32]byte{})
	buf := make([]byte, 256<<10)
	for n > 0 && ctx.Err() == nil {
		part := buf[:min(n, int64(len(buf)))]
		src.Read(part)
		if _, err := w.Write(part); err != nil {
			return
		}
		n -= int64(len(part))
	}
}

// demoCertificate makes a self-signed certificate for the demo site.
func demoCertificate() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: demoHost}, DNSNames: []string{demoHost},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// fetchDemo fetches the demo page of host over conn, which leads to the site, and
// returns the time to the first byte.
func fetchDemo(ctx context.Context, conn net.Conn, host, page string) (firstByte time.Duration, err error) {
	began := time.Now()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	first := &firstReader{Conn: conn}
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return first, nil },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK || string(b) != page {
		return 0, errors.New("the demo page came back changed")
	}
	return first.at.Sub(began), nil
}

// firstReader notes when the first byte came.
type firstReader struct {
	net.Conn
	at time.Time
}

func (f *firstReader) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if n > 0 && f.at.IsZero() {
		f.at = time.Now()
	}
	return n, err
}
