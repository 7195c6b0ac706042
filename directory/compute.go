package directory

import (
	"cmp"
	"crypto/sha256"
	"net/netip"
	"slices"

	"cepa/crypto/identity"
)

// Compute returns the consensus that follows from the votes, unsigned. It is a pure function of the set of votes: their order does not
// matter, nor does anything else. The votes must be for one period and of different authorities of the network, at least
// Threshold of them; otherwise the error is an *Error with ErrTooFewVotes or ErrMalformed. The descriptors that Missing names must be in the
// entries; otherwise it is ErrMissing.
//
// With n configured authorities, v ≥ Threshold votes, and f < n/3 of the authorities malicious or absent:
//
//   - A flag is set if a majority of all n set it. A relay is listed if it so gets FlagRunning and FlagValid: so at least one honest
//     authority listed it, and one that all honest ones list is in. (A majority is more than f, and n − f is a majority.)
//   - Its descriptor is the newest of those that n − Threshold + 1 votes name: at least one honest authority has accepted it, and can hand it
//     out. Two different ones among the honest authorities always leave such a one; who signs three at the time of a vote may be left out.
//   - Its weight is made of what enough of them measured, or else the lower median over all v votes, where not listing counts as 0: because
//     v > 2f, it has honest opinions, or the same value, on both sides. Newcomers are held back (weights.go).
//   - A parameter, and each of the Versions, is set if Threshold votes state it, to the lower median of what they state.
//   - A shared random value is the one that a majority of all n state.
//   - Of the relays at one IP address only ParamRelaysPerAddress are listed: the heaviest, then those that sort first.
func Compute(votes []*Vote, net *Network) (*Consensus, error) {
	if err := checkVotes(votes, net); err != nil {
		return nil, err
	}
	if missing := Missing(votes, net); len(missing) > 0 {
		return nil, fail("consensus", ErrMissing, "%d descriptors that enough votes name are not at hand", len(missing))
	}
	c := &Consensus{
		Network: net.Name, Interval: net.Interval, Period: votes[0].Period, Params: computeParams(votes, net),
		Versions: computeVersions(votes, net), Random: computeRandom(votes, net),
	}
	c.Relays = limitAddresses(computeRelays(votes, net, c.Params), int(c.Params.Get(ParamRelaysPerAddress)))
	limitNewcomers(c.Relays, votes, net, c.Params)
	if len(c.Relays) > MaxRelays {
		return nil, fail("consensus", ErrTooLarge, "%d relays: at most %d are allowed", len(c.Relays), MaxRelays)
	}
	if err := c.validate(); err != nil {
		return nil, fail("consensus", ErrMalformed, "%v", err)
	}
	c.finish()
	c.body = encode(c.wire())
	c.digest = sha256.Sum256(c.body)
	return c, nil
}

func checkVotes(votes []*Vote, net *Network) error {
	if len(votes) < net.Threshold() {
		return fail("consensus", ErrTooFewVotes, "%d of the %d needed", len(votes), net.Threshold())
	}
	seen := make(map[identity.ID]bool)
	for _, v := range votes {
		if v.Network != net.Name || v.Interval != net.Interval || v.Period != votes[0].Period {
			return fail("consensus", ErrMalformed, "votes of different networks or periods")
		}
		if _, ok := net.Authority(v.Authority); !ok || seen[v.Authority] {
			return fail("consensus", ErrMalformed, "%s votes twice or is no authority", v.Authority.Short())
		}
		seen[v.Authority] = true
	}
	return nil
}

