package onion_test

import (
	"bytes"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

const (
	vectorFrom = 1767225600 // 2026-01-01
	vectorTo   = vectorFrom + 2*86400
)

func makeVectors() *vectors {
	v := &vectors{About: "Onion services, doc/spec.md section 14: addresses, keys of periods, rings, descriptors, handshakes."}
	makeAddresses(v)
	makePeriods(v)
	makeRings(v)
	makeClients(v)
	makeDescriptors(v)
	makeHandshakes(v)
	return v
}

func makeAddresses(v *vectors) {
	for i := range 3 {
		key := publicOf(bytesOf(fmt.Sprint("address ", i), 32))
		text := addressText(key, 1)
		v.Addresses = append(v.Addresses, addressVector{key, text, []string{
			strings.ToUpper(text), text + ".", "www." + text, "a.b.C-d." + text[:1] + strings.ToUpper(text[1:]) + ".",
		}})
	}
	good := v.Addresses[0].Address
	key := v.Addresses[0].Key
	fail := func(name, host, err string) {
		v.AddressFailures = append(v.AddressFailures, addressFailure{name, host, err})
	}
	digit := func(at int) string {
		c := byte('a')
		if good[at] == c {
			c = 'b'
		}
		return good[:at] + string(c) + good[at+1:]
	}
	fail("empty", "", "ErrNotAddress")
	fail("a name of the DNS", "example.com", "ErrNotAddress")
	fail("the suffix alone", "cepa.alt", "ErrNotAddress")
	fail("the suffix without a dot before it", strings.Replace(good, ".cepa", "cepa", 1), "ErrNotAddress")
	fail("another suffix under alt", strings.Replace(good, ".cepa.", ".cepb.", 1), "ErrNotAddress")
	fail("two dots at the end", good+"..", "ErrNotAddress")
	fail("a Kelvin sign in the suffix", strings.Replace(good, ".cepa", ".cepa\u212a", 1), "ErrNotAddress")
	fail("longer than a name may be", strings.Repeat("a.", 100)+good, "ErrNotAddress")
	fail("an address of Tor", "www.pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion", "ErrOtherNetwork")
	fail("an address of Tor in upper case, with a dot", "PG6MMJIYJMCRSSLVYKFWNNTLARU7P5SVN6Y2YMMJU6NUBXNDF4PSCRYD.ONION.", "ErrOtherNetwork")
	fail("an address of Tor with our suffix", "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.cepa.alt", "ErrAddressVersion")
	fail("no digits", ".cepa.alt", "ErrAddressLength")
	fail("an empty label before it", "www.."+good, "ErrAddressLength")
	fail("one digit less", good[1:], "ErrAddressLength")
	fail("one digit more", "a"+good, "ErrAddressLength")
	fail("a digit that is none", "0"+good[1:], "ErrAddressDigits")
	fail("a line end", "\n"+good[1:], "ErrAddressDigits")
	fail("padding", "="+good[1:], "ErrAddressDigits")
	fail("first digit changed", digit(0), "ErrAddressCheck")
	fail("digit 30 changed", digit(30), "ErrAddressCheck")
	fail("checksum changed", digit(52), "ErrAddressCheck")
	fail("two digits swapped", good[:8]+good[9:10]+good[8:9]+good[10:], "ErrAddressCheck")
	fail("version 2", addressText(key, 2), "ErrAddressVersion")
	fail("version 0", addressText(key, 0), "ErrAddressVersion")
	fail("key of small order", addressText(make([]byte, 32), 1), "ErrAddressKey")
	fail("key that is not canonical", addressText(cat([]byte{0xf0}, bytes.Repeat([]byte{0xff}, 30), []byte{0x7f}), 1), "ErrAddressKey")
	fail("key off the curve", addressText(littleEndian(big.NewInt(2)), 1), "ErrAddressKey")
	y := number(cat(key[:31], []byte{key[31] & 0x7f}))
	spoilt := add(lift(y, uint(key[31]>>7)), point{big.NewInt(0), new(big.Int).Sub(prime, big.NewInt(1))})
	fail("key with a part of small order", addressText(encode(spoilt), 1), "ErrAddressKey")
}

func makePeriods(v *vectors) {
	for i, p := range []struct {
		service, network string
		period           uint64
	}{{"one", "main", 20000}, {"one", "main", 20001}, {"one", "other", 20000}, {"two", "main", 20000}, {"three", strings.Repeat("z", 32), 0}} {
		s := newRefService(bytesOf("service "+p.service, 32), p.network, p.period)
		signing := bytesOf(fmt.Sprint("signing ", i), 32)
		made := periodVector{
			Seed: s.seed, Address: addressText(s.address, 1), Network: s.network, Period: s.period,
			Factor: s.factor, Blinded: s.blinded, Subcredential: s.subcredential, SigningSeed: signing,
			NotBefore: vectorFrom, NotAfter: vectorTo, Certificate: s.certificate(5, publicOf(signing), vectorFrom, vectorTo),
		}
		for _, steps := range []int{0, 1, 65536, 65537, 100000} {
			made.Revisions = append(made.Revisions, revisionVector{
				// In the middle of the step.
				(int64(steps-65536)*2 + 1) * 86400000 / 65536 / 2, s.revision(steps),
			})
		}
		made.Revisions = append(made.Revisions,
			revisionVector{-3 * 86400000, s.revision(0)}, revisionVector{9 * 86400000, s.revision(4 * 65536)})
		revision := kdf(s.seed, nil, "cepa/1 onion revision"+string(s.bound()), 32)
		bundle := cat([]byte("cepa onion keys 1\n"), []byte{byte(len(s.network))}, []byte(s.network), s.address, be(1, 2),
			be(s.period, 8), signing, revision, made.Certificate)
		made.Bundle = cat(bundle, hash(bundle)[:8])
		v.Periods = append(v.Periods, made)
	}
}

func makeRings(v *vectors) {
	for i, r := range []struct{ relays, replicas, spread int }{{20, 2, 4}, {20, 2, 8}, {20, 1, 1}, {5, 2, 4}, {1, 2, 4}, {0, 2, 4}} {
		p := v.Periods[i%2]
		random := bytesOf("random", 32)
		if i == 3 {
			random = make([]byte, 32)
		}
		s := newRefService(p.Seed, p.Network, p.Period)
		var relays [][]byte
		for n := range r.relays {
			relays = append(relays, publicOf(bytesOf(fmt.Sprint("relay ", n), 32)))
		}
		of, at := refPlaces(relays, s.bound(), random, s.blinded, r.replicas)
		v.Rings = append(v.Rings, ringVector{
			p.Network, p.Period, random, hexes(relays), hexes(of), s.blinded, hexes(at), r.spread, hexes(refResponsible(relays, of, at, r.spread)),
		})
	}
}

func hexes(list [][]byte) []hexBytes {
	all := make([]hexBytes, 0, len(list))
	for _, b := range list {
		all = append(all, b)
	}
	return all
}

func makeClients(v *vectors) {
	const secretPrefix, publicPrefix = "cepa-onion-auth-secret:", "cepa-onion-auth:"
	for i := range 3 {
		s := bytesOf(fmt.Sprint("client ", i), 32)
		p := x25519Public(s)
		v.Clients = append(v.Clients, clientVector{s, p, clientText(secretPrefix, s), clientText(publicPrefix, p)})
	}
	good := v.Clients[0].PublicText
	for _, f := range []clientFailure{
		{"empty", ""},
		{"no prefix", good[len(publicPrefix):]},
		{"another prefix", "cepa-onion-auto:" + good[len(publicPrefix):]},
		{"cut off", good[:len(good)-1]},
		{"longer", good + "a"},
		{"upper case in the prefix", "C" + good[1:]},
		{"a digit that is none", publicPrefix + "1" + good[len(publicPrefix)+1:]},
		{"checksum of another prefix", publicPrefix + clientText(secretPrefix, v.Clients[0].Public)[len(secretPrefix):]},
		{"a point of low order", clientText(publicPrefix, cat([]byte{1}, make([]byte, 31)))},
		{"a secret of zeros", clientText(secretPrefix, make([]byte, 32))},
	} {
		v.ClientFailures = append(v.ClientFailures, f)
	}
}

func vectorOf(p refPoint) pointVector {
	return pointVector{p.relay, p.key, p.sealSeed, p.effort, p.seed, p.previous}
}

func makeDescriptors(v *vectors) {
	type made struct {
		d      *refDescriptor
		vector descriptorVector
	}
	build := func(name string, base, points, clients int, singleHop bool) made {
		p := v.Periods[base]
		random := bytesOf("descriptor "+name, 32+32+32+16*56)
		var list []refPoint
		vector := descriptorVector{
			Name: name, Base: base, Revision: 1<<40 + uint64(base), Suite: uint8(1 + base%2), SingleHop: singleHop, Lifetime: 10800, Random: random,
		}
		for i := range points {
			list = append(list, newRefPoint(fmt.Sprint(name, i), uint32(i*1000)))
			vector.Points = append(vector.Points, vectorOf(list[i]))
		}
		var flags byte
		if singleHop {
			flags = 1
		}
		d := &refDescriptor{
			service: newRefService(p.Seed, p.Network, p.Period), certificate: p.Certificate, signing: p.SigningSeed, revision: vector.Revision,
			salt: random[:32], ephemeral: random[32:64], cookie: make([]byte, 32), fake: random[96:],
			content: refContent(vector.Suite, flags, vector.Lifetime, list),
		}
		for i := range clients {
			secret := bytesOf(fmt.Sprint("client ", i), 32)
			d.clients = append(d.clients, x25519Public(secret))
			if i < 2 {
				vector.Secrets = append(vector.Secrets, secret)
			}
		}
		vector.Clients = hexes(d.clients)
		if clients > 0 {
			d.cookie = random[64:96]
		}
		d.makeEntries(random[64:96])
		vector.Random = random[:96+56*((16-clients%16)%16)]
		if clients == 0 {
			vector.Random = random[:96+56*16]
		}
		outer := d.outer()
		vector.OuterKey, vector.InnerKey = d.key("cepa/1 onion descriptor outer", nil), d.key("cepa/1 onion descriptor inner", d.cookie)
		vector.Outer = outer[:34+56*len(d.entries)]
		vector.Descriptor = d.finish(outer)
		v.Descriptors = append(v.Descriptors, vector)
		return made{d, vector}
	}
	open := build("everybody", 0, 1, 0, false)
	build("single hop, 7 points", 1, 7, 0, true)
	closed := build("2 clients", 0, 3, 2, false)
	build("17 clients", 3, 2, 17, false)

	fail := func(f descriptorFailure) { v.DescriptorFailures = append(v.DescriptorFailures, f) }
	number := func(n int64) *int64 { return &n }
	fail(descriptorFailure{Name: "of another network", Base: "everybody", Error: "ErrWrongNetwork", Network: "other"})
	next := uint64(20001)
	fail(descriptorFailure{Name: "of another period", Base: "everybody", Error: "ErrInvalid", Period: &next})
	fail(descriptorFailure{Name: "of another service", Base: "everybody", Error: "ErrInvalid", Address: v.Periods[3].Address})
	fail(descriptorFailure{Name: "too early", Base: "everybody", Error: "ErrInvalid", Now: number(vectorFrom - 1)})
	fail(descriptorFailure{Name: "too late", Base: "everybody", Error: "ErrInvalid", Now: number(vectorTo + 1)})
	fail(descriptorFailure{Name: "no secret", Base: "2 clients", Error: "ErrAuthNeeded"})
	fail(descriptorFailure{Name: "secrets of others", Base: "2 clients", Error: "ErrAuthWrong", Secrets: []hexBytes{bytesOf("stranger", 32), bytesOf("client 2", 32)}})
	good := open.vector.Descriptor
	length := func(name string, n int) {
		fail(descriptorFailure{Name: name, Base: "everybody", Error: "ErrInvalid", Length: &n})
	}
	length("empty", 0)
	length("the version alone", 1)
	length("up to the sealed part", 200)
	length("one byte less", len(good)-1)
	length("one byte more", len(good)+1)
	length("8,192 bytes more", len(good)+8192)
	length("longer than any", 50001)
	names := []struct {
		name string
		at   int
	}{
		{"version", 0}, {"period", 8}, {"revision", 16}, {"version of the certificate", 17}, {"purpose of the certificate", 18}, {"time of the certificate", 34},
		{"signing key", 40}, {"blinded key", 70}, {"signature of the certificate", 110}, {"salt", 163}, {"length of the name", 195}, {"name of the network", 196},
		{"ephemeral key", 205}, {"an entry for a client", 300}, {"inner layer", 3000}, {"tag", len(good) - 65}, {"signature", len(good) - 1},
	}
	for _, c := range names {
		fail(descriptorFailure{
			Name: c.name + " changed", Base: "everybody", Error: map[bool]string{true: "ErrWrongNetwork", false: "ErrInvalid"}[c.name == "name of the network"],
			Changes: []change{{c.at, hexBytes{good[c.at] ^ 1}}},
		})
	}
	whole := func(name, base string, d refDescriptor, outer []byte) {
		fail(descriptorFailure{Name: name, Base: base, Error: "ErrInvalid", Descriptor: d.finish(outer)})
	}
	d := *open.d
	d.certificate = d.service.certificate(2, publicOf(d.signing), vectorFrom, vectorTo)
	whole("certificate for a relay's descriptors", "everybody", d, d.outer())
	d = *open.d
	d.signing = bytesOf("another signing key", 32)
	whole("signed by a key without certificate", "everybody", d, d.outer())
	d = *open.d
	d.entries = slices.Clone(d.entries)
	d.entries[3], d.entries[4] = d.entries[4], d.entries[3]
	whole("entries for clients out of order", "everybody", d, d.outer())
	d.entries = slices.Clone(open.d.entries)
	d.entries[3] = d.entries[4]
	whole("an entry for a client twice", "everybody", d, d.outer())
	d = *open.d
	outer := d.outer()
	outer[33] = 15
	whole("15 entries for clients", "everybody", d, outer)
	d = *open.d
	other := newRefService(v.Periods[3].Seed, "main", 20000)
	other.blinded = d.service.blinded // all but the subcredential is right
	d.service = other
	whole("outer layer for another address", "everybody", d, d.outer())
	d = *closed.d
	d.content = slices.Clone(d.content)
	d.content[len(d.content)-1] = 1
	fail(descriptorFailure{Name: "padding not zero", Base: "2 clients", Error: "ErrInvalid", Descriptor: d.finish(d.outer()), Secrets: closed.vector.Secrets})
	makeContents(v, open.d.content)
}

func makeContents(v *vectors, good []byte) {
	p := newRefPoint("content", 0)
	add := func(name string, content []byte, length int) {
		v.ContentFailures = append(v.ContentFailures, contentFailure{name, bytes.TrimRight(content, "\x00"), length})
	}
	with := func(at int, b ...byte) []byte {
		c := slices.Clone(good)
		copy(c[at:], b)
		return c
	}
	add("empty", nil, 0)
	add("off the grid", good, 8191)
	add("16,384 bytes for one point", good, 16384)
	add("40,960 bytes", good, 40960)
	add("suite 0", with(0, 0), 8192)
	add("unknown flag", with(1, 2), 8192)
	add("lifetime of more than 31 days", with(2, 0, 0x28, 0xde, 0x81), 8192)
	add("no point", refContent(1, 0, 0, nil), 8192)
	add("no point, but its bytes", with(6, 0), 8192)
	add("more points than fit", with(6, 7), 8192)
	add("21 points", with(6, 21), 32768)
	add("a key twice", refContent(1, 0, 0, []refPoint{p, p}), 8192)
	add("relay of small order", with(7, make([]byte, 32)...), 8192)
	add("introduction key of small order", with(39, make([]byte, 32)...), 8192)
	add("padding not zero", with(8191, 1), 8192)
}

func makeHandshakes(v *vectors) {
	p := v.Periods[0]
	s := newRefService(p.Seed, p.Network, p.Period)
	point := newRefPoint("everybody0", 0)
	cookie, rendezvous := bytesOf("cookie", 20), publicOf(bytesOf("rendezvous point", 32))
	client, host := bytesOf("handshake client", 128), bytesOf("handshake service", 96)
	h := newRefHandshake(s, point, cookie, rendezvous, client, host)
	v.Handshakes = append(v.Handshakes, handshakeVector{
		Name: "first", Point: vectorOf(point), Cookie: cookie, Rendezvous: rendezvous, ClientRandom: client, HostRandom: host,
		Info: h.info, Sealed: h.sealed, Export: h.export, DH: h.dh, Reply: h.reply, Ciphertext: h.ciphertext, KEMSecret: h.kemSecret,
		Confirmation: h.confirm, First: h.first, Forward: h.forward, Backward: h.backward,
	})
	second := newRefPoint("2 clients1", 0)
	client2, host2 := bytesOf("handshake client 2", 128), bytesOf("handshake service 2", 96)
	h2 := newRefHandshake(s, second, cookie, rendezvous, client2, host2)
	v.Handshakes = append(v.Handshakes, handshakeVector{
		Name: "second", Point: vectorOf(second), Cookie: cookie, Rendezvous: rendezvous, ClientRandom: client2, HostRandom: host2,
		Info: h2.info, Sealed: h2.sealed, Export: h2.export, DH: h2.dh, Reply: h2.reply, Ciphertext: h2.ciphertext, KEMSecret: h2.kemSecret,
		Confirmation: h2.confirm, First: h2.first, Forward: h2.forward, Backward: h2.backward,
	})

	const introduce, open, joined, first = "client: introduce", "service: open introduction", "client: read reply", "service: read first cell"
	fail := func(f handshakeFailure) {
		f.Base = "first"
		v.HandshakeFailures = append(v.HandshakeFailures, f)
	}
	is := func(b []byte) *hexBytes { return (*hexBytes)(&b) }
	with := func(b []byte, at int, change ...byte) *hexBytes {
		b = slices.Clone(b)
		for i, c := range change {
			b[at+i] ^= c
		}
		return is(b)
	}
	put := func(b []byte, at int, to []byte) *hexBytes { return is(cat(b[:at], to, b[at+len(to):])) }
	zero := make([]byte, 32)
	fail(handshakeFailure{Name: "seal: ML-KEM key not reduced", Step: introduce, Error: "ErrKEMKey", Seal: put(point.sealPublic, 0, []byte{0xff, 0xff})})
	fail(handshakeFailure{Name: "seal: X25519 key of low order", Step: introduce, Error: "ErrLowOrder", Seal: put(point.sealPublic, 1184, zero)})
	fail(handshakeFailure{Name: "sealed for another point", Step: open, Error: "ErrAuthentication", Seal: is(second.sealPublic)})
	period := uint64(20001)
	fail(handshakeFailure{Name: "passed on in another period", Step: open, Error: "ErrAuthentication", Period: &period})
	fail(handshakeFailure{Name: "passed on for another key", Step: open, Error: "ErrAuthentication", Key: is(second.key)})
	fail(handshakeFailure{Name: "sealed: one byte less", Step: open, Error: "ErrLength", Sealed: is(h.sealed[:1219])})
	fail(handshakeFailure{Name: "sealed: one byte more", Step: open, Error: "ErrLength", Sealed: is(cat(h.sealed, []byte{0}))})
	fail(handshakeFailure{Name: "sealed: ciphertext changed", Step: open, Error: "ErrAuthentication", Sealed: with(h.sealed, 0, 1)})
	fail(handshakeFailure{Name: "sealed: highest bit of the X25519 key", Step: open, Error: "ErrAuthentication", Sealed: with(h.sealed, 1119, 0x80)})
	fail(handshakeFailure{Name: "sealed: X25519 key of low order", Step: open, Error: "ErrLowOrder", Sealed: put(h.sealed, 1088, zero)})
	fail(handshakeFailure{Name: "sealed: box changed", Step: open, Error: "ErrAuthentication", Sealed: with(h.sealed, 1120, 1)})
	fail(handshakeFailure{Name: "sealed: tag changed", Step: open, Error: "ErrAuthentication", Sealed: with(h.sealed, 1219, 1)})
	reseal := func(plain []byte) *hexBytes {
		b, _ := hpkeSeal(point.sealPublic, client[32:96], h.info, point.key, plain, "cepa/1 rendezvous")
		return is(b)
	}
	fail(handshakeFailure{Name: "sealed: client's key of low order", Step: open, Error: "ErrLowOrder", Sealed: reseal(cat(cookie, rendezvous, zero))})
	fail(handshakeFailure{Name: "sealed: rendezvous point of small order", Step: open, Error: "ErrBinding", Sealed: reseal(cat(cookie, zero, x25519Public(client[:32])))})
	fail(handshakeFailure{Name: "reply: one byte less", Step: joined, Error: "ErrLength", Reply: is(h.reply[:1231])})
	fail(handshakeFailure{Name: "reply to another", Step: joined, Error: "ErrAuthentication", Reply: is(h2.reply)})
	fail(handshakeFailure{Name: "reply: X25519 key of low order", Step: joined, Error: "ErrLowOrder", Reply: put(h.reply, 0, zero)})
	fail(handshakeFailure{Name: "reply: highest bit of the X25519 key", Step: joined, Error: "ErrAuthentication", Reply: with(h.reply, 31, 0x80)})
	fail(handshakeFailure{Name: "reply: ML-KEM key changed", Step: joined, Error: "ErrAuthentication", Reply: with(h.reply, 100, 1)})
	fail(handshakeFailure{Name: "reply: MAC changed", Step: joined, Error: "ErrAuthentication", Reply: with(h.reply, 1231, 1)})
	unsigned := cat(h.reply[:32], []byte{0xff, 0xff}, h.reply[34:1216])
	fail(handshakeFailure{
		Name: "reply: ML-KEM key not reduced", Step: joined, Error: "ErrKEMKey",
		Reply: is(cat(unsigned, mac(h.early(point, unsigned, "cepa/1 rendezvous mac"), []byte("cepa/1 rendezvous"))[:16])),
	})
	fail(handshakeFailure{Name: "first cell: one byte less", Step: first, Error: "ErrLength", First: is(h.first[:1266])})
	fail(handshakeFailure{Name: "first cell of another", Step: first, Error: "ErrAuthentication", First: is(h2.first)})
	fail(handshakeFailure{Name: "first cell: changed", Step: first, Error: "ErrAuthentication", First: with(h.first, 700, 1)})
	cell := cat(h.ciphertext, h.confirm, make([]byte, 147))
	fail(handshakeFailure{Name: "first cell: ML-KEM ciphertext of another", Step: first, Error: "ErrConfirmation", First: is(h.makeFirst(point, *put(cell, 0, h2.ciphertext)))})
	fail(handshakeFailure{Name: "first cell: confirmation changed", Step: first, Error: "ErrConfirmation", First: is(h.makeFirst(point, *with(cell, 1088, 1)))})
	fail(handshakeFailure{Name: "first cell: last zero changed", Step: first, Error: "ErrConfirmation", First: is(h.makeFirst(point, *with(cell, 1250, 1)))})
}
