//go:build e2e && linux

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Names and addresses of the namespaces.
const (
	nsPrefix   = "cepa-e2e-" // followed by the number of the process that tests
	nsSwitch   = "switch"    // the namespace that holds the bridge
	nsBits     = 8           // hosts are 10.n.0.1, all on one bridge
	nsResolver = "10.99.9.9" // what resolv.conf of all hosts names: nobody, but a packet to it shows
)

// etcNetns is where ip netns exec looks for files that replace those of /etc.
const etcNetns = "/etc/netns"

// ip runs the command ip.
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mustIP runs the commands ip, one a line.
func mustIP(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if err := ip(strings.Fields(line)...); err != nil {
			t.Fatal(err)
		}
	}
}

// namespaces is a ground of network namespaces: each host is one, and all are on
// one bridge, which is in a namespace too, so that nothing of this machine's own
// network is touched.
type namespaces struct{ prefix string }

// newNamespaces makes the bridge. All is removed with the test; what an earlier
// run that was killed has left is removed now.
func newNamespaces(t *testing.T) *namespaces {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no command ip: make e2e installs iproute2")
	}
	sweepNamespaces(t)
	n := &namespaces{prefix: fmt.Sprintf("%s%d-", nsPrefix, os.Getpid())}
	sw := n.create(t, nsSwitch)
	mustIP(t,
		"-n "+sw+" link add bridge type bridge",
		"-n "+sw+" link set bridge up")
	return n
}

// create makes one namespace with loopback up.
func (n *namespaces) create(t *testing.T, name string) string {
	t.Helper()
	ns := n.prefix + name
	t.Cleanup(func() { removeNamespace(t, ns) })
	dir := filepath.Join(etcNetns, ns)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+nsResolver+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustIP(t, "netns add "+ns, "-n "+ns+" link set lo up")
	return ns
}

// host is a ground.
func (n *namespaces) host(t *testing.T, name string, number byte) *host {
	t.Helper()
	h := &host{name: name, ns: n.create(t, name), addr: netip.AddrFrom4([4]byte{10, number, 0, 1})}
	n.plug(t, h)
	return h
}

// plug connects a host to the bridge.
func (n *namespaces) plug(t *testing.T, h *host) {
	t.Helper()
	sw, port := n.prefix+nsSwitch, "to-"+h.name
	mustIP(t,
		fmt.Sprintf("-n %s link add eth0 type veth peer name %s netns %s", h.ns, port, sw),
		fmt.Sprintf("-n %s link set %s master bridge up", sw, port),
		fmt.Sprintf("-n %s addr add %s/%d dev eth0", h.ns, h.addr, nsBits),
		fmt.Sprintf("-n %s link set eth0 up", h.ns))
}

// move unplugs a host from the bridge and gives it a cable to one other host
// instead, over which all its packets go, for whatever address: one that should
// not have been sent is sent, and seen. The other host does not forward.
func (n *namespaces) move(t *testing.T, h, to *host) {
	t.Helper()
	const six, sixTo = "fd00:cafe::2", "fd00:cafe::1"
	port := "to-" + h.name
	mustIP(t,
		fmt.Sprintf("-n %s link del eth0", h.ns), // and with it the end on the bridge
		fmt.Sprintf("-n %s link add eth0 type veth peer name %s netns %s", h.ns, port, to.ns),
		fmt.Sprintf("-n %s addr add %s/32 dev eth0", h.ns, h.addr),
		fmt.Sprintf("-n %s addr add %s/64 dev eth0 nodad", h.ns, six),
		fmt.Sprintf("-n %s addr add %s/64 dev %s nodad", to.ns, sixTo, port),
		fmt.Sprintf("-n %s link set %s up", to.ns, port),
		fmt.Sprintf("-n %s link set eth0 up", h.ns),
		fmt.Sprintf("-n %s route add %s/32 dev %s", to.ns, h.addr, port),
		fmt.Sprintf("-n %s route add default via %s dev eth0 onlink", h.ns, to.addr),
		fmt.Sprintf("-n %s -6 route add default via %s dev eth0", h.ns, sixTo))
}

// removeNamespace removes a namespace and its files; there may be none.
func removeNamespace(t *testing.T, ns string) {
	if _, err := os.Stat(filepath.Join(netnsDir, ns)); err == nil {
		if err := ip("netns", "del", ns); err != nil {
			t.Errorf("left behind: %v", err)
		}
	}
	if err := os.RemoveAll(filepath.Join(etcNetns, ns)); err != nil {
		t.Errorf("left behind: %v", err)
	}
	_ = os.Remove(etcNetns) // unless others use it
}

// sweepNamespaces removes what a run of these tests that was killed has left:
// namespaces with our prefix and the number of a process that is no more.
func sweepNamespaces(t *testing.T) {
	t.Helper()
	ours := regexp.MustCompile("^" + nsPrefix + `(\d+)-`)
	for _, dir := range []string{netnsDir, etcNetns} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			m := ours.FindStringSubmatch(e.Name())
			if m == nil {
				continue
			}
			if pid, err := strconv.Atoi(m[1]); err != nil || syscall.Kill(pid, 0) == nil {
				continue
			}
			t.Logf("removing %s, which an earlier run has left", e.Name())
			out, _ := exec.Command("ip", "netns", "pids", e.Name()).Output() // none when the namespace is gone
			for _, field := range strings.Fields(string(out)) {
				if pid, err := strconv.Atoi(field); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL) // or it has just ended
				}
			}
			removeNamespace(t, e.Name())
		}
	}
}
