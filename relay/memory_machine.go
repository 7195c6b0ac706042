package relay

import (
	"bytes"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
)

// Bounds of what DefaultMemory returns, in bytes. MinMemory is also the least that
// Config.MaxMemory is of use with.
const (
	MinMemory        = 64 << 20
	maxDefaultMemory = 8 << 30
	// unknownMemory is for machines that do not tell.
	unknownMemory = 1 << 30
)

// DefaultMemory returns how much memory a relay should take of this machine, in bytes:
// a quarter of what the machine has, or of what the process may have of it, between
// 64 MiB and 8 GiB; 1 GiB where that cannot be found out.
func DefaultMemory() int64 { return defaultMemory(readSmall) }

// defaultMemory is DefaultMemory on the files that read returns; nil for none.
func defaultMemory(read func(name string) []byte) int64 {
	least, known := parseMeminfo(read("/proc/meminfo"))
	limit := func(name string) {
		if n, ok := parseMemoryLimit(read(name)); ok && (!known || n < least) {
			least, known = n, true
		}
	}
	// The process's group and those above it, as the second version of control
	// groups has them; in a container its own group is the root.
	group, _ := parseCgroup(read("/proc/self/cgroup"))
	for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
		limit(path.Join("/sys/fs/cgroup", dir, "memory.max"))
		if dir == "/" {
			break
		}
	}
	limit("/sys/fs/cgroup/memory/memory.limit_in_bytes") // the first version, in a container
	if !known {
		return unknownMemory
	}
	return min(max(least/4, MinMemory), maxDefaultMemory)
}

// maxSmall bounds what is read of a file of the kernel, in bytes.
const maxSmall = 64 << 10

func readSmall(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall))
	if err != nil {
		return nil
	}
	return b
}

// parseMeminfo returns the bytes of memory that /proc/meminfo tells of, in the line
// "MemTotal: 8049572 kB".
func parseMeminfo(b []byte) (int64, bool) {
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) != 3 || f[0] != "MemTotal:" || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n <= 0 || n > 1<<50 {
			return 0, false
		}
		return n << 10, true
	}
	return 0, false
}

// parseMemoryLimit returns the bytes that the file of a control group allows: a number,
// which may be so high that it means none, or "max".
func parseMemoryLimit(b []byte) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n <= 0 || n > 1<<60 {
		return 0, false
	}
	return n, true
}

// parseCgroup returns the path of the control group, of the second version, that
// /proc/self/cgroup names in the line "0::/system.slice/cepa.service".
func parseCgroup(b []byte) (string, bool) {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("0::/")); ok {
			return "/" + strings.TrimRight(string(rest), "\n"), true
		}
	}
	return "", false
}
