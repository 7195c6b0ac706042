package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"cepa/directory"
	"cepa/directory/authority"
	"cepa/directory/probe"
	"cepa/state"
)

// authorityOptions are the flags of `cepa authority`.
type authorityOptions struct {
	nodeFlags
	listen       string
	allowPrivate bool
	testingFlags bool
	firstRelays  int
	ipv6         string

	measure      bool
	measureEvery time.Duration
	measureBytes string
	measureRate  string
}

// authorityStatus is what an authority tells about itself.
type authorityStatus struct {
	Nickname       string    `json:"nickname"`
	Identity       string    `json:"identity"`
	Relays         int       `json:"relays_in_consensus"`
	ConsensusFrom  time.Time `json:"consensus_valid_after"`
	ConsensusUntil time.Time `json:"consensus_valid_until"`
	// Tests is what the authority found itself.
	Tests probe.Status `json:"tests"`
}

func newAuthority() *cobra.Command {
	var o authorityOptions
	cmd := &cobra.Command{
		Use:   "authority",
		Short: "Run a directory authority",
		Long: `Run one of the authorities that agree on the consensus of a network. Its
identity must be in the network file: "cepa authority init" makes it and prints
the lines for that file.

It tests that relays are reached at their addresses, and with --measure how much
goes through them. Measurements count when enough authorities make them (3 of 4,
5 of 7), so all should; doc/directory.md has the rules and the figures.`,
		Example: "  cepa authority init --nickname auth1 --address 203.0.113.5:9030\n  cepa authority --network network.toml\n  cepa authority --network network.toml --measure --measure-rate 200Mbit/s",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAuthority(cmd.Context(), &o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd, "authority")
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "", "address to listen on (default the one in the network file)")
	f.BoolVar(&o.allowPrivate, "allow-private-addresses", false, "list relays on private addresses too; for networks inside one building")
	f.BoolVar(&o.testingFlags, "testing-flags", false, "give new relays all flags at once; for test networks")
	f.IntVar(&o.firstRelays, "first-round", 0, "in a network without consensus, vote at once when this many relays have come")
	f.StringVar(&o.ipv6, "test-ipv6", "auto", "whether relays are tested over IPv6: yes, no, or auto, which takes no notice of failures unless most relays pass")
	f.BoolVar(&o.measure, "measure", false, "measure how much relays carry, through circuits of other relays")
	f.DurationVar(&o.measureEvery, "measure-every", probe.DefaultMeasureEvery, "measure each relay so often")
	f.StringVar(&o.measureBytes, "measure-bytes", exactSize(probe.DefaultMeasureBytes), "draw at most so much in one measurement, 1MB or more")
	f.StringVar(&o.measureRate, "measure-rate", exactRate(probe.DefaultMeasureRate), "draw at most so much a second in all, 100KB/s or more; faster relays are measured as this")
	cmd.AddCommand(newAuthorityInit())
	return cmd
}

// probing returns the configuration of the tests.
func (o *authorityOptions) probing() (probe.Config, error) {
	cfg := probe.Config{AllowPrivateAddresses: o.allowPrivate}
	switch o.ipv6 {
	case "auto":
	case "yes":
		cfg.IPv6 = probe.IPv6Yes
	case "no":
		cfg.IPv6 = probe.IPv6No
	default:
		return cfg, usagef("--test-ipv6 is %s: it may be auto, yes or no", quoted(o.ipv6))
	}
	if o.allowPrivate {
		cfg.Gap = time.Second // nobody else is at such addresses
	}
	size, err := parseSize(o.measureBytes)
	if err != nil {
		return cfg, usagef("--measure-bytes: %w", err)
	}
	rate, err := parseRate(o.measureRate)
	if err != nil {
		return cfg, usagef("--measure-rate: %w", err)
	}
	switch {
	case o.measureEvery < time.Minute:
		return cfg, usagef("--measure-every is %v: a minute is the least", o.measureEvery)
	case size < probe.LeastMeasureBytes:
		return cfg, usagef("--measure-bytes is %s: 1MB is the least that tells anything", o.measureBytes)
	case rate < probe.LeastMeasureRate:
		return cfg, usagef("--measure-rate is %s: 100KB/s is the least that tells anything", o.measureRate)
	}
	if o.measure {
		cfg.Measure = &probe.Measure{Every: o.measureEvery, Bytes: size, Rate: rate}
	}
	return cfg, nil
}

