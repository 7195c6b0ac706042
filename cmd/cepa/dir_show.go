package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cepa/crypto/identity"
	"cepa/directory"
)

func newDirShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Show a document",
		Long: `Show a document of the directory: what it says, when it is valid, and who signed it.
Signatures are verified, but whether the signers may sign only "cepa dir verify" can tell,
which knows the network. A document with a bad signature is shown, with what is wrong, and
the exit code is 1.`,
		Example: "  cepa dir show consensus\n  cepa dir show consensus --json | jq '.relays[] | select(.flags[] == \"Exit\") | .nickname'",
		Args:    files("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := readDocument(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), jsonOf(d))
			} else {
				err = showDocument(cmd.OutOrStdout(), d, time.Now())
			}
			if err != nil {
				return err
			}
			return badSignature(args[0], d)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// showDocument prints a document for people.
func showDocument(w io.Writer, d *directory.Document, now time.Time) error {
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	switch d.Kind {
	case directory.KindConsensus:
		c := d.Consensus
		fmt.Fprintf(tw, "consensus of network %q\n", c.Network)
		fmt.Fprintf(tw, "  period\t%d, of %s each\n", c.Period, c.Interval)
		fmt.Fprintf(tw, "  valid\t%s to %s: %s\n", stampOf(c.ValidAfter), stampOf(c.ValidUntil), ageOf(c, now))
		fmt.Fprintf(tw, "  fresh until\t%s\n", stampOf(c.FreshUntil))
		fmt.Fprintf(tw, "  digest\t%x\n", c.Digest())
		fmt.Fprintf(tw, "  size\t%d bytes\n", len(c.Raw()))
		showVersions(tw, c.Versions)
		showRandom(tw, c.Random)
		showParams(tw, c.Params)
		showSigners(tw, d.Signers, nil)
		showRelays(tw, c.Relays)
	case directory.KindVote:
		v := d.Vote
		fmt.Fprintf(tw, "vote of authority %s in network %q\n", v.Authority, v.Network)
		fmt.Fprintf(tw, "  period\t%d, of %s each, from %s on\n", v.Period, v.Interval, stampOf((&directory.Network{Interval: v.Interval}).PeriodStart(v.Period)))
		fmt.Fprintf(tw, "  digest\t%x\n", v.Digest())
		fmt.Fprintf(tw, "  size\t%d bytes\n", len(v.Raw()))
		showVersions(tw, v.Versions)
		showRandom(tw, v.Random.Random)
		showParams(tw, v.Params)
		showSigners(tw, d.Signers, nil)
		showRelays(tw, v.Relays())
	case directory.KindDescriptor:
		showDescriptor(tw, d.Descriptor, now)
		showSigners(tw, d.Signers, nil)
	case directory.KindSignature:
		s := d.Signature
		fmt.Fprintf(tw, "signature of authority %s on a consensus of network %q\n", s.Authority, s.Network)
		fmt.Fprintf(tw, "  period\t%d\n", s.Period)
		fmt.Fprintf(tw, "  digest\t%x, of the consensus\n", s.Digest)
		showSigners(tw, d.Signers, nil)
	case directory.KindCertificate:
		showCertificate(tw, d, now)
	case directory.KindNetwork:
		showNetwork(tw, d.Network)
	}
	return tw.Flush()
}

// ageOf says whether a consensus is valid now.
func ageOf(c *directory.Consensus, now time.Time) string {
	switch {
	case now.Before(c.ValidAfter.Add(-directory.MaxClockSkew)):
		return "NOT VALID YET"
	case !now.Before(c.ValidUntil):
		return "EXPIRED"
	case c.Fresh(now):
		return "valid and fresh now"
	}
	return "valid now, and a newer one is due"
}

func showVersions(w io.Writer, v directory.Versions) {
	for _, line := range [][2]string{{"recommended version", v.Recommended}, {"required version", v.Required}} {
		if line[1] != "" {
			fmt.Fprintf(w, "  %s\t%s or later\n", line[0], line[1])
		}
	}
}

