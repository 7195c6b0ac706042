package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/onion/service"
	"cepa/state"
)

func newOnionKeys() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make and show keys of onion services, and prepare keys for an offline identity",
		Long: `The identity of an onion service is a key, and its address follows from it: who has
the key can be the service, for ever. "cepa onion" makes one in its data directory,
which is enough for most.

To keep it offline, make it elsewhere ("new"), and prepare keys for some time
("prepare"): each is good for one period, a day in most networks. Carry that file to
the server, and run "cepa onion --keys FILE" there. Who steals it can pose as the
service until those keys end, and never after.`,
		Example: `  cepa onion keys new --out blog.key
  cepa onion keys show blog.key
  cepa onion keys prepare --key blog.key --network network.toml --days 90 --out blog-90d.keys`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; cepa onion keys --help lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newOnionKeysNew(), newOnionKeysShow(), newOnionKeysPrepare())
	return cmd
}

func newOnionKeysNew() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Make the identity of an onion service, and print its address",
		Long: `Make the identity of a new onion service in a file, and print its address. The file
is not encrypted: encrypt the medium. Keep a copy: without it the address is lost, and
nobody can give it back.

To run the service with it, move the file to DATA-DIR/services/default/identity.key
(with --name or a configuration file, the name of the service in place of
"default"), or keep it offline and use "cepa onion keys prepare".`,
		Example: "  cepa onion keys new --out blog.key",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := createKey(out, identity.KindService)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), onion.AddressOf(key.ID()))
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file for the key, which must not exist yet; needed")
	return cmd
}

func newOnionKeysShow() *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Print the address of an onion service from its key",
		Long: `Print the address that follows from the identity of an onion service, or from
prepared keys. Of prepared keys it shows too how many there are, and with --network
until when they last. Nothing secret is printed.`,
		Example: "  cepa onion keys show blog.key\n  cepa onion keys show blog-90d.keys --network network.toml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("cepa onion keys show takes one file, got %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			key, err := readServiceKey(args[0])
			if err == nil {
				_, err = fmt.Fprintln(w, onion.AddressOf(key.ID()))
				return err
			}
			var kind *identity.KindError
			if !errors.Is(err, identity.ErrKeyFile) && !errors.Is(err, errTooLong) || errors.As(err, &kind) {
				return err
			}
			bundle, bundleErr := readBundle(args[0])
			if bundleErr != nil {
				return fmt.Errorf("%s is neither the identity of an onion service nor prepared keys: %w", args[0], errors.Join(err, bundleErr))
			}
			fmt.Fprintln(w, bundle.Address)
			first, last := bundle.Keys[0].Period, bundle.Keys[len(bundle.Keys)-1].Period
			if network == "" {
				_, err = fmt.Fprintf(w, "prepared keys of %d periods of network %q; --network shows until when they last\n", len(bundle.Keys), bundle.Network)
				return err
			}
			net, err := readNetwork(network)
			if err != nil {
				return err
			}
			if net.Name != bundle.Network {
				return fmt.Errorf("the keys are of network %q, and %s describes %q", bundle.Network, network, net.Name)
			}
			_, err = fmt.Fprintf(w, "prepared keys of %d periods of network %q, from %s to %s\n", len(bundle.Keys), bundle.Network,
				dateOf(service.PeriodStart(net.Interval, first)), dateOf(service.PeriodStart(net.Interval, last+1)))
			return err
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "file that describes the network, to show dates of prepared keys")
	return cmd
}

// errTooLong says that a file is no key file, because it has too many bytes.
var errTooLong = errors.New("it is longer than the identity of an onion service")

// readServiceKey reads the identity of an onion service from a file of its own.
func readServiceKey(path string) (*identity.Key, error) {
	b, err := state.ReadPrivate(path, int64(onion.MaxBundleSize))
	if err != nil {
		return nil, err
	}
	if len(b) > identity.MaxKeyFileSize {
		return nil, fmt.Errorf("%s: %w", path, errTooLong)
	}
	seed, err := identity.ParseKeyFile(b, identity.KindService)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return identity.FromSeed(seed[:])
}

func newOnionKeysPrepare() *cobra.Command {
	var keyFile, network, days, out string
	cmd := &cobra.Command{
		Use:   "prepare",
		Short: "Prepare keys for the server of a service whose identity is offline",
		Long: `Make a file with the keys that a service needs for some time, one for each period,
and say until when they last. Run it where the identity is, carry the file over to the
server, which needs nothing else, and give it to "cepa onion --keys FILE".

The network file tells the name of the network, to which the keys are bound, and how
long its periods are (24 times the interval between consensuses). Prepare new ones in
time, replace the file, and send SIGHUP to the server; it warns in its log from seven
periods before the end. Two files that overlap are no problem.`,
		Example: "  cepa onion keys prepare --key blog.key --network network.toml --days 90 --out blog-90d.keys",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keyFile == "" || network == "" || out == "" {
				return usagef("--key, --network and --out are needed")
			}
			n, err := strconv.ParseUint(days, 10, 16)
			if err != nil || n == 0 {
				return usagef("--days must be a whole number of days, 1 or more, not %s", quoted(days))
			}
			net, err := readNetwork(network)
			if err != nil {
				return err
			}
			key, err := readServiceKey(keyFile)
			if err != nil {
				return err
			}
			now := time.Now()
			first, count, err := periodsFor(net.Interval, now, int(n))
			if err != nil {
				return err
			}
			bundle, err := service.Prepare(key, net, first, count, nil)
			if err != nil {
				return err
			}
			if err := state.Create(out, bundle.Encode()); err != nil {
				return err
			}
			return printPrepared(cmd.OutOrStdout(), bundle, net.Interval, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyFile, "key", "", "file with the identity of the service; needed")
	f.StringVar(&network, "network", "", "file that describes the network (network.toml); needed")
	f.StringVar(&days, "days", "30", "for how many days from now the keys are to last, rounded up to whole periods")
	f.StringVar(&out, "out", "", "file for the keys, which must not exist yet; needed")
	return cmd
}

// periodsFor returns the periods whose keys a service needs from now on for so many days: from the one before the present one, as
// there are clients with an older consensus.
func periodsFor(interval time.Duration, now time.Time, days int) (first uint64, count int, err error) {
	present := service.PeriodOf(interval, now)
	last := service.PeriodOf(interval, now.Add(time.Duration(days)*24*time.Hour))
	if first = present; present > 0 {
		first--
	}
	if n := last - first + 1; n > onion.MaxBundleKeys {
		length := service.PeriodLength(interval)
		most := time.Duration(onion.MaxBundleKeys-2) * length
		return 0, 0, fmt.Errorf("%d days are %d periods of %s in this network, and a file holds %d: it lasts for %s at most", days, n, length, onion.MaxBundleKeys, roughly(most))
	}
	return first, int(last - first + 1), nil
}

// roughly is a time for people: whole days, or what is left below one.
func roughly(d time.Duration) string {
	if days := int(d / (24 * time.Hour)); days > 1 {
		return fmt.Sprintf("%d days", days)
	}
	return d.String()
}

func printPrepared(w io.Writer, b *onion.KeyBundle, interval time.Duration, path string) error {
	end := service.PeriodStart(interval, b.Keys[len(b.Keys)-1].Period+1)
	renew := end.Add(-7 * service.PeriodLength(interval))
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	_, err = fmt.Fprintf(w, "%s\nkeys of %d periods of network %q, until %s, in %s\ncarry the file to the server, for \"cepa onion --keys\"; prepare new ones before %s\n",
		b.Address, len(b.Keys), b.Network, dateOf(end), abs, dateOf(renew))
	return err
}
