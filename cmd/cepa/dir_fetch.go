package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cepa/directory"
	"cepa/directory/mirror"
	"cepa/state"
)

// fetchPatience is how long one source may take: a vote of some MB at 20 KB/s.
const fetchPatience = 3 * time.Minute

// request is what to fetch.
type request struct {
	path  string // of the resource
	limit int    // bytes
	name  string
	check func([]byte) error
}

func newDirFetch() *cobra.Command {
	var network, out, what, from string
	cmd := &cobra.Command{
		Use:   "fetch",
		Short: "Fetch a document from the authorities",
		Long: `Fetch a document over HTTP from an authority, one after the other in random order until
one has it, or from --from, which may be any cache; verify it, and write it to --out. What
is not good is not written.

--what is "consensus", or "vote/PERIOD/AUTHORITY": the period's number, or "this", "next"
or "last", and the authority's nickname or identity. Votes are there for the periods
around now only.`,
		Example: `  cepa dir fetch --network network.toml --out consensus
  cepa dir fetch --network network.toml --what vote/this/auth1 --from 203.0.113.5:9030 --out vote`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if network == "" || out == "" {
				return usagef("--network and --out are needed; --out - is standard output")
			}
			n, err := readNetwork(network)
			if err != nil {
				return err
			}
			r, err := parseWhat(what, n, time.Now())
			if err != nil {
				return err
			}
			sources := rand.Perm(len(n.Authorities))
			addrs := make([]string, 0, len(sources))
			for _, i := range sources {
				addrs = append(addrs, n.Authorities[i].Address)
			}
			if from != "" {
				if _, port, err := net.SplitHostPort(from); err != nil || port == "" {
					return usagef("--from %s: want host:port, such as 203.0.113.5:9030", quoted(from))
				}
				addrs = []string{from}
			}
			b, source, err := fetchFirst(cmd.Context(), r, addrs)
			if err != nil {
				return err
			}
			return keepFetched(cmd.OutOrStdout(), out, b, r.name, source)
		},
	}
	f := cmd.Flags()
	f.StringVar(&network, "network", "", "file that describes the network (network.toml); needed")
	f.StringVar(&out, "out", "", "file to write to, or - for standard output; needed")
	f.StringVar(&what, "what", "consensus", "consensus, or vote/PERIOD/AUTHORITY")
	f.StringVar(&from, "from", "", "host:port to fetch from (default the authorities)")
	return cmd
}

// parseWhat reads --what.
func parseWhat(what string, n *directory.Network, now time.Time) (*request, error) {
	parts := strings.Split(what, "/")
	switch {
	case what == "consensus":
		return &request{mirror.PathConsensus, directory.MaxConsensusSize, "consensus", func(b []byte) error {
			_, err := directory.ParseConsensus(b, n, now)
			return err
		}}, nil
	case parts[0] == "vote" && len(parts) == 3:
	default:
		return nil, usagef("--what %s: want consensus, or vote/PERIOD/AUTHORITY such as vote/this/auth1", quoted(what))
	}
	period := n.Period(now)
	switch parts[1] {
	case "this":
	case "next":
		period++
	case "last":
		period--
	default:
		var err error
		if period, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
			return nil, usagef("--what: %s is no period: want a number, this, next or last", quoted(parts[1]))
		}
	}
	for _, a := range n.Authorities {
		if parts[2] != a.Nickname && parts[2] != a.Identity.String() {
			continue
		}
		return &request{
			fmt.Sprintf("/cepa/v1/vote/%d/%v", period, a.Identity), directory.MaxVoteSize, fmt.Sprintf("vote of %s for period %d", a.Nickname, period),
			func(b []byte) error {
				v, err := directory.ParseVote(b, n, nil)
				if err == nil && (v.Period != period || v.Authority != a.Identity) {
					err = errors.New("another vote came instead")
				}
				return err
			},
		}, nil
	}
	return nil, usagef("--what: the network file has no authority %s", quoted(parts[2]))
}

// fetchFirst asks one after the other and returns the first document that is good. The
// error says what each of them did.
func fetchFirst(ctx context.Context, r *request, addrs []string) ([]byte, string, error) {
	client := mirror.NewHTTPClient(nil)
	defer client.CloseIdleConnections()
	var problems []error
	for _, addr := range addrs {
		b, err := fetchFrom(ctx, client, r, addr)
		if err == nil {
			return b, addr, nil
		}
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		problems = append(problems, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, "", fmt.Errorf("%s: nobody has a good one: %w", r.name, errors.Join(problems...))
}

func fetchFrom(ctx context.Context, client *http.Client, r *request, addr string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchPatience)
	defer cancel()
	b, _, err := mirror.Get(ctx, client, addr, r.path, "", r.limit)
	if err != nil {
		return nil, err
	}
	return b, r.check(b)
}

func keepFetched(stdout io.Writer, out string, b []byte, name, source string) error {
	if out == "-" {
		_, err := stdout.Write(b)
		return err
	}
	if err := state.Replace(out, b); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "%s from %s, verified: %d bytes in %s\n", name, source, len(b), out)
	return err
}
