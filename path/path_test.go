package path

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"cepa/directory"
)

var soak = flag.Bool("soak", false, "run the long campaigns")

// requests are what the campaigns ask for in turn.
func requests(relays []directory.Relay) []Request {
	guard := slices.IndexFunc(relays, func(r directory.Relay) bool { return r.Flags.Has(up | directory.FlagGuard) })
	return []Request{
		{Exit: true, Port: 443},
		{Exit: true, Port: 443, IPv6: true},
		{Exit: true, Port: 80, IPv6: true},
		{Exit: true, Port: 25},
		{Exit: true},
		{},
		{Length: 4},
		{Length: 8, Exit: true, Port: 443},
		{Guard: &relays[guard], Exit: true, Port: 443},
		{Exclude: func(r *directory.Relay) bool { return r.Identity[3]%2 == 0 }, Exit: true, Port: 443},
	}
}

// campaign picks count paths in the real network and checks every rule on each.
func campaign(t *testing.T, count int) {
	t.Helper()
	relays := realRelays(t)
	c := chooser(t, relays...)
	list := requests(relays)
	random := seeded(7)
	for i := range count {
		r := list[i%len(list)]
		hops, err := c.Pick(random, r)
		if err != nil {
			t.Fatalf("path %d: %v", i, err)
		}
		if what := broken(hops, r); what != "" {
			t.Fatalf("path %d: %s", i, what)
		}
	}
}

func TestRealNetwork(t *testing.T) {
	count := 100_000
	if testing.Short() {
		count = 10_000
	}
	campaign(t, count)
}

func TestSoakRealNetwork(t *testing.T) {
	if !*soak {
		t.Skip("a long campaign: run with -soak")
	}
	campaign(t, 1_000_000)
}

// chiSquare compares how often relays were chosen with how often they should be, by expected shares that sum up to 1,
// and fails beyond five standard deviations. Rare ones are counted together.
func chiSquare(t *testing.T, what string, seen map[*directory.Relay]int, share map[*directory.Relay]float64, total int) {
	t.Helper()
	var x, restWant, sum float64
	var restSeen, bins int
	for r, p := range share {
		sum += p
		want := p * float64(total)
		if want < 10 {
			restWant += want
			restSeen += seen[r]
			continue
		}
		x += (float64(seen[r]) - want) * (float64(seen[r]) - want) / want
		bins++
	}
	if math.Abs(sum-1) > 1e-9 {
		t.Fatalf("%s: expected shares sum up to %v", what, sum)
	}
	if restWant >= 10 {
		x += (float64(restSeen) - restWant) * (float64(restSeen) - restWant) / restWant
		bins++
	}
	for r := range seen {
		if share[r] == 0 {
			t.Errorf("%s: %s was chosen %d times and has no weight", what, r.Nickname, seen[r])
		}
	}
	free := float64(bins - 1)
	if limit := free + 5*math.Sqrt(2*free); x > limit {
		t.Errorf("%s: chi square is %.0f over %d bins, want at most %.0f", what, x, bins, limit)
	}
}

// TestFrequencies: exits and guards are chosen by weight. The expectation is worked out here from the list: this network
// is short of exits, so they are exits only, and guards are the relays that are not.
func TestFrequencies(t *testing.T) {
	relays := realRelays(t)
	c := chooser(t, relays...)
	is := func(r *directory.Relay, f directory.Flags) bool {
		return r.Flags.Has(up|f) && !r.Flags.Has(directory.FlagMiddleOnly)
	}
	isExit := func(r *directory.Relay) bool {
		return is(r, directory.FlagExit) && !r.Flags.Has(directory.FlagBadExit) && !r.Exit.IsZero()
	}
	shares := func(may func(*directory.Relay) bool) map[*directory.Relay]float64 {
		m, sum := map[*directory.Relay]float64{}, 0.0
		for i := range relays {
			if r := &relays[i]; may(r) && r.Weight > 0 {
				m[r] = float64(r.Weight)
				sum += m[r]
			}
		}
		for r := range m {
			m[r] /= sum
		}
		return m
	}
	random := seeded(99)
	const count = 200_000
	for _, q := range []struct {
		port uint16
		v6   bool
	}{{443, false}, {80, true}, {25, false}} {
		seen := map[*directory.Relay]int{}
		for range count {
			hops, err := c.Pick(random, Request{Exit: true, Port: q.port, IPv6: q.v6, Length: 2})
			if err != nil {
				t.Fatal(err)
			}
			seen[hops[1]]++
		}
		chiSquare(t, "exit", seen, shares(func(r *directory.Relay) bool { return isExit(r) && r.Exit.AllowsPort(q.port, q.v6) }), count)
	}
	seen := map[*directory.Relay]int{}
	for range count {
		g, err := c.PickGuard(random, func(r *directory.Relay) bool { return r.Weight > 50_000 })
		if err != nil {
			t.Fatal(err)
		}
		seen[g]++
	}
	chiSquare(t, "guard", seen, shares(func(r *directory.Relay) bool {
		return is(r, directory.FlagGuard) && !isExit(r) && r.Weight <= 50_000
	}), count)
}

