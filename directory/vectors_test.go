package directory_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
	"cepa/directory/mirror"
)

// The file in testdata is made by the functions below from the standard library alone, never by the code it tests: CBOR
// item by item, and the outcome of the votes by hand.
//
//	go test ./directory -run TestVectors -update
var update = flag.Bool("update", false, "write the vectors in testdata anew")

// hexBytes is written as a hex string.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }
func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vectors is testdata/documents.json. Times are Unix seconds.
type vectors struct {
	About       string             `json:"about"`
	Now         int64              `json:"now"` // when all documents are valid
	Network     string             `json:"network_file"`
	Keys        []keyVector        `json:"keys"`
	Families    []familyVector     `json:"families"`
	Descriptors []descriptorVector `json:"descriptors"`
	Votes       []voteVector       `json:"votes"`
	Consensus   consensusVector    `json:"consensus"`
	Signatures  []hexBytes         `json:"consensus_signatures"` // of the authorities that signed, for the exchange
	Difference  differenceVector   `json:"difference"`
	Ballot      ballotVector       `json:"ballot"`
	Evidence    evidenceVector     `json:"evidence"`
	Batch       batchVector        `json:"descriptor_batch"`
	Failures    []failureVector    `json:"failures"`
}

// keyVector is a relay or an authority.
type keyVector struct {
	Name         string   `json:"name"`
	IdentitySeed hexBytes `json:"identity_seed"`
	Identity     hexBytes `json:"identity"`
	SigningSeed  hexBytes `json:"signing_seed"`
	SigningKey   hexBytes `json:"signing_key"`
	Certificate  hexBytes `json:"certificate"`
}

// familyVector is the key of a family of relays.
type familyVector struct {
	Name string   `json:"name"`
	Seed hexBytes `json:"seed"`
	Key  hexBytes `json:"key"`
}

// sealed is a document and what stands in it.
type sealed struct {
	Body           hexBytes   `json:"body"`
	BodyDigest     hexBytes   `json:"body_digest"`
	Signed         hexBytes   `json:"signed"` // what the signatures cover
	Signatures     []hexBytes `json:"signatures"`
	Document       hexBytes   `json:"document"`
	DocumentDigest hexBytes   `json:"document_digest"`
}

type descriptorVector struct {
	Name       string     `json:"name"`
	Signer     string     `json:"signer"` // by name, as in keys
	Network    string     `json:"network"`
	Identity   hexBytes   `json:"identity"`
	Sequence   uint64     `json:"sequence"`
	Published  int64      `json:"published"`
	OnionKey   hexBytes   `json:"onion_key"`
	Suite      uint8      `json:"suite"`
	Nickname   string     `json:"nickname"`
	Addresses  []string   `json:"addresses"`
	Families   []hexBytes `json:"memberships"` // certificates of families, by their keys
	Version    string     `json:"version"`
	Rate       uint64     `json:"bandwidth_rate"`
	Uptime     int64      `json:"uptime"`
	Contact    string     `json:"contact"`
	ExitPolicy string     `json:"exit_policy"`
	sealed
}

type voteVector struct {
	Authority string           `json:"authority"`
	Network   string           `json:"network"`
	Interval  int64            `json:"interval"`
	Period    uint64           `json:"period"`
	Params    map[string]int64 `json:"parameters"`
	Versions  []string         `json:"versions"` // recommended, required
	Random    []hexBytes       `json:"random"`   // commitment, secret, previous, current
	Entries   []entryVector    `json:"entries"`
	sealed
}

// ballotVector is a ballot: the heads of the votes of some authorities, and who endorses each.
type ballotVector struct {
	Heads        []headVector `json:"heads"`
	Certificates []string     `json:"certificates"` // by name, in their order
	Document     hexBytes     `json:"document"`
}

type headVector struct {
	Authority    string              `json:"authority"`
	Digest       hexBytes            `json:"digest"`
	Signed       hexBytes            `json:"signed"`
	Signature    hexBytes            `json:"signature"`
	EndorsedHash hexBytes            `json:"endorsed_digest"` // SHA-256 of authority and digest
	Endorsed     hexBytes            `json:"endorsed"`        // what endorsements sign
	Endorsements []endorsementVector `json:"endorsements"`
}

type endorsementVector struct {
	Authority string   `json:"authority"`
	Signature hexBytes `json:"signature"`
}

// evidenceVector proves that an authority made two votes.
type evidenceVector struct {
	Authority string     `json:"authority"`
	Digests   []hexBytes `json:"digests"`
	Document  hexBytes   `json:"document"`
}

// batchVector is a request for descriptors, and its answer.
type batchVector struct {
	Descriptors []string `json:"descriptors"`
	Request     hexBytes `json:"request"`
	Answer      hexBytes `json:"answer"`
}

// entryVector is a relay in a vote, or in the consensus.
type entryVector struct {
	Descriptor string `json:"descriptor"` // by name
	Flags      uint32 `json:"flags"`
	Weight     uint64 `json:"weight"`
	Measured   uint64 `json:"measured,omitempty"` // votes only
}

type consensusVector struct {
	Network    string              `json:"network"`
	Interval   int64               `json:"interval"`
	Period     uint64              `json:"period"`
	ValidAfter int64               `json:"valid_after"`
	FreshUntil int64               `json:"fresh_until"`
	ValidUntil int64               `json:"valid_until"`
	Params     map[string]int64    `json:"parameters"`
	Versions   []string            `json:"versions"` // recommended, required
	Random     []hexBytes          `json:"random"`   // previous, current
	Relays     []entryVector       `json:"relays"`
	Columns    []map[string]string `json:"columns"` // the CBOR of each, by name, in their order
	Signers    []string            `json:"signers"`
	ETag       string              `json:"etag"`
	sealed
}

// differenceVector leads from the consensus to that of the next period.
type differenceVector struct {
	Now      int64               `json:"now"` // when the next one is valid
	Path     string              `json:"path"`
	From     hexBytes            `json:"from"`
	Relays   []entryVector       `json:"next_relays"`
	Next     hexBytes            `json:"next_document"`
	Fields   []map[string]string `json:"fields"` // the CBOR of each, by name, in their order
	Document hexBytes            `json:"document"`
}

// failureVector is a document that is not accepted at this time.
type failureVector struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Now      int64    `json:"now"`
	Document hexBytes `json:"document"`
	Error    string   `json:"error"`
}

const (
	vectorPeriod   = 472_222
	vectorInterval = 3600
	vectorStart    = vectorPeriod * vectorInterval
	vectorNow      = vectorStart + 60
)

// CBOR, one function an item (RFC 8949 section 3.1).

func head(major byte, n uint64) []byte {
	switch {
	case n < 24:
		return []byte{major<<5 | byte(n)}
	case n <= math.MaxUint8:
		return []byte{major<<5 | 24, byte(n)}
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16([]byte{major<<5 | 25}, uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32([]byte{major<<5 | 26}, uint32(n))
	}
	return binary.BigEndian.AppendUint64([]byte{major<<5 | 27}, n)
}

func number(n uint64) []byte { return head(0, n) }
func octets(b []byte) []byte { return append(head(2, uint64(len(b))), b...) }
func text(s string) []byte   { return append(head(3, uint64(len(s))), s...) }
func array(items ...[]byte) []byte {
	return append(head(4, uint64(len(items))), bytes.Join(items, nil)...)
}
func listed(items [][]byte) []byte   { return array(items...) }
func without(list [][]byte) [][]byte { return list[:len(list)-1] }

func signedNumber(n int64) []byte {
	if n < 0 {
		return head(1, uint64(-1-n))
	}
	return number(uint64(n))
}

// parameters encodes a map, sorted by the encoded names.
func parameters(m map[string]int64) []byte {
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int { return bytes.Compare(text(a), text(b)) })
	b := head(5, uint64(len(m)))
	for _, name := range names {
		b = append(append(b, text(name)...), signedNumber(m[name])...)
	}
	return b
}

// vectorSeed returns 32 bytes that depend on the label alone.
func vectorSeed(label string) []byte {
	sum := sha256.Sum256([]byte("cepa directory test: " + label))
	return sum[:]
}