func computeParams(votes []*Vote, net *Network) Params {
	stated := make(map[string][]int64)
	for _, v := range votes {
		for name, value := range v.Params {
			stated[name] = append(stated[name], value)
		}
	}
	params := make(Params)
	for name, values := range stated {
		if len(values) >= net.Threshold() {
			params[name] = lowerMedian(values)
		}
	}
	// Each parameter takes Threshold statements, more than half of those possible, and a vote states at most MaxParams:
	// there can still be more than MaxParams, up to twice as many. The names that sort first stay.
	if len(params) > MaxParams {
		names := make([]string, 0, len(params))
		for name := range params {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names[MaxParams:] {
			delete(params, name)
		}
	}
	return params.normal()
}

// Missing returns the digests of the descriptors without which no consensus can be computed from the votes: those that n − Threshold + 1 of
// them name, of relays that a majority calls running and valid, and that are in no entry. They are sorted.
func Missing(votes []*Vote, net *Network) [][32]byte {
	var list [][32]byte
	for _, entries := range opinions(votes) {
		if len(entries) < net.Majority() || !majorityFlags(entries, net.Majority()).Has(FlagRunning|FlagValid) {
			continue
		}
		for _, c := range candidates(entries, net.faults()+1) {
			if c.descriptor == nil {
				list = append(list, c.digest)
			}
		}
	}
	slices.SortFunc(list, func(a, b [32]byte) int { return slices.Compare(a[:], b[:]) })
	return list
}

// opinions collects the entries about each relay.
func opinions(votes []*Vote) map[identity.ID][]VoteEntry {
	all := make(map[identity.ID][]VoteEntry)
	for _, v := range votes {
		for _, e := range v.Entries {
			all[e.id()] = append(all[e.id()], e)
		}
	}
	return all
}

func computeRelays(votes []*Vote, net *Network, params Params) []Relay {
	var relays []Relay
	for _, entries := range opinions(votes) {
		if len(entries) < net.Majority() {
			continue
		}
		flags := majorityFlags(entries, net.Majority())
		if !flags.Has(FlagRunning | FlagValid) {
			continue
		}
		d := agreedDescriptor(entries, net.faults()+1)
		if d == nil {
			continue
		}
		relays = append(relays, d.relay(flags, agreedWeight(entries, len(votes), d, net, params)))
	}
	slices.SortFunc(relays, func(a, b Relay) int { return a.Identity.Compare(b.Identity) })
	limitNewcomers(relays, votes, net, params) // so that none of them displaces others at its address
	return relays
}

func majorityFlags(entries []VoteEntry, majority int) Flags {
	var flags Flags
	for bit := Flags(1); bit <= AllFlags; bit <<= 1 {
		count := 0
		for _, e := range entries {
			if e.Flags.Has(bit) {
				count++
			}
		}
		if count >= majority {
			flags |= bit
		}
	}
	return flags
}

// candidate is a descriptor that votes name for a relay.
type candidate struct {
	digest     [32]byte
	descriptor *Descriptor // nil when it is in no entry
	votes      int
}

// candidates returns the descriptors that at least so many of the entries name.
func candidates(entries []VoteEntry, least int) []candidate {
	var list []candidate
	for i := range entries {
		digest := entries[i].named()
		k := slices.IndexFunc(list, func(c candidate) bool { return c.digest == digest })
		if k < 0 {
			k = len(list)
			list = append(list, candidate{digest: digest})
		}
		list[k].votes++
		if list[k].descriptor == nil {
			list[k].descriptor = entries[i].Descriptor
		}
	}
	return slices.DeleteFunc(list, func(c candidate) bool { return c.votes < least })
}

// agreedDescriptor returns the newest descriptor that at least so many of the entries name, nil if there is none.
func agreedDescriptor(entries []VoteEntry, least int) *Descriptor {
	var newest *Descriptor
	for _, c := range candidates(entries, least) {
		// Two descriptors with one sequence are a relay's fault; the digest makes the choice the same everywhere.
		if d := c.descriptor; d != nil && (newest == nil || cmp.Or(cmp.Compare(newest.Sequence, d.Sequence), slices.Compare(d.digest[:], newest.digest[:])) < 0) {
			newest = d
		}
	}
	return newest
}

// limitAddresses drops relays beyond the limit at any one of their IP addresses. relays are sorted by identity and stay so.
func limitAddresses(relays []Relay, limit int) []Relay {
	order := make([]int, len(relays))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(relays[b].Weight, relays[a].Weight) })
	used := make(map[netip.Addr]int)
	keep := make([]bool, len(relays))
	for _, i := range order {
		addrs := hosts(relays[i].Addresses)
		keep[i] = !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return used[a] >= limit })
		if keep[i] {
			for _, a := range addrs {
				used[a]++
			}
		}
	}
	kept := relays[:0]
	for i := range relays {
		if keep[i] {
			kept = append(kept, relays[i])
		}
	}
	return kept
}

// hosts returns the different IP addresses of a relay.
func hosts(addrs []netip.AddrPort) []netip.Addr {
	var ips []netip.Addr
	for _, a := range addrs {
		if !slices.Contains(ips, a.Addr()) {
			ips = append(ips, a.Addr())
		}
	}
	return ips
}

// lowerMedian returns the middle value, or the lower of the two in the middle. It sorts values, of which there is at least one.
func lowerMedian[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[(len(values)-1)/2]
}
