//go:build e2e && linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The network of these tests.
const (
	authorities = 4
	relays      = 8 // half of them exits
)

// role is one process of a network: an authority, a relay or a client. It may be
// started again after it has ended.
type role struct {
	*process
	kind, name string
	host       *host
	dir        string
	args       []string
	under      []string // the program that starts it, if any: prlimit …
}

// start starts the role, which must not be running.
func (r *role) start(t *testing.T) {
	t.Helper()
	if r.process == nil {
		t.Cleanup(func() {
			r.end(t)
			r.show(t)
		})
	}
	args := append(append(append([]string{}, r.under...), *program, r.kind), r.args...)
	r.process = launch(t, r.host.command(context.Background(), args[0], args[1:]...))
}

// stop ends the role cleanly.
func (r *role) stop(t *testing.T) {
	t.Helper()
	_ = r.cmd.Process.Signal(os.Interrupt) // or it has ended, which exit tells
	if code := r.exit(t, exitTimeout); code != 0 {
		t.Fatalf("%s: exit code %d after an interrupt: %s", r.name, code, tail(r.stderr.String()))
	}
}

// roleStatus is what the tests use of cepa status --json.
type roleStatus struct {
	Client *struct {
		Bootstrap struct {
			Percent int
			Problem string
		}
		ConsensusUntil time.Time `json:"consensus_valid_until"`
		Relays         int       `json:"relays_in_consensus"`
		Links          []struct{ Peer string }
		Circuits       []struct {
			Hops []struct{ Identity string }
		}
	}
	Relays []struct {
		Identity, Flags string
		Listed          bool
		Links           int
	}
	Authority *struct {
		Identity string
		Relays   int       `json:"relays_in_consensus"`
		From     time.Time `json:"consensus_valid_after"`
	}
}

