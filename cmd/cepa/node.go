package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cepa/control"
	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/state"
)

// nodeFlags are the flags that all long-running roles share.
type nodeFlags struct {
	network, dataDir string
	verbose          bool
}

// register adds the flags to a role's command.
func (f *nodeFlags) register(cmd *cobra.Command, role string) {
	cmd.Flags().StringVar(&f.network, "network", "", "file that describes the network (network.toml); needed")
	cmd.Flags().StringVar(&f.dataDir, "data-dir", roleDataDir(role), "directory for keys, documents and control.sock")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log more, on standard error")
}

// roleDataDir is where a role keeps its things when nothing else is said.
func roleDataDir(role string) string {
	if base, err := os.UserConfigDir(); err == nil {
		return filepath.Join(base, "cepa", role)
	}
	return filepath.Join(os.TempDir(), "cepa-"+role)
}

// node is what every long-running role has: its directory with the lock on it,
// the network, a log and the control socket.
type node struct {
	role    string
	net     *directory.Network
	dir     *state.Dir
	log     *slog.Logger
	began   time.Time
	control net.Listener
	stop    context.CancelFunc // of the control server
	wg      sync.WaitGroup
}

// openNode reads the network file and takes the data directory.
func openNode(f *nodeFlags, role string, stderr io.Writer) (*node, error) {
	if f.network == "" {
		return nil, usagef("--network is needed: the file that describes the network, from whoever runs it")
	}
	network, err := readNetwork(f.network)
	if err != nil {
		return nil, err
	}
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	n := &node{role: role, net: network, began: time.Now(), log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))}
	if n.dir, err = state.Open(f.dataDir); err != nil {
		return nil, err
	}
	if n.control, err = control.Listen(n.dir.Path(control.SocketName)); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// readNetwork reads a network file; errors name it.
func readNetwork(path string) (*directory.Network, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the network file %s does not exist: get it from whoever runs the network", path)
	}
	if err != nil {
		return nil, fmt.Errorf("the network file cannot be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, directory.MaxNetworkFile+1))
	if err != nil {
		return nil, fmt.Errorf("the network file %s cannot be read: %w", path, err)
	}
	network, err := directory.ParseNetwork(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return network, nil
}

// resource is one thing that a role offers on its control socket.
type resource struct {
	path    string
	handler http.Handler
}

// serveStatus answers `cepa status` until close, and what else the role offers.
func (n *node) serveStatus(status func(*nodeStatus), more ...resource) {
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.Handle(statusResource, control.JSON(func() any {
		s := &nodeStatus{Version: version, Role: n.role, Network: n.net.Name, Uptime: time.Since(n.began)}
		status(s)
		return s
	}))
	for _, m := range more {
		mux.Handle(m.path, m.handler)
	}
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		if err := control.Serve(ctx, n.control, mux); err != nil {
			n.log.Error("the control socket stopped; cepa status will not work", "error", err)
		}
	}()
}

// close gives the directory back.
func (n *node) close() {
	if n.stop != nil {
		n.stop()
	}
	n.wg.Wait()
	if n.control != nil {
		n.control.Close()
	}
	if n.dir != nil {
		n.dir.Close()
	}
}

// identity returns the node's long-term key, made at the first start.
func (n *node) identity() (*identity.Key, error) { return loadIdentity(n.dir) }

func loadIdentity(dir *state.Dir) (*identity.Key, error) {
	secret, _, err := dir.LoadOrCreateKey(identityFile, identity.KindIdentity, nil)
	if err != nil {
		return nil, err
	}
	return identity.FromSeed(secret[:])
}

// listenFor opens a listener and explains what to do when it cannot.
func listenFor(what, flag, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s %s is in use by another program: end it, or choose another port with %s", what, addr, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s %s may not be opened by this user: choose a port above 1023 with %s", what, addr, flag)
	case err != nil:
		return nil, fmt.Errorf("%s %s cannot be opened (%w): choose another address with %s", what, addr, err, flag)
	}
	return ln, nil
}
