package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cepa/crypto/identity"
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
	rules        string
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
	IdentityHere   bool      `json:"identity_in_data_dir"` // then signing keys are renewed by themselves
	SigningUntil   time.Time `json:"signing_key_valid_until"`
	SigningNotice  time.Time `json:"signing_key_renew_from"`
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

It signs with a key that the identity has certified for a limited time. When the
identity lies in the data directory, new ones are made by themselves; when it is kept
offline, "cepa authority renew" makes them, and SIGHUP, or the next vote, takes them.

What its operator decides about single relays stands in relays.toml in the data
directory, or in the file of --rules: a table [relays], of identities and
"reject" (not valid), "bad-exit" or "middle-only". It is read before each vote.

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
	f.StringVar(&o.rules, "rules", "", "file with rules for single relays (default relays.toml in the data directory, if it exists)")
	f.StringVar(&o.ipv6, "test-ipv6", "auto", "whether relays are tested over IPv6: yes, no, or auto, which takes no notice of failures unless most relays pass")
	f.BoolVar(&o.measure, "measure", false, "measure how much relays carry, through circuits of other relays")
	f.DurationVar(&o.measureEvery, "measure-every", probe.DefaultMeasureEvery, "measure each relay so often")
	f.StringVar(&o.measureBytes, "measure-bytes", exactSize(probe.DefaultMeasureBytes), "draw at most so much in one measurement, 1MB or more")
	f.StringVar(&o.measureRate, "measure-rate", exactRate(probe.DefaultMeasureRate), "draw at most so much a second in all, 100KB/s or more; faster relays are measured as this")
	cmd.AddCommand(newAuthorityInit(), newAuthorityRenew(), newAuthorityEvidence())
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
	// From now on: a signal that comes early is heard later, and ends nothing.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	n, err := openNode(&o.nodeFlags, "authority", stderr)
	if err != nil {
		return err
	}
	defer n.close()
	key, err := localIdentity(n.dir)
	if err != nil {
		return err
	}
	if key != nil {
		if _, ok := n.net.Authority(key.ID()); !ok {
			return fmt.Errorf("the identity in %s is not in the network file: add the lines that \"cepa authority init\" prints, or name the right --data-dir", n.dir.Path(identityFile))
		}
	}
	rules := rulesReader(o.rules, n.dir.Path("relays.toml"))
	text, err := rules()
	if err != nil {
		return err
	}
	if _, err := directory.ParseRules(text); err != nil {
		return err
	}
	probing.Network, probing.Self, probing.Store, probing.Log = n.net, whose(n.dir, key), n.dir, n.log
	prober, err := probe.New(probing)
	if err != nil {
		return err
	}
	a, err := authority.New(authority.Config{
		Network: n.net, Key: key, Store: n.dir, Prober: prober, Log: n.log,
		TestingFlags: o.testingFlags, AllowPrivateAddresses: o.allowPrivate,
		FirstRound: authority.FirstRound{Relays: o.firstRelays}, Rules: rules,
	})
	if err != nil {
		return err
	}
	defer a.Close()
	me, _ := n.net.Authority(a.Identity()) // New has found it
	if o.listen == "" {
		o.listen = me.Address
	}
	ln, err := listenFor("the authority's address", "--listen", o.listen)
	if err != nil {
		return err
	}
	n.serveStatus(func(s *nodeStatus) {
		s.Authority = &authorityStatus{
			Nickname: me.Nickname, Identity: me.Identity.String(), IdentityHere: key != nil,
			SigningUntil: a.SigningUntil(), SigningNotice: a.SigningNotice(), Tests: prober.Status(),
		}
		if c := a.Consensus(); c != nil {
			s.Authority.Relays, s.Authority.ConsensusFrom, s.Authority.ConsensusUntil = len(c.Relays), c.ValidAfter, c.ValidUntil
		}
	})
	reloading, stop := context.WithCancel(ctx)
	n.wg.Go(func() { reloadLoop(reloading, hangup, a, n.log) })
	defer stop() // before close waits
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

// whose returns the identity for which the signing key in dir, or the identity there, signs; nothing if that cannot be told, which
// authority.New explains.
func whose(dir *state.Dir, key *identity.Key) (id identity.ID) {
	if key != nil {
		return key.ID()
	}
	if b, err := dir.Read(authority.SigningFile, 1<<12); err == nil {
		if k, err := authority.ParseSigningKey(b); err == nil {
			return k.Certificate.Identity
		}
	}
	return id
}

// reloadLoop has the authority look for a new signing key at each hang-up signal, until ctx ends.
func reloadLoop(ctx context.Context, signals <-chan os.Signal, a *authority.Authority, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		if err := a.Reload(); err != nil {
			log.Error("the signing key was not taken, the present one stays", "err", oneLine(err.Error()))
			continue
		}
		log.Info("the signing key was looked at", "until", a.SigningUntil())
	}
}

// rulesReader returns what reads the rules for relays: from the named file, which must be there, or from the usual one, which need not.
func rulesReader(named, usual string) func() ([]byte, error) {
	return func() ([]byte, error) {
		path := named
		if path == "" {
			path = usual
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) && named == "" {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the rules for relays cannot be read: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, directory.MaxRulesFile+1))
		if err != nil {
			return nil, fmt.Errorf("the rules for relays in %s cannot be read: %w", path, err)
		}
		return b, nil
	}
}

// checkAuthority applies the rules of network files to one authority.
func checkAuthority(a directory.Authority) error {
	if ap, err := netip.ParseAddrPort(a.Address); err == nil && ap.Port() == 0 {
		return errors.New("--address needs a port other than 0")
	}
	one := directory.Network{Name: "check", Interval: directory.DefaultInterval, Authorities: []directory.Authority{a}}
	return one.Validate()
}