// TestExactFallbackHasTheSameFrequencies: when almost all draws are refused, the choice is still by weight.
func TestExactFallbackHasTheSameFrequencies(t *testing.T) {
	relays := []directory.Relay{relayAt(0, 1_000_000, directory.FlagGuard)}
	share := map[*directory.Relay]float64{}
	for i := 1; i <= 10; i++ {
		relays = append(relays, relayAt(i, uint64(i), directory.FlagGuard))
	}
	c := chooser(t, relays...)
	for i := 1; i <= 10; i++ {
		share[&relays[i]] = float64(i) / 55
	}
	seen, random := map[*directory.Relay]int{}, seeded(3)
	const count = 20_000
	for range count {
		g, err := c.PickGuard(random, func(r *directory.Relay) bool { return r.Weight > 10 })
		if err != nil {
			t.Fatal(err)
		}
		seen[g]++
	}
	chiSquare(t, "guard", seen, share, count)
}

// TestWeightsDecideHowOftenNotWhether: a path exists although by the weights (the exits are scarce) none of the exits
// should be a middle; and relays without any weight are used when there are no others.
func TestWeightsDecideHowOftenNotWhether(t *testing.T) {
	c := chooser(t, relayAt(1, 100, directory.FlagGuard), relayAt(2, 1, directory.FlagExit), relayAt(3, 1, directory.FlagExit))
	if c.middle.weight(1) != 0 {
		t.Error("a scarce exit has weight as middle")
	}
	if _, err := c.Pick(seeded(1), Request{Exit: true, Port: 443}); err != nil {
		t.Error(err)
	}
	c = chooser(t, relayAt(1, 0, directory.FlagGuard), relayAt(2, 0, directory.FlagExit), relayAt(3, 0, 0), relayAt(4, 0, 0))
	seen, random := map[string]int{}, seeded(1)
	for range 1000 {
		hops, err := c.Pick(random, Request{Exit: true, Port: 443})
		if err != nil {
			t.Fatal(err)
		}
		seen[hops[1].Nickname]++
	}
	if len(seen) != 2 || seen["r3"] < 400 || seen["r4"] < 400 {
		t.Errorf("middles without weight were chosen %v times, want about evenly", seen)
	}
}

