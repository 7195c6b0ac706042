package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cepa/client"
	"cepa/control"
	"cepa/relay"
	"cepa/simnet/testnet"
	"cepa/state"
)

// simnetTimeout is how long a network may take until its first page.
const simnetTimeout = time.Minute

// simnetOptions are the flags of `cepa simnet`.
type simnetOptions struct {
	authorities, relays, exits int
	socks, rate                string
	dataDir, readyFile         string
	interval                   time.Duration
	check, onion, verbose      bool
}

func newSimnet() *cobra.Command {
	var o simnetOptions
	cmd := &cobra.Command{
		Use:   "simnet",
		Short: "Run a whole network on this machine",
		Long: `Run a complete network in one process on this machine's loopback:
authorities, relays in subnets of their own, a client with a SOCKS5 port, a
small demo site that only the exits can reach, and another one as an onion
service. It fetches both pages once through its own SOCKS port, shows the three
hops that the first took and the address of the second, and stays until Ctrl-C.

Everything is real but the distance: the same code serves networks of many
machines. Exits of this network also reach loopback addresses, so that your own
test servers can be used.`,
		Example: `  cepa simnet
  cepa simnet --relays 20 --exits 8 --bandwidth-rate 500KB/s
  cepa simnet --data-dir ~/net --check`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runSimnet(cmd.Context(), &o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.authorities, "authorities", testnet.DefaultAuthorities, "number of directory authorities")
	f.IntVar(&o.relays, "relays", testnet.DefaultRelays, "number of relays, exits included; at least 3")
	f.IntVar(&o.exits, "exits", 0, "how many of the relays are exits (default 4, or all of fewer)")
	f.StringVar(&o.socks, "socks", "127.0.0.1:9250", "address of the SOCKS and HTTP proxy port")
	f.StringVar(&o.rate, "bandwidth-rate", "", "rate of each relay, such as 500KB/s or 8Mbit/s; at least 20KB/s (default no limit)")
	f.StringVar(&o.dataDir, "data-dir", defaultDataDir(), "directory for keys, documents, network.toml and control.sock")
	f.StringVar(&o.readyFile, "ready-file", "", "write a JSON description of the network to this file once everything works")
	f.DurationVar(&o.interval, "interval", testnet.DefaultInterval, "time from one consensus to the next")
	f.BoolVar(&o.onion, "onion", true, "run a demo onion service too")
	f.BoolVar(&o.check, "check", false, "end after both fetches: exit code 0 when they worked, 1 when not")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what the nodes do, on standard error")
	return cmd
}

// readyInfo is the content of the ready file.
type readyInfo struct {
	Socks        string           `json:"socks"`
	Control      string           `json:"control"`
	Network      string           `json:"network_file"`
	Authorities  []readyNode      `json:"authorities"`
	Relays       []readyNode      `json:"relays"`
	DemoURL      string           `json:"demo_url"`
	DemoHTTPSURL string           `json:"demo_https_url"`
	DemoCA       string           `json:"demo_ca"`
	OnionURL     string           `json:"onion_url,omitempty"`
	Times        map[string]int64 `json:"times_ms"`
}

type readyNode struct {
	Nickname string         `json:"nickname"`
	Identity string         `json:"identity"`
	Address  netip.AddrPort `json:"address"`
	Exit     bool           `json:"exit,omitempty"`
}

// simnetRun is one running network with its client.
type simnetRun struct {
	o       *simnetOptions
	out     io.Writer
	log     *slog.Logger
	began   time.Time
	dir     *state.Dir
	net     *testnet.Net
	client  *client.Client
	demo    *demoSite
	onion   *demoOnion // nil without one
	socks   net.Listener
	control net.Listener
	wg      sync.WaitGroup // servers of this process
	// stopServers ends them; nil before they run.
	stopServers context.CancelFunc
}

func runSimnet(ctx context.Context, o *simnetOptions, stdout, stderr io.Writer) error {
	// What a node would warn its operator of is not the business of somebody who
	// tries out a network: what fails is said by the command itself.
	level := slog.LevelError
	if o.verbose {
		level = slog.LevelDebug
	}
	r := &simnetRun{
		o: o, out: stdout, began: time.Now(),
		log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})),
	}
	rate, err := o.validate()
	if err != nil {
		return err
	}
	runCtx, cancel := context.WithCancel(ctx)
	defer r.close()
	defer cancel()
	if err := r.start(runCtx, rate); err != nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	if o.check {
		return nil
	}
	fmt.Fprintln(stdout, "\nRunning until Ctrl-C.")
	select {
	case <-ctx.Done():
		fmt.Fprintln(stdout, "Stopping.")
		return nil
	case err := <-r.net.Err():
		return err
	}
}

