package client_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"cepa/client"
	"cepa/crypto/identity"
	"cepa/simnet"
	"cepa/simnet/testnet"
)

// A web server at an onion address, here on a network of its own. A program in a real network makes its client with client.New,
// and keeps the key, whose address the service has.
func ExampleClient_Listen() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	sim := simnet.New(simnet.Config{})
	defer sim.Close()
	n, err := testnet.Start(ctx, testnet.Config{Sim: sim})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()
	host, err := n.NewClient(client.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}

	key, err := identity.Generate(rand.Reader)
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := host.Listen(ctx, client.OnionConfig{Identity: key, Ports: []uint16{80}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello from nowhere in particular")
	}))

	visitor, err := n.NewClient(client.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	web := &http.Client{Transport: &http.Transport{DialContext: visitor.Dial, DisableKeepAlives: true}}
	resp, err := web.Get("http://" + l.Address().String() + "/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	io.Copy(os.Stdout, resp.Body)
	// Output: hello from nowhere in particular
}
