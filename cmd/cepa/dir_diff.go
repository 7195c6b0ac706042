package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cepa/directory"
)

// diffJSON is how two documents differ, for programs.
type diffJSON struct {
	Same    bool              `json:"same"`
	Params  []fieldJSON       `json:"parameters"`
	Fields  []fieldJSON       `json:"fields,omitempty"` // of descriptors
	Came    []relayJSON       `json:"came"`
	Went    []relayJSON       `json:"went"`
	Changed []relayChangeJSON `json:"changed"`
	Alike   int               `json:"unchanged"`
}

type relayChangeJSON struct {
	Identity string      `json:"identity"`
	Nickname string      `json:"nickname"`
	Fields   []fieldJSON `json:"fields"`
}

type fieldJSON struct {
	Field string `json:"field"`
	Old   string `json:"old"`
	New   string `json:"new"`
}

func newDirDiff() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Tell how two documents differ",
		Long: `Tell how two documents differ: of consensuses, or votes, which relays came, went or
changed, and what changed of them, and which parameters; of descriptors, which fields. A
vote may be compared with a consensus. Signatures are not compared, but one that is not
good is told, and the exit code is 1.`,
		Example: "  cepa dir diff yesterday consensus",
		Args:    files("OLD", "NEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			before, err := readDocument(args[0])
			if err != nil {
				return err
			}
			after, err := readDocument(args[1])
			if err != nil {
				return err
			}
			d, err := compareDocuments(before, after)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), d)
			} else {
				err = showDiff(cmd.OutOrStdout(), before, after, d)
			}
			if err != nil {
				return err
			}
			return errors.Join(badSignature(args[0], before), badSignature(args[1], after))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// listed returns relays and parameters of a document that has such.
func listed(d *directory.Document) ([]directory.Relay, directory.Params, bool) {
	switch d.Kind {
	case directory.KindConsensus:
		return d.Consensus.Relays, d.Consensus.Params, true
	case directory.KindVote:
		return d.Vote.Relays(), d.Vote.Params, true
	}
	return nil, nil, false
}

func compareDocuments(before, after *directory.Document) (*diffJSON, error) {
	out := &diffJSON{Params: []fieldJSON{}, Came: []relayJSON{}, Went: []relayJSON{}, Changed: []relayChangeJSON{}}
	oldRelays, oldParams, oldLists := listed(before)
	newRelays, newParams, newLists := listed(after)
	switch {
	case oldLists && newLists:
		if a, b := networkOf(before), networkOf(after); a != b {
			return nil, fmt.Errorf("the documents are of different networks, %q and %q", a, b)
		}
		changes := directory.CompareRelays(oldRelays, newRelays)
		out.Params = append(out.Params, fieldsOf(directory.CompareParams(oldParams, newParams))...)
		out.Came, out.Went, out.Alike = relaysJSON(changes.Came), relaysJSON(changes.Went), changes.Same
		for _, c := range changes.Changed {
			out.Changed = append(out.Changed, relayChangeJSON{c.Identity.String(), c.Nickname, fieldsOf(c.Fields)})
		}
	case before.Kind == directory.KindDescriptor && after.Kind == directory.KindDescriptor:
		if before.Descriptor.Identity != after.Descriptor.Identity {
			return nil, errors.New("the descriptors are of different relays")
		}
		out.Fields = fieldsOf(directory.CompareDescriptors(before.Descriptor, after.Descriptor))
	default:
		return nil, fmt.Errorf("a %s and a %s cannot be compared: name two consensuses or votes, or two descriptors", before.Kind, after.Kind)
	}
	out.Same = len(out.Params)+len(out.Fields)+len(out.Came)+len(out.Went)+len(out.Changed) == 0
	return out, nil
}

func networkOf(d *directory.Document) string {
	if d.Consensus != nil {
		return d.Consensus.Network
	}
	return d.Vote.Network
}

func fieldsOf(list []directory.FieldChange) (out []fieldJSON) {
	for _, f := range list {
		out = append(out, fieldJSON{f.Field, f.Old, f.New})
	}
	return out
}

// titleOf names a document in one line.
func titleOf(d *directory.Document) string {
	switch d.Kind {
	case directory.KindConsensus:
		return fmt.Sprintf("consensus of period %d, from %s", d.Consensus.Period, stampOf(d.Consensus.ValidAfter))
	case directory.KindVote:
		return fmt.Sprintf("vote of %s for period %d", d.Vote.Authority.Short(), d.Vote.Period)
	}
	return fmt.Sprintf("descriptor of %s, published %s", d.Descriptor.Nickname, stampOf(d.Descriptor.Published))
}

func showDiff(w io.Writer, before, after *directory.Document, d *diffJSON) error {
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "old: %s\nnew: %s\n", titleOf(before), titleOf(after))
	if d.Same {
		fmt.Fprintln(tw, "\nthey say the same")
		return tw.Flush()
	}
	if len(d.Params) > 0 {
		fmt.Fprintln(tw, "\nPARAMETER\tOLD\tNEW")
		showFields(tw, "", d.Params)
	}
	if len(d.Fields) > 0 {
		fmt.Fprintln(tw, "\nFIELD\tOLD\tNEW")
		showFields(tw, "", d.Fields)
		return tw.Flush()
	}
	for _, part := range []struct {
		title  string
		relays []relayJSON
	}{{"CAME", d.Came}, {"WENT", d.Went}} {
		if len(part.relays) == 0 {
			continue
		}
		fmt.Fprintf(tw, "\n%s\tIDENTITY\tADDRESS\tWEIGHT KB/S\tFLAGS\n", part.title)
		for _, r := range part.relays {
			fmt.Fprintf(tw, "%s\t%.8s\t%s\t%d\t%s\n", r.Nickname, r.Identity, strings.Join(r.Addresses, " "), r.Weight, strings.Join(r.Flags, ","))
		}
	}
	if len(d.Changed) > 0 {
		fmt.Fprintln(tw, "\nCHANGED\tIDENTITY\tFIELD\tOLD\tNEW")
		for _, c := range d.Changed {
			showFields(tw, fmt.Sprintf("%s\t%.8s\t", c.Nickname, c.Identity), c.Fields)
		}
	}
	fmt.Fprintf(tw, "\n%d came, %d went, %d changed, %d are as they were\n", len(d.Came), len(d.Went), len(d.Changed), d.Alike)
	return tw.Flush()
}

func showFields(w io.Writer, before string, fields []fieldJSON) {
	for _, f := range fields {
		from, to := orDash(f.Old), orDash(f.New)
		if f.Field == "flags" {
			from, to = strings.ReplaceAll(from, " ", ","), strings.ReplaceAll(to, " ", ",")
		}
		fmt.Fprintf(w, "%s%s\t%s\t%s\n", before, f.Field, from, to)
	}
}
