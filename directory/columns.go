package directory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// consensusBody is what the authorities sign. The relays stay undecoded until the signatures are verified.
type consensusBody struct {
	_        struct{} `cbor:",toarray"`
	Network  string
	Interval uint64 // seconds
	Period   uint64
	Params   Params
	Versions [2]string       // recommended, required
	Random   [2][]byte       // previous, current
	Relays   cbor.RawMessage // columns
}

// columns holds the relays by columns, because values of one kind compress best side by side. Every column has its relays in
// the order of their identities. Columns of values that repeat have a table of the different values, sorted, and one index
// into it a relay (or, for families, a membership).
//
// Identities are sorted, so their first two bytes are written as what they are more than those of the relay before. Most relays have one port for all
// addresses, so further ones are written as what they are more than the first, modulo 2^16.
type columns struct {
	_            struct{} `cbor:",toarray"`
	IdentityGaps []uint32 // of the first two bytes, big-endian
	Identities   []byte   // 30 each, the rest
	OnionKeys    []byte   // 32 each
	Suites       []byte   // 1 each
	NameSizes    []byte   // length of each nickname
	Names        string   // nicknames, one after the other
	AddrCounts   []byte   // 16 × number of IPv4 addresses + number of IPv6 addresses
	IPv4         []byte   // 4 each address
	IPv6         []byte   // 16 each address
	Ports        []byte   // 2 each relay, big-endian: that of the first address
	MorePorts    []byte   // 2 each further address, big-endian, in the order of the addresses
	Flags        []byte   // 4 each relay: the lowest byte of all relays, then the next of all, and so on
	Weights      []uint64
	Policies     []string // text forms, the table of Policy
	Policy       []uint32
	Versions     []string // the table of Version
	Version      []uint32
	Families     []byte // 32 each, the table of Family
	FamilySizes  []byte // number of families of each relay
	Family       []uint32
}

// identityHead is how many bytes of an identity IdentityGaps stands for.
const identityHead = 2

// wire returns the wire form of the consensus.
func (c *Consensus) wire() *consensusBody {
	return &consensusBody{
		Network:  c.Network,
		Interval: uint64(c.Interval / time.Second),
		Period:   c.Period,
		Params:   c.Params,
		Versions: c.Versions.wire(),
		Random:   c.Random.wire(),
		Relays:   encode(toColumns(c.Relays)),
	}
}

// consensus converts the wire form and checks everything.
func (w *consensusBody) consensus() (*Consensus, error) {
	if w.Interval > uint64(MaxInterval/time.Second) {
		return nil, errors.New("interval is out of range")
	}
	var cols columns
	if err := decodingBig.Unmarshal(w.Relays, &cols); err != nil {
		return nil, err
	}
	relays, err := cols.relays()
	if err != nil {
		return nil, err
	}
	c := &Consensus{
		Network:  w.Network,
		Interval: time.Duration(w.Interval) * time.Second,
		Period:   w.Period,
		Params:   w.Params.normal(),
		Versions: Versions{w.Versions[0], w.Versions[1]},
		Relays:   relays,
	}
	if err := parseRandom(w.Random[:], &c.Random.Previous, &c.Random.Current); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	c.finish()
	return c, nil
}

func toColumns(relays []Relay) *columns {
	var c columns
	policies, versions, families := make(table), make(table), make(table)
	texts := make([]string, len(relays)) // of the policies
	formatted := make(map[policyKey]string)
	for i := range relays {
		r := &relays[i]
		key := keyOf(r.Exit)
		text, ok := formatted[key]
		if !ok {
			text = r.Exit.String()
			formatted[key] = text
			policies.add(text)
		}
		texts[i] = text
		versions.add(r.Version)
		for _, f := range r.Family {
			families.add(string(f[:]))
		}
	}
	c.Policies, c.Versions = policies.number(), versions.number()
	for _, f := range families.number() {
		c.Families = append(c.Families, f...)
	}
	var names []byte
	c.Flags = make([]byte, 4*len(relays))
	head := uint32(0) // of the last identity
	for i := range relays {
		r := &relays[i]
		this := uint32(binary.BigEndian.Uint16(r.Identity[:]))
		c.IdentityGaps = append(c.IdentityGaps, this-head)
		head = this
		c.Identities = append(c.Identities, r.Identity[identityHead:]...)
		c.OnionKeys = append(c.OnionKeys, r.OnionKey[:]...)
		c.Suites = append(c.Suites, r.Suite)
		c.NameSizes = append(c.NameSizes, byte(len(r.Nickname)))
		names = append(names, r.Nickname...)
		var count byte
		for _, a := range r.Addresses {
			if a.Addr().Is4() {
				count += 1 << 4
				c.IPv4 = append(c.IPv4, a.Addr().AsSlice()...)
			} else {
				count++
				c.IPv6 = append(c.IPv6, a.Addr().AsSlice()...)
			}
			if count == 1<<4 || count == 1 {
				c.Ports = binary.BigEndian.AppendUint16(c.Ports, a.Port())
			} else {
				c.MorePorts = binary.BigEndian.AppendUint16(c.MorePorts, a.Port()-r.Addresses[0].Port())
			}
		}
		c.AddrCounts = append(c.AddrCounts, count)
		for plane := range 4 {
			c.Flags[plane*len(relays)+i] = byte(r.Flags >> (8 * plane))
		}
		c.Weights = append(c.Weights, r.Weight)
		c.Policy = append(c.Policy, policies[texts[i]])
		c.Version = append(c.Version, versions[r.Version])
		c.FamilySizes = append(c.FamilySizes, byte(len(r.Family)))
		for _, f := range r.Family {
			c.Family = append(c.Family, families[string(f[:])])
		}
	}
	c.Names = string(names)
	return &c
}