// TestTooSmall: the error says which position failed and why, in numbers.
func TestTooSmall(t *testing.T) {
	guard, exit := relayAt(1, 5, directory.FlagGuard), relayAt(2, 5, directory.FlagExit)
	beside := relayAt(3, 5, directory.FlagGuard)
	beside.Addresses = exit.Addresses
	bad := relayAt(4, 5, directory.FlagExit|directory.FlagBadExit)
	down := relayAt(5, 5, directory.FlagExit)
	down.Flags &^= directory.FlagRunning
	web := relayAt(6, 5, directory.FlagExit)
	web.Exit = directory.PortPolicy{IPv4: []directory.PortRange{{Lo: 80, Hi: 80}}}
	all := Request{Exit: true, Port: 443}
	none := all
	none.Exclude = func(r *directory.Relay) bool { return r.Nickname == "r2" }
	for name, c := range map[string]struct {
		relays  []directory.Relay
		request Request
		want    NoPathError
		text    string
	}{
		"nobody": {nil, all, NoPathError{Position: PositionExit}, "no path: no exit among 0 relays"},
		"no exit": {
			[]directory.Relay{guard, bad, down, web},
			all,
			NoPathError{Position: PositionExit, Relays: 4, Down: 1, Unfit: 2, Refusing: 1},
			"no path: no exit among 4 relays: 1 not running and valid, 2 without the flags for it, 1 refusing the port",
		},
		"excluded": {
			[]directory.Relay{guard, exit},
			none,
			NoPathError{Position: PositionExit, Relays: 2, Unfit: 1, Excluded: 1},
			"no path: no exit among 2 relays: 1 without the flags for it, 1 excluded by the caller",
		},
		"no guard": {
			[]directory.Relay{exit, beside},
			all,
			NoPathError{Position: PositionGuard, Relays: 2, Unfit: 1, Conflicts: 1},
			"no path: no guard among 2 relays: 1 without the flags for it, 1 in the path or in the family or network of a relay that is",
		},
		"no middle": {
			[]directory.Relay{exit, guard, beside},
			all,
			NoPathError{Position: PositionMiddle, Relays: 3, Conflicts: 3},
			"no path: no middle among 3 relays: 3 in the path or in the family or network of a relay that is",
		},
		"too long": {
			[]directory.Relay{exit, guard, web}, Request{Length: 4}, NoPathError{Position: PositionMiddle, Relays: 3, Conflicts: 3}, "",
		},
	} {
		_, err := chooser(t, c.relays...).Pick(seeded(1), c.request)
		var got *NoPathError
		if !errors.As(err, &got) || !errors.Is(err, ErrNoPath) || *got != c.want || c.text != "" && err.Error() != c.text {
			t.Errorf("%s: got %v\nwant %+v", name, err, c.want)
		}
	}
}

// TestDeepestReason: of several reasons the error gives that of the attempt that came furthest.
func TestDeepestReason(t *testing.T) {
	guard, beside, exit := relayAt(1, 5, directory.FlagGuard), relayAt(2, 5, directory.FlagExit), relayAt(3, 5, directory.FlagExit)
	guard.Family, beside.Family, exit.Family = []directory.FamilyID{{1}}, []directory.FamilyID{{1}, {2}}, []directory.FamilyID{{2}}
	c := chooser(t, guard, beside, exit)
	for seed := range uint64(20) {
		_, err := c.Pick(seeded(seed), Request{Exit: true, Port: 443})
		var none *NoPathError
		if !errors.As(err, &none) || none.Position != PositionMiddle {
			t.Errorf("seed %d: got %v, want that there is no middle", seed, err)
		}
	}
}

func TestRequestErrors(t *testing.T) {
	middle, dead := relayAt(4, 5, directory.FlagMiddleOnly), relayAt(5, 5, directory.FlagGuard)
	dead.Flags &^= directory.FlagValid
	c := chooser(t, relayAt(1, 5, directory.FlagGuard), relayAt(2, 5, directory.FlagExit), relayAt(3, 5, 0))
	for _, r := range []Request{{Length: -1}, {Length: 9}, {Length: 1, Exit: true}, {Guard: &middle}, {Guard: &dead}} {
		if hops, err := c.Pick(seeded(1), r); !errors.Is(err, ErrRequest) || hops != nil {
			t.Errorf("%+v: %v, %v", r, hops, err)
		}
	}
	if _, err := New(nil); err == nil {
		t.Error("a nil consensus was accepted")
	}
	a, b := relayAt(1, 1<<61, 0), relayAt(2, 1<<61, 0)
	if _, err := New(&directory.Consensus{Relays: []directory.Relay{a, b}}); err == nil || !strings.Contains(err.Error(), "r2") {
		t.Errorf("weights that overflow: %v", err)
	}
}

