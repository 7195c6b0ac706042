package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"cepa/client"
	"cepa/onion/forward"
)

// onionOptions are the flags of `cepa onion`.
type onionOptions struct {
	nodeFlags
	configFile, guardPorts string

	// Of the one service that there is without a configuration file.
	spec            serviceSpec
	ports, backends []string
	front, proxy    string
}

// serviceFlags are the flags that a configuration file stands in for.
func serviceFlags() []string {
	return []string{
		"name", "port", "points", "max-streams", "max-clients", "intro-rate", "intro-burst", "proof-of-work", "keys", "front", "backend",
		"proxy-protocol", "single-hop", "not-anonymous",
	}
}

func newOnion() *cobra.Command {
	o := onionOptions{spec: newServiceSpec()}
	cmd := &cobra.Command{
		Use:   "onion",
		Short: "Run onion services: servers that only their address leads to",
		Long: `Run an onion service: clients of the network reach it by its address, which ends in
.cepa.alt, and neither they nor any relay learns where it runs. Nothing has to be open
to the internet: it makes connections only outwards.

The address follows from a key, which is made at the first start and lies in the data
directory: keep a copy of DATA-DIR/services/default/identity.key, without which the
address is lost. The address is printed once clients can find the service, and is in
the file "address" beside the key.

Each --port is a port of the service and where its streams go:
  80                     port 80 of this machine (127.0.0.1)
  80:8080                another port of it
  80:127.0.0.1:8080      an IP address and a port
  22:unix:/run/ssh.sock  a Unix socket
When the target refuses, the client is told so. A program behind a port sees all
clients come from this machine; with --proxy-protocol v1 or v2 (as HAProxy has it) it
is told the number of the client's circuit instead, as the last 64 bits of a source
address in fc00:dead:beef:4dad::/64, which is how C Tor does it.

"cepa onion client-auth" lets in only clients that you choose. --proof-of-work has
clients work for their turn while there are more than can be served. With --keys the
identity stays offline ("cepa onion keys"). For more than one machine, run the service
as a front (--backend, repeated) that publishes for backends, each with a key of its
own and --front ADDRESS.

Many services run in one process with --config FILE: TOML, one [[service]] table each,
with name, ports, and what else these flags say:

  [[service]]
  name = "blog"
  ports = ["80:127.0.0.1:8080", "443:127.0.0.1:8443"]
  proof-of-work = true

  [[service]]
  name = "shell"
  ports = ["22:unix:/run/ssh.sock"]
  clients = ["cepa-onion-auth:…"]

SIGHUP reads the file, lists of clients and prepared keys again: ports and clients
change under open connections, services that changed otherwise start anew, and when
something is wrong all stays as it was.

It ends with exit code 3 when the authorities require a newer version of cepa.`,
		Example: `  cepa onion --network network.toml --port 80:127.0.0.1:8080
  cepa onion --network network.toml --port 80:8080 --port 22:unix:/run/ssh.sock --proof-of-work
  cepa onion --network network.toml --config services.toml
  cepa onion client-auth add alice >alice.auth
  cepa onion status --test`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load, err := o.loader(cmd)
			if err != nil {
				return err
			}
			return runOnion(cmd.Context(), &o, load, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd, "onion")
	f := cmd.Flags()
	f.StringVar(&o.configFile, "config", "", "file with services, in TOML; instead of the flags of one service. SIGHUP reads it again")
	f.StringVar(&o.guardPorts, "guard-ports", "", "ports at which a firewall lets this machine connect to guards, such as 80,443 (default all)")
	f.StringVar(&o.spec.name, "name", o.spec.name, "name of the service, for logs, and of its folder in the data directory")
	f.StringArrayVar(&o.ports, "port", nil, "`PORT[:TARGET]` of the service; repeated for more; needed")
	f.IntVar(&o.spec.points, "points", o.spec.points, "introduction points, 1 to 20")
	f.IntVar(&o.spec.maxStreams, "max-streams", o.spec.maxStreams, "streams of one client's circuit at a time; more are refused")
	f.IntVar(&o.spec.maxClients, "max-clients", o.spec.maxClients, "clients' circuits at a time; more wait")
	f.IntVar(&o.spec.introRate, "intro-rate", o.spec.introRate, "clients a second that each introduction point lets through")
	f.IntVar(&o.spec.introBurst, "intro-burst", o.spec.introBurst, "clients that each introduction point lets through at once")
	f.BoolVar(&o.spec.work, "proof-of-work", false, "when more clients come than can be answered, have them work for their turn")
	f.StringVar(&o.spec.keys, "keys", "", "file with prepared keys, while the identity stays offline (cepa onion keys prepare)")
	f.StringVar(&o.front, "front", "", "`ADDRESS` of the front for which this service is a backend")
	f.StringArrayVar(&o.backends, "backend", nil, "`ADDRESS` of a backend that answers for this service, which is a front then; repeated for more")
	f.StringVar(&o.proxy, "proxy-protocol", "none", "what targets are told of each client first: v1 or v2 of the PROXY protocol, or none")
	f.BoolVar(&o.spec.singleHop, "single-hop", false, "give the service's place away for speed; needs --not-anonymous")
	f.BoolVar(&o.spec.notAnon, "not-anonymous", false, "with --single-hop: I know that everybody can find out where this service runs")
	cmd.AddCommand(newOnionKeys(), newOnionAuth(), newOnionStatus())
	return cmd
}

// loader returns what reads the services anew: from the file, or from the flags.
func (o *onionOptions) loader(cmd *cobra.Command) (func() ([]serviceSpec, error), error) {
	if o.configFile != "" {
		for _, name := range serviceFlags() {
			if cmd.Flags().Changed(name) {
				return nil, usagef("--%s is of one service, and --config names a file with services: write it there", name)
			}
		}
		return func() ([]serviceSpec, error) { return readOnionConfig(o.configFile) }, nil
	}
	s := o.spec
	var err error
	if len(o.ports) > 0 {
		if s.ports, err = forward.ParsePorts(o.ports); err != nil {
			return nil, usagef("--port: %w", err)
		}
	}
	if o.front != "" {
		if err := s.setFront(o.front); err != nil {
			return nil, usagef("--front: %w", err)
		}
	}
	if err := s.setBackends(o.backends); err != nil {
		return nil, usagef("--backend: %w", err)
	}
	if s.proxy, err = forward.ParseProxy(o.proxy); err != nil {
		return nil, usagef("--proxy-protocol: %w", err)
	}
	if s.keys != "" {
		if s.keys, err = filepath.Abs(s.keys); err != nil {
			return nil, fmt.Errorf("--keys: %w", err)
		}
	}
	if err := s.check(flagWords()); err != nil {
		return nil, usageError{err}
	}
	return func() ([]serviceSpec, error) { return []serviceSpec{s}, nil }, nil
}

func runOnion(ctx context.Context, o *onionOptions, load func() ([]serviceSpec, error), stdout, stderr io.Writer) error {
	guardPorts, err := parsePorts("--guard-ports", o.guardPorts)
	if err != nil {
		return err
	}
	specs, err := load()
	if err != nil {
		return usageError{err}
	}
	// From now on: a signal that comes early is heard later, and ends nothing.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	n, err := openNode(&o.nodeFlags, "onion", stderr)
	if err != nil {
		return err
	}
	defer n.close()
	for i := range specs {
		warnService(stderr, &specs[i])
	}
	out := &lineWriter{w: stdout}
	h := &onionHost{changing: make(chan struct{}, 1), net: n.net, data: n.dir, dataDir: o.dataDir, log: n.log, out: out, load: load}
	plan, err := h.plan(specs)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s; connecting to network %q\n", countOf(len(specs), "onion service"), n.net.Name)
	progress := progressPrinter{w: out}
	c, err := client.New(client.Config{
		Network: n.net, Files: n.dir, Log: n.log, OnProgress: progress.print, Reachable: reachable(guardPorts), Home: homeOf(o.dataDir),
	})
	if err != nil {
		plan.drop()
		return err
	}
	defer c.Close()
	h.client = c
	defer h.close() // before the client ends
	if err := h.carryOut(plan); err != nil {
		return err
	}
	n.serveStatus(func(s *nodeStatus) {
		s.Versions = judgeVersion(c.Directory().Current(), version)
		cs := c.Status()
		s.Client, s.Onion = &cs, h.status()
	}, append(clientResources(c), h.resources()...)...)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reloads sync.WaitGroup
	defer reloads.Wait()
	defer cancel()
	reloads.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				h.reloadLogged()
			}
		}
	})
	err = watchVersion(ctx, c.Directory(), version, n.log)
	if err == nil {
		<-ctx.Done()
	}
	return err
}

// warnService tells of what is allowed and seldom meant.
func warnService(stderr io.Writer, s *serviceSpec) {
	if s.singleHop {
		fmt.Fprintf(stderr, "cepa: warning: the service %s is not anonymous: everybody can find out where it runs\n", s.name)
	}
	for _, p := range s.ports {
		if !p.Local() {
			fmt.Fprintf(stderr, "cepa: warning: service %s, port %d: what goes to %s leaves this machine in the clear, and tells whoever watches it when the service is visited\n", s.name, p.Port, p.Address)
		}
	}
}

// countOf is a number of things for people.
func countOf(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// lineWriter lets several goroutines write to w, a line at a time.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// portList is the ports of a service for people.
func portList(ports []forward.Port) string {
	sorted := slices.SortedFunc(slices.Values(ports), func(x, y forward.Port) int { return cmp.Compare(x.Port, y.Port) })
	numbers := make([]string, len(ports))
	for i, p := range sorted {
		numbers[i] = fmt.Sprint(p.Port)
	}
	return strings.Join(numbers, ", ")
}

// closedIsFine turns the end of a listener that was closed into none.
func closedIsFine(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