// status asks the role over its control socket.
func (r *role) status() (s roleStatus, err error) {
	if !r.running() {
		return s, fmt.Errorf("%s has ended: %s", r.name, tail(r.stderr.String()))
	}
	ctx, cancel := context.WithTimeout(context.Background(), exitTimeout)
	defer cancel()
	out, err := (&host{}).command(ctx, *program, "status", "--json", "--data-dir", r.dir).Output()
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// identity returns the identity that a relay or authority says it has.
func (r *role) identity() (string, error) {
	switch s, err := r.status(); {
	case err != nil:
		return "", err
	case s.Authority != nil:
		return s.Authority.Identity, nil
	case len(s.Relays) == 1:
		return s.Relays[0].Identity, nil
	default:
		return "", errors.New("no identity in the status")
	}
}

// up returns nil when the role does its work: a client is ready, a relay listed,
// an authority has a consensus.
func (r *role) up() error {
	s, err := r.status()
	switch {
	case err != nil:
		return err
	case s.Client != nil && s.Client.Bootstrap.Percent < 100:
		return fmt.Errorf("%s: %d %%, %s", r.name, s.Client.Bootstrap.Percent, s.Client.Bootstrap.Problem)
	case len(s.Relays) == 1 && !s.Relays[0].Listed:
		return fmt.Errorf("%s: not in the consensus", r.name)
	case s.Authority != nil && s.Authority.From.IsZero():
		return fmt.Errorf("%s: no consensus", r.name)
	}
	return nil
}

// rolesNet is a network whose roles are processes, and the web site that it
// leads to.
type rolesNet struct {
	interval    time.Duration // from one consensus to the next
	dir, file   string        // file: network.toml
	authorities []*role
	relays      []*role // the second half are exits
	client      *role
	socks       string
	web         *web
}

// listedTimeout is how long a relay may take until the consensus lists it: two
// rounds, and some way.
func (n *rolesNet) listedTimeout() time.Duration { return 2*n.interval + 10*time.Second }

// startRoles starts a whole network on a ground and waits until its client is
// ready.
func startRoles(t *testing.T, g ground, interval time.Duration) *rolesNet {
	t.Helper()
	n := &rolesNet{interval: interval, dir: t.TempDir()}
	n.file = filepath.Join(n.dir, "network.toml")
	text := fmt.Sprintf("name = \"e2e\"\ninterval = %q\n", interval)
	for i := range authorities {
		name := fmt.Sprintf("auth%d", i+1)
		h := g(t, name, byte(1+i))
		r := n.role("authority", name, h, "--allow-private-addresses", "--testing-flags", "--first-round", fmt.Sprint(relays))
		stdout, stderr, code := cepa(t, "authority", "init", "--nickname", name, "--address", h.freePort(t), "--data-dir", r.dir)
		if code != 0 {
			t.Fatalf("authority init: exit code %d: %s", code, stderr)
		}
		text += stdout
		n.authorities = append(n.authorities, r)
	}
	if err := os.WriteFile(n.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.web = startWeb(t, g(t, "web", 99))
	for i := range relays {
		name := fmt.Sprintf("relay%d", i+1)
		n.relays = append(n.relays, n.newRelay(t, name, g(t, name, byte(11+i)), i >= relays/2))
	}
	home := g(t, "client", 77)
	n.socks = home.freePortAt(t, netip.MustParseAddr("127.0.0.1"))
	n.client = n.role("client", "client", home, "--socks", n.socks, "--allow-private-addresses")
	for _, r := range n.all() {
		r.start(t)
	}
	took := await(t, readyTimeout, "client", n.client.up)
	for _, r := range n.relays {
		await(t, n.listedTimeout(), r.name, r.up)
	}
	// The first consensus may have come before the last relay was tested.
	await(t, n.listedTimeout(), "client's consensus", func() error {
		s, err := n.client.status()
		if err == nil && s.Client.Relays != relays {
			err = fmt.Errorf("it has %d of %d relays", s.Client.Relays, relays)
		}
		return err
	})
	t.Logf("ready after %v", took.Round(time.Millisecond))
	return n
}

// all returns all roles.
func (n *rolesNet) all() []*role {
	return append(append(append([]*role{}, n.authorities...), n.relays...), n.client)
}

// role returns a role that is not started yet, with a directory of its own.
func (n *rolesNet) role(kind, name string, h *host, args ...string) *role {
	dir := filepath.Join(n.dir, name)
	return &role{kind: kind, name: name, host: h, dir: dir, args: append([]string{"--network", n.file, "--data-dir", dir}, args...)}
}

// newRelay returns a relay that is not started yet.
func (n *rolesNet) newRelay(t *testing.T, name string, h *host, exit bool) *role {
	t.Helper()
	r := n.role("relay", name, h, "--listen", h.freePort(t), "--nickname", name)
	if exit {
		r.args = append(r.args, "--exit", "--exit-policy", "1-65535", "--exit-allow", n.web.host.addr.String()+"/32", "--resolver", n.web.dns)
	}
	return r
}

// guard returns the relay that the client uses as its guard: the first hop of its
// newest circuit.
func (n *rolesNet) guard(t *testing.T) *role {
	t.Helper()
	s, err := n.client.status()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Client.Circuits) == 0 {
		t.Fatal("the client has no circuit")
	}
	newest := s.Client.Circuits[len(s.Client.Circuits)-1]
	for _, r := range n.relays {
		if id, err := r.identity(); err == nil && id == newest.Hops[0].Identity {
			return r
		}
	}
	t.Fatalf("no relay has the identity of the guard, %s", newest.Hops[0].Identity)
	return nil
}

// run runs a program on the client's host to its end and wants it to succeed. It
// returns what it printed on standard output.
func (n *rolesNet) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := n.tryRun(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tryRun is run that returns the error, with what was said about it.
func (n *rolesNet) tryRun(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	cmd := n.client.host.command(ctx, name, args...)
	// Nothing of what the user of these tests has configured.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + n.dir, "LANG=C.UTF-8"}
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s\n%s", name, strings.Join(args, " "), err, tail(stdout.String()), tail(stderr.String()))
	}
	return stdout.String(), nil
}