func publicKey(seed []byte) []byte {
	return ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// certified returns the keys of a name, with a certificate for the purpose between two times.
func certified(name string, purpose byte, from, to int64) keyVector {
	id, key := vectorSeed(name+", identity"), vectorSeed(name+", signing key")
	b := []byte{1, purpose}
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	b = binary.BigEndian.AppendUint64(b, uint64(to))
	b = slices.Concat(b, publicKey(key), publicKey(id))
	b = append(b, ed25519.Sign(ed25519.NewKeyFromSeed(id), append([]byte("cepa/1 certificate"), b...))...)
	return keyVector{name, id, publicKey(id), key, publicKey(key), b}
}

func relayKeys(name string) keyVector {
	return certified(name, 2, vectorStart-10*24*3600, vectorStart+30*24*3600)
}

func authorityKeys(name string) keyVector {
	return certified(name, 3, vectorStart-10*24*3600, vectorStart+30*24*3600)
}

// familyKeys returns the key of a family of relays.
func familyKeys(name string) keyVector {
	seed := vectorSeed(name + ", family")
	return keyVector{Name: name, IdentitySeed: seed, Identity: publicKey(seed)}
}

// membership is a certificate of a family for a relay.
func membership(family string, relay []byte, purpose byte, from, to int64) hexBytes {
	k := familyKeys(family)
	b := []byte{1, purpose}
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	b = binary.BigEndian.AppendUint64(b, uint64(to))
	b = slices.Concat(b, relay, k.Identity)
	return append(b, ed25519.Sign(ed25519.NewKeyFromSeed(k.IdentitySeed), append([]byte("cepa/1 certificate"), b...))...)
}

// memberships returns those of a relay in families, sorted by their keys.
func memberships(relay []byte, families ...string) (list []hexBytes) {
	for _, name := range families {
		list = append(list, membership(name, relay, 4, vectorStart-10*24*3600, vectorStart+30*24*3600))
	}
	slices.SortFunc(list, func(a, b hexBytes) int { return bytes.Compare(a[50:82], b[50:82]) })
	return list
}

// seal signs a body. context is what precedes its digest.
func seal(kind, context string, body []byte, signers ...keyVector) (s sealed) {
	digest := sha256.Sum256(body)
	s.Body, s.BodyDigest, s.Signed = body, digest[:], append([]byte(context), digest[:]...)
	var wire [][]byte
	for _, k := range signers {
		signature := ed25519.Sign(ed25519.NewKeyFromSeed(k.SigningSeed), s.Signed)
		s.Signatures = append(s.Signatures, signature)
		wire = append(wire, array(octets(k.Certificate), octets(signature)))
	}
	s.Document = array(text(kind), octets(body), listed(wire))
	whole := sha256.Sum256(s.Document)
	s.DocumentDigest = whole[:]
	return s
}

func sealDescriptor(body []byte, signers ...keyVector) sealed {
	return seal("cepa/1 descriptor", "cepa/1 descriptor", body, signers...)
}

func sealVote(body []byte, signers ...keyVector) sealed {
	return seal("cepa/1 vote", voteContext, body, signers...)
}

// voteContext and ballotContext are what signatures on votes and endorsements of them start with.
var (
	voteContext   = fmt.Sprint("cepa/1 vote example ", vectorPeriod)
	ballotContext = fmt.Sprint("cepa/1 ballot example ", vectorPeriod)
)

func sealConsensus(body []byte, signers ...keyVector) sealed {
	return seal("cepa/1 consensus", fmt.Sprint("cepa/1 consensus ", vectorPeriod), body, signers...)
}

// fields returns the items of a descriptor's body.
func (d *descriptorVector) fields() [][]byte {
	var addresses, families [][]byte
	for _, a := range d.Addresses {
		ap := netip.MustParseAddrPort(a)
		addresses = append(addresses, array(octets(ap.Addr().AsSlice()), number(uint64(ap.Port()))))
	}
	for _, f := range d.Families {
		families = append(families, octets(f))
	}
	return [][]byte{
		text(d.Network), octets(d.Identity), number(d.Sequence), number(uint64(d.Published)), octets(d.OnionKey), number(uint64(d.Suite)),
		text(d.Nickname), listed(addresses), listed(families), text(d.Version), number(d.Rate), number(uint64(d.Uptime)),
		text(d.Contact), text(d.ExitPolicy),
	}
}

// makeDescriptors returns the relays that authorities vote on.
func makeDescriptors() (list []descriptorVector) {
	add := func(name, signer string, change func(*descriptorVector)) {
		d := descriptorVector{
			Name: name, Signer: signer, Network: "example", Identity: relayKeys(signer).Identity, Sequence: 1_699_990_000_000,
			Published: vectorStart - 7200, OnionKey: vectorSeed(signer + ", onion key"), Suite: 1, Nickname: strings.ReplaceAll(signer, " ", ""),
			Addresses: []string{"203.0.113.7:9001"}, Families: []hexBytes{}, Version: "0.1.0", Rate: 20, ExitPolicy: "none",
		}
		change(&d)
		d.sealed = sealDescriptor(listed(d.fields()), relayKeys(signer))
		list = append(list, d)
	}
	rotated := func(d *descriptorVector) { d.Sequence, d.OnionKey = d.Sequence+1, vectorSeed("guard, next onion key") }
	add("guard, next onion key", "guard", rotated)
	add("guard", "guard", func(d *descriptorVector) { d.Rate, d.Uptime, d.Contact = 5000, 864_000, "Opérateur <op@example.org>" })
	exit := func(d *descriptorVector) {
		d.Sequence, d.Suite, d.Version, d.ExitPolicy, d.Rate = 5, 2, "1.0.0-rc.1+x_y", "80,443,8000-8999/443", 1_000_000_000_000
		d.Addresses = []string{"198.51.100.1:443", "198.51.100.1:9001", "[2001:db8::1]:443", "[2001:db8::2]:65535"}
		d.Families = memberships(d.Identity, "blue", "green")
	}
	add("exit, older", "exit", exit)
	add("exit, newer", "exit", func(d *descriptorVector) {
		exit(d)
		d.Sequence, d.ExitPolicy, d.Families = 6, "*", memberships(d.Identity, "blue")
	})
	add("unpopular", "unpopular", func(d *descriptorVector) { d.Addresses = []string{"203.0.113.8:9001"} })
	add("not valid", "not valid", func(d *descriptorVector) { d.Addresses = []string{"203.0.113.9:9001"} })
	for _, name := range []string{"crowd a", "crowd b", "crowd c"} {
		add(name, name, func(d *descriptorVector) {
			d.Addresses, d.Families = []string{"192.0.2.1:9001"}, memberships(d.Identity, "green")
		})
	}
	return list
}

func byName(list []descriptorVector, name string) *descriptorVector {
	return &list[slices.IndexFunc(list, func(d descriptorVector) bool { return d.Name == name })]
}

const (
	running = 1 | 2 // and valid
	guard   = 4
	exit    = 8
	fast    = 16
)

// makeVotes returns the votes of four authorities. What comes of them stands in makeConsensus.
func makeVotes(descriptors []descriptorVector) (list []voteVector) {
	for i, params := range []map[string]int64{
		{"relays-per-address": 9, "x-negative": -3, "unmeasured-weight": 100},
		{"relays-per-address": 2, "x-negative": -5, "unmeasured-weight": 100},
		{"relays-per-address": 3, "x-negative": -4},
		{"relays-per-address": 2},
	} {
		v := voteVector{Authority: fmt.Sprint("authority ", i+1), Network: "example", Interval: vectorInterval, Period: vectorPeriod, Params: params}
		// The period is the 23rd of its run: secrets are told. A value counts if three state it.
		v.Versions = [][]string{{"0.2.0", "0.1"}, {"0.10", ""}, {"0.9.1", "0.1"}, {"", ""}}[i]
		v.Random = []hexBytes{{}, vectorSeed(fmt.Sprint("secret ", i)), vectorSeed("previous"), [][]byte{vectorSeed("current"), vectorSeed("current"), vectorSeed("another"), {}}[i]}
		entry := func(name string, flags uint32, weight uint64) {
			v.Entries = append(v.Entries, entryVector{Descriptor: name, Flags: flags, Weight: weight})
		}
		entry("guard", running|[]uint32{guard, guard | fast, guard | fast, 0}[i], []uint64{400, 100, 300, 200}[i])
		v.Entries[0].Measured = []uint64{1100, 0, 900, 1000}[i]
		if i < 3 {
			entry([]string{"exit, newer", "exit, newer", "exit, older"}[i], running|exit, []uint64{70, 50, 60}[i])
		}
		if i >= 2 {
			entry("unpopular", running, 1000)
		}
		entry("not valid", []uint32{1, 1, running, running}[i], 1000)
		entry("crowd a", running, 20)
		entry("crowd b", running, 20)
		entry("crowd c", running, 30)
		slices.SortFunc(v.Entries, func(a, b entryVector) int {
			return bytes.Compare(byName(descriptors, a.Descriptor).Identity, byName(descriptors, b.Descriptor).Identity)
		})
		v.sealed = sealVote(listed(v.fields(descriptors)), authorityKeys(v.Authority))
		list = append(list, v)
	}
	return list
}

// fields returns the items of a vote's body.
func (v *voteVector) fields(descriptors []descriptorVector) [][]byte {
	var identities, digests []byte
	var flags, weights, measured [][]byte
	for _, e := range v.Entries {
		d := byName(descriptors, e.Descriptor)
		identities, digests = append(identities, d.Identity...), append(digests, d.DocumentDigest...)
		flags, weights = append(flags, number(uint64(e.Flags))), append(weights, number(e.Weight))
		measured = append(measured, number(e.Measured))
	}
	return [][]byte{
		text(v.Network), number(uint64(v.Interval)), number(v.Period), octets(authorityKeys(v.Authority).Identity), parameters(v.Params),
		array(text(v.Versions[0]), text(v.Versions[1])), values(v.Random), array(octets(identities), octets(digests), listed(flags), listed(weights), listed(measured)),
	}
}

// values encodes random values; none is empty.
func values(list []hexBytes) []byte {
	var items [][]byte
	for _, v := range list {
		items = append(items, octets(v))
	}
	return listed(items)
}

// makeBallot returns the heads of the votes of authorities 1 and 2. Both others endorse the first, nobody the second.
func makeBallot(votes []voteVector) (b ballotVector) {
	var keys []keyVector
	index := func(name string) []byte {
		return number(uint64(slices.IndexFunc(keys, func(k keyVector) bool { return k.Name == name })))
	}
	sign := func(k keyVector, message []byte) []byte {
		return ed25519.Sign(ed25519.NewKeyFromSeed(k.SigningSeed), message)
	}
	for i, endorsers := range [][]string{{"authority 3", "authority 4"}, {}} {
		v, k := votes[i], authorityKeys(votes[i].Authority)
		hash := sha256.Sum256(append(bytes.Clone(k.Identity), v.BodyDigest...))
		h := headVector{
			Authority: v.Authority, Digest: v.BodyDigest, Signed: append([]byte(voteContext), v.BodyDigest...), EndorsedHash: hash[:],
			Endorsed: append([]byte(ballotContext), hash[:]...), Endorsements: []endorsementVector{},
		}
		h.Signature = sign(k, h.Signed)
		keys = append(keys, k)
		for _, name := range endorsers {
			e := authorityKeys(name)
			h.Endorsements = append(h.Endorsements, endorsementVector{name, sign(e, h.Endorsed)})
			keys = append(keys, e)
		}
		slices.SortFunc(h.Endorsements, func(x, y endorsementVector) int {
			return bytes.Compare(authorityKeys(x.Authority).Identity, authorityKeys(y.Authority).Identity)
		})
		b.Heads = append(b.Heads, h)
	}
	slices.SortFunc(b.Heads, func(x, y headVector) int {
		return bytes.Compare(authorityKeys(x.Authority).Identity, authorityKeys(y.Authority).Identity)
	})
	slices.SortFunc(keys, func(x, y keyVector) int { return bytes.Compare(x.Certificate, y.Certificate) })
	var certificates, heads [][]byte
	for _, k := range keys {
		b.Certificates = append(b.Certificates, k.Name)
		certificates = append(certificates, octets(k.Certificate))
	}
	for _, h := range b.Heads {
		var endorsements [][]byte
		for _, e := range h.Endorsements {
			endorsements = append(endorsements, array(index(e.Authority), octets(e.Signature)))
		}
		heads = append(heads, array(index(h.Authority), octets(h.Digest), octets(h.Signature), listed(endorsements)))
	}
	b.Document = array(text("cepa/1 ballot"), text("example"), number(vectorPeriod), listed(certificates), listed(heads))
	return b
}

// makeEvidence returns the proof that authority 3 made two votes.
func makeEvidence() evidenceVector {
	k := authorityKeys("authority 3")
	e := evidenceVector{Authority: k.Name, Digests: []hexBytes{vectorSeed("a vote"), vectorSeed("another vote")}}
	slices.SortFunc(e.Digests, func(x, y hexBytes) int { return bytes.Compare(x, y) })
	e.Document = proof("vote", voteContext, e.Digests, k, k)
	return e
}

func proof(what, context string, digests []hexBytes, keys ...keyVector) []byte {
	var by [][]byte
	for i, k := range keys {
		signature := ed25519.Sign(ed25519.NewKeyFromSeed(k.SigningSeed), append([]byte(context), digests[i]...))
		by = append(by, array(octets(k.Certificate), octets(signature)))
	}
	return array(text("cepa/1 evidence"), text("example"), number(vectorPeriod), text(what), values(digests), listed(by))
}

// makeBatch asks for two descriptors.
func makeBatch(descriptors []descriptorVector) (b batchVector) {
	var items [][]byte
	for _, d := range descriptors[:2] {
		b.Descriptors = append(b.Descriptors, d.Name)
		b.Request = append(b.Request, d.DocumentDigest...)
		items = append(items, octets(d.Document))
	}
	b.Answer = array(text("cepa/1 descriptors"), listed(items))
	return b
}

// makeConsensus returns what the rules of doc/spec.md section 8 make of the votes, worked out by hand: of 4 authorities
// threshold and majority are 3, and the lower median of 4 values is the second, of 3 the second too.
func makeConsensus(descriptors []descriptorVector) consensusVector {
	c := consensusVector{
		Network: "example", Interval: vectorInterval, Period: vectorPeriod,
		ValidAfter: vectorStart, FreshUntil: vectorStart + vectorInterval, ValidUntil: vectorStart + 24*vectorInterval,
		// Of 0.2.0, 0.9.1 and 0.10 the middle one. Two require a version, and two state a current value: too few.
		Versions: []string{"0.9.1", ""},
		Random:   []hexBytes{vectorSeed("previous"), {}},
		// Two state unmeasured-weight: too few.
		Params: map[string]int64{"relays-per-address": 2, "x-negative": -4},
		Relays: []entryVector{
			{Descriptor: "guard", Flags: running | guard, Weight: 1000}, // two say Fast; three have measured it
			// Two name the newer, n − threshold + 1. It has a weight of 50: one vote counts as 0. All newcomers have 120, and may
			// have 1000 · 5 / 95 = 52.
			{Descriptor: "exit, newer", Flags: running | exit, Weight: 21},
			// Not "unpopular", which two list; not "not valid", which two call so.
			{Descriptor: "crowd c", Flags: running, Weight: 13}, // the heaviest at its address, where two may be
		},
	}
	crowd := []string{"crowd a", "crowd b"} // the second goes to the lower identity
	slices.SortFunc(crowd, func(a, b string) int { return bytes.Compare(relayKeys(a).Identity, relayKeys(b).Identity) })
	c.Relays = append(c.Relays, entryVector{Descriptor: crowd[0], Flags: running, Weight: 8})
	sortRelays(c.Relays, descriptors)

	names, columns := makeColumns(c.Relays, descriptors)
	for i, name := range names {
		c.Columns = append(c.Columns, map[string]string{name: hex.EncodeToString(columns[i])})
	}
	signers := consensusSigners()
	for _, k := range signers {
		c.Signers = append(c.Signers, k.Name)
	}
	c.sealed = sealConsensus(c.body(columns), signers...)
	c.ETag = `"` + hex.EncodeToString(c.DocumentDigest[:16]) + `"`
	return c
}

func sortRelays(list []entryVector, descriptors []descriptorVector) {
	slices.SortFunc(list, func(a, b entryVector) int {
		return bytes.Compare(byName(descriptors, a.Descriptor).Identity, byName(descriptors, b.Descriptor).Identity)
	})
}

// consensusSigners are three of the four authorities, sorted by identity.
func consensusSigners() []keyVector {
	list := []keyVector{authorityKeys("authority 1"), authorityKeys("authority 2"), authorityKeys("authority 4")}
	slices.SortFunc(list, func(a, b keyVector) int { return bytes.Compare(a.Identity, b.Identity) })
	return list
}

func (c *consensusVector) body(columns [][]byte) []byte { return c.bodyOf(vectorPeriod, columns) }

func (c *consensusVector) bodyOf(period uint64, columns [][]byte) []byte {
	return array(text("example"), number(vectorInterval), number(period), parameters(c.Params), array(text(c.Versions[0]), text(c.Versions[1])),
		values(c.Random), listed(columns))
}

// makeDifference returns what doc/spec.md section 7 makes of the consensus and a next one in which "crowd c" is gone, "unpopular" has come, the guard has
// another weight and another onion key, the exit another policy and other families, and the other of the crowd the flag Fast.
func makeDifference(c consensusVector, descriptors []descriptorVector) (d differenceVector) {
	d.Now, d.From, d.Path = vectorNow+vectorInterval, c.BodyDigest, fmt.Sprintf("/cepa/v1/consensus/from/%x", []byte(c.BodyDigest))
	var dropped, flagPlaces, weightPlaces, keyPlaces, restPlaces []uint64
	var flags, weights [][]byte
	var keys []byte
	var rest []entryVector
	kept := uint64(0)
	for i, e := range c.Relays {
		if e.Descriptor == "crowd c" {
			dropped = append(dropped, uint64(i))
			continue
		}
		switch e.Descriptor {
		case "guard":
			e = entryVector{Descriptor: "guard, next onion key", Flags: e.Flags, Weight: 1150}
			weightPlaces, weights = append(weightPlaces, kept), append(weights, signedNumber(1150-1000))
			keyPlaces, keys = append(keyPlaces, kept), append(keys, byName(descriptors, e.Descriptor).OnionKey...)
		case "exit, newer":
			e.Descriptor = "exit, older"
			restPlaces, rest = append(restPlaces, kept), append(rest, e)
		default:
			e.Flags |= fast
			flagPlaces, flags = append(flagPlaces, kept), append(flags, number(fast))
		}
		d.Relays = append(d.Relays, e)
		kept++
	}
	added := []entryVector{{Descriptor: "unpopular", Flags: running, Weight: 77}}
	d.Relays = append(d.Relays, added...)
	sortRelays(d.Relays, descriptors)
	_, columns := makeColumns(d.Relays, descriptors)
	other := consensusVector{
		Params: map[string]int64{"x-negative": -7}, Versions: []string{"0.10", "0.1"}, Random: []hexBytes{vectorSeed("previous"), vectorSeed("current")},
	}
	signers := consensusSigners()
	next := seal("cepa/1 consensus", fmt.Sprint("cepa/1 consensus ", vectorPeriod+1), other.bodyOf(vectorPeriod+1, columns), signers...)
	d.Next = next.Document

	gaps := func(places []uint64) []byte {
		var items [][]byte
		after := uint64(0)
		for _, p := range places {
			items = append(items, number(p-after))
			after = p + 1
		}
		return listed(items)
	}
	_, addedColumns := makeColumns(added, descriptors)
	names, restColumns := makeColumns(rest, descriptors)
	for i, name := range names {
		switch name {
		case "identity gaps", "weights":
			restColumns[i] = array()
		case "identities", "onion keys", "flags":
			restColumns[i] = octets(nil)
		}
	}
	var wire [][]byte
	for i, k := range signers {
		wire = append(wire, array(octets(k.Certificate), octets(next.Signatures[i])))
	}
	var fields [][]byte
	add := func(name string, field []byte) {
		fields = append(fields, field)
		d.Fields = append(d.Fields, map[string]string{name: hex.EncodeToString(field)})
	}
	add("kind", text("cepa/1 consensus difference"))
	add("from", octets(d.From))
	add("period", number(vectorPeriod+1))
	add("parameters", parameters(other.Params))
	add("versions", array(text(other.Versions[0]), text(other.Versions[1])))
	add("random values", values(other.Random))
	add("dropped", gaps(dropped))
	add("added", listed(addedColumns))
	add("flag places", gaps(flagPlaces))
	add("flags", listed(flags))
	add("weight places", gaps(weightPlaces))
	add("weights", listed(weights))
	add("key places", gaps(keyPlaces))
	add("keys", octets(keys))
	add("rest places", gaps(restPlaces))
	add("rest", listed(restColumns))
	add("signatures", listed(wire))
	d.Document = listed(fields)
	return d
}

// makeColumns encodes the relays of a consensus, column by column.
func makeColumns(relays []entryVector, descriptors []descriptorVector) (names []string, columns [][]byte) {
	add := func(name string, column []byte) { names, columns = append(names, name), append(columns, column) }
	each := func(f func(d *descriptorVector, e entryVector) []byte) (joined []byte, items [][]byte) {
		for _, e := range relays {
			items = append(items, f(byName(descriptors, e.Descriptor), e))
		}
		return bytes.Join(items, nil), items
	}
	raw := func(name string, f func(d *descriptorVector) []byte) {
		joined, _ := each(func(d *descriptorVector, _ entryVector) []byte { return f(d) })
		add(name, octets(joined))
	}
	// tabled writes the different values, sorted, and one index a relay.
	tabled := func(name, index string, f func(d *descriptorVector) string) {
		_, values := each(func(d *descriptorVector, _ entryVector) []byte { return []byte(f(d)) })
		table := slices.CompactFunc(slices.SortedFunc(slices.Values(values), bytes.Compare), bytes.Equal)
		var items, indices [][]byte
		for _, v := range table {
			items = append(items, text(string(v)))
		}
		for _, v := range values {
			indices = append(indices, number(uint64(slices.IndexFunc(table, func(x []byte) bool { return bytes.Equal(x, v) }))))
		}
		add(name, listed(items))
		add(index, listed(indices))
	}
	addresses := func(d *descriptorVector, v4 bool) (list []netip.AddrPort) {
		for _, a := range d.Addresses {
			if ap := netip.MustParseAddrPort(a); ap.Addr().Is4() == v4 {
				list = append(list, ap)
			}
		}
		return list
	}
	var gaps [][]byte
	last := uint16(0)
	for _, e := range relays {
		head := binary.BigEndian.Uint16(byName(descriptors, e.Descriptor).Identity)
		gaps = append(gaps, number(uint64(uint32(head)-uint32(last))&0xffff_ffff))
		last = head
	}
	add("identity gaps", listed(gaps))
	raw("identities", func(d *descriptorVector) []byte { return d.Identity[2:] })
	raw("onion keys", func(d *descriptorVector) []byte { return d.OnionKey })
	raw("suites", func(d *descriptorVector) []byte { return []byte{d.Suite} })
	raw("name sizes", func(d *descriptorVector) []byte { return []byte{byte(len(d.Nickname))} })
	joined, _ := each(func(d *descriptorVector, _ entryVector) []byte { return []byte(d.Nickname) })
	add("names", text(string(joined)))
	raw("address counts", func(d *descriptorVector) []byte {
		return []byte{byte(16*len(addresses(d, true)) + len(addresses(d, false)))}
	})
	for i, name := range []string{"IPv4", "IPv6"} {
		raw(name, func(d *descriptorVector) (b []byte) {
			for _, a := range addresses(d, i == 0) {
				b = append(b, a.Addr().AsSlice()...)
			}
			return b
		})
	}
	ports := func(d *descriptorVector) (list []uint16) {
		for _, a := range append(addresses(d, true), addresses(d, false)...) {
			list = append(list, a.Port())
		}
		return list
	}
	raw("ports", func(d *descriptorVector) []byte { return binary.BigEndian.AppendUint16(nil, ports(d)[0]) })
	raw("more ports", func(d *descriptorVector) (b []byte) {
		for _, p := range ports(d)[1:] {
			b = binary.BigEndian.AppendUint16(b, p-ports(d)[0])
		}
		return b
	})
	var planes []byte
	for shift := 0; shift < 32; shift += 8 {
		for _, e := range relays {
			planes = append(planes, byte(e.Flags>>shift))
		}
	}
	add("flags", octets(planes))
	_, items := each(func(_ *descriptorVector, e entryVector) []byte { return number(e.Weight) })
	add("weights", listed(items))
	tabled("policies", "policy", func(d *descriptorVector) string { return d.ExitPolicy })
	tabled("versions", "version", func(d *descriptorVector) string { return d.Version })
	var families [][]byte // keys
	for _, e := range relays {
		for _, m := range byName(descriptors, e.Descriptor).Families {
			families = append(families, m[50:82])
		}
	}
	slices.SortFunc(families, bytes.Compare)
	families = slices.CompactFunc(families, bytes.Equal)
	add("families", octets(bytes.Join(families, nil)))
	raw("family sizes", func(d *descriptorVector) []byte { return []byte{byte(len(d.Families))} })
	items = nil
	for _, e := range relays {
		for _, f := range byName(descriptors, e.Descriptor).Families {
			items = append(items, number(uint64(slices.IndexFunc(families, func(k []byte) bool { return bytes.Equal(k, f[50:82]) }))))
		}
	}
	add("family", listed(items))
	return names, columns
}

// exchanged is the form in which an authority sends its signature to the others.
func exchanged(kind, network string, digest []byte, k keyVector) []byte {
	signature := ed25519.Sign(ed25519.NewKeyFromSeed(k.SigningSeed), append(fmt.Append(nil, "cepa/1 consensus ", vectorPeriod), digest...))
	return array(text(kind), text(network), number(vectorPeriod), octets(digest), array(octets(k.Certificate), octets(signature)))
}

func networkFile() string {
	b := "name = \"example\"\ninterval = \"1h\"\n\n[params]\nrelays-per-address = 2\n"
	for i := range 4 {
		b += fmt.Sprintf("\n[[authority]]\nnickname = \"auth%d\"\nidentity = \"%x\"\naddress = \"203.0.113.%d:9030\"\n", i+1, authorityKeys(fmt.Sprint("authority ", i+1)).Identity, i+1)
	}
	b += fmt.Sprintf("\n[[fallback]]\naddress = \"198.51.100.9:9030\"\nidentity = \"%x\"\n\n[[fallback]]\naddress = \"198.51.100.10:80\"\n", relayKeys("guard").Identity)
	return b
}

func makeVectors() vectors {
	v := vectors{
		About:   "Documents of the directory, doc/spec.md sections 6 to 8 and 11. The consensus is what the rules make of the four votes, the difference leads from it to a next one. A failure is refused at its time.",
		Now:     vectorNow,
		Network: networkFile(),
	}
	for i := range 4 {
		v.Keys = append(v.Keys, authorityKeys(fmt.Sprint("authority ", i+1)))
	}
	v.Descriptors = makeDescriptors()
	for _, d := range v.Descriptors {
		if !slices.ContainsFunc(v.Keys, func(k keyVector) bool { return k.Name == d.Signer }) {
			v.Keys = append(v.Keys, relayKeys(d.Signer))
		}
	}
	for _, name := range []string{"blue", "green"} {
		k := familyKeys(name)
		v.Families = append(v.Families, familyVector{name, k.IdentitySeed, k.Identity})
	}
	v.Votes = makeVotes(v.Descriptors)
	v.Consensus = makeConsensus(v.Descriptors)
	for _, k := range consensusSigners() {
		v.Signatures = append(v.Signatures, exchanged("cepa/1 consensus signature", "example", v.Consensus.BodyDigest, k))
	}
	v.Ballot, v.Evidence, v.Batch = makeBallot(v.Votes), makeEvidence(), makeBatch(v.Descriptors)
	v.Difference = makeDifference(v.Consensus, v.Descriptors)
	f := failures{vectors: &v}
	f.descriptors()
	f.votes()
	f.ballots()
	f.evidence()
	f.consensuses()
	f.signatures()
	f.differences()
	f.networkFiles()
	v.Failures = f.list
	return v
}

// failures collects what is not accepted.
type failures struct {
	*vectors
	list []failureVector
}

func (f *failures) add(kind, name, err string, document []byte) {
	f.list = append(f.list, failureVector{name, kind, vectorNow, document, err})
}

// at is add at another time, in seconds from the usual one.
func (f *failures) at(kind, name, err string, document []byte, later int64) {
	f.list = append(f.list, failureVector{name, kind, vectorNow + later, document, err})
}

// descriptors changes one thing at a time in "exit, older".
func (f *failures) descriptors() {
	const kind = "descriptor"
	base := byName(f.Descriptors, "exit, older")
	key := relayKeys("exit")
	field := func(name string, i int, item []byte) {
		items := base.fields()
		items[i] = item
		f.add(kind, name, "ErrMalformed", sealDescriptor(listed(items), key).Document)
	}
	address := func(list ...string) []byte { return (&descriptorVector{Addresses: list}).fields()[7] }
	family := func(list ...hexBytes) []byte {
		var items [][]byte
		for _, b := range list {
			items = append(items, octets(b))
		}
		return listed(items)
	}
	of := func(family string, relay []byte, purpose byte, from, to int64) []byte {
		return octets(membership(family, relay, purpose, from, to))
	}
	const year10000 = 253_402_300_800
	field("network with a capital letter", 0, text("Example"))
	field("network without a name", 0, text(""))
	field("network as bytes", 0, octets([]byte("example")))
	field("identity of 31 bytes", 1, octets(base.Identity[:31]))
	field("sequence 0", 2, number(0))
	field("sequence 2^63", 2, number(1<<63))
	field("sequence that is not the shortest", 2, []byte{0x18, 5})
	field("sequence as a float", 2, []byte{0xf9, 0x45, 0x00})
	field("sequence below 0", 2, signedNumber(-1))
	field("published after the year 9999", 3, number(year10000))
	field("published with a tag", 3, append([]byte{0xc1}, number(vectorStart-7200)...))
	field("onion key of zeros", 4, octets(make([]byte, 32)))
	field("onion key of 33 bytes", 4, octets(append(bytes.Clone(base.OnionKey), 1)))
	field("suite 0", 5, number(0))
	field("suite 3", 5, number(3))
	field("suite as a boolean", 5, []byte{0xf5})
	field("no nickname", 6, text(""))
	field("nickname of 20 bytes", 6, text(strings.Repeat("a", 20)))
	field("nickname with a hyphen", 6, text("a-b"))
	field("no address", 7, address())
	field("five addresses", 7, address("192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "192.0.2.1:4", "192.0.2.1:5"))
	field("an address twice", 7, address("192.0.2.1:1", "192.0.2.1:1"))
	field("IPv6 before IPv4", 7, address("[2001:db8::1]:1", "192.0.2.1:1"))
	field("port 0", 7, address("192.0.2.1:0"))
	field("unspecified address", 7, address("0.0.0.0:1"))
	field("multicast address", 7, address("[ff02::1]:1"))
	field("IPv4 in IPv6 form", 7, address("[::ffff:192.0.2.1]:1"))
	field("address of 5 bytes", 7, array(array(octets(make([]byte, 5)), number(1))))
	field("memberships not sorted", 8, family(base.Families[1], base.Families[0]))
	field("a family twice", 8, family(base.Families[0], base.Families[0]))
	field("5 memberships", 8, family(memberships(base.Identity, "a", "b", "c", "d", "e")...))
	field("memberships null", 8, []byte{0xf6})
	field("memberships of indefinite length", 8, []byte{0x9f, 0xff})
	field("a membership of 145 bytes", 8, family(base.Families[0][:145]))
	field("a family's key without a certificate", 8, family(base.Families[0][50:82]))
	field("membership of another relay", 8, array(of("blue", relayKeys("guard").Identity, 4, vectorStart-7200, vectorStart+7200)))
	field("membership that is a certificate for descriptors", 8, array(of("blue", base.Identity, 2, vectorStart-7200, vectorStart+7200)))
	unsigned := bytes.Clone(base.Families[0])
	unsigned[145] ^= 1
	signedField := func(name, err string, item []byte) {
		items := base.fields()
		items[8] = item
		f.add(kind, name, err, sealDescriptor(listed(items), key).Document)
	}
	signedField("membership that the family has not signed", "ErrBadSignature", family(unsigned))
	signedField("membership from after its publication on", "ErrBadSignature", array(of("blue", base.Identity, 4, vectorStart-7199, vectorStart+7200)))
	signedField("membership that had expired", "ErrBadSignature", array(of("blue", base.Identity, 4, vectorStart-9000, vectorStart-7201)))
	signedField("membership that has expired since", "ErrExpired", array(of("blue", base.Identity, 4, vectorStart-7200, vectorNow-1)))
	field("version with a space", 9, text("1 0"))
	field("rate 0", 10, number(0))
	field("rate above 10^12", 10, number(1_000_000_000_001))
	field("uptime above 36,500 days", 11, number(100*365*24*3600+1))
	field("contact of 201 bytes", 12, text(strings.Repeat("a", 201)))
	field("contact with a line end", 12, text("a\nb"))
	field("contact that is not UTF-8", 12, text("\xff"))
	for _, policy := range []string{"", "443,80", "80,81", "80-80", "080", "0", "65536", "90-80", "1-65535", "80/80", "none/none", "80,,443", "80, 443", "*,80"} {
		field(fmt.Sprintf("port policy %q", policy), 13, text(policy))
	}
	body := func(name string, body []byte) { f.add(kind, name, "ErrMalformed", sealDescriptor(body, key).Document) }
	body("a field too few", listed(without(base.fields())))
	body("a field too many", listed(append(base.fields(), number(0))))
	body("a byte behind the body", append(listed(base.fields()), 0))
	body("a body of no bytes", nil)
	body("fields in an array of indefinite length", slices.Concat([]byte{0x9f}, bytes.Join(base.fields(), nil), []byte{0xff}))

	f.add(kind, "nothing", "ErrMalformed", nil)
	f.add(kind, "a byte behind the document", "ErrMalformed", append(bytes.Clone(base.Document), 0))
	f.add(kind, "a byte is missing", "ErrMalformed", base.Document[:len(base.Document)-1])
	f.add(kind, "4,097 bytes", "ErrTooLarge", append(bytes.Clone(base.Document), make([]byte, 4097-len(base.Document))...))
	f.add(kind, "a vote by its kind", "ErrMalformed", seal("cepa/1 vote", "cepa/1 descriptor", base.Body, key).Document)
	f.add(kind, "no signature", "ErrMalformed", sealDescriptor(base.Body).Document)
	f.add(kind, "two signatures", "ErrMalformed", sealDescriptor(base.Body, key, key).Document)
	f.add(kind, "signed as a vote", "ErrBadSignature", seal("cepa/1 descriptor", "cepa/1 vote", base.Body, key).Document)
	f.add(kind, "signed without its kind", "ErrBadSignature", seal("cepa/1 descriptor", "", base.Body, key).Document)
	wrongKey := key
	wrongKey.SigningSeed = key.IdentitySeed
	f.add(kind, "signed by the identity itself", "ErrBadSignature", sealDescriptor(base.Body, wrongKey).Document)
	f.add(kind, "certificate for links", "ErrBadSignature", sealDescriptor(base.Body, certified("exit", 1, vectorStart-7200, vectorStart+7200)).Document)
	f.add(kind, "certificate from after its publication on", "ErrBadSignature", sealDescriptor(base.Body, certified("exit", 2, vectorStart-7199, vectorStart+7200)).Document)
	f.add(kind, "certificate that has expired since", "ErrExpired", sealDescriptor(base.Body, certified("exit", 2, vectorStart-7200, vectorNow-1)).Document)
	f.add(kind, "signed by another relay", "ErrUnknownSigner", sealDescriptor(base.Body, relayKeys("guard")).Document)
	f.at(kind, "48 hours and a second old", "ErrExpired", base.Document, base.Published+48*3600+1-vectorNow)
	f.at(kind, "5 minutes and a second too early", "ErrFuture", base.Document, base.Published-301-vectorNow)
}

// votes changes one thing at a time in the vote of authority 1, with the two relays "guard" and "exit, newer".
func (f *failures) votes() {
	const kind = "vote"
	base := voteVector{
		Authority: "authority 1", Network: "example", Interval: vectorInterval, Period: vectorPeriod, Params: map[string]int64{"a": 1, "bb": 2},
		Versions: []string{"", ""}, Random: []hexBytes{{}, {}, {}, {}}, Entries: []entryVector{{Descriptor: "guard", Flags: running, Weight: 1}, {Descriptor: "exit, newer", Flags: running, Weight: 1}},
	}
	sortRelays(base.Entries, f.Descriptors)
	key := authorityKeys("authority 1")
	field := func(name, err string, i int, item []byte) {
		items := base.fields(f.Descriptors)
		items[i] = item
		f.add(kind, name, err, sealVote(listed(items), key).Document)
	}
	ids := [][]byte{byName(f.Descriptors, base.Entries[0].Descriptor).Identity, byName(f.Descriptors, base.Entries[1].Descriptor).Identity}
	entries := func(first, second []byte, flags, weight, measured uint64) []byte {
		return array(octets(slices.Concat(first, second)), octets(make([]byte, 64)), array(number(running), number(flags)), array(number(1), number(weight)), array(number(0), number(measured)))
	}
	field("another network", "ErrWrongNetwork", 0, text("other"))
	field("another interval", "ErrWrongNetwork", 1, number(vectorInterval+1))
	field("in the name of another authority", "ErrUnknownSigner", 3, octets(authorityKeys("authority 2").Identity))
	field("parameters not sorted", "ErrMalformed", 4, slices.Concat(head(5, 2), text("bb"), number(2), text("a"), number(1)))
	field("a parameter twice", "ErrMalformed", 4, slices.Concat(head(5, 2), text("a"), number(1), text("a"), number(1)))
	field("a parameter with a capital letter", "ErrMalformed", 4, parameters(map[string]int64{"A": 1}))
	field("a parameter above 2^63 - 1", "ErrMalformed", 4, slices.Concat(head(5, 1), text("a"), number(1<<63)))
	field("a version of one number", "ErrMalformed", 5, array(text("1"), text("")))
	field("a version with a suffix", "ErrMalformed", 5, array(text(""), text("0.2.0-rc1")))
	field("one version", "ErrMalformed", 5, array(text("")))
	field("a commitment in the second half of a run", "ErrMalformed", 6, values([]hexBytes{vectorSeed("x"), {}, {}, {}}))
	field("a random value of 31 bytes", "ErrMalformed", 6, values([]hexBytes{{}, {}, {}, vectorSeed("x")[:31]}))
	field("entries not sorted", "ErrMalformed", 7, entries(ids[1], ids[0], running, 1, 0))
	field("a relay twice", "ErrMalformed", 7, entries(ids[0], ids[0], running, 1, 0))
	field("flag 512", "ErrMalformed", 7, entries(ids[0], ids[1], 512, 1, 0))
	field("weight above 10^12", "ErrMalformed", 7, entries(ids[0], ids[1], running, 1_000_000_000_001, 0))
	field("measured at more than 10^12", "ErrMalformed", 7, entries(ids[0], ids[1], running, 1, 1_000_000_000_001))
	field("an identity too few", "ErrMalformed", 7, entries(ids[0], nil, running, 1, 0))
	early := base
	early.Period = vectorPeriod/24*24 + 11
	early.Random = []hexBytes{{}, vectorSeed("x"), {}, {}}
	f.add(kind, "a secret in the first half of a run", "ErrMalformed",
		seal("cepa/1 vote", fmt.Sprint("cepa/1 vote example ", early.Period), listed(early.fields(f.Descriptors)), key).Document)
	body := listed(base.fields(f.Descriptors))
	f.add(kind, "signed by a stranger", "ErrUnknownSigner", sealVote(body, authorityKeys("stranger")).Document)
	f.add(kind, "certificate for descriptors", "ErrBadSignature", sealVote(body, certified("authority 1", 2, vectorStart, vectorStart+1)).Document)
	f.add(kind, "certificate from after the start of its period on", "ErrBadSignature", sealVote(body, certified("authority 1", 3, vectorStart+1, vectorStart+7200)).Document)
	f.add(kind, "signed as a consensus", "ErrBadSignature", seal("cepa/1 vote", f.consensusContext(), body, key).Document)
	f.add(kind, "signed without network and period", "ErrBadSignature", seal("cepa/1 vote", "cepa/1 vote", body, key).Document)
}

// ballots changes one thing at a time in the ballot.
func (f *failures) ballots() {
	const kind = "ballot"
	b := f.Ballot
	change := func(name, err string, old, with []byte) {
		f.add(kind, name, err, bytes.Replace(b.Document, old, with, 1))
	}
	first, endorsement := b.Heads[0], f.Ballot.Heads[0].Endorsements
	if len(endorsement) == 0 {
		first, endorsement = b.Heads[1], b.Heads[1].Endorsements
	}
	change("another network", "ErrWrongNetwork", text("example"), text("examplf"))
	change("another kind", "ErrMalformed", text("cepa/1 ballot"), text("cepa/1 ballos"))
	change("another period", "ErrBadSignature", number(vectorPeriod), number(vectorPeriod+1))
	change("another digest", "ErrBadSignature", first.Digest, vectorSeed("x"))
	change("an endorsement that is the author's signature", "ErrBadSignature", endorsement[0].Signature, first.Signature)
	change("an endorsement twice", "ErrBadSignature", endorsement[1].Signature, endorsement[0].Signature)
	stranger := authorityKeys("stranger")
	change("a stranger's certificate", "ErrUnknownSigner", authorityKeys("authority 4").Certificate, stranger.Certificate)
	change("a certificate for descriptors", "ErrBadSignature", authorityKeys("authority 4").Certificate, certified("authority 4", 2, vectorStart, vectorStart+1).Certificate)
	f.add(kind, "a certificate that nobody needs", "ErrMalformed", array(text("cepa/1 ballot"), text("example"), number(vectorPeriod),
		array(octets(authorityKeys("authority 1").Certificate)), array()))
	f.add(kind, "a byte behind it", "ErrMalformed", append(bytes.Clone(b.Document), 0))
	f.add(kind, "more than its bound", "ErrTooLarge", make([]byte, 1024+4*2*(64+4*226)+1))
}

// evidence changes one thing at a time in the proof.
func (f *failures) evidence() {
	const kind = "evidence"
	k, digests := authorityKeys("authority 3"), f.Evidence.Digests
	swapped := []hexBytes{digests[1], digests[0]}
	f.add(kind, "digests not sorted", "ErrMalformed", proof("vote", voteContext, swapped, k, k))
	f.add(kind, "one digest twice", "ErrMalformed", proof("vote", voteContext, []hexBytes{digests[0], digests[0]}, k, k))
	f.add(kind, "two authorities", "ErrMalformed", proof("vote", voteContext, digests, k, authorityKeys("authority 2")))
	f.add(kind, "about something else", "ErrMalformed", proof("ballot", voteContext, digests, k, k))
	f.add(kind, "signed as a consensus", "ErrBadSignature", proof("vote", f.consensusContext(), digests, k, k))
	f.add(kind, "a certificate for descriptors", "ErrBadSignature", proof("vote", voteContext, digests, k, relayKeys("authority 3")))
}

func (*failures) consensusContext() string { return fmt.Sprint("cepa/1 consensus ", vectorPeriod) }

// consensuses changes one thing at a time in the consensus.
func (f *failures) consensuses() {
	const kind = "consensus"
	c, signers := f.Consensus, consensusSigners()
	relays := func(name string, change func(columns [][]byte)) {
		_, columns := makeColumns(c.Relays, f.Descriptors)
		change(columns)
		f.add(kind, name, "ErrMalformed", sealConsensus(c.body(columns), signers...).Document)
	}
	flags := func(low, high byte) []byte {
		return octets([]byte{low, 3, 3, 3, high, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	}
	relays("an identity beyond the last", func(c [][]byte) { c[0] = array(number(1), number(1), number(1), number(65533)) })
	relays("an identity gap that is too large", func(c [][]byte) { c[0] = array(number(1), number(1<<32-1), number(1), number(1)) })
	relays("an identity gap too few", func(c [][]byte) { c[0] = array(number(1), number(1), number(1)) })
	relays("a relay that is not valid", func(c [][]byte) { c[11] = flags(1, 0) })
	relays("flags of a relay are missing", func(c [][]byte) { c[11] = octets(make([]byte, 15)) })
	relays("flag 512", func(c [][]byte) { c[11] = flags(3, 2) })
	relays("a policy that no relay has", func(c [][]byte) { c[13] = array(text("*"), text("80"), text("none")) })
	relays("policies not sorted", func(c [][]byte) { c[13] = array(text("none"), text("*")) })
	relays("a policy beyond the table", func(c [][]byte) { c[14] = array(number(0), number(1), number(1), number(2)) })
	relays("a byte too many in the ports", func(c [][]byte) { c[9] = octets(make([]byte, 9)) })
	relays("a port too few beyond the first", func(c [][]byte) { c[10] = octets(make([]byte, 4)) })
	relays("a relay without address", func(c [][]byte) { c[6] = octets([]byte{0x40, 0x20, 0x10, 0x00}) })
	relays("an IPv4 address too few", func(c [][]byte) { c[7] = octets(make([]byte, 16)) })
	swapped := slices.Clone(c.Relays)
	slices.Reverse(swapped)
	_, columns := makeColumns(swapped, f.Descriptors)
	f.add(kind, "relays not sorted", "ErrMalformed", sealConsensus(c.body(columns), signers...).Document)
	_, columns = makeColumns(append(c.Relays[:1:1], c.Relays...), f.Descriptors)
	f.add(kind, "a relay twice", "ErrMalformed", sealConsensus(c.body(columns), signers...).Document)

	signed := func(name, err string, keys ...keyVector) {
		f.add(kind, name, err, sealConsensus(c.Body, keys...).Document)
	}
	all := append(signers[:3:3], authorityKeys("authority 3"))
	slices.SortFunc(all, func(a, b keyVector) int { return bytes.Compare(a.Identity, b.Identity) })
	spoil := func(change func(*keyVector)) []keyVector {
		list := slices.Clone(all)
		change(&list[3])
		return list
	}
	signed("two of four signatures", "ErrUndersigned", signers[0], signers[1])
	signed("no signature", "ErrUndersigned")
	signed("signatures not sorted", "ErrMalformed", signers[1], signers[0], signers[2])
	signed("an authority twice", "ErrMalformed", signers[0], signers[0], signers[1], signers[2])
	signed("a bad signature beyond the threshold", "ErrBadSignature", spoil(func(k *keyVector) { k.SigningSeed = k.IdentitySeed })...)
	signed("a stranger beyond the threshold", "ErrUnknownSigner", append(signers[:3:3], authorityKeys("stranger"))...)
	signed("a certificate that ended before the period", "ErrBadSignature", spoil(func(k *keyVector) {
		*k = certified(k.Name, 3, vectorStart-10, vectorStart-1)
	})...)
	f.add(kind, "signed without the period", "ErrBadSignature", seal("cepa/1 consensus", "cepa/1 consensus", c.Body, signers...).Document)
	f.add(kind, "signed for the next period", "ErrBadSignature", seal("cepa/1 consensus", fmt.Sprint("cepa/1 consensus ", vectorPeriod+1), c.Body, signers...).Document)
	f.at(kind, "5 minutes and a second before it is valid", "ErrFuture", c.Document, -60-301)
	f.at(kind, "24 hours after its start", "ErrExpired", c.Document, -60+24*3600)
}

func (f *failures) signatures() {
	const kind, name = "consensus signature", "cepa/1 consensus signature"
	digest, key := f.Consensus.BodyDigest, authorityKeys("authority 1")
	f.add(kind, "another network", "ErrWrongNetwork", exchanged(name, "other", digest, key))
	f.add(kind, "a stranger's", "ErrUnknownSigner", exchanged(name, "example", digest, authorityKeys("stranger")))
	f.add(kind, "another kind", "ErrMalformed", exchanged("cepa/1 consensus", "example", digest, key))
	good := exchanged(name, "example", digest, key)
	other := bytes.Replace(good, digest, vectorSeed("digest"), 1)
	f.add(kind, "another digest", "ErrBadSignature", other)
	f.add(kind, "1,025 bytes", "ErrTooLarge", append(good, make([]byte, 1025-len(good))...))
}

// differences changes one thing at a time in the difference.
func (f *failures) differences() {
	const kind = "difference"
	d := f.Difference
	var fields [][]byte
	for _, m := range d.Fields {
		for _, field := range m {
			b, err := hex.DecodeString(field)
			if err != nil {
				panic(err)
			}
			fields = append(fields, b)
		}
	}
	later := d.Now - vectorNow
	change := func(name, err string, i int, field []byte) {
		list := slices.Clone(fields)
		list[i] = field
		f.at(kind, name, err, listed(list), later)
	}
	change("another kind", "ErrMalformed", 0, text("cepa/1 consensus"))
	change("from another consensus", "ErrWrongBase", 1, octets(vectorSeed("digest")))
	change("of another period", "ErrBadSignature", 2, number(vectorPeriod+2))
	change("another parameter", "ErrBadSignature", 3, parameters(map[string]int64{"x-negative": -8}))
	change("another version", "ErrBadSignature", 4, array(text("0.11"), text("0.1")))
	change("another random value", "ErrBadSignature", 5, values([]hexBytes{vectorSeed("x"), {}}))
	change("a random value of 31 bytes", "ErrMalformed", 5, values([]hexBytes{vectorSeed("x")[:31], {}}))
	change("a relay too far", "ErrMalformed", 6, array(number(4)))
	change("nobody is dropped", "ErrBadSignature", 6, array())
	change("no flags where there are places", "ErrMalformed", 9, array())
	change("a weight below 0", "ErrMalformed", 11, array(signedNumber(-1001)))
	change("another weight", "ErrBadSignature", 11, array(signedNumber(149)))
	change("half a key", "ErrMalformed", 13, octets(make([]byte, 16)))
	change("no place for the rest", "ErrMalformed", 14, array())
	change("two signatures", "ErrUndersigned", 16, func() []byte {
		var wire [][]byte
		for _, k := range consensusSigners()[:2] {
			digest := sha256.Sum256(bodyOf(d.Next))
			wire = append(wire, array(octets(k.Certificate), octets(ed25519.Sign(ed25519.NewKeyFromSeed(k.SigningSeed),
				append(fmt.Append(nil, "cepa/1 consensus ", vectorPeriod+1), digest[:]...)))))
		}
		return listed(wire)
	}())
	f.at(kind, "a byte behind it", "ErrMalformed", append(bytes.Clone(d.Document), 0), later)
	f.at(kind, "before the next consensus is valid", "ErrFuture", d.Document, later-60-301)
	f.at(kind, "after the next consensus has expired", "ErrExpired", d.Document, later-60+24*3600)
}

// bodyOf returns the body of a consensus of more than 255 and less than 65,536 bytes.
func bodyOf(document []byte) []byte {
	rest := document[1+len(text("cepa/1 consensus")):]
	return rest[3 : 3+int(binary.BigEndian.Uint16(rest[1:]))]
}

func (f *failures) networkFiles() {
	change := func(name, old, new string) {
		f.add("network file", name, "ErrMalformed", []byte(strings.Replace(f.Network, old, new, 1)))
	}
	change("unknown key", "name =", "colour = 1\nname =")
	change("no name", "name = \"example\"", "")
	change("half a second too much", "\"1h\"", "\"1.5s\"")
	change("more than 24 hours", "\"1h\"", "\"24h1s\"")
	change("no time", "\"1h\"", "\"90\"")
	change("a nickname twice", "auth2", "auth1")
	change("an address twice", "203.0.113.2:", "203.0.113.1:")
	change("identity in capital letters", fmt.Sprintf("%x", f.Keys[0].Identity), fmt.Sprintf("%X", f.Keys[0].Identity))
	change("no port", ":9030", "")
	change("a parameter out of its bounds", "address = 2", "address = 0")
	change("a fallback without port", "198.51.100.9:9030", "198.51.100.9")
	change("a fallback at an authority's address", "198.51.100.9:9030", "203.0.113.1:9030")
	change("a fallback twice", "198.51.100.9:9030", "198.51.100.10:80")
	change("a fallback with a nickname", "[[fallback]]", "[[fallback]]\nnickname = \"a\"")
	change("a fallback whose identity is none", "[[fallback]]\naddress = \"198.51.100.10:80\"", "[[fallback]]\nidentity = \"00\"\naddress = \"198.51.100.10:80\"")
}

func TestVectors(t *testing.T) {
	const path = "testdata/documents.json"
	made, err := json.MarshalIndent(makeVectors(), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, made) {
		t.Errorf("%s is not what the reference makes", path)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var v vectors
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Descriptors) < 5 || len(v.Votes) != 4 || len(v.Signatures) != 3 || len(v.Failures) < 100 {
		t.Fatalf("only %d descriptors, %d votes, %d signatures, %d failures", len(v.Descriptors), len(v.Votes), len(v.Signatures), len(v.Failures))
	}
	network, err := directory.ParseNetwork([]byte(v.Network))
	if err != nil {
		t.Fatal(err)
	}
	c := checker{t, &v, network, map[string]*directory.Descriptor{}}
	c.descriptors()
	votes := c.votes()
	c.consensus(votes)
	c.difference()
	c.exchange(votes)
	for _, f := range v.Failures {
		if err := c.parse(f.Kind, f.Document, f.Now); !errors.Is(err, sentinel(f.Error)) || sentinel(f.Error) == nil {
			t.Errorf("%s: %s: got %v, want %s", f.Kind, f.Name, err, f.Error)
		}
	}
}

func sentinel(name string) error {
	return map[string]error{
		"ErrMalformed": directory.ErrMalformed, "ErrTooLarge": directory.ErrTooLarge, "ErrWrongNetwork": directory.ErrWrongNetwork,
		"ErrUnknownSigner": directory.ErrUnknownSigner, "ErrBadSignature": directory.ErrBadSignature, "ErrUndersigned": directory.ErrUndersigned,
		"ErrExpired": directory.ErrExpired, "ErrFuture": directory.ErrFuture, "ErrWrongBase": directory.ErrWrongBase,
	}[name]
}

// checker makes and parses what the file holds with the code under test.
type checker struct {
	t       *testing.T
	v       *vectors
	network *directory.Network
	parsed  map[string]*directory.Descriptor // parsed, by name
}

func (c *checker) parse(kind string, document []byte, now int64) (err error) {
	switch kind {
	case "descriptor":
		_, err = directory.ParseDescriptor(document, time.Unix(now, 0))
	case "vote":
		_, err = directory.ParseVote(document, c.network, nil)
	case "consensus":
		_, err = directory.ParseConsensus(document, c.network, time.Unix(now, 0))
	case "consensus signature":
		_, err = directory.ParseSignature(document, c.network)
	case "ballot":
		_, err = directory.ParseBallot(document, c.network)
	case "evidence":
		_, err = directory.ParseEvidence(document)
	case "difference":
		old, broken := directory.VerifyConsensus(c.v.Consensus.Document, c.network)
		if broken != nil {
			c.t.Fatal(broken)
		}
		_, err = directory.ApplyDiff(old, document, c.network, time.Unix(now, 0))
	case "network file":
		_, err = directory.ParseNetwork(document)
	}
	return err
}

// same compares what the code made with the file.
func (c *checker) same(what string, got, want []byte, err error) {
	c.t.Helper()
	if err != nil || !bytes.Equal(got, want) {
		c.t.Errorf("%s: made as %x, error %v", what, got, err)
	}
}

// keys returns the signing key and the certificate of a name.
func (c *checker) keys(name string) (*identity.Key, *identity.Certificate) {
	c.t.Helper()
	k := c.v.Keys[slices.IndexFunc(c.v.Keys, func(k keyVector) bool { return k.Name == name })]
	key, err := identity.FromSeed(k.SigningSeed)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := identity.ParseCertificate(k.Certificate)
	if err != nil {
		c.t.Fatal(err)
	}
	return key, cert
}

func (c *checker) descriptors() {
	for _, d := range c.v.Descriptors {
		want := &directory.Descriptor{
			Network: d.Network, Identity: identity.ID(d.Identity), Sequence: d.Sequence, Published: time.Unix(d.Published, 0).UTC(),
			OnionKey: [32]byte(d.OnionKey), Suite: d.Suite, Nickname: d.Nickname, Version: d.Version, BandwidthRate: d.Rate,
			Uptime: time.Duration(d.Uptime) * time.Second, Contact: d.Contact,
		}
		for _, a := range d.Addresses {
			want.Addresses = append(want.Addresses, netip.MustParseAddrPort(a))
		}
		for _, f := range d.Families {
			m, err := identity.ParseCertificate(f)
			if err != nil {
				c.t.Fatal(err)
			}
			want.Memberships = append(want.Memberships, m)
		}
		var err error
		if want.ExitPolicy, err = directory.ParsePortPolicy(d.ExitPolicy); err != nil {
			c.t.Fatal(err)
		}
		key, cert := c.keys(d.Signer)
		document, err := directory.SignDescriptor(want, key, cert)
		c.same(d.Name, document, d.Document, err)
		got, err := directory.ParseDescriptor(d.Document, time.Unix(c.v.Now, 0))
		if err != nil {
			c.t.Fatalf("%s: %v", d.Name, err)
		}
		digest := got.Digest()
		c.same(d.Name+", digest", digest[:], d.DocumentDigest, nil)
		c.parsed[d.Name] = got
		// What was parsed makes the same document again: every field was read.
		document, err = directory.SignDescriptor(got, key, cert)
		c.same(d.Name+", parsed", document, d.Document, err)
		if got.ExitPolicy.String() != d.ExitPolicy || !reflect.DeepEqual(got.Addresses, want.Addresses) {
			c.t.Errorf("%s: parsed as %+v", d.Name, got)
		}
	}
}

// votes returns the parsed votes.
func (c *checker) votes() (votes []*directory.Vote) {
	for _, v := range c.v.Votes {
		key, cert := c.keys(v.Authority)
		want := &directory.Vote{
			Network: v.Network, Interval: time.Duration(v.Interval) * time.Second, Period: v.Period, Authority: cert.Identity, Params: v.Params,
			Versions: directory.Versions{Recommended: v.Versions[0], Required: v.Versions[1]},
		}
		copy(want.Random.Commitment[:], v.Random[0])
		copy(want.Random.Secret[:], v.Random[1])
		copy(want.Random.Previous[:], v.Random[2])
		copy(want.Random.Current[:], v.Random[3])
		for _, e := range v.Entries {
			d := c.parsed[e.Descriptor]
			want.Entries = append(want.Entries, directory.VoteEntry{Descriptor: d, Flags: directory.Flags(e.Flags), Weight: e.Weight, Measured: e.Measured, Identity: d.Identity, Digest: d.Digest()})
		}
		document, err := directory.SignVote(want, key, cert)
		c.same(v.Authority, document, v.Document, err)
		got, err := directory.ParseVote(v.Document, c.network, c.byDigest)
		if err != nil {
			c.t.Fatalf("%s: %v", v.Authority, err)
		}
		if got.Authority != want.Authority || !reflect.DeepEqual(got.Params, want.Params) || got.Versions != want.Versions || got.Random != want.Random || !reflect.DeepEqual(got.Entries, want.Entries) {
			c.t.Errorf("%s: parsed as %+v", v.Authority, got)
		}
		digest := got.Digest()
		c.same(v.Authority+", digest", digest[:], v.BodyDigest, nil)
		votes = append(votes, got)
	}
	return votes
}

func (c *checker) byDigest(digest [32]byte) *directory.Descriptor {
	for _, d := range c.parsed {
		if d.Digest() == digest {
			return d
		}
	}
	return nil
}

// exchange makes and parses what authorities send each other about votes.
func (c *checker) exchange(votes []*directory.Vote) {
	made := &directory.Ballot{Period: vectorPeriod}
	for _, h := range c.v.Ballot.Heads {
		i := slices.IndexFunc(c.v.Votes, func(v voteVector) bool { return v.Authority == h.Authority })
		head := votes[i].Head()
		for _, e := range h.Endorsements {
			key, cert := c.keys(e.Authority)
			head.Endorsements = append(head.Endorsements, head.Endorse("example", vectorPeriod, key, cert))
		}
		made.Heads = append(made.Heads, head)
	}
	c.same("ballot", directory.EncodeBallot("example", made), c.v.Ballot.Document, nil)
	got, err := directory.ParseBallot(c.v.Ballot.Document, c.network)
	if err != nil || !reflect.DeepEqual(got, made) {
		c.t.Errorf("ballot parsed as %+v, error %v", got, err)
	}
	e, err := directory.ParseEvidence(c.v.Evidence.Document)
	if err != nil {
		c.t.Fatal(err)
	}
	c.same("evidence", e.Raw(), c.v.Evidence.Document, nil)
	c.same("first digest of evidence", e.Digests[0][:], c.v.Evidence.Digests[0], nil)
	if _, cert := c.keys(c.v.Evidence.Authority); e.Authority != cert.Identity || e.What != directory.EvidenceVote || e.Period != vectorPeriod {
		c.t.Errorf("evidence parsed as %+v", e)
	}
	var list []*directory.Descriptor
	var digests [][32]byte
	for _, name := range c.v.Batch.Descriptors {
		list, digests = append(list, c.parsed[name]), append(digests, c.parsed[name].Digest())
	}
	c.same("request for descriptors", directory.EncodeDigests(digests), c.v.Batch.Request, nil)
	c.same("batch of descriptors", directory.EncodeDescriptors(list), c.v.Batch.Answer, nil)
	back, err := directory.ParseDescriptors(c.v.Batch.Answer, func(digest [32]byte) bool { return digest != digests[0] })
	if err != nil || len(back) != 1 || back[0].Digest() != digests[1] {
		c.t.Errorf("batch parsed as %v, error %v", back, err)
	}
}

func (c *checker) difference() {
	d := c.v.Difference
	old, err := directory.VerifyConsensus(c.v.Consensus.Document, c.network)
	if err != nil {
		c.t.Fatal(err)
	}
	next, err := directory.ParseConsensus(d.Next, c.network, time.Unix(d.Now, 0))
	if err != nil {
		c.t.Fatal(err)
	}
	made, err := directory.Diff(old, next)
	c.same("difference", made, d.Document, err)
	got, err := directory.ApplyDiff(old, d.Document, c.network, time.Unix(d.Now, 0))
	if err != nil {
		c.t.Fatal(err)
	}
	c.same("difference, applied", got.Raw(), d.Next, nil)
	if digest := old.Digest(); d.Path != mirror.PathDifference+hex.EncodeToString(digest[:]) {
		c.t.Errorf("the difference is at %s", d.Path)
	}
}

// consensus computes, signs, assembles and parses the consensus of the votes.
func (c *checker) consensus(votes []*directory.Vote) {
	want := c.v.Consensus
	computed, err := directory.Compute(votes, c.network)
	if err != nil {
		c.t.Fatal(err)
	}
	digest := computed.Digest()
	c.same("consensus, digest", digest[:], want.BodyDigest, nil)
	var signatures []*directory.Signature
	for i, name := range want.Signers {
		key, cert := c.keys(name)
		s, err := directory.SignConsensus(computed, key, cert)
		if err != nil {
			c.t.Fatal(err)
		}
		c.same("signature of "+name, s.Raw(), c.v.Signatures[i], nil)
		if s, err = directory.ParseSignature(c.v.Signatures[i], c.network); err != nil || s.Authority != cert.Identity || s.Digest != digest {
			c.t.Fatalf("signature of %s: parsed as %+v, error %v", name, s, err)
		}
		signatures = append(signatures, s)
	}
	document, err := directory.AssembleConsensus(computed, signatures, c.network)
	c.same("consensus", document, want.Document, err)
	got, err := directory.ParseConsensus(want.Document, c.network, time.Unix(c.v.Now, 0))
	if err != nil {
		c.t.Fatal(err)
	}
	if got.ValidAfter.Unix() != want.ValidAfter || got.FreshUntil.Unix() != want.FreshUntil || got.ValidUntil.Unix() != want.ValidUntil ||
		!reflect.DeepEqual(got.Params, directory.Params(want.Params)) || got.Versions.Recommended != want.Versions[0] || got.Versions.Required != want.Versions[1] ||
		!bytes.Equal(got.Random.Previous[:], want.Random[0]) || got.Random.Current != (directory.RandomValue{}) || len(got.Relays) != len(want.Relays) || len(got.Signers) != len(want.Signers) {
		c.t.Fatalf("consensus parsed as %+v", got)
	}
	for i, e := range want.Relays {
		d := c.parsed[e.Descriptor]
		relay := directory.Relay{
			Identity: d.Identity, OnionKey: d.OnionKey, Suite: d.Suite, Nickname: d.Nickname, Addresses: d.Addresses,
			Flags: directory.Flags(e.Flags), Weight: e.Weight, Exit: d.ExitPolicy, Family: d.Families(), Version: d.Version,
		}
		if !reflect.DeepEqual(got.Relays[i], relay) {
			c.t.Errorf("relay %d is %+v, want %+v", i, got.Relays[i], relay)
		}
	}
	if tag := mirror.NewDocument(got).ETag(); tag != want.ETag {
		c.t.Errorf("ETag %s, want %s", tag, want.ETag)
	}
}
