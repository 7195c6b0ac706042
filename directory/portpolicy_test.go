package directory

import (
	"fmt"
	"strings"
	"testing"
)

func TestPortPolicy(t *testing.T) {
	for _, c := range []struct {
		text, printed  string
		allow4, refuse []uint16
	}{
		{"none", "none", nil, []uint16{1, 80, 65535}},
		{"*", "*", []uint16{1, 80, 65535}, []uint16{0}},
		{"1-65535", "*", []uint16{1, 80, 65535}, []uint16{0}},
		{"80,443,1000-2000", "80,443,1000-2000", []uint16{80, 443, 1000, 1500, 2000}, []uint16{0, 79, 81, 999, 2001}},
		{"443,80", "80,443", []uint16{80, 443}, []uint16{81}},
		{"80,81,82-90,85-95", "80-95", []uint16{80, 95}, []uint16{79, 96}},
		{"65535,65534", "65534-65535", []uint16{65534}, []uint16{65533}},
		{"80/443", "80/443", []uint16{80}, []uint16{443}},
		{"80/80", "80", []uint16{80}, []uint16{443}},
		{"*/none", "*/none", []uint16{1}, nil},
		{"none/none", "none", nil, []uint16{1}},
	} {
		p, err := ParsePortPolicy(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if got := p.String(); got != c.printed {
			t.Errorf("%q is printed as %q, want %q", c.text, got, c.printed)
		}
		for _, port := range c.allow4 {
			if !p.AllowsPort(port, false) {
				t.Errorf("%q refuses %d over IPv4", c.text, port)
			}
		}
		for _, port := range c.refuse {
			if p.AllowsPort(port, false) {
				t.Errorf("%q allows %d over IPv4", c.text, port)
			}
		}
	}
	p, err := ParsePortPolicy("80/443")
	if err != nil || p.AllowsPort(80, true) || !p.AllowsPort(443, true) {
		t.Errorf("80/443 mixes up IPv4 and IPv6 (%v)", err)
	}
	if (PortPolicy{}).AllowsPort(80, false) || !(PortPolicy{}).IsZero() || AllPorts().IsZero() {
		t.Error("the zero value accepts something")
	}
}

func TestPortPolicyRefuses(t *testing.T) {
	many := make([]string, MaxPortRanges+1)
	for i := range many {
		many[i] = fmt.Sprint(10 * (i + 1))
	}
	for _, s := range []string{
		"", ",", "80,", "0", "65536", "-1", "+80", "080", "80-", "-80", "90-80", "80-90-100", " 80", "80 ", "80/", "/80", "80/80/80",
		"*,80", "none,80", "http", "80;443", strings.Join(many, ","), strings.Repeat("80,", 1<<20) + "80",
	} {
		if p, err := ParsePortPolicy(s); err == nil {
			t.Errorf("ParsePortPolicy(%q) = %v, want an error", clip(s), p)
		} else if len(err.Error()) > 300 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	}
	if _, err := ParsePortPolicy(strings.Join(many[1:], ",")); err != nil {
		t.Errorf("%d ranges: %v", MaxPortRanges, err)
	}
}

// FuzzPortPolicy: what is accepted is printed in a form that means the same and is printed alike.
func FuzzPortPolicy(f *testing.F) {
	for _, s := range []string{"none", "*", "80,443,1000-2000", "80/443", "1-2,2-3,5", "65535"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePortPolicy(s)
		if err != nil {
			return
		}
		if err := p.validate(); err != nil {
			t.Fatalf("%q gives an unlawful policy: %v", s, err)
		}
		again, err := ParsePortPolicy(p.String())
		if err != nil || !again.Equal(p) || again.String() != p.String() {
			t.Fatalf("%q is printed as %q, which is %q, %v", s, p, again, err)
		}
	})
}
