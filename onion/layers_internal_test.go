package onion

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"testing"

	"github.com/cloudflare/circl/dh/x25519"
)

// Who can sign, or finds a way around the signature, still cannot alter a layer: each byte of both is changed in turn.
func TestLayersRefuseFlips(t *testing.T) {
	k := &layerKeys{subcredential: [32]byte{1}, head: [32]byte{2}}
	for info, secret := range map[string][]byte{outerInfo: nil, innerInfo: make([]byte, cookieSize)} {
		plain := bytes.Repeat([]byte("content."), contentGrid/8)
		sealed := k.seal(info, secret, plain)
		if got, ok := k.open(info, secret, sealed); !ok || !bytes.Equal(got, plain) {
			t.Fatal("a layer does not open")
		}
		accepted := 0
		for i := range sealed {
			sealed[i] ^= 1 << (i % 8)
			if _, ok := k.open(info, secret, sealed); ok {
				accepted++
			}
			sealed[i] ^= 1 << (i % 8)
		}
		if accepted != 0 {
			t.Errorf("%s: %d altered layers open", info, accepted)
		}
		for name, other := range map[string]*layerKeys{
			"another address": {subcredential: [32]byte{9}, head: k.head}, "another envelope": {subcredential: k.subcredential, head: [32]byte{9}},
		} {
			if _, ok := other.open(info, secret, sealed); ok {
				t.Errorf("%s: opens with the keys of %s", info, name)
			}
		}
	}
}

// An entry for a client opens for that client alone, and unaltered.
func TestEntriesRefuseFlips(t *testing.T) {
	k := &layerKeys{subcredential: [32]byte{1}, head: [32]byte{2}}
	var secrets []*ClientSecret
	var clients []ClientKey
	for range 5 {
		s, err := NewClientSecret(nil)
		if err != nil {
			t.Fatal(err)
		}
		secrets, clients = append(secrets, s), append(clients, s.Key())
	}
	b, cookie, err := k.clients(clients[:4], rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ephemeral, entries, _, err := parseOuter(append(b, make([]byte, contentGrid+macSize)...))
	if err != nil || len(entries) != clientGrid {
		t.Fatalf("%d entries: %v", len(entries), err)
	}
	for i, s := range secrets {
		got, found := k.openCookie(s, ephemeral, entries)
		if found != (i < 4) || found && !bytes.Equal(got, cookie[:]) {
			t.Errorf("client %d: %v", i, found)
		}
	}
	for i := range clientGrid * clientEntry {
		entries[i/clientEntry][i%clientEntry] ^= 0x10
		opened := 0
		for _, s := range secrets {
			if _, found := k.openCookie(s, ephemeral, entries); found {
				opened++
			}
		}
		entries[i/clientEntry][i%clientEntry] ^= 0x10
		if opened < 3 || opened > 4 {
			t.Fatalf("byte %d: %d clients are let in", i, opened)
		}
	}
	altered := ephemeral
	altered[5] ^= 1
	if _, found := k.openCookie(secrets[0], altered, entries); found {
		t.Error("another ephemeral key opens an entry")
	}
	if _, found := k.openCookie(secrets[0], x25519.Key{}, entries); found {
		t.Error("an ephemeral key of low order opens an entry")
	}
}

// The table agrees with what the standard library and circl find out by agreeing on a key.
func TestLowOrderAgreesWithX25519(t *testing.T) {
	secret, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	low := 0
	try := func(k x25519.Key) {
		public, err := ecdh.X25519().NewPublicKey(k[:])
		if err != nil {
			t.Fatal(err)
		}
		_, err = secret.ECDH(public)
		var shared x25519.Key
		ok := x25519.Shared(&shared, (*x25519.Key)(secret.Bytes()), &k)
		if lowOrder(k) != (err != nil) || lowOrder(k) == ok {
			t.Errorf("%x: low order %v, crypto/ecdh says %v, circl %v", k, lowOrder(k), err, ok)
		}
		if lowOrder(k) {
			low++
		}
	}
	for _, top := range []byte{0, 0x80} {
		for n := range byte(20) {
			k := nearPrime(0xe0 + n)
			k[31] |= top
			try(k)
			try(x25519.Key{n, 31: top})
		}
		for _, k := range []x25519.Key{
			{
				0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
				0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
			},
			{
				0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
				0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
			},
		} {
			k[31] |= top
			try(k)
			k[0] ^= 1
			try(k)
		}
	}
	if low != 14 {
		t.Errorf("%d keys of low order were found, want the 7 with either highest bit", low)
	}
}
