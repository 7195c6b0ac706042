package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cepa/directory"
	"cepa/relay"
	"cepa/state"
)

// reducedPolicy is the default of --exit: the ports that people need, without
// those that bring most complaints (mail submission to strangers, file
// sharing). It follows the reduced policy that Tor's exits use.
const reducedPolicy = "20-21,22,23,43,53,79-81,88,110,143,194,220,389,443,464,465,531,543-544,554,563,587,636,706,749,853,873,902-904,981,989-995," +
	"1194,1220,1293,1500,1533,1677,1723,1755,1863,2082-2083,2086-2087,2095-2096,2102-2104,3128,3389,3690,4321,4643,5050,5190,5222-5223,5228,5900," +
	"6660-6669,6679,6697,8000,8008,8074,8080,8082,8087-8088,8232-8233,8332-8333,8443,8888,9418,9999,10000,11371,19294,19638,50002,64738"

// relayOptions are the flags of `cepa relay`.
type relayOptions struct {
	nodeFlags
	listen, nickname, contact, rate, burst string
	dirListen                              string
	addresses, families                    []string
	exit                                   bool
	exitPolicy, resolver                   string
	exitAllow                              []string
	maxMemory                              string
	quota                                  string
	quotaDay                               int

	configFile string
	line       commandLine       // flags that were given
	started    map[string]string // values of all flags at the start
}