func showRandom(w io.Writer, r directory.Random) {
	for i, v := range []directory.RandomValue{r.Current, r.Previous} {
		if v != (directory.RandomValue{}) {
			fmt.Fprintf(w, "  shared random value\t%x, %s\n", v, []string{"current", "previous"}[i])
		}
	}
}

func showParams(w io.Writer, p directory.Params) {
	for i, name := range slices.Sorted(maps.Keys(p)) {
		label := ""
		if i == 0 {
			label = "parameters"
		}
		fmt.Fprintf(w, "  %s\t%s = %d\n", label, name, p[name])
	}
}

// showSigners prints who signed; net, unless nil, tells who they are.
func showSigners(w io.Writer, signers []directory.Signer, net *directory.Network) {
	fmt.Fprintln(w, "\nSIGNER\tNAME\tSIGNATURE\tKEY\tKEY CERTIFIED FROM\tUNTIL")
	for _, s := range signers {
		c, state := s.Certificate, "good"
		if s.Problem != nil {
			state = "BAD"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Identity.Short(), signerName(c.Identity, net), state, c.Subject.Short(), stampOf(c.NotBefore), stampOf(c.NotAfter))
	}
	if len(signers) == 0 {
		fmt.Fprintln(w, "nobody")
	}
}

// signerName is the nickname of an authority.
func signerName(id identity.ID, net *directory.Network) string {
	if net == nil {
		return "-"
	}
	if a, ok := net.Authority(id); ok {
		return a.Nickname
	}
	return "no authority"
}

// showRelays prints a table of relays, and what they come to.
func showRelays(w io.Writer, relays []directory.Relay) {
	if len(relays) == 0 {
		fmt.Fprintln(w, "\nno relays")
		return
	}
	fmt.Fprintln(w, "\nRELAY\tIDENTITY\tADDRESS\tWEIGHT KB/S\tFLAGS\tEXIT TO\tFAMILIES\tVERSION")
	var exits, guards int
	var weight uint64
	for i := range relays {
		r := &relays[i]
		if r.Flags.Has(directory.FlagExit) {
			exits++
		}
		if r.Flags.Has(directory.FlagGuard) {
			guards++
		}
		weight += r.Weight
		if r.Nickname == "" { // of a vote, which does not hold descriptors
			fmt.Fprintf(w, "-\t%s\t-\t%d\t%s\t-\t-\t-\n", r.Identity.Short(), r.Weight, strings.ReplaceAll(r.Flags.String(), " ", ","))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", r.Nickname, r.Identity.Short(), listOf(r.Addresses, " "), r.Weight,
			strings.ReplaceAll(r.Flags.String(), " ", ","), shortPolicy(r.Exit), familiesOf(r.Family), r.Version)
	}
	fmt.Fprintf(w, "\n%d relays, %d of them exits and %d guards; weight %s in all\n", len(relays), exits, guards, formatRate(int64(min(weight, 1<<53))*1000))
}

