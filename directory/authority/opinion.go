package authority

import (
	"net/netip"
	"slices"
	"time"

	"cepa/directory"
)

// What the flags ask for, unless Config.TestingFlags. Where a rule says "or the median", it takes the lower of both, so that a young or
// small network has guards too.
const (
	// fastRate is the weight in KB/s for FlagFast, or the lower eighth.
	fastRate = 100
	// guardRate is the weight in KB/s for FlagGuard (with Fast and Stable), or the median.
	guardRate = 2000
	// guardAge is for how long a relay must have been known for FlagGuard, or the median.
	guardAge = 8 * 24 * time.Hour
	// stableAge is for how long a relay must have been known for FlagStable, or the median.
	stableAge = 7 * 24 * time.Hour
	// hsdirAge is for how long a relay must have been known for FlagHSDir. No median: whoever picks a place on the ring of
	// directories by picking an identity must at least wait.
	hsdirAge = 96 * time.Hour
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
	welcome := limitAddresses(relays, int(params.Get(directory.ParamRelaysPerAddress)))
	entries := make([]directory.VoteEntry, len(relays))
	weights, ages := make([]uint64, len(relays)), make([]time.Duration, len(relays))
	for i, e := range relays {
		weights[i] = min(e.descriptor.BandwidthRate, most)
		ages[i] = now.Sub(e.firstSeen)
	}
	lowWeight, midWeight, midAge := quantile(weights, 1, 8), quantile(weights, 1, 2), quantile(ages, 1, 2)
	for i, e := range relays {
		// Everybody who published lately counts as running, unless it says itself that it is not: nobody is tested for being
		// reachable yet.
		flags := directory.FlagRunning
		if e.descriptor.Extra.Hibernating {
			flags = 0
		}
		if welcome[i] {
			flags |= directory.FlagValid
		}
		if !e.descriptor.ExitPolicy.IsZero() {
			flags |= directory.FlagExit
		}
		if weights[i] >= min(fastRate, lowWeight) {
			flags |= directory.FlagFast
		}
		if ages[i] >= min(stableAge, midAge) {
			flags |= directory.FlagStable
		}
		if flags.Has(directory.FlagFast|directory.FlagStable) && weights[i] >= min(guardRate, midWeight) && ages[i] >= min(guardAge, midAge) {
			flags |= directory.FlagGuard
		}
		if ages[i] >= hsdirAge {
			flags |= directory.FlagHSDir
		}
		if a.cfg.TestingFlags {
			flags |= directory.FlagFast | directory.FlagStable | directory.FlagGuard | directory.FlagHSDir
		}
		entries[i] = directory.VoteEntry{Descriptor: e.descriptor, Flags: flags, Weight: weights[i]}
	}
	return entries
}

// limitAddresses tells which relays are among the first that were seen at each of their IP addresses, so that late-comers cannot
// displace whom we know.
func limitAddresses(relays []entry, limit int) []bool {
	order := make([]int, len(relays))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return relays[x].firstSeen.Compare(relays[y].firstSeen) })
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
func quantile[T uint64 | time.Duration](values []T, num, den int) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[(len(sorted)-1)*num/den]
}