func newRelay() *cobra.Command {
	var o relayOptions
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Run a relay",
		Long: `Run a relay: it passes on cells of other people's circuits at the rate that you
choose, and cannot read them. With --exit it also opens connections to the
internet for them; what they do there carries your address, so read up on that
first. Without it, nothing but traffic between relays leaves this machine.`,
		Example: `  cepa relay --network network.toml --listen :9001 --address 203.0.113.7:9001 --bandwidth-rate 2MB/s
  cepa relay --network network.toml --listen :9001 --address 203.0.113.7:9001 --exit --exit-policy 80,443
  cepa relay --network network.toml --listen :9001 --address 203.0.113.7:9001 --dir-listen :9030`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.complete(cmd); err != nil {
				return err
			}
			return runRelay(cmd.Context(), &o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.flags(cmd)
	cmd.AddCommand(newRelaySet())
	return cmd
}

// complete adds what the configuration file says.
func (o *relayOptions) complete(cmd *cobra.Command) error {
	o.line = commandLineOf(cmd)
	if o.configFile != "" {
		if err := readConfig(o.configFile, cmd, o.line); err != nil {
			return usagef("--config: %w", err)
		}
	}
	o.started = valuesOf(cmd)
	return nil
}

// flags adds the flags of `cepa relay`.
func (o *relayOptions) flags(cmd *cobra.Command) {
	o.register(cmd, "relay")
	f := cmd.Flags()
	f.StringVar(&o.configFile, "config", "", "file with more settings, in TOML with the names of these flags; flags given here go before it. SIGHUP reads it again, and changes rate, burst and quota")
	f.StringVar(&o.listen, "listen", ":9001", "address to accept links on")
	f.StringVar(&o.dirListen, "dir-listen", "", "address to serve the consensus on over plain HTTP too, such as :9030: for web caches and CDNs, and for the [[fallback]] tables of network files (default: only over links)")
	f.StringSliceVar(&o.addresses, "address", nil, "address and port where others reach it (default that of --listen, when it names one)")
	f.StringVar(&o.nickname, "nickname", "unnamed", "name for people: 1 to 19 letters and digits")
	f.StringSliceVar(&o.families, "family", nil, "file with the key of a family that this relay is in (cepa family create), or with a certificate for it (cepa family sign); no circuit goes through two relays of one family")
	f.StringVar(&o.contact, "contact", "", "whom to write to about this relay; public")
	f.StringVar(&o.rate, "bandwidth-rate", "", "most that it reads, and writes, a second, such as 500KB/s or 8Mbit/s; at least 20KB/s (default no limit)")
	f.StringVar(&o.burst, "bandwidth-burst", "", "most that may go at once after a pause, such as 1MB (default one second of the rate, and 512KiB at least)")
	f.StringVar(&o.quota, "monthly-quota", "", "most that it reads and writes together in a month, such as 500GB; at least 100MB. It hibernates before that is exceeded, until the next month (default no limit)")
	f.IntVar(&o.quotaDay, "quota-day", 1, "day of the month, 1 to 28, on which the quota starts anew, at midnight of this machine's time zone")
	f.StringVar(&o.maxMemory, "max-memory", "", "most that cells, links, circuits and streams may take, such as 512MiB; at least 64MiB (default a quarter of the machine's memory)")
	f.BoolVar(&o.exit, "exit", false, "open connections to the internet for clients")
	f.StringVar(&o.exitPolicy, "exit-policy", "", "ports that an exit connects to, such as 80,443,8000-8100 (default a list of common ones)")
	f.StringVar(&o.resolver, "resolver", "", "address of the name server that an exit asks (default the system's)")
	f.StringSliceVar(&o.exitAllow, "exit-allow", nil, "private range that an exit may reach although it is not the internet's; for test networks")
}

// config turns flags into a configuration.
func (o *relayOptions) config() (cfg relay.Config, err error) {
	cfg.Nickname, cfg.Contact, cfg.Version = o.nickname, o.contact, version
	if o.rate != "" {
		if cfg.Rate.BytesPerSecond, err = parseRate(o.rate); err != nil {
			return cfg, usagef("--bandwidth-rate: %w", err)
		}
	}
	if o.burst != "" {
		if o.rate == "" {
			return cfg, usagef("--bandwidth-burst needs --bandwidth-rate")
		}
		if cfg.Rate.Burst, err = parseSize(o.burst); err != nil {
			return cfg, usagef("--bandwidth-burst: %w", err)
		}
	}
	if err := cfg.Rate.Check(); err != nil {
		return cfg, usagef("--bandwidth-rate %s: %w", o.rate, err)
	}
	if o.quota != "" {
		if cfg.Quota.Bytes, err = parseSize(o.quota); err != nil {
			return cfg, usagef("--monthly-quota: %w", err)
		}
	}
	if o.quotaDay < 1 {
		return cfg, usagef("--quota-day must be 1 to 28, not %d", o.quotaDay)
	}
	cfg.Quota.Day = o.quotaDay
	if err := cfg.Quota.Check(); err != nil {
		return cfg, usagef("--monthly-quota, --quota-day: %w", err)
	}
	if cfg.Addresses, err = o.publicAddresses(); err != nil {
		return cfg, err
	}
	if cfg.MaxMemory, err = maxMemory(o.maxMemory); err != nil {
		return cfg, err
	}
	if !o.exit {
		if o.exitPolicy != "" || o.resolver != "" || len(o.exitAllow) > 0 {
			return cfg, usagef("--exit-policy, --resolver and --exit-allow need --exit")
		}
		return cfg, nil
	}
	cfg.Exit = &relay.Exit{}
	policy := o.exitPolicy
	if policy == "" {
		policy = reducedPolicy
	}
	if cfg.Exit.Policy, err = directory.ParsePortPolicy(policy); err != nil {
		return cfg, usagef("--exit-policy: %w", err)
	}
	for _, text := range o.exitAllow {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return cfg, usagef("--exit-allow: %w; want a range such as 10.1.0.0/16", err)
		}
		cfg.Exit.Allow = append(cfg.Exit.Allow, p)
	}
	cfg.Exit.Resolver, err = o.nameServer()
	return cfg, err
}

// publicAddresses are those of --address, or that of --listen.
func (o *relayOptions) publicAddresses() ([]netip.AddrPort, error) {
	texts, flag := o.addresses, "--address"
	if len(texts) == 0 {
		texts, flag = []string{o.listen}, "--listen"
	}
	var out []netip.AddrPort
	for _, text := range texts {
		a, err := netip.ParseAddrPort(text)
		switch {
		case err != nil && flag == "--listen", err == nil && a.Addr().IsUnspecified():
			return nil, usagef("--address is needed: the address and port where others reach this relay, such as 203.0.113.7:9001")
		case err != nil || a.Port() == 0:
			return nil, usagef("%s %s: want an address and a port, such as 203.0.113.7:9001", flag, text)
		}
		out = append(out, a)
	}
	return out, nil
}

