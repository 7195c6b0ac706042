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

	"cepa/directory"
	"cepa/directory/authority"
)

// authorityOptions are the flags of `cepa authority`.
type authorityOptions struct {
	nodeFlags
	listen       string
	allowPrivate bool
	testingFlags bool
	firstRelays  int
	rules        string
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
"reject" (not valid), "bad-exit" or "middle-only". It is read before each vote.`,
		Example: "  cepa authority init --nickname auth1 --address 203.0.113.5:9030\n  cepa authority --network network.toml",
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
	cmd.AddCommand(newAuthorityInit(), newAuthorityRenew(), newAuthorityEvidence())
	return cmd
}

func runAuthority(ctx context.Context, o *authorityOptions, stdout, stderr io.Writer) error {
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
	a, err := authority.New(authority.Config{
		Network: n.net, Key: key, Store: n.dir, Log: n.log,
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
			SigningUntil: a.SigningUntil(), SigningNotice: a.SigningNotice(),
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
