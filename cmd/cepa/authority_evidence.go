package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cepa/directory"
	"cepa/directory/authority"
)

// evidenceEntry is one proof as `cepa authority evidence --json` prints it.
type evidenceEntry struct {
	Network   string     `json:"network"`
	Period    uint64     `json:"period"`
	Begins    *time.Time `json:"period_begins,omitempty"` // with --network
	Authority string     `json:"authority"`
	Nickname  string     `json:"nickname,omitempty"` // with --network
	What      string     `json:"what"`               // it made two of: vote, consensus
	Digests   []string   `json:"digests"`
	Proof     string     `json:"proof"` // the document, in hexadecimal
}

func newAuthorityEvidence() *cobra.Command {
	var networkFile, dataDir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "List proofs that authorities told different things",
		Long: `List the proofs that an authority has kept: that another one signed two votes,
or two consensuses, for one period. Each proof is verified before it is shown,
and can be verified by anybody. It works whether the authority runs or not.`,
		Example: "  cepa authority evidence --network network.toml\n  cepa authority evidence --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var network *directory.Network
			if networkFile != "" {
				var err error
				if network, err = readNetwork(networkFile); err != nil {
					return err
				}
			}
			list, err := readEvidence(filepath.Join(dataDir, authority.EvidenceFile), dataDir)
			if err != nil {
				return err
			}
			return printEvidence(cmd.OutOrStdout(), list, network, asJSON)
		},
	}
	cmd.Flags().StringVar(&networkFile, "network", "", "network file, for nicknames and times")
	cmd.Flags().StringVar(&dataDir, "data-dir", roleDataDir("authority"), "data directory of the authority")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the proofs themselves")
	return cmd
}

// readEvidence reads the file; it takes no lock, because the authority replaces the file as a whole.
func readEvidence(path, dataDir string) ([]*directory.Evidence, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dataDir); err != nil {
			return nil, fmt.Errorf("the data directory %s does not exist: name the authority's with --data-dir", dataDir)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the evidence cannot be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(authority.MaxEvidenceFile)))
	if err != nil {
		return nil, fmt.Errorf("the evidence cannot be read: %w", err)
	}
	list, err := authority.ParseEvidence(b)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return list, nil
}

func printEvidence(w io.Writer, list []*directory.Evidence, network *directory.Network, asJSON bool) error {
	entries := make([]evidenceEntry, len(list))
	for i, e := range list {
		entries[i] = evidenceEntry{
			Network: e.Network, Period: e.Period, Authority: e.Authority.String(), What: e.What, Proof: hex.EncodeToString(e.Raw()),
			Digests: []string{hex.EncodeToString(e.Digests[0][:]), hex.EncodeToString(e.Digests[1][:])},
		}
		if network != nil && network.Name == e.Network {
			begins := network.PeriodStart(e.Period)
			entries[i].Begins = &begins
			if a, ok := network.Authority(e.Authority); ok {
				entries[i].Nickname = a.Nickname
			}
		}
	}
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(entries)
	}
	if len(entries) == 0 {
		fmt.Fprintln(w, "no evidence: no authority was seen to tell different things")
		return nil
	}
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PERIOD\tBEGINS\tAUTHORITY\tMADE TWO\tDIGESTS")
	for _, e := range entries {
		begins, name := "-", e.Authority[:8]
		if e.Begins != nil {
			begins = e.Begins.UTC().Format("2006-01-02 15:04:05Z")
		}
		if e.Nickname != "" {
			name = e.Nickname + " " + name
		}
		kind := map[string]string{directory.EvidenceVote: "votes", directory.EvidenceConsensus: "consensuses"}[e.What]
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%.8s %.8s\n", e.Period, begins, name, kind, e.Digests[0], e.Digests[1])
	}
	return tw.Flush()
}