func showDescriptor(w io.Writer, d *directory.Descriptor, now time.Time) {
	state := "current now"
	if err := d.CheckTime(now); err != nil {
		state = "NOT CURRENT: expired, or from the future"
	}
	digest := d.Digest()
	fmt.Fprintf(w, "descriptor of relay %s in network %q\n", d.Nickname, d.Network)
	for _, row := range [][2]string{
		{"identity", d.Identity.String()},
		{"published", fmt.Sprintf("%s: %s", stampOf(d.Published), state)},
		{"sequence", fmt.Sprint(d.Sequence)},
		{"digest", fmt.Sprintf("%x", digest)},
		{"onion key", fmt.Sprintf("%x", d.OnionKey)},
		{"suite", suiteName(d.Suite)},
		{"addresses", listOf(d.Addresses, " ")},
		{"bandwidth rate", fmt.Sprintf("%d KB/s", d.BandwidthRate)},
		{"exit policy", d.ExitPolicy.String()},
		{"version", d.Version},
		{"uptime", d.Uptime.String()},
		{"contact", orDash(d.Contact)},
		{"state", stateOf(&d.Extra)},
	} {
		fmt.Fprintf(w, "  %s\t%s\n", row[0], row[1])
	}
	for i, use := range d.Extra.History {
		day := time.Unix(int64(d.Extra.FirstDay+uint64(i))*24*3600, 0).UTC()
		fmt.Fprintf(w, "  use of %s\tread %s, written %s, at most\n", day.Format("2006-01-02"),
			formatBytes(float64(use.Read)*directory.HistoryUnit), formatBytes(float64(use.Written)*directory.HistoryUnit))
	}
	for _, m := range d.Memberships {
		fmt.Fprintf(w, "  family\t%s, which says so until %s\n", m.Identity, stampOf(m.NotAfter))
	}
}

func showCertificate(w io.Writer, d *directory.Document, now time.Time) {
	c, state := d.Certificate, "valid now"
	switch err := d.Signers[0].Problem; {
	case err != nil:
		state = "BAD SIGNATURE"
	case now.Before(c.NotBefore):
		state = "NOT VALID YET"
	case now.After(c.NotAfter):
		state = "EXPIRED"
	}
	what := map[identity.Purpose][2]string{
		identity.PurposeLink:       {"relay", "key for links"},
		identity.PurposeDescriptor: {"relay", "key for descriptors"},
		identity.PurposeConsensus:  {"authority", "key for votes and consensuses"},
		identity.PurposeFamily:     {"family", "relay"},
	}[c.Purpose]
	fmt.Fprintf(w, "certificate for %s\n", c.Purpose)
	fmt.Fprintf(w, "  by %s\t%s\n", what[0], c.Identity)
	fmt.Fprintf(w, "  of %s\t%s\n", what[1], c.Subject)
	fmt.Fprintf(w, "  valid\t%s to %s: %s\n", stampOf(c.NotBefore), stampOf(c.NotAfter), state)
}

func showNetwork(w io.Writer, n *directory.Network) {
	fmt.Fprintf(w, "network file of %q\n", n.Name)
	fmt.Fprintf(w, "  interval\t%s; a consensus is valid for %s\n", n.Interval, directory.ValidPeriods*n.Interval)
	fmt.Fprintf(w, "  threshold\t%d of %d authorities make a consensus\n", n.Threshold(), len(n.Authorities))
	showParams(w, n.Params)
	fmt.Fprintln(w, "\nAUTHORITY\tADDRESS\tIDENTITY")
	for _, a := range n.Authorities {
		fmt.Fprintf(w, "%s\t%s\t%s\n", a.Nickname, a.Address, a.Identity)
	}
}

func suiteName(s uint8) string {
	switch s {
	case directory.SuiteAESGCM:
		return "1, AES-256-GCM"
	case directory.SuiteChaCha:
		return "2, ChaCha20-Poly1305"
	}
	return fmt.Sprint(s)
}

func stateOf(e *directory.Extra) string {
	var words []string
	if e.Hibernating {
		words = append(words, "hibernating")
	}
	if e.Overloaded {
		words = append(words, "overloaded")
	}
	return orDash(strings.Join(words, ", "))
}

// shortPolicy keeps the table narrow; --json has all.
func shortPolicy(p directory.PortPolicy) string {
	const most = 24
	s := p.String()
	if p.IsZero() {
		return "-"
	}
	if len(s) > most {
		s = s[:most-1] + "…"
	}
	return s
}

// familiesOf names families as tables name identities.
func familiesOf(list []directory.FamilyID) string {
	var names []string
	for _, f := range list {
		names = append(names, identity.ID(f).Short())
	}
	return orDash(strings.Join(names, " "))
}

func listOf[T fmt.Stringer](list []T, between string) string {
	var texts []string
	for _, v := range list {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, between)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
