package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cepa/client"
	"cepa/control"
)

// What a client offers on its control socket beside its status.
const (
	newnymResource       = "/v1/newnym"
	destinationsResource = "/v1/destinations"
)

// newnymAnswer says what a new identity came to.
type newnymAnswer struct {
	// Circuits take no new streams any more.
	Circuits int `json:"circuits"`
}

// clientResources are the resources of a client.
func clientResources(c *client.Client) []resource {
	return []resource{
		{newnymResource, control.Update(func(struct{}) (any, error) {
			n, err := c.NewIdentity()
			return newnymAnswer{n}, err
		})},
		{destinationsResource, control.JSON(func() any { return c.Destinations() })},
		{pathResource, pathHandler(c)},
	}
}

func newNewnym() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "newnym",
		Short: "Have a running client use new circuits from now on",
		Long: `Have the client that runs on a data directory use new circuits: no connection
that begins after this shares a circuit with one that began before. Connections
that are open stay where they are, so close them first (a browser keeps some), and
clear cookies: they tell a site who you are on any circuit. The guard stays the
same; the exit may by chance. It works once in 10 seconds.

It asks over the control socket in that directory.`,
		Example: "  cepa newnym\n  cepa newnym --data-dir net/client",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var a newnymAnswer
			err := control.Post(cmd.Context(), control.Path(dataDir), newnymResource, struct{}{}, &a)
			if errors.Is(err, control.ErrRefused) {
				return fmt.Errorf("no new circuits: %w", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "new connections use new circuits; %d circuits of before take no new ones\n", a.Circuits)
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir(), "data directory of the running cepa")
	return cmd
}
