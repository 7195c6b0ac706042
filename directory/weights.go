package directory

import (
	"math/bits"
	"net/netip"

	"cepa/crypto/identity"
)

// How a relay's weight comes about. Measured means that enough authorities have drawn traffic through it (measuringVotes); Measured
// of their votes is what came through, in KB/s.
//
//	measured:   x = lower median of what they measured
//	            y = what the relay says that it carried on its last whole day
//	            weight = min(its rate, max(x, min(y, 4/3 x)))
//	unmeasured: min(lower median of the weights of all votes, ParamUnmeasuredWeight),
//	            and then less, if the newcomers are too many together
//
// What a liar gains: x is not the relay's word, so whatever it states, its weight is at most 4/3 x. Among the m measured values are at
// most f < n/3 of malicious authorities, and m ≥ 2f+1: so x has honest values, or the same value, on both sides.
//
// Newcomers are the unmeasured relays without FlagStable; and all unmeasured ones, once there are measured relays in three quarters of the
// neighbourhoods (an IPv4 /16, an IPv6 /32) with relays that have FlagStable. Neighbourhoods are counted and not relays, because these cost less. With E the weight of all others and N that of the newcomers, N is made at most E · s / (100 − s), with s =
// ParamUnmeasuredShare: then N / (E + N) ≤ s / 100. How many newcomers there are, where, and what they state does not matter:
// however many relays somebody adds in a period, until they are measured they have no more than s percent of the weight together. As
// long as there is nobody else, in the first consensus of a network, newcomers have all of it.

// measuredShare is the part of the neighbourhoods, in percent, from which on all unmeasured relays count as newcomers. In a network that begins to
// measure, those that wait for their turn then lose little to the others: about a quarter of the weight.
const measuredShare = 75

// measuringVotes returns how many votes must have measured a relay: 2f+1 for the highest f < n/3.
func (n *Network) measuringVotes() int { return 2*((len(n.Authorities)-1)/3) + 1 }

// agreedWeight returns the weight of a relay before newcomers are held back. entries are those of the votes that list it.
func agreedWeight(entries []VoteEntry, votes int, d *Descriptor, net *Network, params Params) uint64 {
	if x, ok := agreedMeasurement(entries, net); ok {
		return CombinedWeight(x, d)
	}
	weights := make([]uint64, votes) // 0 for those who do not list it
	for i, e := range entries {
		weights[i] = e.Weight
	}
	return min(lowerMedian(weights), uint64(params.Get(ParamUnmeasuredWeight)))
}

// agreedMeasurement returns what a relay was measured at, if it was.
func agreedMeasurement(entries []VoteEntry, net *Network) (uint64, bool) {
	var measured []uint64
	for _, e := range entries {
		if e.Measured > 0 {
			measured = append(measured, e.Measured)
		}
	}
	if len(measured) < net.measuringVotes() {
		return 0, false
	}
	return lowerMedian(measured), true
}

// CombinedWeight is the weight of a relay through which x KB/s were measured: what it promises bounds it, and what it says that it carried
// may make up for traffic that the measurement left room for, but adds no more than a third.
func CombinedWeight(x uint64, d *Descriptor) uint64 {
	return min(d.BandwidthRate, max(x, min(d.carried(), x+x/3)))
}

// carried returns what a relay says that it carried on its last whole day, in KB/s on average: the lesser of both directions. Days are
// told rounded up, so one unit is left out.
func (d *Descriptor) carried() uint64 {
	history := d.Extra.History
	if len(history) == 0 {
		return 0
	}
	last := history[len(history)-1]
	units := min(last.Read, last.Written)
	if units == 0 {
		return 0
	}
	return (units - 1) * HistoryUnit / (24 * 3600 * 1000)
}

// limitNewcomers holds the weights of newcomers among the relays of a consensus back, so that they sum up to no more than their share.
func limitNewcomers(relays []Relay, votes []*Vote, net *Network, params Params) {
	measured := measuredRelays(votes, net)
	places := make(map[netip.Prefix]bool) // with stable relays: whether one of them was measured
	for i := range relays {
		if r := &relays[i]; r.Flags.Has(FlagStable) {
			place := neighbourhood(r.Addresses[0].Addr())
			places[place] = places[place] || measured[r.Identity]
		}
	}
	known := 0
	for _, m := range places {
		if m {
			known++
		}
	}
	all := known > 0 && known*100 >= len(places)*measuredShare
	newcomer := func(r *Relay) bool { return !measured[r.Identity] && (all || !r.Flags.Has(FlagStable)) }

	var others, newcomers uint64 // sums stay below MaxRelays * MaxWeight, far from 2^63
	for i := range relays {
		if r := &relays[i]; newcomer(r) {
			newcomers += r.Weight
		} else {
			others += r.Weight
		}
	}
	share := uint64(params.Get(ParamUnmeasuredShare))
	if others == 0 || share >= 100 {
		return
	}
	hi, lo := bits.Mul64(others, share)
	budget, _ := bits.Div64(hi, lo, 100-share) // may round down
	if newcomers <= budget {
		return
	}
	for i := range relays {
		if r := &relays[i]; newcomer(r) {
			hi, lo := bits.Mul64(r.Weight, budget)
			r.Weight, _ = bits.Div64(hi, lo, newcomers) // Weight ≤ newcomers, so it fits
		}
	}
}

// neighbourhood is the IPv4 /16 or IPv6 /32 of a relay's first address.
func neighbourhood(a netip.Addr) netip.Prefix {
	bits := 16
	if a.Is6() {
		bits = 32
	}
	prefix, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // an invalid address, which descriptors do not have
	}
	return prefix
}

// measuredRelays returns whom enough votes have measured.
func measuredRelays(votes []*Vote, net *Network) map[identity.ID]bool {
	counts := make(map[identity.ID]int)
	for _, v := range votes {
		for _, e := range v.Entries {
			if e.Measured > 0 {
				counts[e.id()]++
			}
		}
	}
	measured := make(map[identity.ID]bool, len(counts))
	for id, n := range counts {
		if n >= net.measuringVotes() {
			measured[id] = true
		}
	}
	return measured
}
