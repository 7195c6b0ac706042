package directory

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// hourLater returns what becomes of relays in an hour: 1 % go, 1 % come, 30 % change weight (by up to a quarter), 2 % change flags. onionKeys says
// whether keys are replaced too, each after 28 days.
func hourLater(random *testRand, relays []Relay, onionKeys bool) []Relay {
	next := make([]Relay, 0, len(relays)+len(relays)/100)
	for _, r := range relays {
		if random.intn(100) == 0 {
			fresh := r // as another one of its kind
			fresh.Identity, fresh.OnionKey = random.bytes32(), random.bytes32()
			next = append(next, fresh)
			continue
		}
		if random.intn(100) < 30 && r.Weight > 0 {
			r.Weight = max(1, r.Weight*uint64(750+random.intn(501))/1000)
		}
		if random.intn(100) < 2 {
			r.Flags ^= []Flags{FlagGuard, FlagStable, FlagFast, FlagHSDir}[random.intn(4)]
		}
		if onionKeys && random.intn(28*24) == 0 {
			r.OnionKey = random.bytes32()
		}
		next = append(next, r)
	}
	slices.SortFunc(next, func(a, b Relay) int { return a.Identity.Compare(b.Identity) })
	return next
}

// manyRelays returns n relays like the real ones.
func manyRelays(t testing.TB, n int) []Relay {
	real := realRelays(t)
	random := &testRand{state: [32]byte{1}}
	families := map[FamilyID]FamilyID{}
	relays := slices.Clone(real[:min(n, len(real))])
	for round := 0; len(relays) < n; round++ {
		clear(families)
		for _, r := range real[:min(len(real), n-len(relays))] {
			r.Identity, r.OnionKey = random.bytes32(), random.bytes32()
			r.Nickname = fmt.Sprintf("%.12s%d", r.Nickname, random.intn(1000))
			r.Addresses = slices.Clone(r.Addresses)
			for i, a := range r.Addresses { // other networks
				b := a.Addr().AsSlice()
				b[1], b[2] = b[1]+byte(37*(round+1)), b[2]+byte(91*(round+1))
				ip, _ := netip.AddrFromSlice(b)
				r.Addresses[i] = netip.AddrPortFrom(ip, a.Port())
			}
			if len(r.Family) > 0 {
				f, ok := families[r.Family[0]]
				if !ok {
					f = random.bytes32()
					families[r.Family[0]] = f
				}
				r.Family = []FamilyID{f}
			}
			relays = append(relays, r)
		}
	}
	slices.SortFunc(relays, func(a, b Relay) int { return a.Identity.Compare(b.Identity) })
	return relays
}

// bigSizes are what the figures of doc/benchmarks.md are for.
var bigSizes = []int{7195, 70_000}

// TestDiffSize guards what every client downloads each hour, and in a day: of the real relays, signed by 9.
func TestDiffSize(t *testing.T) {
	network, parties := testNetwork(t, 9)
	random := &testRand{state: [32]byte{2}}
	relays := realRelays(t)
	period := network.Period(epoch)
	old := signedConsensus(t, network, parties, period, relays, nil)
	next := signedConsensus(t, network, parties, period+1, hourLater(random, relays, false), nil)
	b := checkDiff(t, network, old, next)
	packed := CompressDiff(b)
	t.Logf("difference after an hour: %d bytes, %d compressed", len(b), len(packed))
	if len(packed) > 20_000 {
		t.Errorf("the difference has %d bytes, want at most 20,000", len(packed))
	}
	back, err := Decompress(packed, MaxDiffSize)
	if err != nil || string(back) != string(b) {
		t.Errorf("decompression gives something else: %v", err)
	}
	const hours = 4
	total := 0
	relays = next.Relays
	for h := range hours {
		relays = hourLater(random, relays, true)
		later := signedConsensus(t, network, parties, period+2+uint64(h), relays, nil)
		b, err := Diff(next, later)
		if err != nil {
			t.Fatal(err)
		}
		total += len(CompressDiff(b))
		next = later
	}
	perDay := total * 24 / hours
	t.Logf("an always-on client: %d bytes a day", perDay)
	if perDay > 700_000 {
		t.Errorf("an always-on client fetches %d bytes a day, want at most 700,000", perDay)
	}
}

