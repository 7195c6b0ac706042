package path

import (
	"encoding/binary"
	"encoding/csv"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cepa/directory"
)

// seeded is a source of randomness that repeats.
func seeded(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

const up = directory.FlagRunning | directory.FlagValid

// relayAt makes a relay with number i, the given flags on top of Running and Valid, and an address of its own /16.
func relayAt(i int, weight uint64, flags directory.Flags) directory.Relay {
	r := directory.Relay{
		Nickname: "r" + strconv.Itoa(i), Flags: up | flags, Weight: weight, Exit: directory.AllPorts(),
		Addresses: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(1 + i/256), byte(i), 0, 1}), 9001)},
	}
	binary.BigEndian.PutUint32(r.Identity[:], uint32(i))
	return r
}

func chooser(t testing.TB, relays ...directory.Relay) *Chooser {
	t.Helper()
	c, err := New(&directory.Consensus{Relays: relays})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// realRelays are the relays of a real network (see testdata/README.md), with addresses that keep who shares a /16 and
// who a host. What the list does not tell is made up: IPv6 networks that are shared independently of IPv4, families of up
// to 40, and exits of which some allow only the web or one odd port.
func realRelays(t testing.TB) []directory.Relay {
	t.Helper()
	f, err := os.Open("../testdata/relays-2024-05-17.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	web, err := directory.ParsePortPolicy("80,443/443")
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(seeded(2024))
	var relays []directory.Relay
	for _, row := range rows[1:] {
		number := func(k int) int {
			x, err := strconv.Atoi(row[k])
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		i, net16, host := number(0), number(1), number(3)
		r := relayAt(i, uint64(number(6)), 0)
		v4 := [4]byte{byte(1 + net16/256), byte(net16), byte(host / 256), byte(host)}
		r.Addresses = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4(v4), uint16(number(4)))}
		if number(5) == 1 {
			v6 := [16]byte{0x20, 0x01, byte(random.IntN(8)), byte(random.IntN(256)), 15: 1}
			r.Addresses = append(r.Addresses, netip.AddrPortFrom(netip.AddrFrom16(v6), uint16(number(4))))
		}
		r.Flags = flagsOf(t, row[7])
		switch random.IntN(10) {
		case 0, 1:
			r.Exit = web
		case 2:
			r.Exit = directory.PortPolicy{}
		}
		if random.IntN(3) == 0 {
			// Families of all sizes: member i of 1,000 possible ones, most of which are small.
			r.Family = []directory.FamilyID{{1, byte(random.ExpFloat64() * 30), byte(random.IntN(4))}}
			if random.IntN(10) == 0 {
				r.Family = append(r.Family, directory.FamilyID{2, byte(random.IntN(256))})
			}
		}
		relays = append(relays, r)
	}
	return relays
}

// flagsOf reads the flags, but those that only the other network has.
func flagsOf(t testing.TB, words string) (f directory.Flags) {
	t.Helper()
	for _, word := range strings.Fields(words) {
		if slices.Contains([]string{"V2Dir", "StaleDesc", "Authority"}, word) {
			continue
		}
		one, err := directory.ParseFlags(word)
		if err != nil {
			t.Fatal(err)
		}
		f |= one
	}
	return f
}

// sharing tells independently of Conflict, by text, what two relays have in common, or "".
func sharing(a, b *directory.Relay) string {
	if a.Identity == b.Identity {
		return "identity"
	}
	for _, f := range a.Family {
		for _, g := range b.Family {
			if f == g {
				return fmt.Sprintf("family %x", f[:4])
			}
		}
	}
	nets := map[string]bool{}
	for k, r := range []*directory.Relay{a, b} {
		for _, addr := range r.Addresses {
			length := 16
			if addr.Addr().Is6() {
				length = 32
			}
			p, err := addr.Addr().Prefix(length)
			if err != nil {
				return err.Error()
			}
			if k == 0 {
				nets[p.String()] = true
			} else if nets[p.String()] {
				return "network " + p.String()
			}
		}
	}
	return ""
}

// broken tells which rule the path breaks, or "".
func broken(hops []*directory.Relay, r Request) string {
	want := r.Length
	if want == 0 {
		want = 3
	}
	if len(hops) != want {
		return fmt.Sprintf("%d hops, not %d", len(hops), want)
	}
	for i, h := range hops {
		if r.Guard != nil && i == 0 {
			if h != r.Guard {
				return "not the fixed guard"
			}
		} else if r.Exclude != nil && r.Exclude(h) {
			return "an excluded relay"
		}
		first, last := i == 0, i == len(hops)-1
		switch {
		case !h.Flags.Has(up):
			return "a relay that is down"
		case (first || last) && h.Flags.Has(directory.FlagMiddleOnly):
			return "MiddleOnly at an end"
		case first && r.Guard == nil && !h.Flags.Has(directory.FlagGuard):
			return "no guard at first"
		case last && r.Exit && (!h.Flags.Has(directory.FlagExit) || h.Flags.Has(directory.FlagBadExit)):
			return "no exit at last"
		case last && r.Exit && r.Port != 0 && !h.Exit.AllowsPort(r.Port, r.IPv6):
			return "an exit that refuses the port"
		case last && r.Exit && h.Exit.IsZero():
			return "an exit that refuses all"
		}
		for _, other := range hops[:i] {
			if s := sharing(h, other); s != "" {
				return "two relays share " + s
			}
		}
	}
	return ""
}
