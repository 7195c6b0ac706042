package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"cepa/client"
)

// clientOptions are the flags of `cepa client`.
type clientOptions struct {
	nodeFlags
	socks        []string
	guardPorts   string
	isolateDest  string
	safeSocks    bool
	allowPrivate bool

	reducedPadding bool
	onionAuth      string
}

func newClient() *cobra.Command {
	var o clientOptions
	cmd := &cobra.Command{
		Use:   "client",
		Short: "Run a client with a SOCKS and HTTP proxy port",
		Long: `Run a client of a network: programs that use its port reach the internet
through three relays. The port speaks SOCKS5, SOCKS4a and HTTP (CONNECT and plain
requests).

Two connections never share a circuit when they differ in SOCKS user name,
password, address of the program, or port of cepa that they came to. --isolate-dest
keeps those to different hosts, ports or both apart too. --socks may be given
several times, each with rules of its own behind the address:

  isolate-dest-host, isolate-dest-port   other hosts, other ports, other circuits
  isolate-dest                           both
  share-users, share-clients             users and passwords, addresses of programs do not count
  safe-socks                             refuse connections to literal IP addresses

Onion services are reached by their address, which ends in .cepa.alt. Where one lets in
only clients that it knows, --onion-auth names a directory with what their owners gave
you, one file *.auth each, which nobody else may read.

Addresses that are nobody's on the internet (private, loopback) are refused, and
names are looked up by exits, never by this machine.

It ends with exit code 3 when the authorities require a newer version of cepa.`,
		Example: "  cepa client --network network.toml\n  curl --socks5-hostname 127.0.0.1:9250 https://example.org/\n  https_proxy=http://127.0.0.1:9250 wget https://example.org/\n" +
			"  cepa client --network network.toml --socks 127.0.0.1:9250 --socks 127.0.0.1:9251,isolate-dest-host,isolate-dest-port",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runClient(cmd.Context(), &o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd, "client")
	// StringArray, not StringSlice: commas belong to a value.
	cmd.Flags().StringArrayVar(&o.socks, "socks", []string{defaultSocks}, "`ADDRESS[,RULE]...` of a SOCKS and HTTP proxy port; may be repeated")
	cmd.Flags().StringVar(&o.isolateDest, "isolate-dest", "no", "at all ports, other circuits for another destination's `host`, port, both, or no")
	cmd.Flags().BoolVar(&o.safeSocks, "safe-socks", false, "at all ports, refuse connections to literal IP addresses")
	cmd.Flags().BoolVar(&o.allowPrivate, "allow-private-addresses", false, "let programs ask for private addresses; for networks on one machine")
	cmd.Flags().StringVar(&o.guardPorts, "guard-ports", "", "ports at which a firewall lets this machine connect to guards, such as 80,443 (default all)")
	cmd.Flags().BoolVar(&o.reducedPadding, "reduced-padding", false, "spend less on an idle link, some 80 KB an hour instead of 2 MB, and hide less: who watches it sees when it is used")
	cmd.Flags().StringVar(&o.onionAuth, "onion-auth", "", "directory with files *.auth, by which onion services let this client in (cepa onion client-auth add)")
	return cmd
}

func runClient(ctx context.Context, o *clientOptions, stdout, stderr io.Writer) error {
	guardPorts, err := parsePorts("--guard-ports", o.guardPorts)
	if err != nil {
		return err
	}
	base := rules{safe: o.safeSocks}
	if err := parseIsolateDest(o.isolateDest, &base); err != nil {
		return err
	}
	listeners, err := parseListeners(o.socks, base)
	if err != nil {
		return err
	}
	secrets := authSecrets{}
	if o.onionAuth != "" {
		if secrets, err = readAuthDir(o.onionAuth); err != nil {
			return err
		}
	}
	n, err := openNode(&o.nodeFlags, "client", stderr)
	if err != nil {
		return err
	}
	defer n.close()
	ports := make([]net.Listener, len(listeners))
	names := make([]string, len(listeners))
	for i, l := range listeners {
		if ports[i], err = listenFor("the SOCKS port", "--socks", l.addr); err != nil {
			return err
		}
		defer ports[i].Close()
		warnOpenProxy(stderr, ports[i])
		names[i] = describe(ports[i].Addr().String(), l.rules)
		if i < len(listeners)-1 {
			fmt.Fprintf(stdout, "SOCKS5 on %s\n", names[i])
		} else {
			fmt.Fprintf(stdout, "SOCKS5 on %s; connecting to network %q\n", names[i], n.net.Name)
		}
	}
	progress := progressPrinter{w: stdout}
	c, err := client.New(client.Config{
		Network: n.net, Files: n.dir, Log: n.log, OnProgress: progress.print, Reachable: reachable(guardPorts), Home: homeOf(o.dataDir),
		AllowPrivateAddresses: o.allowPrivate, ReducedPadding: o.reducedPadding, OnionAuth: secrets.of,
	})
	if err != nil {
		return err
	}
	defer c.Close()
	n.serveStatus(func(s *nodeStatus) {
		s.Versions = judgeVersion(c.Directory().Current(), version)
		cs := c.Status()
		s.Client, s.Socks = &cs, strings.Join(names, ", ")
	}, clientResources(c)...)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	old := make(chan error, 1) // closed when the watcher ends
	go func() {
		defer close(old)
		if err := watchVersion(ctx, c.Directory(), version, n.log); err != nil {
			old <- err
		}
	}()
	served := make(chan error, len(ports))
	px := &proxy{client: c, log: n.log}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	for i, ln := range ports {
		srv, err := px.server(i, listeners[i].rules)
		if err != nil {
			return err
		}
		serving.Go(func() { served <- srv.Serve(ctx, ln) })
	}
	ready := make(chan error, 1)
	go func() { ready <- c.Ready(ctx) }()
	for {
		select {
		case err := <-ready:
			ready = nil
			if err == nil {
				fmt.Fprintln(stdout, "ready; Ctrl-C ends it")
			}
		case err := <-served:
			return err
		case err, ok := <-old:
			if ok {
				return err
			}
			old = nil
		}
	}
}

const (
	// progressStep is how many percent are worth another line for the same thing.
	progressStep = 10
	// problemEvery is how often a problem is shown that changes all the time.
	problemEvery = 10 * time.Second
)

// progressPrinter tells how far a client has come, a line for each thing that it does.
type progressPrinter struct {
	w       io.Writer
	percent int
	summary string
	problem string
	told    time.Time // the problem was
}

func (p *progressPrinter) print(b client.Bootstrap) {
	if b.Percent == client.PhaseReady.Percent() {
		return // which is told otherwise
	}
	if b.Percent > p.percent && (b.Summary != p.summary || b.Percent >= p.percent+progressStep) || p.summary == "" {
		fmt.Fprintf(p.w, "bootstrapped %d %%: %s\n", b.Percent, bootstrapText(b))
		p.percent, p.summary = b.Percent, b.Summary
	}
	if b.Problem != "" && b.Problem != p.problem && time.Since(p.told) >= problemEvery {
		fmt.Fprintf(p.w, "still at %d %%: %s\n", b.Percent, oneLine(b.Problem))
		p.problem, p.told = b.Problem, time.Now()
	}
}

// bootstrapText is what a client does, with the bytes of the consensus.
func bootstrapText(b client.Bootstrap) string {
	switch {
	case b.Total > 0:
		return fmt.Sprintf("%s, %s of %s", b.Summary, formatBytes(float64(b.Received)), formatBytes(float64(b.Total)))
	case b.Received > 0:
		return fmt.Sprintf("%s, %s", b.Summary, formatBytes(float64(b.Received)))
	}
	return b.Summary
}

// warnOpenProxy tells when others could use the SOCKS port: it asks for no
// password.
func warnOpenProxy(stderr io.Writer, ln net.Listener) {
	if a, ok := ln.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		fmt.Fprintf(stderr, "cepa: warning: the SOCKS port %s can be used by other machines, and what they send to it travels in the clear: prefer a loopback address\n", ln.Addr())
	}
}
