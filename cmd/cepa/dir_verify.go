package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cepa/crypto/identity"
	"cepa/directory"
)

func newDirVerify() *cobra.Command {
	var network, at string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a document: may it be believed, now, in this network?",
		Long: `Verify a document as a node of the network would: whether it is in its one form, of
this network, signed by who may sign it (a consensus: by enough authorities), and valid
now. It says who signed and when it is valid. The exit code is 1 when it is not good.`,
		Example: "  cepa dir verify --network network.toml consensus\n  cepa dir verify --network network.toml --at 2026-11-24T12:00:00Z old-consensus",
		Args:    files("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if network == "" {
				return usagef("--network is needed: the file that describes the network")
			}
			now := time.Now()
			if at != "" {
				var err error
				if now, err = time.Parse(time.RFC3339, at); err != nil {
					return usagef("--at %s: want a time such as 2026-11-24T12:00:00Z", quoted(at))
				}
			}
			n, err := readNetwork(network)
			if err != nil {
				return err
			}
			d, err := readDocument(args[0])
			if err != nil {
				return err
			}
			problem := d.Verify(n, now)
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), verifiedJSON(d, n, now, problem))
			} else {
				err = showVerified(cmd.OutOrStdout(), args[0], d, n, now, problem)
			}
			if err == nil && problem != nil {
				err = fmt.Errorf("%s: %w", args[0], problem)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&network, "network", "", "file that describes the network (network.toml); needed")
	f.StringVar(&at, "at", "", "the time to judge it at, such as 2026-11-24T12:00:00Z (default now)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// authoritiesOf returns the network where its authorities are to have signed, else nil.
func authoritiesOf(d *directory.Document, n *directory.Network) *directory.Network {
	if d.Kind == directory.KindDescriptor || d.Kind == directory.KindCertificate && d.Certificate.Purpose != identity.PurposeConsensus {
		return nil
	}
	return n
}

func verifiedJSON(d *directory.Document, n *directory.Network, now time.Time, problem error) *documentJSON {
	out := jsonOf(d)
	out.Relays = nil // show has them
	out.Signers = signersJSON(d.Signers, authoritiesOf(d, n))
	out.Verified = &verificationJSON{Good: problem == nil, At: now.UTC().Truncate(time.Second)}
	if problem != nil {
		out.Verified.Problem = problem.Error()
	}
	return out
}

func showVerified(w io.Writer, path string, d *directory.Document, n *directory.Network, now time.Time, problem error) error {
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "%s: %s\n", path, d.Kind)
	switch d.Kind {
	case directory.KindConsensus:
		c := d.Consensus
		fmt.Fprintf(tw, "  network\t%s, period %d, %d relays\n", c.Network, c.Period, len(c.Relays))
		fmt.Fprintf(tw, "  valid\t%s to %s: %s\n", stampOf(c.ValidAfter), stampOf(c.ValidUntil), ageOf(c, now))
		good, known := 0, 0
		for _, s := range d.Signers {
			if s.Problem == nil {
				good++
				if _, ok := n.Authority(s.Certificate.Identity); ok {
					known++
				}
			}
		}
		fmt.Fprintf(tw, "  signatures\t%d, %d of them good, %d by authorities of the network; %d are needed\n", len(d.Signers), good, known, n.Threshold())
	case directory.KindVote:
		fmt.Fprintf(tw, "  network\t%s, period %d, %d relays\n", d.Vote.Network, d.Vote.Period, len(d.Vote.Entries))
	case directory.KindDescriptor:
		fmt.Fprintf(tw, "  relay\t%s (%s), published %s\n", d.Descriptor.Nickname, d.Descriptor.Identity.Short(), stampOf(d.Descriptor.Published))
		for _, m := range d.Descriptor.Memberships {
			fmt.Fprintf(tw, "  family\t%s, signed by it\n", m.Identity.Short())
		}
	case directory.KindSignature:
		fmt.Fprintf(tw, "  network\t%s, period %d\n", d.Signature.Network, d.Signature.Period)
	case directory.KindCertificate:
		fmt.Fprintf(tw, "  valid\t%s to %s\n", stampOf(d.Certificate.NotBefore), stampOf(d.Certificate.NotAfter))
	case directory.KindNetwork:
		fmt.Fprintf(tw, "  network\t%s, %d authorities\n", d.Network.Name, len(d.Network.Authorities))
	}
	if d.Kind != directory.KindNetwork {
		showSigners(tw, d.Signers, authoritiesOf(d, n))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	verdict := "\ngood"
	if problem != nil {
		verdict = "\nNOT GOOD: " + oneLine(problem.Error())
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}