// nameServer returns what an exit looks names up with.
func (o *relayOptions) nameServer() (relay.Resolver, error) {
	r := &net.Resolver{PreferGo: true}
	if o.resolver == "" {
		return r, nil
	}
	server := o.resolver
	if a, err := netip.ParseAddr(server); err == nil {
		server = netip.AddrPortFrom(a, 53).String()
	}
	if _, err := netip.ParseAddrPort(server); err != nil {
		return nil, usagef("--resolver %s: want the address of a name server, such as 9.9.9.9 or 127.0.0.1:5353", o.resolver)
	}
	r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}
	return r, nil
}

func runRelay(ctx context.Context, o *relayOptions, stdout, stderr io.Writer) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	// From now on: a signal that comes early is heard later, and ends nothing.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	n, err := openNode(&o.nodeFlags, "relay", stderr)
	if err != nil {
		return err
	}
	defer n.close()
	cfg.Network, cfg.Store, cfg.Log, cfg.MaxFiles = n.net, n.dir, n.log, maxFiles()
	if cfg.Identity, err = n.identity(); err != nil {
		return err
	}
	if cfg.OnionKey, err = firstOnionKey(n.dir); err != nil {
		return err
	}
	if cfg.FamilyKeys, cfg.Memberships, err = readFamilies(o.families); err != nil {
		return err
	}
	cfg.NextSequence = func() (uint64, error) { return nextSequence(n.dir, time.Now()) }
	limitHeap(cfg.MaxMemory)
	r, err := relay.New(cfg)
	if err != nil {
		return err
	}
	ln, err := listenFor("the relay's address", "--listen", o.listen)
	if err != nil {
		return err
	}
	var dirLn net.Listener
	if o.dirListen != "" {
		if dirLn, err = listenFor("the directory's address", "--dir-listen", o.dirListen); err != nil {
			ln.Close()
			return err
		}
	}
	n.serveStatus(func(s *nodeStatus) {
		s.Relays = []relay.Status{r.Status()}
		s.Versions = judgeVersion(r.Directory().Current(), version)
	}, resource{setResource, relaySetHandler(r)})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if dirLn != nil {
		n.wg.Add(1)
		go func() {
			defer n.wg.Done()
			if err := r.ServeDir(ctx, dirLn); err != nil {
				n.log.Error("the directory is no longer served over plain HTTP", "err", err)
			}
		}()
		fmt.Fprintf(stdout, "consensus over plain HTTP on %s\n", dirLn.Addr())
	}
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		announce(ctx, r, stdout)
	}()
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		rereadLoop(ctx, hangup, o, r, n.log)
	}()
	var old error // written before the watcher ends
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if old = watchVersion(ctx, r.Directory(), version, n.log); old != nil {
			cancel()
		}
	}()
	defer cancel() // before close waits
	fmt.Fprintf(stdout, "relay %s (%s) of network %q on %s; Ctrl-C ends it\n", cfg.Nickname, r.Identity().Short(), n.net.Name, ln.Addr())
	err = r.Serve(ctx, ln)
	cancel()
	if <-watched; old != nil {
		return old
	}
	return err
}

// announce says when the consensus lists the relay, and when it no longer does.
func announce(ctx context.Context, r *relay.Relay, stdout io.Writer) {
	listed := false
	for {
		changed := r.Directory().Changed()
		if s := r.Status(); s.Listed != listed {
			listed = s.Listed
			if listed {
				fmt.Fprintf(stdout, "in the consensus; flags %s\n", s.Flags)
			} else {
				fmt.Fprintln(stdout, "no longer in the consensus")
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// sequenceState is the number of the last descriptor.
type sequenceState struct {
	Last uint64 `json:"last"`
}

// nextSequence returns a number for a descriptor that is higher than all
// before, also when the clock went back, and keeps it first.
func nextSequence(dir *state.Dir, now time.Time) (uint64, error) {
	const name, format = "sequence.json", 1
	var s sequenceState
	if err := dir.ReadJSON(name, format, 1<<10, &s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	s.Last = max(s.Last+1, uint64(now.UnixMilli()))
	return s.Last, dir.WriteJSON(name, format, s)
}
