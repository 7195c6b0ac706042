package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/state"
)

func newFamily() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "family",
		Short: "Say which relays belong together",
		Long: `Relays of one operator form a family, so that no circuit goes through two of them:
their operator must not see both ends. A family is a key. Each relay that runs with it
("cepa relay --family FILE"), or with a certificate that it signed, is a member; nobody
else can say so.`,
		Example: `  cepa family create --out family.key
  cepa relay --network network.toml --family family.key
  cepa family sign --key family.key --relay 64HEXDIGITS >relay3.family`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; cepa family --help lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newFamilyCreate(), newFamilySign())
	return cmd
}

func newFamilyCreate() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make the key of a family",
		Long: `Make the key of a new family, and print its name, which is the public half. Copy the
file to your relays, or keep it with you and give them certificates ("cepa family
sign"): who has it can put relays into the family.`,
		Example: "  cepa family create --out family.key",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := createKey(out, identity.KindFamily)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key.ID())
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file for the key, which must not exist yet; needed")
	return cmd
}

func newFamilySign() *cobra.Command {
	var keyFile, relay, lifetime string
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Print a certificate that makes a relay a member of a family",
		Long: `Print a certificate that makes one relay a member of a family, for relays where the
family's key should not lie. It names the relay's identity, which "cepa status --json"
shows where the relay runs, and ends after --for: the relay warns in time.`,
		Example: "  cepa family sign --key family.key --relay 64HEXDIGITS --for 366d >relay3.family\n  cepa relay --network network.toml --family relay3.family",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keyFile == "" || relay == "" {
				return usagef("--key and --relay are needed")
			}
			id, err := identity.ParseID(relay)
			if err == nil {
				err = id.Check()
			}
			if err != nil {
				return usagef("--relay: %w", err)
			}
			span, err := parseSpan("--for", lifetime)
			if err != nil {
				return err
			}
			seed, err := state.ReadKey(keyFile, identity.KindFamily)
			if err != nil {
				return err
			}
			key, err := identity.FromSeed(seed[:])
			if err != nil {
				return err
			}
			if key.ID() == id {
				return errors.New("the relay's identity is the family's key: name the relay's identity")
			}
			now := time.Now()
			// A day early: clocks differ, and descriptors have dates.
			c, err := directory.Membership(key, id, now.Add(-24*time.Hour), now.Add(span))
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(identity.EncodeCertificateFile(c))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyFile, "key", "", "file with the family's key; needed")
	f.StringVar(&relay, "relay", "", "identity of the relay, 64 hexadecimal digits; needed")
	f.StringVar(&lifetime, "for", "366d", "how long the certificate is valid, such as 90d; at most 366d")
	return cmd
}
