package main

import (
	"encoding/hex"
	"strings"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// documentJSON is a document for programs: of its fields, those of its kind are there.
// Times are RFC 3339, keys and digests hexadecimal.
type documentJSON struct {
	Kind       directory.Kind    `json:"kind"`
	Network    string            `json:"network,omitempty"`
	Interval   int64             `json:"interval_seconds,omitempty"`
	Period     *uint64           `json:"period,omitempty"`
	ValidAfter *time.Time        `json:"valid_after,omitempty"`
	FreshUntil *time.Time        `json:"fresh_until,omitempty"`
	ValidUntil *time.Time        `json:"valid_until,omitempty"`
	Digest     string            `json:"digest,omitempty"`
	Authority  string            `json:"authority,omitempty"`
	Recommend  string            `json:"recommended_version,omitempty"`
	Require    string            `json:"required_version,omitempty"`
	Random     []string          `json:"shared_random,omitempty"` // current, previous
	Params     map[string]int64  `json:"parameters,omitempty"`
	Relays     []relayJSON       `json:"relays,omitempty"`
	Descriptor *descriptorJSON   `json:"descriptor,omitempty"`
	Certified  *certificateJSON  `json:"certificate,omitempty"`
	Threshold  int               `json:"threshold,omitempty"`
	Named      []authorityJSON   `json:"authorities,omitempty"`
	Signers    []signerJSON      `json:"signers,omitempty"`
	Verified   *verificationJSON `json:"verification,omitempty"`
}

type relayJSON struct {
	Identity  string   `json:"identity"`
	Nickname  string   `json:"nickname"`
	Addresses []string `json:"addresses"`
	Flags     []string `json:"flags"`
	Weight    uint64   `json:"weight_kb_per_second"`
	OnionKey  string   `json:"onion_key"`
	Suite     uint8    `json:"suite"`
	Exit      string   `json:"exit_policy"`
	Families  []string `json:"families"`
	Version   string   `json:"version"`
}

type descriptorJSON struct {
	relayJSON
	Sequence    uint64            `json:"sequence"`
	Published   time.Time         `json:"published"`
	Rate        uint64            `json:"bandwidth_rate_kb_per_second"`
	Uptime      int64             `json:"uptime_seconds"`
	Contact     string            `json:"contact"`
	Hibernating bool              `json:"hibernating"`
	Overloaded  bool              `json:"overloaded"`
	Memberships []certificateJSON `json:"memberships"`
}

type certificateJSON struct {
	Purpose string    `json:"purpose"`
	By      string    `json:"identity"`
	Of      string    `json:"subject"`
	From    time.Time `json:"from"`
	Until   time.Time `json:"until"`
}

type authorityJSON struct {
	Nickname string `json:"nickname"`
	Identity string `json:"identity"`
	Address  string `json:"address"`
}

type signerJSON struct {
	certificateJSON
	Nickname string `json:"nickname,omitempty"` // of an authority, when the network is known
	Problem  string `json:"problem,omitempty"`
}

type verificationJSON struct {
	Good    bool      `json:"good"`
	At      time.Time `json:"at"`
	Problem string    `json:"problem,omitempty"`
}

func jsonOf(d *directory.Document) *documentJSON {
	out := &documentJSON{Kind: d.Kind, Signers: signersJSON(d.Signers, nil)}
	switch d.Kind {
	case directory.KindConsensus:
		c := d.Consensus
		digest := c.Digest()
		out.Network, out.Interval, out.Period, out.Digest = c.Network, int64(c.Interval/time.Second), &c.Period, hex.EncodeToString(digest[:])
		out.ValidAfter, out.FreshUntil, out.ValidUntil = &c.ValidAfter, &c.FreshUntil, &c.ValidUntil
		out.Params, out.Relays = c.Params, relaysJSON(c.Relays)
		out.Recommend, out.Require, out.Random = c.Versions.Recommended, c.Versions.Required, randomJSON(c.Random)
	case directory.KindVote:
		v := d.Vote
		digest := v.Digest()
		out.Network, out.Interval, out.Period, out.Digest = v.Network, int64(v.Interval/time.Second), &v.Period, hex.EncodeToString(digest[:])
		out.Authority, out.Params, out.Relays = v.Authority.String(), v.Params, relaysJSON(v.Relays())
		out.Recommend, out.Require, out.Random = v.Versions.Recommended, v.Versions.Required, randomJSON(v.Random.Random)
	case directory.KindDescriptor:
		out.Network, out.Descriptor = d.Descriptor.Network, descriptorOf(d.Descriptor)
		digest := d.Descriptor.Digest()
		out.Digest = hex.EncodeToString(digest[:])
	case directory.KindSignature:
		s := d.Signature
		out.Network, out.Period, out.Digest, out.Authority = s.Network, &s.Period, hex.EncodeToString(s.Digest[:]), s.Authority.String()
	case directory.KindCertificate:
		c := certificateOf(d.Certificate)
		out.Certified = &c
	case directory.KindNetwork:
		n := d.Network
		out.Network, out.Interval, out.Params, out.Threshold = n.Name, int64(n.Interval/time.Second), n.Params, n.Threshold()
		for _, a := range n.Authorities {
			out.Named = append(out.Named, authorityJSON{a.Nickname, a.Identity.String(), a.Address})
		}
	}
	return out
}

func randomJSON(r directory.Random) (out []string) {
	for _, v := range []directory.RandomValue{r.Current, r.Previous} {
		if v == (directory.RandomValue{}) {
			break
		}
		out = append(out, hex.EncodeToString(v[:]))
	}
	return out
}

func signersJSON(list []directory.Signer, net *directory.Network) (out []signerJSON) {
	for _, s := range list {
		j := signerJSON{certificateJSON: certificateOf(s.Certificate)}
		if net != nil {
			j.Nickname = signerName(s.Certificate.Identity, net)
		}
		if s.Problem != nil {
			j.Problem = s.Problem.Error()
		}
		out = append(out, j)
	}
	return out
}

func relaysJSON(relays []directory.Relay) []relayJSON {
	out := make([]relayJSON, len(relays))
	for i := range relays {
		out[i] = relayOf(&relays[i])
	}
	return out
}

func relayOf(r *directory.Relay) relayJSON {
	return relayJSON{
		Identity: r.Identity.String(), Nickname: r.Nickname, Addresses: textsOf(r.Addresses), Flags: strings.Fields(r.Flags.String()), Weight: r.Weight,
		OnionKey: hex.EncodeToString(r.OnionKey[:]), Suite: r.Suite, Exit: r.Exit.String(), Families: textsOf(r.Family), Version: r.Version,
	}
}

func descriptorOf(d *directory.Descriptor) *descriptorJSON {
	out := &descriptorJSON{
		relayJSON: relayJSON{
			Identity: d.Identity.String(), Nickname: d.Nickname, Addresses: textsOf(d.Addresses), Flags: []string{}, OnionKey: hex.EncodeToString(d.OnionKey[:]),
			Suite: d.Suite, Exit: d.ExitPolicy.String(), Families: textsOf(d.Families()), Version: d.Version,
		},
		Sequence: d.Sequence, Published: d.Published, Rate: d.BandwidthRate, Uptime: int64(d.Uptime / time.Second), Contact: d.Contact,
		Hibernating: d.Extra.Hibernating, Overloaded: d.Extra.Overloaded, Memberships: []certificateJSON{},
	}
	for _, m := range d.Memberships {
		out.Memberships = append(out.Memberships, certificateOf(m))
	}
	return out
}

func certificateOf(c *identity.Certificate) certificateJSON {
	return certificateJSON{c.Purpose.String(), c.Identity.String(), c.Subject.String(), c.NotBefore, c.NotAfter}
}

// textsOf is never nil, so that programs find a list.
func textsOf[T interface{ String() string }](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}
