package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"cepa/directory"
)

func newDir() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dir",
		Short: "Fetch, verify, show and compare documents of the directory",
		Long: `Look at documents of the directory: consensus, votes, consensus signatures,
descriptors, certificates and network files, as they are or compressed with zstd. Files
may come from anywhere: what is not as it should be is an error that says what is wrong.

The exit code is 0 when all is well, 1 when a document is not good or cannot be had, and
2 when the command line is wrong.`,
		Example: `  cepa dir fetch --network network.toml --out consensus
  cepa dir verify --network network.toml consensus
  cepa dir show consensus
  cepa dir diff yesterday consensus`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; cepa dir --help lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDirFetch(), newDirVerify(), newDirShow(), newDirDiff())
	return cmd
}

// files wants exactly these arguments.
func files(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usagef("%s takes %d file%s, got %d; %s --help shows how", cmd.CommandPath(), len(names), plural(len(names)), len(args), cmd.CommandPath())
		}
		return nil
	}
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// readBounded reads a file, or anything else that can be read, of at most max bytes.
func readBounded(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist", path)
	case err != nil:
		return nil, err // which names it
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory, not a file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("%s has more than the %d bytes that it may have", path, max)
	}
	return b, nil
}

// readDocument reads and parses a document of any kind. Errors name the file.
func readDocument(path string) (*directory.Document, error) {
	b, err := readBounded(path, int64(directory.MaxCompressed(directory.MaxDocumentSize)))
	if err != nil {
		return nil, err
	}
	if b, err = directory.Unpack(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d, err := directory.Inspect(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// badSignature returns an error about the first signature that is not good.
func badSignature(path string, d *directory.Document) error {
	for _, s := range d.Signers {
		if s.Problem != nil {
			return fmt.Errorf("%s: the signature of %s is not good: %w", path, s.Certificate.Identity.Short(), s.Problem)
		}
	}
	return nil
}

// printJSON prints for programs.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// stampOf is an instant for people, to the second.
func stampOf(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
