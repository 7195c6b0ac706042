package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cepa/control"
	"cepa/crypto/identity"
	"cepa/onion"
	"cepa/state"
)

// authOptions say of which service the clients are.
type authOptions struct{ dataDir, service, dir string }

func (o *authOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.dataDir, "data-dir", roleDataDir("onion"), "data directory of cepa onion")
	f.StringVar(&o.service, "name", defaultService, "name of the service")
	f.StringVar(&o.dir, "service-dir", "", "directory of the service, for one that has \"dir\" in the configuration file")
}

// folder is the service's folder.
func (o *authOptions) folder() (string, error) {
	if err := checkServiceName(o.service); err != nil {
		return "", usagef("--name: %w", err)
	}
	if o.dir != "" {
		return o.dir, nil
	}
	return serviceFolder(o.dataDir, o.service), nil
}

// open makes the folder of the service and has it prepared, unless somebody runs it, who has done both.
func (o *authOptions) open(prepare func(*state.Dir) error) (running bool, err error) {
	spec := serviceSpec{name: o.service, dir: o.dir}
	var data *state.Dir
	if o.dir == "" {
		if data, err = state.Open(o.dataDir); err == nil {
			defer data.Close()
		}
	}
	var dir, own *state.Dir
	if err == nil {
		if dir, own, err = openService(data, &spec); own != nil {
			defer own.Close()
		}
	}
	var locked *state.LockedError
	if errors.As(err, &locked) {
		folder, err := o.folder()
		if err != nil {
			return true, err
		}
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			return true, fmt.Errorf("there is a cepa running on this data directory, and it has no service %s (no folder %s): give the right --name", o.service, folder)
		}
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if _, err := dir.Sub(clientsDir); err != nil {
		return false, err
	}
	return false, prepare(dir)
}

func newOnionAuth() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "client-auth",
		Short: "Choose which clients an onion service lets in",
		Long: `Once one client is on the list of an onion service, only clients on it are let in:
to others the address is of no use, since they cannot read where the service is met.
Each client has a key of its own. "add" makes one and prints what the client needs, or
takes the public half of a key that the client has made.

A service that runs is told at once. Connections that are open stay.`,
		Example: `  cepa onion client-auth add alice >alice.auth
  cepa client --network network.toml --onion-auth DIR      with alice.auth in DIR
  cepa onion client-auth list
  cepa onion client-auth remove alice`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; cepa onion client-auth --help lists them", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newOnionAuthAdd(), newOnionAuthList(), newOnionAuthRemove())
	return cmd
}

// oneClient takes the name of one client.
func oneClient(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%s takes the name of one client, got %d arguments", cmd.CommandPath(), len(args))
	}
	return checkClientName(args[0])
}

func newOnionAuthAdd() *cobra.Command {
	var o authOptions
	var public, address string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Let a client in, and print the secret that it needs",
		Long: `Put a client on the list of an onion service. Without --key this makes a key, keeps
its public half, and prints its secret half, once: nobody can print it again. Give the
output to the client over a channel that is safe, as a file with a name that ends in
".auth", in a directory for "cepa client --onion-auth". With --key nothing is secret:
the client has made the key, and keeps the other half.

It works before the first start of the service too, whose key it makes then, and while
the service runs.`,
		Example: `  cepa onion client-auth add alice >alice.auth
  cepa onion client-auth add bob --key cepa-onion-auth:56CHARACTERS
  cepa onion client-auth add alice --data-dir net/onion --name blog >alice.auth`,
		Args: oneClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.add(cmd, args[0], public, address)
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&public, "key", "", "public key of the client (cepa-onion-auth:…), instead of making one")
	cmd.Flags().StringVar(&address, "address", "", "address of the service, for one whose identity is offline and that has not run yet")
	return cmd
}

func (o *authOptions) add(cmd *cobra.Command, name, public, addressText string) error {
	var key onion.ClientKey
	var secret *onion.ClientSecret
	var err error
	if public != "" {
		if key, err = onion.ParseClientKey(public); err != nil {
			return usagef("--key: %w", err)
		}
	} else {
		if secret, err = onion.NewClientSecret(rand.Reader); err != nil {
			return err
		}
		key = secret.Key()
	}
	var address onion.Address
	if addressText != "" {
		if address, err = parseService(addressText); err != nil {
			return usagef("--address: %w", err)
		}
	}
	folder, err := o.folder()
	if err != nil {
		return err
	}
	running, err := o.open(func(dir *state.Dir) error {
		if addressText != "" || secret == nil {
			return nil
		}
		if _, err := dir.Read(addressFile, 1<<10); err == nil {
			return nil // whose identity may be offline
		}
		_, err := serviceIdentity(dir)
		return err
	})
	if err != nil {
		return err
	}
	if secret != nil && addressText == "" {
		if address, err = addressIn(folder); err != nil {
			return err
		}
	}
	clients := filepath.Join(folder, clientsDir)
	before, err := readClients(clients)
	if err != nil {
		return err
	}
	for _, c := range before {
		if c.key == key {
			return fmt.Errorf("the key is on the list already, as that of %s", c.name)
		}
	}
	path := filepath.Join(clients, name+authSuffix)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is on the list already: remove it first, or choose another name", name)
	}
	if err := state.Replace(path, []byte(key.String()+"\n")); err != nil {
		return err
	}
	if _, err := readClients(clients); err != nil { // too many now
		return errors.Join(err, os.Remove(path))
	}
	if secret != nil {
		if _, err := cmd.OutOrStdout().Write(encodeAuthFile(address, secret)); err != nil {
			return errors.Join(fmt.Errorf("the secret could not be written, and %s is not let in: %w", name, err), os.Remove(path))
		}
	}
	if len(before) == 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s is the first on the list: from now on the service lets in nobody else\n", name)
	}
	return o.tell(cmd, running)
}

