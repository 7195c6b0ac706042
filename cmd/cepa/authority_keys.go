package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/authority"
	"cepa/state"
)

// identityFile is where the identity of an authority or a relay lies.
const identityFile = "identity.key"

// Bounds of --for: a day of use and a year, beyond which a forgotten key would serve a thief
// for longer than anybody remembers it.
const (
	minSigning = 24 * time.Hour
	maxSigning = 366 * 24 * time.Hour
)

// localIdentity returns the identity in a data directory, nil when it is kept
// elsewhere. It makes none.
func localIdentity(dir *state.Dir) (*identity.Key, error) {
	_, err := dir.Read(identityFile, identity.MaxKeyFileSize)
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		return loadIdentity(dir) // whose errors say what to do
	default:
		if _, err := dir.Read(authority.SigningFile, 1); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s holds neither an identity nor a signing key: run \"cepa authority init\" for it, or name the right --data-dir", filepath.Dir(dir.Path(identityFile)))
		}
		return nil, nil
	}
}

func newAuthorityInit() *cobra.Command {
	var nickname, address, dataDir, identityDir, lifetime string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make an authority's identity and print its lines for network.toml",
		Long: `Make the identity of a new authority, unless there is one, and a signing key that
it certifies, and print the lines that tell the network about it. Put the lines of all
authorities into one network.toml and give that file to everybody.

With --identity-dir the identity goes to another directory, which nothing but "init"
and "renew" needs: keep it on a machine or a medium that is offline. It is not
encrypted: encrypt the medium.`,
		Example: `  cepa authority init --nickname auth1 --address 203.0.113.5:9030 >>network.toml
  cepa authority init --nickname auth1 --address 203.0.113.5:9030 --identity-dir /media/stick/auth1 --data-dir auth1 >>network.toml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if nickname == "" || address == "" {
				return usagef("--nickname and --address are needed")
			}
			// What does not depend on the identity is found before there is one.
			check, err := identity.FromSeed(make([]byte, identity.SeedSize))
			if err != nil {
				return err
			}
			if err := checkAuthority(directory.Authority{Nickname: nickname, Identity: check.ID(), Address: address}); err != nil {
				return usageError{err}
			}
			span, err := parseSpan("--for", lifetime)
			if err != nil {
				return err
			}
			key, err := initAuthority(identityDir, dataDir, span)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "[[authority]]\nnickname = %q\nidentity = %q\naddress = %q\n", nickname, key.ID(), address)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&nickname, "nickname", "", "name of the authority for people: 1 to 19 letters and digits")
	f.StringVar(&address, "address", "", "host:port where everybody reaches it over HTTP")
	f.StringVar(&dataDir, "data-dir", roleDataDir("authority"), "directory of the running authority, for its signing key")
	f.StringVar(&identityDir, "identity-dir", "", "directory for its identity, to be kept offline (default that of --data-dir)")
	f.StringVar(&lifetime, "for", "90d", "how long the signing key serves, such as 90d")
	return cmd
}

// initAuthority makes what is not there yet: an identity, and a signing key.
func initAuthority(identityDir, dataDir string, span time.Duration) (*identity.Key, error) {
	data, err := state.Open(dataDir)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	apart := data
	if identityDir != "" {
		if apart, err = state.Open(identityDir); err != nil {
			return nil, err
		}
		defer apart.Close()
	}
	key, err := loadIdentity(apart)
	if err != nil {
		return nil, err
	}
	if _, err := data.Read(authority.SigningFile, 1<<12); !errors.Is(err, fs.ErrNotExist) {
		// It may be the one of another identity, which renew will say.
		_, err = readSigning(data.Path(authority.SigningFile), key)
		return key, err
	}
	k, err := authority.NewSigningKey(key, nil, time.Now(), span, nil)
	if err != nil {
		return nil, err
	}
	b, err := authority.EncodeSigningKey(k)
	if err != nil {
		return nil, err
	}
	return key, data.Write(authority.SigningFile, b)
}

func newAuthorityRenew() *cobra.Command {
	var dataDir, identityDir, lifetime string
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "Make a new signing key for an authority",
		Long: `Make a new signing key, certified by the identity in --identity-dir, and put it into
the data directory of the authority, which may run meanwhile: it takes the key at the
next vote, or at SIGHUP. From then on the other authorities refuse the old key. Nobody
else needs to be told.

Where the identity never comes near the running authority, name an empty directory as
--data-dir and carry the file "signing" over.`,
		Example: "  cepa authority renew --identity-dir /media/stick/auth1 --data-dir /var/lib/cepa/auth1 --for 90d",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if identityDir == "" {
				return usagef("--identity-dir is needed: the directory with %s", identityFile)
			}
			span, err := parseSpan("--for", lifetime)
			if err != nil {
				return err
			}
			k, err := renewSigning(identityDir, dataDir, span)
			if err != nil {
				return err
			}
			return printRenewed(cmd.OutOrStdout(), k, dataDir)
		},
	}
	f := cmd.Flags()
	f.StringVar(&identityDir, "identity-dir", "", "directory with the identity; needed")
	f.StringVar(&dataDir, "data-dir", roleDataDir("authority"), "directory of the authority, which may run")
	f.StringVar(&lifetime, "for", "90d", "how long the key serves, such as 90d")
	return cmd
}

// renewSigning makes a signing key and puts it in place. It takes no lock: the running
// authority has that.
func renewSigning(identityDir, dataDir string, span time.Duration) (*authority.SigningKey, error) {
	path := filepath.Join(identityDir, identityFile)
	seed, err := state.ReadKey(path, identity.KindIdentity)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no identity at %s: is --identity-dir the right directory, and its medium there?", path)
	}
	if err != nil {
		return nil, err
	}
	id, err := identity.FromSeed(seed[:])
	if err != nil {
		return nil, err
	}
	path = filepath.Join(dataDir, authority.SigningFile)
	previous, err := readSigning(path, id)
	if err != nil {
		return nil, err
	}
	k, err := authority.NewSigningKey(id, nil, time.Now(), span, previous)
	if err != nil {
		return nil, err
	}
	b, err := authority.EncodeSigningKey(k)
	if err != nil {
		return nil, err
	}
	if err := state.Replace(path, b); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the directory %s is not there: name that of the authority with --data-dir", dataDir)
	} else if err != nil {
		return nil, err
	}
	return k, nil
}

// readSigning returns the certificate of the signing key at path, nil when there is
// none or it is damaged, which is to be replaced. That of another authority is not.
func readSigning(path string, id *identity.Key) (*identity.Certificate, error) {
	b, err := state.ReadPrivate(path, 1<<12)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	k, err := authority.ParseSigningKey(b)
	if err != nil {
		return nil, nil
	}
	if k.Certificate.Identity != id.ID() {
		return nil, fmt.Errorf("%s is a signing key of authority %s, and the identity is that of %s: name the directories that belong together, or move that file away",
			path, k.Certificate.Identity.Short(), id.ID().Short())
	}
	return k.Certificate, nil
}

func printRenewed(w io.Writer, k *authority.SigningKey, dataDir string) error {
	_, err := fmt.Fprintf(w, "signing key of authority %s valid until %s, in %s\nthe running authority takes it at its next vote, or at SIGHUP; renew again from %s on\n",
		k.Certificate.Identity.Short(), dateOf(k.Certificate.NotAfter), filepath.Join(dataDir, authority.SigningFile), dateOf(k.Certificate.NotAfter.Add(-30*24*time.Hour)))
	return err
}

// parseSpan reads how long a key or certificate serves: days such as "90d", or a time
// such as "720h".
func parseSpan(flag, text string) (time.Duration, error) {
	d, err := parseDays(text)
	if err != nil {
		return 0, usagef("%s %s: want days, such as 90d", flag, quoted(text))
	}
	if d < minSigning || d > maxSigning {
		return 0, usagef("%s must be 1d to 366d, not %s", flag, text)
	}
	return d, nil
}

// dateOf is a time for people: UTC, as authorities are in many places.
func dateOf(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
