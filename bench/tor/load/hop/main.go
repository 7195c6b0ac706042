// Command hop is one plain forwarding proxy, for measuring the floor under a
// chain of relays: each byte is read, optionally decrypted (TLS 1.3), optionally
// encrypted, and written.
//
//	hop --listen A --next B                 TCP to TCP
//	hop --listen A --next B --tls-out       TCP in, TLS 1.3 out   (chain's client)
//	hop --listen A --next B --tls-in --tls-out                    (inner hop)
//	hop --listen A --next B --tls-in                              (last hop)
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"io"
	"log"
	"math/big"
	"net"
	"time"
)

func cert() tls.Certificate {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hop"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

type halfCloser interface{ CloseWrite() error }

func main() {
	listen := flag.String("listen", "", "address")
	next := flag.String("next", "", "address")
	tin := flag.Bool("tls-in", false, "accept TLS 1.3")
	tout := flag.Bool("tls-out", false, "dial TLS 1.3")
	user := flag.Bool("userspace", false, "copy through a buffer instead of splice(2)")
	bufk := flag.Int("buf", 32, "buffer, KiB")
	flag.Parse()
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	if *tin {
		ln = tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert()}})
	}
	pipe := func(dst, src net.Conn) {
		if *user || *tin || *tout {
			io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, *bufk<<10))
		} else {
			io.Copy(dst, src)
		}
		if h, ok := dst.(halfCloser); ok {
			h.CloseWrite()
		}
	}
	for {
		a, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer a.Close()
			var b net.Conn
			var err error
			if *tout {
				b, err = tls.Dial("tcp", *next, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
			} else {
				b, err = net.Dial("tcp", *next)
			}
			if err != nil {
				return
			}
			defer b.Close()
			done := make(chan struct{})
			go func() { pipe(b, a); close(done) }()
			pipe(a, b)
			<-done
		}()
	}
}