func runAuthority(ctx context.Context, o *authorityOptions, stdout, stderr io.Writer) error {
	probing, err := o.probing()
	if err != nil {
		return err
	}
	n, err := openNode(&o.nodeFlags, "authority", stderr)
	if err != nil {
		return err
	}
	defer n.close()
	key, err := n.identity()
	if err != nil {
		return err
	}
	me, ok := n.net.Authority(key.ID())
	if !ok {
		return fmt.Errorf("the identity in %s is not in the network file: add the lines that \"cepa authority init\" prints, or name the right --data-dir", n.dir.Path("identity.key"))
	}
	if o.listen == "" {
		o.listen = me.Address
	}
	probing.Network, probing.Self, probing.Store, probing.Log = n.net, me.Identity, n.dir, n.log
	prober, err := probe.New(probing)
	if err != nil {
		return err
	}
	ln, err := listenFor("the authority's address", "--listen", o.listen)
	if err != nil {
		return err
	}
	a, err := authority.New(authority.Config{
		Network: n.net, Key: key, Store: n.dir, Prober: prober, Log: n.log,
		TestingFlags: o.testingFlags, AllowPrivateAddresses: o.allowPrivate,
		FirstRound: authority.FirstRound{Relays: o.firstRelays},
	})
	if err != nil {
		ln.Close()
		return err
	}
	defer a.Close()
	n.serveStatus(func(s *nodeStatus) {
		s.Authority = &authorityStatus{Nickname: me.Nickname, Identity: me.Identity.String(), Tests: prober.Status()}
		if c := a.Consensus(); c != nil {
			s.Authority.Relays, s.Authority.ConsensusFrom, s.Authority.ConsensusUntil = len(c.Relays), c.ValidAfter, c.ValidUntil
		}
	})
	errs := make(chan error, 2)
	go func() { errs <- a.Serve(ln) }()
	go func() { errs <- a.Run(ctx) }()
	fmt.Fprintf(stdout, "authority %s (%s) of network %q on %s; Ctrl-C ends it\n", me.Nickname, me.Identity.Short(), n.net.Name, ln.Addr())
	select {
	case err = <-errs:
	case <-ctx.Done():
	}
	a.Close()
	return err
}

func newAuthorityInit() *cobra.Command {
	var nickname, address, dataDir string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make an authority's identity and print its lines for network.toml",
		Long: `Make the identity of a new authority, unless there is one, and print the lines
that tell the network about it. Put the lines of all authorities into one
network.toml and give that file to everybody.`,
		Example: "  cepa authority init --nickname auth1 --address 203.0.113.5:9030 >>network.toml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if nickname == "" || address == "" {
				return usagef("--nickname and --address are needed")
			}
			dir, err := state.Open(dataDir)
			if err != nil {
				return err
			}
			defer dir.Close()
			key, err := loadIdentity(dir)
			if err != nil {
				return err
			}
			a := directory.Authority{Nickname: nickname, Identity: key.ID(), Address: address}
			if err := checkAuthority(a); err != nil {
				return usageError{err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "[[authority]]\nnickname = %q\nidentity = %q\naddress = %q\n", a.Nickname, a.Identity, a.Address)
			return nil
		},
	}
	cmd.Flags().StringVar(&nickname, "nickname", "", "name of the authority for people: 1 to 19 letters and digits")
	cmd.Flags().StringVar(&address, "address", "", "host:port where everybody reaches it over HTTP")
	cmd.Flags().StringVar(&dataDir, "data-dir", roleDataDir("authority"), "directory for its identity")
	return cmd
}

// checkAuthority applies the rules of network files to one authority.
func checkAuthority(a directory.Authority) error {
	if ap, err := netip.ParseAddrPort(a.Address); err == nil && ap.Port() == 0 {
		return errors.New("--address needs a port other than 0")
	}
	one := directory.Network{Name: "check", Interval: directory.DefaultInterval, Authorities: []directory.Authority{a}}
	return one.Validate()
}