// BenchmarkSizes prints the sizes, and how long what a client, a cache and an authority do takes, for both sizes of a network.
//
//	go test ./directory -run '^$' -bench Sizes -benchtime 3x
func BenchmarkSizes(b *testing.B) {
	for _, n := range bigSizes {
		network, parties := testNetwork(b, 9)
		period := network.Period(epoch)
		relays := manyRelays(b, n)
		old := signedConsensus(b, network, parties, period, relays, nil)
		random := &testRand{state: [32]byte{2}}
		next := signedConsensus(b, network, parties, period+1, hourLater(random, relays, false), nil)
		now := next.ValidAfter
		diff, err := Diff(old, next)
		if err != nil {
			b.Fatal(err)
		}
		packed, packedDiff := next.Compressed(), CompressDiff(diff)
		name := func(what string) string { return fmt.Sprintf("%s/relays=%d", what, n) }
		b.Run(name("client-whole"), func(b *testing.B) {
			cpu := cpuOf(b)
			for b.Loop() {
				raw, err := Decompress(packed, MaxConsensusSize)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := ParseConsensus(raw, network, now); err != nil {
					b.Fatal(err)
				}
			}
			cpu()
			b.ReportMetric(float64(len(packed)), "compressed-bytes")
			b.ReportMetric(float64(heapOf(func() any {
				raw, _ := Decompress(packed, MaxConsensusSize)
				c, _ := ParseConsensus(raw, network, now)
				return c
			})), "heap-bytes")
		})
		b.Run(name("client-difference"), func(b *testing.B) {
			cpu := cpuOf(b)
			for b.Loop() {
				raw, err := Decompress(packedDiff, MaxDiffSize)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := ApplyDiff(old, raw, network, now); err != nil {
					b.Fatal(err)
				}
			}
			cpu()
			b.ReportMetric(float64(len(packedDiff)), "compressed-bytes")
		})
		b.Run(name("cache-compress"), func(b *testing.B) {
			cpu := cpuOf(b)
			for b.Loop() {
				next.Compressed()
			}
			cpu()
		})
		b.Run(name("cache-difference"), func(b *testing.B) {
			cpu := cpuOf(b)
			for b.Loop() {
				d, err := Diff(old, next)
				if err != nil {
					b.Fatal(err)
				}
				CompressDiff(d)
			}
			cpu()
		})
		b.Run(name("always-on-day"), func(b *testing.B) {
			total := 0
			cpu := cpuOf(b)
			for b.Loop() {
				last, relays := next, slices.Clone(next.Relays)
				total = 0
				for h := range 24 {
					relays = hourLater(random, relays, true)
					later := signedConsensus(b, network, parties, period+2+uint64(h), relays, nil)
					d, err := Diff(last, later)
					if err != nil {
						b.Fatal(err)
					}
					total += len(CompressDiff(d))
					last = later
				}
			}
			cpu()
			b.ReportMetric(float64(total), "compressed-bytes")
		})
	}
}

// cpuOf reports the CPU time of the whole process for each turn of the loop: on a busy machine it says more than the clock does.
func cpuOf(b *testing.B) func() {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	runtime.GC()
	before := cpu()
	return func() { b.ReportMetric(float64((cpu()-before).Microseconds())/1000/float64(b.N), "CPU-ms/op") }
}

// heapOf returns the greatest live heap seen while f runs and after it, less what there was before: with the collector running all the time.
func heapOf(f func() any) uint64 {
	var before, m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	peak := uint64(0)
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
			}
		}
	}()
	v := f()
	close(done)
	<-watch
	runtime.ReadMemStats(&m)
	peak = max(peak, m.HeapAlloc)
	runtime.KeepAlive(v)
	return peak - min(peak, before.HeapAlloc)
}
