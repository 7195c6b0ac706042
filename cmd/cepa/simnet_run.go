package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"cepa/control"
	"cepa/simnet/testnet"
	"cepa/socks"
)

// serve runs f until close.
func (r *simnetRun) serve(f func()) {
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		f()
	}()
}

// close ends everything, the client first, so that what it does ends in order.
// It may be called at any stage of start.
func (r *simnetRun) close() {
	if r.stopServers != nil {
		r.stopServers()
	}
	if r.client != nil {
		r.client.Close()
	}
	if r.onion != nil {
		r.onion.close()
	}
	r.wg.Wait()
	if r.net != nil {
		r.net.Close()
	}
	if r.demo != nil {
		r.demo.close()
	}
	for _, ln := range []net.Listener{r.socks, r.control} {
		if ln != nil {
			ln.Close()
		}
	}
	if r.dir != nil {
		r.dir.Close()
	}
}

// fetchOnce fetches the demo page as any program would: over the SOCKS port.
func (r *simnetRun) fetchOnce(ctx context.Context) (firstByte time.Duration, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.socks.Addr().String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := socks.ClientHandshake(conn, "", "", demoHost, 80); err != nil {
		return 0, err
	}
	return fetchDemo(ctx, conn, demoHost, demoPage)
}

// printPath shows the circuit of the fetch hop by hop.
func (r *simnetRun) printPath() {
	for _, x := range r.client.Status().Circuits {
		if !x.Used {
			continue
		}
		fmt.Fprintln(r.out, "\nThe page came through three relays, each knowing only its neighbours:")
		for i, role := range []string{"guard", "middle", "exit"} {
			h := x.Hops[i]
			fmt.Fprintf(r.out, "  %-6s  %-8s  %s  %s\n", role, h.Nickname, h.Identity.Short(), h.Address)
		}
		return
	}
}

// printUse shows how to use the network.
func (r *simnetRun) printUse() {
	at := r.socks.Addr().String()
	fmt.Fprintf(r.out, "\nTry it:\n  curl --socks5-hostname %s http://%s/\n", at, demoHost)
	fmt.Fprintf(r.out, "  chromium --user-data-dir=\"$(mktemp -d)\" --proxy-server=socks5://%s http://%s/\n", at, demoHost)
	if r.onion != nil {
		fmt.Fprintf(r.out, "  curl --socks5-hostname %s http://%s/\n", at, r.onion.host())
	}
	status := "cepa status"
	if r.o.dataDir != defaultDataDir() {
		status += " --data-dir " + r.o.dataDir
	}
	fmt.Fprintf(r.out, "  %s\n", status)
	fmt.Fprintf(r.out, "To join with further processes: %s\n", r.dir.Path(testnet.NetworkFile))
}

// writeReady writes the ready file, whole or not at all.
func (r *simnetRun) writeReady(total, firstByte time.Duration) error {
	if r.o.readyFile == "" {
		return nil
	}
	info := readyInfo{
		Socks: r.socks.Addr().String(), Control: r.dir.Path(control.SocketName), Network: r.dir.Path(testnet.NetworkFile),
		DemoURL: "http://" + demoHost + "/", DemoHTTPSURL: "https://" + demoHost + "/", DemoCA: r.dir.Path(demoCAFile),
		Times: map[string]int64{"ready": total.Milliseconds(), "first_byte": firstByte.Milliseconds()},
	}
	if r.onion != nil {
		info.OnionURL = "http://" + r.onion.host() + "/"
	}
	for _, a := range r.net.Authorities {
		info.Authorities = append(info.Authorities, readyNode{Nickname: a.Nickname, Identity: a.Identity.String(), Address: a.Addr})
	}
	for _, x := range r.net.Relays {
		info.Relays = append(info.Relays, readyNode{Nickname: x.Nickname, Identity: x.Identity().String(), Address: x.Addr, Exit: x.Exit})
	}
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return fmt.Errorf("ready file: %w", err)
	}
	if err := writeFileAtomically(r.o.readyFile, append(b, '\n')); err != nil {
		return fmt.Errorf("ready file: %w", err)
	}
	return nil
}

// writeFileAtomically replaces a file outside the data directory.
func writeFileAtomically(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has been renamed
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// controlHandler answers on the control socket.
func (r *simnetRun) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(statusResource, control.JSON(func() any { return r.status() }))
	for _, m := range clientResources(r.client) {
		mux.Handle(m.path, m.handler)
	}
	return mux
}

func (r *simnetRun) status() nodeStatus {
	cs := r.client.Status()
	s := nodeStatus{
		Version: version, Role: "simnet", Network: r.net.Network.Name, Uptime: time.Since(r.began),
		Socks: r.socks.Addr().String(), Client: &cs,
	}
	for _, x := range r.net.Relays {
		s.Relays = append(s.Relays, x.Status())
	}
	return s
}
