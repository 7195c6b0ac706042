package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// maxGuardPorts bounds --guard-ports.
const maxGuardPorts = 64

// parsePorts reads a list of ports with commas; empty stands for all.
func parsePorts(flag, s string) (map[uint16]bool, error) {
	if s == "" {
		return nil, nil
	}
	ports := map[uint16]bool{}
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(part), 10, 16)
		if err != nil || n == 0 {
			return nil, usagef("%s: %q is no port: numbers from 1 to 65535 with commas are expected, such as 80,443", flag, part)
		}
		if ports[uint16(n)] = true; len(ports) > maxGuardPorts {
			return nil, usagef("%s: more than %d ports", flag, maxGuardPorts)
		}
	}
	return ports, nil
}

// reachable returns which addresses this machine can connect to: at one of the ports, if there are any, and with a route. What
// it looks at is the routing table: nothing is sent.
func reachable(ports map[uint16]bool) func(netip.AddrPort) bool {
	return func(a netip.AddrPort) bool {
		if len(ports) > 0 && !ports[a.Port()] {
			return false
		}
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
		if err != nil {
			return !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EAFNOSUPPORT)
		}
		c.Close()
		return true
	}
}

// homeOf identifies a data directory: a copy of it is another. It is empty where the system does not tell.
func homeOf(dir string) string {
	info, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	device, inode, ok := inodeOf(info)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%x-%x", device, inode)
}
