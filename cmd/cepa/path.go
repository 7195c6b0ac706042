package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cepa/cell"
	"cepa/client"
	"cepa/control"
	"cepa/onion"
	"cepa/path"
	"cepa/state"
)

// pathResource is where a client explains paths on its control socket.
const pathResource = "/v1/path"

// pathHandler answers `cepa path explain`.
func pathHandler(c *client.Client) http.Handler {
	return control.Update(func(q client.PathQuery) (any, error) {
		r, err := c.ExplainPath(q)
		if err != nil {
			return nil, errors.New(oneLine(err.Error()))
		}
		return r, nil
	})
}

func newPath() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "path",
		Short: "Explain how relays are chosen",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; cepa path --help lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPathExplain())
	return cmd
}

func newPathExplain() *cobra.Command {
	var network, dataDir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain HOST:PORT",
		Short: "Show which relays lead to a destination, and why",
		Long: `Show how a client chooses the relays that lead to a destination: its guards in
their order, what bandwidth is used for, one path drawn now with the chance that
each relay had, and why the others were left out. Of a client that runs on the data
directory, its circuits that could be used are explained too; otherwise --network
is needed, and the consensus on disk is taken. Nothing is sent over the network,
nothing is used up, and only port and kind of address matter: the host is not
looked up, and not told to the running client.`,
		Example: "  cepa path explain example.org:443 --network network.toml\n  cepa path explain '[2001:db8::1]:22' --data-dir ~/.cache/cepa/simnet --json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s takes one destination, HOST:PORT, got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseDestination(args[0])
			if err != nil {
				return err
			}
			r, err := explainPath(cmd.Context(), q, network, dataDir)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			}
			return printPathReport(cmd.OutOrStdout(), r)
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "file that describes the network (network.toml); needed when no client runs")
	cmd.Flags().StringVar(&dataDir, "data-dir", roleDataDir("client"), "data directory of the client, running or not")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// parseDestination reads HOST:PORT. Of the host, only whether it is an IPv6 address is kept.
func parseDestination(s string) (q client.PathQuery, err error) {
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		return q, usagef("%q is no destination: HOST:PORT is expected, an IPv6 address in brackets", s)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return q, usagef("%q is no port: a number from 1 to 65535 is expected", portText)
	}
	if !cell.ValidHost(host) {
		return q, usagef("%q is no host: a name or an address is expected", host)
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if onion.IsAddress(host) {
		return q, usagef("paths to onion services are not explained: they have no exit, and their first three relays are kept for long")
	}
	if strings.HasSuffix(name, ".onion") || strings.HasSuffix(name, ".alt") {
		return q, usagef("no path leads to names of other networks (.onion, .alt)")
	}
	q.Port = uint16(port)
	if a, err := netip.ParseAddr(host); err == nil {
		q.IPv6 = a.Unmap().Is6()
	}
	return q, nil
}