func TestRandomness(t *testing.T) {
	c := chooser(t, relayAt(1, 5, directory.FlagGuard), relayAt(2, 5, directory.FlagGuard), relayAt(3, 5, directory.FlagGuard))
	if _, err := c.PickGuard(nil, nil); err != nil {
		t.Errorf("with crypto/rand: %v", err)
	}
	broken := errors.New("broken")
	if _, err := c.PickGuard(iotest.ErrReader(broken), nil); !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's error", err)
	}
	if _, err := uniform(bytes.NewReader([]byte{1, 2, 3}), 5); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short reader: %v", err)
	}
	if _, err := uniform(endless(0xff), 5); err == nil {
		t.Error("a constant reader was accepted as random")
	}
	random := seeded(5)
	for _, n := range []uint64{1, 2, 3, 7, 8, 100} {
		count := make([]int, n)
		for range 1000 * n {
			x, err := uniform(random, n)
			if err != nil {
				t.Fatal(err)
			}
			count[x]++
		}
		for x, seen := range count {
			if seen < 800 || seen > 1200 {
				t.Errorf("%d of %d came %d times in %d", x, n, seen, 1000*n)
			}
		}
	}
	if x, err := uniform(random, math.MaxUint64); err != nil || x == math.MaxUint64 {
		t.Errorf("got %d, %v", x, err)
	}
}

// endless is a reader of one byte for ever.
type endless byte

func (b endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func TestConflict(t *testing.T) {
	a := relayAt(1, 1, 0)
	with := func(addrs ...string) *directory.Relay {
		r := relayAt(2, 1, 0)
		r.Addresses = nil
		for _, s := range addrs {
			r.Addresses = append(r.Addresses, netip.MustParseAddrPort(s))
		}
		return &r
	}
	a.Addresses = with("10.1.2.3:1", "10.5.0.1:1", "[2001:db8:1::1]:1").Addresses
	kin := with("10.9.0.1:1")
	kin.Family = []directory.FamilyID{{1}, {3}}
	a.Family = []directory.FamilyID{{2}, {3}}
	twin := with("10.9.0.1:1")
	twin.Identity = a.Identity
	for name, c := range map[string]struct {
		other *directory.Relay
		want  bool
	}{
		"itself":             {&a, true},
		"same identity":      {twin, true},
		"family":             {kin, true},
		"same /16":           {with("10.1.255.255:9"), true},
		"second address":     {with("10.9.0.1:1", "10.5.77.1:1"), true},
		"neighbouring /16":   {with("10.2.2.3:1"), false},
		"same /32":           {with("10.9.0.1:1", "[2001:db8:ffff::1]:1"), true},
		"neighbouring /32":   {with("[2001:db9:1::1]:1"), false},
		"nothing":            {with("10.9.0.1:1"), false},
		"IPv6 like the IPv4": {with("[a01:203::1]:1"), false},
		"IPv4 in IPv6":       {with("[::ffff:10.1.0.1]:1"), true},
	} {
		if Conflict(&a, c.other) != c.want || Conflict(c.other, &a) != c.want {
			t.Errorf("%s: conflict is %v, want %v", name, !c.want, c.want)
		}
	}
}

// drawRelays makes a small and crowded network.
func drawRelays(t *rapid.T, most int) []directory.Relay {
	relays := make([]directory.Relay, rapid.IntRange(0, most).Draw(t, "relays"))
	for i := range relays {
		r := relayAt(i, rapid.SampledFrom([]uint64{0, 1, 2, 1000, directory.MaxWeight}).Draw(t, "weight"),
			directory.Flags(rapid.Uint32().Draw(t, "flags"))&directory.AllFlags)
		if rapid.IntRange(0, 9).Draw(t, "down") == 0 {
			r.Flags &^= directory.FlagValid
		}
		if rapid.IntRange(0, 3).Draw(t, "fit") > 0 {
			r.Flags &^= directory.FlagMiddleOnly | directory.FlagBadExit
		}
		r.Addresses = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, rapid.Byte().Draw(t, "net") % 8, 0, byte(i)}), 1)}
		if rapid.Bool().Draw(t, "v6") {
			v6 := [16]byte{0x20, 1, 3: rapid.Byte().Draw(t, "net6") % 8, 15: byte(i)}
			r.Addresses = append(r.Addresses, netip.AddrPortFrom(netip.AddrFrom16(v6), 1))
		}
		if rapid.IntRange(0, 3).Draw(t, "has family") == 0 {
			r.Family = []directory.FamilyID{{rapid.Byte().Draw(t, "family") % 3}}
		}
		r.Exit = rapid.SampledFrom([]directory.PortPolicy{
			directory.AllPorts(), {}, {IPv4: []directory.PortRange{{Lo: 80, Hi: 443}}},
		}).Draw(t, "policy")
		relays[i] = r
	}
	return relays
}

