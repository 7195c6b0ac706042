package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cepa/cell"
	"cepa/client"
	"cepa/control"
	"cepa/path"
	"cepa/relay"
)

// statusResource is where a node's status lies on its control socket.
const statusResource = "/v1/status"

// nodeStatus is what `cepa status` shows: of whatever runs on a data directory.
type nodeStatus struct {
	Version string         `json:"version"`
	Role    string         `json:"role"`
	Network string         `json:"network"`
	Uptime  time.Duration  `json:"uptime_ns"`
	Socks   string         `json:"socks,omitempty"`
	Client  *client.Status `json:"client,omitempty"`
	// Destinations are there only when they were asked for.
	Destinations []client.StreamDestination `json:"destinations,omitempty"`
	Relays       []relay.Status             `json:"relays,omitempty"`

	Authority *authorityStatus `json:"authority,omitempty"`
	Onion     []onionStatus    `json:"onion_services,omitempty"`
	// Versions is what the authorities say of versions of cepa, if anything.
	Versions *versionStatus `json:"versions,omitempty"`
}

// defaultDataDir is where a network of simnet lives when nothing else is said
// to status.
func defaultDataDir() string {
	if base, err := os.UserCacheDir(); err == nil {
		return filepath.Join(base, "cepa", "simnet")
	}
	return filepath.Join(os.TempDir(), "cepa-simnet")
}