// explainPath asks the client that runs on a directory or, if none does, its files.
func explainPath(ctx context.Context, q client.PathQuery, network, dataDir string) (*client.PathReport, error) {
	if _, err := os.Stat(dataDir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the data directory %s does not exist: start cepa client once, or name another with --data-dir", dataDir)
	}
	r := new(client.PathReport)
	asked := control.Post(ctx, control.Path(dataDir), pathResource, q, r)
	if asked == nil {
		return r, nil
	}
	if errors.Is(asked, control.ErrRefused) {
		return nil, asked
	}
	// Who holds the directory runs, and its answer is the one that counts.
	dir, err := state.Open(dataDir)
	if errors.Is(err, state.ErrLocked) {
		return nil, fmt.Errorf("the client that runs on %s does not answer: %w", dataDir, asked)
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if network == "" {
		return nil, usagef("no client runs on %s: --network is needed, the file that describes the network", dataDir)
	}
	net, err := readNetwork(network)
	if err != nil {
		return nil, err
	}
	return client.ExplainStored(client.Config{Network: net, Files: dir}, q)
}

// maxGuardsShown bounds the guards shown that were not tried; --json has all.
const maxGuardsShown = 3

func printPathReport(w io.Writer, r *client.PathReport) error {
	kind := "IPv4, or a name"
	if r.IPv6 {
		kind = "IPv6"
	}
	fmt.Fprintf(w, "Paths to port %d (%s)\n", r.Port, kind)
	fmt.Fprintf(w, "  by the consensus of %d relays that is valid until %s\n", r.Relays, r.ConsensusUntil.Local().Format("2006-01-02 15:04:05"))
	if r.Expired {
		fmt.Fprintln(w, "  It is not valid now: the client uses no path until it has fetched another.")
	}
	fmt.Fprintf(w, "\nGuards, in their order; %d may ever be tried\n", r.GuardLimit)
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "  GUARD\tDRAWN\tTRIED\tFIRST\tKEPT\tCIRCUITS\tSTATE")
	untried := 0
	for _, g := range r.Guards {
		if g.Tried == 0 {
			if untried++; untried > maxGuardsShown {
				continue
			}
		}
		circuits := "-"
		if g.Circuits > 0 {
			circuits = fmt.Sprintf("%d of %d", g.Good, g.Circuits)
		}
		fmt.Fprintf(tw, "  %s %s\t%s\t%s\t%s\t%d days\t%s\t%s\n", g.Nickname, g.Relay.Short(), dayText(g.Sampled), dayText(g.Tried), dayText(g.First), g.Life, circuits, g.State)
	}
	tw.Flush()
	if untried > maxGuardsShown {
		fmt.Fprintf(w, "  and %d more that were not tried; --json shows all\n", untried-maxGuardsShown)
	}
	tw = tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\nBandwidth, and what it is used for")
	fmt.Fprintln(tw, "  MAY BE\tRELAYS\tKB/S\tAS GUARD\tAS MIDDLE\tAS EXIT")
	for _, c := range r.Bandwidth {
		fmt.Fprintf(tw, "  %s\t%d\t%d\t%.1f %%\t%.1f %%\t%.1f %%\n", c.Class, c.Relays, c.Bandwidth, 100*c.Guard, 100*c.Middle, 100*c.Exit)
	}
	tw.Flush()
	fmt.Fprintln(w, "\nA path drawn now, in the order of choice; it is not used")
	if r.Problem != "" {
		fmt.Fprintln(w, "  none: "+oneLine(r.Problem))
	} else {
		printHops(w, r.Example)
	}
	for _, x := range r.Circuits {
		state := "ready"
		if x.Used {
			state = "in use"
		}
		fmt.Fprintf(w, "\nCircuit %d (%s), chances by the present consensus\n", x.ID, state)
		if x.Problem != "" {
			fmt.Fprintln(w, "  "+oneLine(x.Problem))
		}
		printHops(w, x.Hops)
	}
	return nil
}

// printHops lists hops and, below, why others were left out.
func printHops(w io.Writer, hops []client.HopReport) {
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "  HOP\tAS\tRELAY\tKB/S\tCHANCE\tHIGHEST\tENTROPY\tCANDIDATES\tWHY")
	for _, h := range hops {
		chance, highest, entropy, candidates := "-", "-", "-", "-"
		if h.Candidates > 0 {
			chance, highest = fmt.Sprintf("%.3f %%", 100*h.Probability), fmt.Sprintf("%.3f %%", 100*h.Highest)
			entropy, candidates = fmt.Sprintf("%.2f bits", h.Entropy), strconv.Itoa(h.Candidates)
		}
		fmt.Fprintf(tw, "  %d\t%s\t%s %s\t%d\t%s\t%s\t%s\t%s\t%s\n", h.Hop, h.Position, h.Nickname, h.Identity.Short(), h.Weight, chance, highest, entropy, candidates, h.Why)
	}
	tw.Flush()
	for _, h := range hops {
		var out []string
		for _, c := range []struct {
			n    int
			what string
		}{
			{h.LeftOut.Down, "not running and valid"},
			{h.LeftOut.Unfit, "without the flags for it (Guard, Exit; BadExit, MiddleOnly)"},
			{h.LeftOut.Refusing, "refusing the port"},
			{h.LeftOut.Excluded, "excluded"},
			{h.LeftOut.Conflicts, "in the path, or in a family, /16 or /32 of a relay that is"},
		} {
			if c.n > 0 {
				out = append(out, fmt.Sprintf("%d %s", c.n, c.what))
			}
		}
		if len(out) > 0 {
			fmt.Fprintf(w, "  hop %d left out: %s\n", h.Hop, strings.Join(out, "; "))
		}
	}
}

// dayText is a day for people; a dash for none.
func dayText(d path.Day) string {
	if d == 0 {
		return "-"
	}
	return time.Unix(int64(d)*86400, 0).UTC().Format("2006-01-02")
}
