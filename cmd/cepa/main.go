// Command cepa is the whole of an onion-routed anonymity network in one
// binary: its subcommands are the roles.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is stamped by the Makefile.
var version = "devel"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // it could not do what was asked
	exitUsage  = 2 // it was asked in a way that it does not understand
	exitOld    = 3 // the network requires a newer version
)

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	// The first signal ends cleanly, a second one at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program without its process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "cepa: "+oneLine(err.Error()))
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	var old *outdatedError
	if errors.As(err, &old) {
		return exitOld
	}
	return exitFailed
}

// oneLine keeps an error on one line, as errors joined from several are not.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cepa",
		Short: "An onion-routed anonymity network in one binary",
		Long: `cepa is an onion-routed anonymity network: clients build circuits of three
relays, each hop keyed post-quantum, and offer programs a SOCKS5 port.

Start with "cepa simnet": a complete network on this machine.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; cepa --help lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; %s --help lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(newSimnet(), newClient(), newOnion(), newRelay(), newAuthority(), newFamily(), newDir(), newStatus(), newPath(), newNewnym(), newVersion())
	return root
}

// noArgs refuses arguments in the words of the rest.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument, got %q; %s --help shows its flags", cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	return nil
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and how it was built",
		Args:  noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "cepa %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "CGO_ENABLED" || s.Key == "-trimpath" {
						fmt.Fprintf(cmd.OutOrStdout(), "  %s=%s\n", s.Key, s.Value)
					}
				}
			}
		},
	}
}