func newStatus() *cobra.Command {
	var dataDir string
	var asJSON, destinations bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a running cepa does",
		Long: `Show what the cepa that runs on a data directory does: how far it has come,
its guards, its circuits hop by hop, streams, links and bytes. Where streams go is
shown with --show-destinations only. It asks over the control socket in that
directory, which nobody but its owner may open.`,
		Example: "  cepa status\n  cepa status --data-dir ~/net --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s nodeStatus
			if err := control.Get(cmd.Context(), control.Path(dataDir), statusResource, &s); err != nil {
				return err
			}
			if destinations && s.Client != nil {
				if err := control.Get(cmd.Context(), control.Path(dataDir), destinationsResource, &s.Destinations); err != nil {
					return err
				}
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			return printStatus(cmd.OutOrStdout(), &s)
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir(), "data directory of the running cepa")
	cmd.Flags().BoolVar(&destinations, "show-destinations", false, "show where streams go")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(w io.Writer, s *nodeStatus) error {
	fmt.Fprintf(w, "cepa %s, %s of network %q, up %s\n", s.Version, s.Role, s.Network, s.Uptime.Round(time.Second))
	printVersion(w, s.Version, s.Versions)
	if c := s.Client; c != nil {
		fmt.Fprintf(w, "\nClient: %d %%, %s\n", c.Bootstrap.Percent, bootstrapText(c.Bootstrap))
		if c.Bootstrap.Problem != "" {
			fmt.Fprintf(w, "  last problem: %s\n", c.Bootstrap.Problem)
		}
		if s.Socks != "" {
			fmt.Fprintf(w, "  SOCKS5 on %s\n", s.Socks)
		}
		fmt.Fprintf(w, "  consensus: %d relays, valid until %s\n", c.Relays, c.ConsensusUntil.Local().Format("2006-01-02 15:04:05"))
		fmt.Fprintf(w, "  links: %d, read %s, written %s\n", len(c.Links), formatBytes(float64(c.BytesRead)), formatBytes(float64(c.BytesWritten)))
		printGuards(w, c.Guards, c.Links)
		if v := c.Vanguards; v != (client.VanguardStatus{}) {
			fmt.Fprintf(w, "  circuits of onion services: %d in use, %d ready, %d being built; %d joined to a service, with %d streams\n",
				v.Used, v.Ready, v.Building, c.Services.Joined, c.Services.Streams)
		}
		if len(c.Circuits) > 0 {
			tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
			fmt.Fprintln(tw, "\n  CIRCUIT\tHOPS\tSTREAMS\tAGE\tSTATE\tWINDOW\tRTT\tSENDS")
			for _, x := range c.Circuits {
				state := "ready"
				switch {
				case x.Retired:
					state = "ending"
				case x.Used:
					state = "in use"
				}
				fmt.Fprintf(tw, "  %d\t%s\t%d\t%s\t%s\t%d\t%s\t%s\n", x.ID, hopNames(x.Hops), x.Streams, x.Age, state,
					x.Flow.Window, formatRTT(x.Flow.RTT), formatRate(int64(x.Flow.Rate*float64(cell.Size))))
			}
			tw.Flush()
			printStreams(w, c.Circuits, s.Destinations)
		}
	}
	for i := range s.Onion {
		fmt.Fprintln(w)
		printOnion(w, &s.Onion[i])
	}
	if a := s.Authority; a != nil {
		fmt.Fprintf(w, "\nAuthority %s (%.8s)\n", a.Nickname, a.Identity)
		if a.ConsensusUntil.IsZero() {
			fmt.Fprintln(w, "  no consensus yet")
		} else {
			fmt.Fprintf(w, "  consensus: %d relays, valid until %s\n", a.Relays, a.ConsensusUntil.Local().Format("2006-01-02 15:04:05"))
		}
		printSigningKey(w, a, time.Now())
		fmt.Fprintf(w, "  tests: of %d relays %d are running and %d measured; %d of those running failed their last test\n",
			a.Tests.Known, a.Tests.Running, a.Tests.Measured, a.Tests.Failing)
		if a.Tests.CutOff {
			fmt.Fprintln(w, "  most relays are out of reach: this authority seems cut off; check its connection")
		}
	}
	if len(s.Relays) > 0 {
		tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "\nRELAY\tIDENTITY\tEXIT\tLISTED\tLINKS\tCIRCUITS\tSTREAMS\tREAD\tWRITTEN\tRATE")
		for _, r := range s.Relays {
			rate := "no limit"
			if r.Rate > 0 {
				rate = formatRate(r.Rate)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\n", r.Nickname, r.Identity.Short(), yesNo(r.Exit), yesNo(r.Listed),
				r.Links, r.Circuits, r.Streams, formatBytes(float64(r.Read)), formatBytes(float64(r.Written)), rate)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		return printUsage(w, s.Relays)
	}
	return nil
}

// maxStreamsShown bounds the list for people; --json has all.
const maxStreamsShown = 20

// printGuards lists the guards that were tried, in the order in which they are used.
func printGuards(w io.Writer, guards []path.GuardStatus, links []client.LinkStatus) {
	for i, g := range guards {
		if g.Tried == 0 {
			continue
		}
		name, state := g.Nickname, g.State
		if name == "" {
			name = "a relay"
		}
		if slices.ContainsFunc(links, func(l client.LinkStatus) bool { return l.Peer == g.Relay }) {
			state += ", connected"
		}
		fmt.Fprintf(w, "  guard %d: %s %s, %s\n", i+1, name, g.Relay.Short(), state)
	}
}

// printStreams lists open streams, with their destinations if those were asked for.
func printStreams(w io.Writer, circuits []client.CircuitStatus, destinations []client.StreamDestination) {
	to := map[[2]uint64]string{}
	for _, d := range destinations {
		to[[2]uint64{d.Circuit, uint64(d.Stream)}] = d.Destination
	}
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	shown, all := 0, 0
	for _, x := range circuits {
		for _, s := range x.Open {
			if all++; shown == maxStreamsShown {
				continue
			}
			if shown++; shown == 1 {
				fmt.Fprint(tw, "\n  STREAM\tSTATE\tREAD\tWRITTEN")
				if len(to) > 0 {
					fmt.Fprint(tw, "\tDESTINATION")
				}
				fmt.Fprintln(tw)
			}
			fmt.Fprintf(tw, "  %d/%d\t%s\t%s\t%s", x.ID, s.ID, s.State, formatBytes(float64(s.Read)), formatBytes(float64(s.Written)))
			if len(to) > 0 {
				fmt.Fprint(tw, "\t"+to[[2]uint64{x.ID, uint64(s.ID)}])
			}
			fmt.Fprintln(tw)
		}
	}
	tw.Flush()
	if all > shown {
		fmt.Fprintf(w, "  and %d more; --json shows all\n", all-shown)
	}
}

// formatRTT is a round trip for people; a dash when none was measured yet.
func formatRTT(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(100 * time.Microsecond).String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// hopNames is a path in one line: nickname and fingerprint of each hop.
func hopNames(hops []client.HopStatus) string {
	names := make([]string, len(hops))
	for i, h := range hops {
		names[i] = h.Nickname + " " + h.Identity.Short()
	}
	return strings.Join(names, " > ")
}
