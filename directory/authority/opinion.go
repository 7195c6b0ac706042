package authority

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"cepa/directory"
)

// What the flags ask for, unless Config.TestingFlags; doc/directory.md says why. Where a rule says "or the median", it takes the lower of both, so that a
// young or small network has guards too. Quantiles are those of the running relays.
const (
	// fastRate is the weight in KB/s for FlagFast, or the lower eighth.
	fastRate = 100
	// stableBetween is the mean time between failures for FlagStable, or the median.
	stableBetween = 7 * 24 * time.Hour
	// guardRate is the weight in KB/s for FlagGuard (with Fast and Stable), or the median.
	guardRate = 2000
	// guardAge is for how long a relay must have been known for FlagGuard, or the median.
	guardAge = 8 * 24 * time.Hour
	// guardUptime is the part of the time in which it must have been running for FlagGuard, or the median.
	guardUptime = 0.98
	// hsdirRun is for how long a relay must have been running without interruption for FlagHSDir. No median: whoever picks a place on the ring of
	// directories by picking an identity must at least wait.
	hsdirRun = 96 * time.Hour
)

// makeVote returns this authority's vote for a period, unsigned.
func (a *Authority) makeVote(period uint64, now time.Time) *directory.Vote {
	return &directory.Vote{
		Network:   a.cfg.Network.Name,
		Interval:  a.cfg.Network.Interval,
		Period:    period,
		Authority: a.self.Identity,
		Params:    a.cfg.Network.Params,
		Entries:   a.opinions(a.prune(now), now),
	}
}

// opinions says what this authority thinks of the relays. It lists them all, sorted as they come.
func (a *Authority) opinions(relays []entry, now time.Time) []directory.VoteEntry {
	params := a.cfg.Network.Params
	most := uint64(params.Get(directory.ParamUnmeasuredWeight))
	seen := make([]directory.Observed, len(relays))
	for i, e := range relays {
		seen[i] = a.observed(e, now)
	}
	welcome := limitAddresses(relays, seen, int(params.Get(directory.ParamRelaysPerAddress)))
	entries, facts := make([]directory.VoteEntry, len(relays)), make([]fact, len(relays))
	for i, e := range relays {
		entries[i] = directory.VoteEntry{Descriptor: e.descriptor, Weight: min(e.descriptor.BandwidthRate, most), Measured: seen[i].Measured}
		facts[i] = fact{
			running: seen[i].Running, valid: welcome[i], exit: !e.descriptor.ExitPolicy.IsZero(), weight: entries[i].Weight,
			age: now.Sub(e.firstSeen), between: seen[i].Between, run: seen[i].Run, uptime: seen[i].Uptime,
		}
		if seen[i].Measured > 0 {
			facts[i].weight = directory.CombinedWeight(seen[i].Measured, e.descriptor)
		}
	}
	for i, flags := range judge(facts) {
		if a.cfg.TestingFlags {
			flags |= directory.FlagFast | directory.FlagStable | directory.FlagGuard | directory.FlagHSDir
		}
		entries[i].Flags = flags
	}
	return entries
}

// observed returns what the tests say of a relay; without tests, that it has been running since it came. One that says itself that it hibernates is not
// running.
func (a *Authority) observed(e entry, now time.Time) directory.Observed {
	age := now.Sub(e.firstSeen)
	o := directory.Observed{Reached: true, Running: true, Run: age, Between: age, Uptime: 1}
	if a.cfg.Prober != nil {
		o = a.cfg.Prober.Observed(e.descriptor.Identity)
	}
	if e.descriptor.Extra.Hibernating {
		o.Running = false
	}
	return o
}

// fact is what flags are given for.
type fact struct {
	running, valid, exit bool
	weight               uint64 // KB/s
	age                  time.Duration
	between, run         time.Duration
	uptime               float64
}

// judge gives the flags.
func judge(facts []fact) []directory.Flags {
	var weights []uint64
	var ages, betweens []time.Duration
	var uptimes []float64
	for _, f := range facts {
		if f.running && f.valid {
			weights, ages = append(weights, f.weight), append(ages, f.age)
			betweens, uptimes = append(betweens, f.between), append(uptimes, f.uptime)
		}
	}
	fast := min(fastRate, quantile(weights, 1, 8))
	stable := min(stableBetween, quantile(betweens, 1, 2))
	guard := fact{weight: min(guardRate, quantile(weights, 1, 2)), age: min(guardAge, quantile(ages, 1, 2)), uptime: min(guardUptime, quantile(uptimes, 1, 2))}

	all := make([]directory.Flags, len(facts))
	for i, f := range facts {
		var flags directory.Flags
		set := func(flag directory.Flags, yes bool) {
			if yes {
				flags |= flag
			}
		}
		set(directory.FlagRunning, f.running)
		set(directory.FlagValid, f.valid)
		set(directory.FlagExit, f.exit)
		set(directory.FlagFast, f.weight >= fast)
		set(directory.FlagStable, f.between >= stable)
		set(directory.FlagGuard, flags.Has(directory.FlagFast|directory.FlagStable) && f.weight >= guard.weight && f.age >= guard.age && f.uptime >= guard.uptime)
		set(directory.FlagHSDir, f.run >= hsdirRun)
		all[i] = flags
	}
	return all
}

// limitAddresses tells which relays are among the first that were seen at each of their IP addresses, so that late-comers cannot
// displace whom we know. Those that were reached there come before those that only say that they are there.
func limitAddresses(relays []entry, seen []directory.Observed, limit int) []bool {
	order := make([]int, len(relays))
	for i := range order {
		order[i] = i
	}
	rank := func(i int) int {
		if seen[i].Reached {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(order, func(x, y int) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), relays[x].firstSeen.Compare(relays[y].firstSeen))
	})
	used := make(map[netip.Addr]int)
	welcome := make([]bool, len(relays))
	for _, i := range order {
		var ips []netip.Addr
		for _, addr := range relays[i].descriptor.Addresses {
			if !slices.Contains(ips, addr.Addr()) {
				ips = append(ips, addr.Addr())
			}
		}
		welcome[i] = !slices.ContainsFunc(ips, func(ip netip.Addr) bool { return used[ip] >= limit })
		if welcome[i] {
			for _, ip := range ips {
				used[ip]++
			}
		}
	}
	return welcome
}

// quantile returns the value below which at most num/den of the values lie; 0 of none.
func quantile[T cmp.Ordered](values []T, num, den int) T {
	if len(values) == 0 {
		var none T
		return none
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[(len(sorted)-1)*num/den]
}
