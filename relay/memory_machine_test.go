package relay

import (
	"strings"
	"testing"
)

// TestDefaultMemory: what the files of the kernel say decides, and the least of them.
func TestDefaultMemory(t *testing.T) {
	t.Parallel()
	const meminfo, group = "/proc/meminfo", "/proc/self/cgroup"
	const fs = "/sys/fs/cgroup"
	machine := "MemTotal:        8388608 kB\nMemFree:         1000000 kB\n" // 8 GiB
	for _, c := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"nothing is known", nil, 1 << 30},
		{"a machine", map[string]string{meminfo: machine}, 2 << 30},
		{"MemTotal is not the first line", map[string]string{meminfo: "MemFree: 1 kB\n" + machine}, 2 << 30},
		{"a small machine", map[string]string{meminfo: "MemTotal: 131072 kB\n"}, 64 << 20},
		{"a large machine", map[string]string{meminfo: "MemTotal: 263872000 kB\n"}, 8 << 30},
		{"a container", map[string]string{meminfo: machine, group: "0::/\n", fs + "/memory.max": "1073741824\n"}, 256 << 20},
		{"a container without a limit", map[string]string{meminfo: machine, group: "0::/\n", fs + "/memory.max": "max\n"}, 2 << 30},
		{"a service", map[string]string{meminfo: machine, group: "1:name=x:/y\n0::/a.slice/b.service\n", fs + "/a.slice/b.service/memory.max": "2147483648\n"}, 512 << 20},
		{"a slice above a service", map[string]string{
			meminfo: machine, group: "0::/a.slice/b.service\n", fs + "/a.slice/memory.max": "1073741824\n", fs + "/a.slice/b.service/memory.max": "2147483648\n",
		}, 256 << 20},
		{"a limit above the machine", map[string]string{meminfo: machine, group: "0::/\n", fs + "/memory.max": "1099511627776\n"}, 2 << 30},
		{"the first version", map[string]string{meminfo: machine, fs + "/memory/memory.limit_in_bytes": "536870912\n"}, 128 << 20},
		{"no limit in the first version", map[string]string{meminfo: machine, fs + "/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 2 << 30},
		{"a limit alone", map[string]string{fs + "/memory.max": "1073741824\n"}, 256 << 20},
		{"nonsense", map[string]string{meminfo: "MemTotal: -5 kB\n", group: "0::/../../x\n", fs + "/memory.max": "0x10\n"}, 1 << 30},
		{"other units", map[string]string{meminfo: "MemTotal: 8 GB\n"}, 1 << 30},
	} {
		got := defaultMemory(func(name string) []byte {
			if !strings.HasPrefix(name, "/proc/") && !strings.HasPrefix(name, fs+"/") || strings.Contains(name, "..") {
				t.Errorf("%s: %s is read", c.name, name)
			}
			return []byte(c.files[name])
		})
		if got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if got := DefaultMemory(); got < MinMemory || got > maxDefaultMemory {
		t.Errorf("of this machine: %d", got)
	}
}

// FuzzMemoryFiles: whatever the files hold, the answer is within its bounds.
func FuzzMemoryFiles(f *testing.F) {
	f.Add([]byte("MemTotal: 8388608 kB\n"), []byte("0::/a/b\n"), []byte("1073741824\n"))
	f.Add([]byte("MemTotal: 9223372036854775807 kB"), []byte("0::/"), []byte("max"))
	f.Add([]byte("MemTotal:"), []byte("0::/../.."), []byte("-1"))
	f.Fuzz(func(t *testing.T, meminfo, group, limit []byte) {
		got := defaultMemory(func(name string) []byte {
			switch {
			case name == "/proc/meminfo":
				return meminfo
			case name == "/proc/self/cgroup":
				return group
			case !strings.HasPrefix(name, "/sys/fs/cgroup/"):
				t.Errorf("%q is read", name)
			}
			return limit
		})
		if got < MinMemory || got > maxDefaultMemory {
			t.Errorf("%d bytes", got)
		}
	})
}
