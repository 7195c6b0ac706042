package directory

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReservedIsSpecified: the table of doc/spec.md section 10 and that of the code are one.
func TestReservedIsSpecified(t *testing.T) {
	b, err := os.ReadFile("../doc/spec.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(b), "\n| reserved | ranges |\n|---|---|\n")
	if !found {
		t.Fatal("doc/spec.md has no table of reserved ranges")
	}
	text, _, _ := strings.Cut(rest, "\n\n")
	specified := map[string][]netip.Prefix{}
	for _, line := range strings.Split(text, "\n") {
		f := strings.Split(line, "|")
		if len(f) != 4 {
			t.Fatalf("doc/spec.md: %q is no row of two fields", line)
		}
		what := strings.TrimSpace(f[1])
		for _, r := range strings.Split(f[2], ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(r))
			if err != nil || p != p.Masked() {
				t.Errorf("doc/spec.md: %s: %q: %v, or bits behind its length", what, r, err)
			}
			specified[what] = append(specified[what], p)
		}
	}
	for _, r := range reserved {
		if !slices.Equal(specified[r.what], r.ranges) {
			t.Errorf("%s: %v in doc/spec.md, %v in the table", r.what, specified[r.what], r.ranges)
		}
		delete(specified, r.what)
	}
	for what := range specified {
		t.Errorf("%s: only in doc/spec.md", what)
	}
}

// TestIsPublic: the first and last address of each range, and its neighbours where they are somebody's.
func TestIsPublic(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct{ reserved, public []string }{
		"this network":        {[]string{"0.0.0.0", "0.255.255.255"}, []string{"1.0.0.0"}},
		"unspecified":         {[]string{"::", "0.0.0.0"}, nil},
		"private":             {[]string{"10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"}, []string{"9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"}},
		"carriers":            {[]string{"100.64.0.0", "100.127.255.255"}, []string{"100.63.255.255", "100.128.0.0"}},
		"loopback":            {[]string{"127.0.0.0", "127.255.255.255", "::1"}, []string{"126.255.255.255", "128.0.0.0"}},
		"link-local":          {[]string{"169.254.0.0", "169.254.169.254", "169.254.255.255", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"169.253.255.255", "169.255.0.0"}},
		"protocols":           {[]string{"192.0.0.0", "192.0.0.255", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"191.255.255.255", "192.0.1.0", "2001:200::"}},
		"documentation":       {[]string{"192.0.2.0", "192.0.2.255", "198.51.100.0", "198.51.100.255", "203.0.113.0", "203.0.113.255", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"192.0.1.255", "192.0.3.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"}},
		"benchmarks":          {[]string{"198.18.0.0", "198.19.255.255", "2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff"}, []string{"198.17.255.255", "198.20.0.0"}},
		"multicast":           {[]string{"224.0.0.0", "239.255.255.255", "ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"223.255.255.255"}},
		"reserved, broadcast": {[]string{"240.0.0.0", "255.255.255.254", "255.255.255.255"}, nil},
		"6to4":                {[]string{"2002::", "2002:7f00:1::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "192.88.99.0", "192.88.99.255"}, []string{"2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::", "192.88.98.255", "192.88.100.0"}},
		"Teredo":              {[]string{"2001::", "2001:0:4136:e378:8000:63bf:3fff:fdd2"}, nil},
		"ORCHID":              {[]string{"2001:10::", "2001:1f:ffff::", "2001:20::", "2001:2f:ffff::"}, nil},
		"NAT64":               {[]string{"64:ff9b::", "64:ff9b::8.8.8.8", "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"}, nil},
		"mapped":              {[]string{"::ffff:0.0.0.0", "::ffff:8.8.8.8", "::ffff:127.0.0.1"}, nil},
		"compatible":          {[]string{"::8.8.8.8", "::127.0.0.1", "::2"}, nil},
		"translated":          {[]string{"::ffff:0:8.8.8.8"}, nil},
		"discarded":           {[]string{"100::", "100::ffff:ffff:ffff:ffff", "100:0:0:1::"}, nil},
		"unique local":        {[]string{"fc00::", "fd00::1", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, nil},
		"site-local":          {[]string{"fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, nil},
		"SRv6":                {[]string{"5f00::", "5f00:ffff::"}, nil},
		"given to nobody":     {[]string{"200::1", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "8000::", "c000::1", "fbff::"}, []string{"2000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
		"with a zone":         {[]string{"fe80::1%eth0", "2606:4700::1%eth0"}, []string{"2606:4700::1"}},
		"the internet":        {nil, []string{"1.1.1.1", "8.8.8.8", "192.31.196.1", "2606:4700::1111", "2a00:1450::1", "2620:4f:8000::1"}},
	} {
		for _, s := range c.reserved {
			if IsPublic(netip.MustParseAddr(s)) {
				t.Errorf("%s: %s is public", what, s)
			}
		}
		for _, s := range c.public {
			if !IsPublic(netip.MustParseAddr(s)) {
				t.Errorf("%s: %s is not public", what, s)
			}
		}
	}
	if IsPublic(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// FuzzIsPublic: what net/netip knows not to be an address of the internet is reserved, and public addresses lie where addresses are given out.
func FuzzIsPublic(f *testing.F) {
	for _, s := range []string{"8.8.8.8", "10.0.0.1", "::1", "2606:4700::1", "fe80::1", "ff02::1", "::ffff:8.8.8.8"} {
		f.Add(netip.MustParseAddr(s).AsSlice())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || !IsPublic(a) {
			return
		}
		if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.Is4In6() {
			t.Errorf("%v is public", a)
		}
		if a.Is6() && b[0]>>5 != 1 {
			t.Errorf("%v, outside 2000::/3, is public", a)
		}
	})
}