// policyKey tells policies apart by where they are: relays that were parsed together share them, and each is formatted once.
type policyKey struct {
	v4, v6 *PortRange
	n4, n6 int
}

func keyOf(p PortPolicy) policyKey {
	k := policyKey{n4: len(p.IPv4), n6: len(p.IPv6)}
	if k.n4 > 0 {
		k.v4 = &p.IPv4[0]
	}
	if k.n6 > 0 {
		k.v6 = &p.IPv6[0]
	}
	return k
}

// table numbers different values in their order.
type table map[string]uint32

func (t table) add(v string) { t[v] = 0 }

// number gives each value its index and returns the values sorted.
func (t table) number() []string {
	values := make([]string, 0, len(t))
	for v := range t {
		values = append(values, v)
	}
	slices.Sort(values)
	for i, v := range values {
		t[v] = uint32(i)
	}
	return values
}

// relays converts the columns. It checks that they fit together, so that nothing is out of range and nothing remains; whether
// the values are lawful and the tables have their one form is for validate and the comparison with what would be written.
func (c *columns) relays() ([]Relay, error) {
	n := len(c.Suites)
	v4, v6 := 0, 0
	for i, count := range c.AddrCounts {
		if count == 0 {
			return nil, fmt.Errorf("relay %d has no address", i)
		}
		v4 += int(count >> 4)
		v6 += int(count & 15)
	}
	names, families := sum(c.NameSizes), sum(c.FamilySizes)
	if n > MaxRelays || len(c.IdentityGaps) != n || len(c.Identities) != (32-identityHead)*n || len(c.OnionKeys) != 32*n || len(c.NameSizes) != n || len(c.Names) != names ||
		len(c.AddrCounts) != n || len(c.IPv4) != 4*v4 || len(c.IPv6) != 16*v6 || len(c.Ports) != 2*n || len(c.MorePorts) != 2*(v4+v6-n) ||
		len(c.Flags) != 4*n || len(c.Weights) != n || len(c.Policy) != n || len(c.Version) != n ||
		len(c.FamilySizes) != n || len(c.Family) != families || len(c.Families)%32 != 0 {
		return nil, errors.New("columns differ in length")
	}
	policies := make([]PortPolicy, len(c.Policies))
	for i, text := range c.Policies {
		var err error
		if policies[i], err = ParsePortPolicy(text); err != nil {
			return nil, err
		}
	}
	familyTable := make([]FamilyID, len(c.Families)/32)
	for i := range familyTable {
		familyTable[i] = FamilyID(c.Families[32*i:])
	}
	// One array of each kind for all relays: fewer objects for the garbage collector than one a relay.
	allAddresses := make([]netip.AddrPort, 0, v4+v6)
	allFamilies := make([]FamilyID, 0, families)
	relays := make([]Relay, n)
	rest := *c
	head := uint32(0) // of the last identity
	for i := range relays {
		if head += c.IdentityGaps[i]; c.IdentityGaps[i] > math.MaxUint16 || head > math.MaxUint16 {
			return nil, fmt.Errorf("relay %d: its identity is out of range", i)
		}
		if int(c.Policy[i]) >= len(policies) || int(c.Version[i]) >= len(c.Versions) {
			return nil, fmt.Errorf("relay %d: index beyond its table", i)
		}
		first := len(allAddresses)
		port := binary.BigEndian.Uint16(take(&rest.Ports, 2))
		add := func(ip netip.Addr) {
			p := port
			if len(allAddresses) > first {
				p += binary.BigEndian.Uint16(take(&rest.MorePorts, 2))
			}
			allAddresses = append(allAddresses, netip.AddrPortFrom(ip, p))
		}
		for range c.AddrCounts[i] >> 4 {
			add(netip.AddrFrom4([4]byte(take(&rest.IPv4, 4))))
		}
		for range c.AddrCounts[i] & 15 {
			add(netip.AddrFrom16([16]byte(take(&rest.IPv6, 16))))
		}
		firstFamily := len(allFamilies)
		for range c.FamilySizes[i] {
			k := rest.Family[0]
			rest.Family = rest.Family[1:]
			if int(k) >= len(familyTable) {
				return nil, fmt.Errorf("relay %d: index beyond its table", i)
			}
			allFamilies = append(allFamilies, familyTable[k])
		}
		size := int(c.NameSizes[i])
		relays[i] = Relay{
			OnionKey:  [32]byte(c.OnionKeys[32*i:]),
			Suite:     c.Suites[i],
			Nickname:  rest.Names[:size],
			Addresses: allAddresses[first:len(allAddresses):len(allAddresses)],
			Weight:    c.Weights[i],
			Exit:      policies[c.Policy[i]],
			Version:   c.Versions[c.Version[i]],
		}
		rest.Names = rest.Names[size:]
		id := binary.BigEndian.AppendUint16(relays[i].Identity[:0], uint16(head))
		copy(relays[i].Identity[len(id):], take(&rest.Identities, 32-identityHead))
		for plane := range 4 {
			relays[i].Flags |= Flags(c.Flags[plane*n+i]) << (8 * plane)
		}
		if firstFamily < len(allFamilies) {
			relays[i].Family = allFamilies[firstFamily:len(allFamilies):len(allFamilies)]
		}
	}
	return relays, nil
}

// take cuts the first n bytes off b, which has them.
func take(b *[]byte, n int) []byte {
	head := (*b)[:n]
	*b = (*b)[n:]
	return head
}

func sum(sizes []byte) int {
	total := 0
	for _, n := range sizes {
		total += int(n)
	}
	return total
}