var errInterrupted = errors.New("interrupted before the network was ready")

func (o *simnetOptions) validate() (relay.Rate, error) {
	var rate relay.Rate
	if o.rate != "" {
		v, err := parseRate(o.rate)
		if err != nil {
			return rate, usagef("--bandwidth-rate: %w", err)
		}
		rate.BytesPerSecond = v
		if err := rate.Check(); err != nil {
			return rate, usagef("--bandwidth-rate %s: %w", o.rate, err)
		}
	}
	switch {
	case o.authorities < 1:
		return rate, usagef("--authorities must be 1 or more, not %d", o.authorities)
	case o.relays < 3 || o.relays > testnet.MaxRelays:
		return rate, usagef("--relays must be 3 to %d, not %d: a circuit has 3 hops", testnet.MaxRelays, o.relays)
	case o.exits < 0 || o.exits > o.relays:
		return rate, usagef("--exits must be 1 to %d, the number of relays, not %d", o.relays, o.exits)
	case o.interval < time.Second:
		return rate, usagef("--interval must be 1s or more, not %s", o.interval)
	}
	if _, err := netip.ParseAddrPort(o.socks); err != nil {
		return rate, usagef("--socks %s: want an address and a port, such as 127.0.0.1:9250", o.socks)
	}
	return rate, nil
}

// start brings everything up and fetches the demo page.
func (r *simnetRun) start(ctx context.Context, rate relay.Rate) error {
	ctx, cancel := context.WithTimeout(ctx, simnetTimeout)
	defer cancel()
	var err error
	if r.dir, err = state.Open(r.o.dataDir); err != nil {
		return err
	}
	if r.socks, err = net.Listen("tcp", r.o.socks); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("the SOCKS port %s is in use by another program: end it, or choose another port with --socks", r.o.socks)
		}
		return fmt.Errorf("the SOCKS port %s cannot be opened (%w): choose another one with --socks", r.o.socks, err)
	}
	if r.control, err = control.Listen(control.Path(r.o.dataDir)); err != nil {
		return err
	}
	if r.demo, err = startDemo(); err != nil {
		return err
	}
	if err := r.dir.Write(demoCAFile, r.demo.certPEM); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "cepa %s: a network of %d authorities and %d relays on this machine\n", version, r.o.authorities, r.o.relays)
	r.net, err = testnet.Start(ctx, testnet.Config{
		Authorities: r.o.authorities, Relays: r.o.relays, Exits: r.o.exits, Rate: rate, Interval: r.o.interval,
		Dir: r.dir, Progress: r.stage, Log: r.log,
	})
	if err != nil {
		return err
	}
	r.net.Sites.Route(demoHost, 80, r.demo.httpAddr)
	r.net.Sites.Route(demoHost, 443, r.demo.httpsAddr)
	return r.startClient(ctx)
}

// stage prints one line of progress with the time since the start.
func (r *simnetRun) stage(what string) {
	fmt.Fprintf(r.out, "  %5.2f s  %s\n", time.Since(r.began).Seconds(), what)
}

func (r *simnetRun) startClient(ctx context.Context) error {
	files, err := r.dir.Sub("client")
	if err != nil {
		return err
	}
	if r.client, err = r.net.NewClient(client.Config{Files: files, Log: r.log.With("client", "client")}); err != nil {
		return err
	}
	if r.o.onion { // which takes its time meanwhile
		if err := r.startOnion(); err != nil {
			return fmt.Errorf("the demo onion service: %w", err)
		}
	}
	if err := r.client.Ready(ctx); err != nil {
		return err
	}
	r.stage("client: consensus, guard and first circuit")
	srv, err := (&proxy{client: r.client, log: r.log}).server(0, rules{})
	if err != nil {
		return err
	}
	var serveCtx context.Context
	serveCtx, r.stopServers = context.WithCancel(context.Background())
	r.serve(func() { srv.Serve(serveCtx, r.socks) })
	r.serve(func() { control.Serve(serveCtx, r.control, r.controlHandler()) })

	began := time.Now()
	first, err := r.fetchOnce(ctx)
	if err != nil {
		return fmt.Errorf("the demo page did not come through the network: %w", err)
	}
	r.stage(fmt.Sprintf("demo page through SOCKS: first byte after %.1f ms, whole after %.1f ms",
		first.Seconds()*1e3, time.Since(began).Seconds()*1e3))
	if r.onion != nil {
		if err := r.tryOnion(ctx); err != nil {
			return err
		}
	}
	r.printPath()
	r.printUse()
	return r.writeReady(time.Since(r.began), first)
}
