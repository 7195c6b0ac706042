package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// MaxPorts is how many ports one service may have.
	MaxPorts = 128
	// maxTarget bounds a target in bytes: what the kernel takes for the path of a Unix socket, on the systems that take least.
	maxTarget = 103
	// unixPrefix starts a target that is a Unix socket.
	unixPrefix = "unix:"
)

// Port is a port of a service and where its streams go.
type Port struct {
	Port uint16 // that clients ask for; never 0
	// Network is "tcp" or "unix", and Address an IP address with a port or the absolute path of a socket.
	Network, Address string
}

// ParsePort reads a port with its target. Any of these, and nothing else:
//
//	80                     port 80 of this machine (127.0.0.1)
//	80:8080                another port of this machine
//	80:127.0.0.1:8080      an IP address and a port; IPv6 in brackets
//	22:unix:/run/ssh.sock  the absolute path of a Unix socket
//
// Names of hosts are refused: looking them up would tell a name server when the service has visitors.
func ParsePort(text string) (Port, error) {
	first, target, more := strings.Cut(text, ":")
	port, err := parseNumber(first)
	if err != nil {
		return Port{}, fmt.Errorf("%.80q: the port of the service, before the first colon, %w", text, err)
	}
	p := Port{Port: port, Network: "tcp"}
	if path, found := strings.CutPrefix(target, unixPrefix); found {
		p.Network, p.Address = "unix", path
		return p, checkSocketPath(text, path)
	}
	if !more {
		p.Address = local(port)
		return p, nil
	}
	if !strings.Contains(target, ":") {
		port, err := parseNumber(target)
		if err != nil {
			return Port{}, fmt.Errorf("%.80q: the port of the target, after the colon, %w", text, err)
		}
		p.Address = local(port)
		return p, nil
	}
	a, err := netip.ParseAddrPort(target)
	switch {
	case err != nil && strings.HasPrefix(target, "localhost:"):
		return Port{}, fmt.Errorf("%.80q: the target must be an IP address, not a name: write 127.0.0.1 or [::1] for localhost", text)
	case err != nil:
		return Port{}, fmt.Errorf("%.80q: the target must be an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, or the path of a socket, such as unix:/run/web.sock", text)
	case a.Port() == 0:
		return Port{}, fmt.Errorf("%.80q: the target has no port: it is 1 to 65535", text)
	case a.Addr().IsUnspecified() || a.Addr().IsMulticast():
		return Port{}, fmt.Errorf("%.80q: nothing can be connected to at the address %s: write 127.0.0.1 for this machine", text, a.Addr())
	}
	p.Address = a.String()
	return p, nil
}

func local(port uint16) string {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String()
}

// parseNumber reads a port strictly: digits alone, without zeros before them.
func parseNumber(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != text {
		return 0, errors.New("must be a number from 1 to 65535")
	}
	return uint16(n), nil
}

func checkSocketPath(text, path string) error {
	switch {
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		return fmt.Errorf("%.80q: the path of a socket must be absolute, such as unix:/run/web.sock", text)
	case len(path) > maxTarget:
		return fmt.Errorf("%.80q: the path of the socket has %d bytes, and the system takes %d: choose a shorter one", text, len(path), maxTarget)
	}
	return nil
}

// String is the text that ParsePort reads, with the target in full.
func (p Port) String() string {
	target := p.Address
	if p.Network == "unix" {
		target = unixPrefix + target
	}
	return strconv.Itoa(int(p.Port)) + ":" + target
}

// Local tells whether the target is on this machine: what goes to others crosses the network in the clear.
func (p Port) Local() bool {
	if p.Network == "unix" {
		return true
	}
	a, err := netip.ParseAddrPort(p.Address)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

// ParsePorts reads the ports of one service: 1 to MaxPorts, none twice.
func ParsePorts(texts []string) ([]Port, error) {
	ports := make([]Port, 0, min(len(texts), MaxPorts))
	for _, text := range texts {
		p, err := ParsePort(text)
		if err != nil {
			return nil, err
		}
		if len(ports) == MaxPorts {
			return nil, fmt.Errorf("more than %d ports", MaxPorts)
		}
		ports = append(ports, p)
	}
	return ports, checkPorts(ports)
}

// checkPorts finds ports without a target to tell apart from another.
func checkPorts(ports []Port) error {
	if len(ports) == 0 || len(ports) > MaxPorts {
		return fmt.Errorf("a service has 1 to %d ports, not %d", MaxPorts, len(ports))
	}
	seen := make(map[uint16]bool, len(ports))
	for _, p := range ports {
		if p.Port == 0 || p.Address == "" || p.Network != "tcp" && p.Network != "unix" {
			return errors.New("a port without a number or without a target")
		}
		if seen[p.Port] {
			return fmt.Errorf("port %d stands there twice: one port has one target", p.Port)
		}
		seen[p.Port] = true
	}
	return nil
}
