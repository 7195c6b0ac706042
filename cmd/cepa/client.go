package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	"cepa/client"
)

// clientOptions are the flags of `cepa client`.
type clientOptions struct {
	nodeFlags
	socks          string
	reducedPadding bool
}

func newClient() *cobra.Command {
	var o clientOptions
	cmd := &cobra.Command{
		Use:   "client",
		Short: "Run a client with a SOCKS and HTTP proxy port",
		Long: `Run a client of a network: programs that use its port reach the internet
through three relays. The port speaks SOCKS5, SOCKS4a and HTTP (CONNECT and plain
requests). Connections with different user names or passwords never share a
circuit.

It ends with exit code 3 when the authorities require a newer version of cepa.`,
		Example: "  cepa client --network network.toml\n  curl --socks5-hostname 127.0.0.1:9250 https://example.org/\n  https_proxy=http://127.0.0.1:9250 wget https://example.org/",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runClient(cmd.Context(), &o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd, "client")
	cmd.Flags().StringVar(&o.socks, "socks", "127.0.0.1:9250", "address of the SOCKS and HTTP proxy port")
	cmd.Flags().BoolVar(&o.reducedPadding, "reduced-padding", false, "spend less on an idle link, some 80 KB an hour instead of 2 MB, and hide less: who watches it sees when it is used")
	return cmd
}

func runClient(ctx context.Context, o *clientOptions, stdout, stderr io.Writer) error {
	n, err := openNode(&o.nodeFlags, "client", stderr)
	if err != nil {
		return err
	}
	defer n.close()
	ln, err := listenFor("the SOCKS port", "--socks", o.socks)
	if err != nil {
		return err
	}
	defer ln.Close()
	warnOpenProxy(stderr, ln)
	fmt.Fprintf(stdout, "SOCKS5 on %s; connecting to network %q\n", ln.Addr(), n.net.Name)
	progress := progressPrinter{w: stdout}
	c, err := client.New(client.Config{Network: n.net, Files: n.dir, Log: n.log, OnProgress: progress.print, ReducedPadding: o.reducedPadding})
	if err != nil {
		return err
	}
	defer c.Close()
	n.serveStatus(func(s *nodeStatus) {
		s.Versions = judgeVersion(c.Directory().Current(), version)
		cs := c.Status()
		s.Client, s.Socks = &cs, ln.Addr().String()
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	old := make(chan error, 1) // closed when the watcher ends
	go func() {
		defer close(old)
		if err := watchVersion(ctx, c.Directory(), version, n.log); err != nil {
			old <- err
		}
	}()
	served := make(chan error, 1)
	srv, err := newSocks(c, n.log)
	if err != nil {
		return err
	}
	go func() { served <- srv.Serve(ctx, ln) }()
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
