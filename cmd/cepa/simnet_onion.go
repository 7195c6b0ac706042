package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/socks"
)

// demoOnion is a small web site as an onion service, on a client of its own.
type demoOnion struct {
	client   *client.Client
	listener *client.OnionListener
	server   *http.Server
}

// startOnion starts the demo onion service, and does not wait for it.
func (r *simnetRun) startOnion() error {
	files, err := r.dir.Sub("onion")
	if err != nil {
		return err
	}
	secret, _, err := files.LoadOrCreateKey(identityFile, identity.KindService, nil)
	if err != nil {
		return err
	}
	key, err := identity.FromSeed(secret[:])
	if err != nil {
		return err
	}
	r.onion = &demoOnion{server: &http.Server{Handler: demoHandler(onionPage), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}}
	if r.onion.client, err = r.net.NewClient(client.Config{Files: files, Log: r.log.With("client", "onion")}); err != nil {
		return err
	}
	if r.onion.listener, err = r.onion.client.StartOnion(client.OnionConfig{Identity: key, Ports: []uint16{80}}); err != nil {
		return err
	}
	r.serve(func() { r.onion.server.Serve(r.onion.listener) }) // ends with close
	return nil
}

// close ends it at any stage of startOnion.
func (o *demoOnion) close() {
	o.server.Close()
	if o.listener != nil {
		o.listener.Close()
	}
	if o.client != nil {
		o.client.Close()
	}
}

// host is its address.
func (o *demoOnion) host() string { return o.listener.Address().String() }

// tryOnion waits for the service, and fetches its page as any program would: over the SOCKS port.
func (r *simnetRun) tryOnion(ctx context.Context) error {
	if err := r.onion.listener.Ready(ctx); err != nil {
		return fmt.Errorf("the demo onion service did not become reachable: %w", err)
	}
	r.stage("onion service: published, and reachable at its address")
	began := time.Now()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.socks.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = socks.ClientHandshake(conn, "", "", r.onion.host(), 80); err == nil {
		_, err = fetchDemo(ctx, conn, r.onion.host(), onionPage)
	}
	if err != nil {
		return fmt.Errorf("the page of the demo onion service did not come through the network: %w", err)
	}
	r.stage(fmt.Sprintf("page of the onion service: met and whole after %.1f ms", time.Since(began).Seconds()*1e3))
	return nil
}