func drawRequest(t *rapid.T, relays []directory.Relay) Request {
	r := Request{
		Exit: rapid.Bool().Draw(t, "exit"), IPv6: rapid.Bool().Draw(t, "over v6"),
		Port:   rapid.SampledFrom([]uint16{0, 25, 443}).Draw(t, "port"),
		Length: rapid.IntRange(1, 4).Draw(t, "length"),
	}
	if r.Exit {
		r.Length = max(r.Length, 2)
	}
	if len(relays) > 0 && rapid.Bool().Draw(t, "fixed") {
		g := &relays[rapid.IntRange(0, len(relays)-1).Draw(t, "guard")]
		if g.Flags.Has(up) && !g.Flags.Has(directory.FlagMiddleOnly) {
			r.Guard = g
		}
	}
	if rapid.Bool().Draw(t, "excluding") {
		not := rapid.Byte().Draw(t, "excluded") % 4
		r.Exclude = func(x *directory.Relay) bool { return x.Identity[3]%4 == not }
	}
	return r
}

// exists looks for any path at all, by trying everything.
func exists(relays []directory.Relay, r Request, hops []*directory.Relay) bool {
	if len(hops) == r.Length {
		return broken(hops, r) == ""
	}
	for i := range relays {
		if exists(relays, r, append(hops, &relays[i])) {
			return true
		}
	}
	return false
}

// TestProperties: in any small network, a path keeps every rule; and where Pick finds none, there is none.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		relays := drawRelays(t, 8)
		c, err := New(&directory.Consensus{Relays: relays})
		if err != nil {
			t.Fatal(err)
		}
		r := drawRequest(t, relays)
		hops, err := c.Pick(seeded(rapid.Uint64().Draw(t, "seed")), r)
		if err == nil {
			if what := broken(hops, r); what != "" {
				t.Fatal(what)
			}
			return
		}
		var none *NoPathError
		if !errors.As(err, &none) {
			t.Fatal(err)
		}
		if sum := none.Down + none.Unfit + none.Refusing + none.Excluded + none.Conflicts + none.Dead; sum != none.Relays || sum != len(relays) {
			t.Fatalf("%+v counts %d of %d relays", none, sum, len(relays))
		}
		if exists(relays, r, nil) {
			t.Fatalf("there is a path, but: %v", err)
		}
	})
}

// TestSearchIsBounded: a large network without a path is given up in reasonable time, and the error says so.
func TestSearchIsBounded(t *testing.T) {
	var relays []directory.Relay
	for i := range 3000 {
		r := relayAt(i, 1, directory.FlagExit)
		if i%2 == 0 {
			r.Flags |= directory.FlagGuard
		}
		r.Family = []directory.FamilyID{{byte(i % 2)}} // two camps: no third relay
		relays = append(relays, r)
	}
	_, err := chooser(t, relays...).Pick(seeded(1), Request{Exit: true, Port: 443})
	var none *NoPathError
	if !errors.As(err, &none) || none.Position != PositionMiddle || !none.Stopped || !strings.Contains(err.Error(), "given up") {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentPicks(t *testing.T) {
	c := chooser(t, realRelays(t)[:500]...)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			random := seeded(uint64(i))
			for range 200 {
				if _, err := c.Pick(random, Request{Exit: true, Port: 443}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkPick(b *testing.B) {
	c := chooser(b, realRelays(b)...)
	random := seeded(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Pick(random, Request{Exit: true, Port: 443}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	consensus := &directory.Consensus{Relays: realRelays(b)}
	for b.Loop() {
		if _, err := New(consensus); err != nil {
			b.Fatal(err)
		}
	}
}