// tell has a running service read its list again.
func (o *authOptions) tell(cmd *cobra.Command, running bool) error {
	if !running {
		return nil
	}
	var answer reloadAnswer
	err := control.Post(cmd.Context(), control.Path(o.dataDir), onionReloadResource, struct{}{}, &answer)
	if err != nil {
		return fmt.Errorf("the list is changed, but the running service could not be told (%w): send it SIGHUP", err)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "the running service has taken the list")
	return nil
}

// addressIn returns the address of the service with a folder, which may be in use.
func addressIn(folder string) (onion.Address, error) {
	b, err := state.ReadPrivate(filepath.Join(folder, identityFile), identity.MaxKeyFileSize)
	if err == nil {
		seed, err := identity.ParseKeyFile(b, identity.KindService)
		if err != nil {
			return onion.Address{}, fmt.Errorf("%s: %w", filepath.Join(folder, identityFile), err)
		}
		key, err := identity.FromSeed(seed[:])
		if err != nil {
			return onion.Address{}, err
		}
		return onion.AddressOf(key.ID()), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return onion.Address{}, err
	}
	if b, err = state.ReadPrivate(filepath.Join(folder, addressFile), 1<<10); err != nil {
		return onion.Address{}, fmt.Errorf("the address of the service is not known yet: name it with --address (%w)", err)
	}
	a, err := parseService(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		return onion.Address{}, fmt.Errorf("%s: %w", filepath.Join(folder, addressFile), err)
	}
	return a, nil
}

func newOnionAuthList() *cobra.Command {
	var o authOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the clients that an onion service lets in",
		Long:    "List the clients on the list of an onion service, with their public keys. Those of a configuration file are not shown.",
		Example: "  cepa onion client-auth list\n  cepa onion client-auth list --name blog --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			folder, err := o.folder()
			if err != nil {
				return err
			}
			if _, err := os.Stat(folder); err != nil {
				return fmt.Errorf("there is no service there: name its --data-dir and --name (%w)", err)
			}
			clients, err := readClients(filepath.Join(folder, clientsDir))
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				list := []clientEntry{}
				for _, c := range clients {
					list = append(list, clientEntry{c.name, c.key.String()})
				}
				enc := json.NewEncoder(w)
				enc.SetIndent("", "  ")
				return enc.Encode(list)
			}
			if len(clients) == 0 {
				_, err = fmt.Fprintln(w, "nobody is on the list: everybody who knows the address is let in")
			}
			for _, c := range clients {
				_, err = fmt.Fprintf(w, "%s  %s\n", c.name, c.key)
			}
			return err
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// clientEntry is a client for programs.
type clientEntry struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

func newOnionAuthRemove() *cobra.Command {
	var o authOptions
	var public bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Let a client in no longer",
		Long: `Take a client off the list. A running service is told at once, and moves to other
introduction points, since the client knows the present ones; the connections that the
client has open stay until they end.

A list without clients lets in everybody who knows the address. So the last one is
removed only with --let-everybody-in.`,
		Example: "  cepa onion client-auth remove alice\n  cepa onion client-auth remove bob --let-everybody-in",
		Args:    oneClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, err := o.folder()
			if err != nil {
				return err
			}
			clients, err := readClients(filepath.Join(folder, clientsDir))
			if err != nil {
				return err
			}
			var names []string
			for _, c := range clients {
				if c.name != args[0] {
					names = append(names, c.name)
				}
			}
			switch {
			case len(names) == len(clients):
				return fmt.Errorf("%s is not on the list of %s", args[0], folder)
			case len(names) == 0 && !public:
				return fmt.Errorf("%s is the last on the list: without it everybody who knows the address is let in. Add others first, stop the service, or give --let-everybody-in if that is what you want", args[0])
			}
			if err := os.Remove(filepath.Join(folder, clientsDir, args[0]+authSuffix)); err != nil {
				return err
			}
			running, err := o.open(func(*state.Dir) error { return nil })
			if err != nil {
				return err
			}
			return o.tell(cmd, running)
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&public, "let-everybody-in", false, "remove the last one too, and let in everybody who knows the address")
	return cmd
}
