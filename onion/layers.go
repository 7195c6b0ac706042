package onion

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cloudflare/circl/dh/x25519"
)

const (
	// MaxClients is the most clients that a descriptor can let in by name.
	MaxClients = 256

	// clientGrid is what the number of entries for clients is padded to a multiple of, with entries that nobody can open; a
	// service that lets everybody in has as many. So nobody, not even a client that is let in, learns how many there are.
	clientGrid = 16
	// clientEntry is a mark by which a client finds its entry (8), the sealed cookie (32) and its tag (16).
	clientEntry = markSize + cookieSize + macSize
	markSize    = 8
	cookieSize  = 32
	// outerHead is an ephemeral X25519 key (32) and the number of entries (2).
	outerHead = x25519.Size + 2
	macSize   = 16

	outerInfo  = "cepa/1 onion descriptor outer"
	innerInfo  = "cepa/1 onion descriptor inner"
	clientInfo = "cepa/1 onion descriptor client"
)

var (
	// ErrAuthNeeded says that a service lets in only clients that it knows, and no secret was given.
	ErrAuthNeeded = errors.New("onion: the service lets in only clients that it knows: ask its owner for access")
	// ErrAuthWrong says that a service lets in only clients that it knows, and that no secret that was given is of one.
	ErrAuthWrong = errors.New("onion: the service does not let in this client: its secret is of another service, or access was withdrawn")
	// ErrClients says that clients cannot be let in.
	ErrClients = errors.New("onion: bad list of clients")
)

// Encode makes the descriptor of a service for the period of k. With clients, only they can read it; without, everybody who
// knows the address can. Its length tells how many clients and points there are by the grids of 16 and 8,192 bytes alone. It
// reads random for the salt (32), the ephemeral key (32), the cookie (32) and for each entry that nobody opens 56 bytes.
func (d *Descriptor) Encode(network string, a Address, k *PeriodKey, clients []ClientKey, random io.Reader) ([]byte, error) {
	random = orDefault(random)
	if err := k.check(network, a); err != nil {
		return nil, err
	}
	e := &Envelope{Network: network, Blinded: k.Blinded, Period: k.Period, Revision: d.Revision, Certificate: k.Certificate}
	content, err := d.appendContent(nil)
	if err != nil {
		return nil, err
	}
	if err := readRandom(random, e.salt[:]); err != nil {
		return nil, fmt.Errorf("onion: making a descriptor: %w", err)
	}
	keys := e.keys(a)
	outer, cookie, err := keys.clients(clients, random)
	if err != nil {
		return nil, err
	}
	outer = append(outer, keys.seal(innerInfo, cookie[:], content)...)
	e.sealed = keys.seal(outerInfo, nil, outer)
	return e.sign(k.Signing), nil
}

// OpenDescriptor reads the descriptor of a in the period, as it came from a relay. auth holds the secrets that this client has
// for the service, none as a rule. Errors are
//
//   - ErrWrongNetwork and ErrInvalid when it is not a sound descriptor of this service in this period, whoever made it, or is not
//     valid at the time now; ask another relay;
//   - ErrAuthNeeded and ErrAuthWrong when it is, and lets in others only;
//   - *AddressError when a is no address.
//
// Whether it is newer than another is for the caller to compare. b is not kept.
func OpenDescriptor(b []byte, network string, a Address, period uint64, now time.Time, auth []*ClientSecret) (*Descriptor, error) {
	blinded, err := Blind(a, network, period)
	if err != nil {
		return nil, &AddressError{Reason: errors.Join(ErrAddressKey, err)}
	}
	e, err := ParseEnvelope(b)
	if err != nil {
		return nil, err
	}
	if err := e.Verify(network, now); err != nil {
		return nil, err
	}
	if e.Period != period || e.Blinded != blinded {
		return nil, fmt.Errorf("%w: it is of another service or another period", ErrInvalid)
	}
	keys := e.keys(a)
	outer, ok := keys.open(outerInfo, nil, e.sealed)
	if !ok {
		return nil, fmt.Errorf("%w: its outer layer does not open", ErrInvalid)
	}
	ephemeral, entries, inner, err := parseOuter(outer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var open [cookieSize]byte
	content, ok := keys.open(innerInfo, open[:], inner)
	for i := 0; !ok && i < len(auth); i++ {
		if cookie, found := keys.openCookie(auth[i], ephemeral, entries); found {
			content, ok = keys.open(innerInfo, cookie, inner)
		}
	}
	switch {
	case !ok && len(auth) == 0:
		return nil, ErrAuthNeeded
	case !ok:
		return nil, ErrAuthWrong
	}
	d, err := parseContent(content)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	d.Revision = e.Revision
	return d, nil
}

// parseOuter cuts the outer layer into its parts, which are b's own.
func parseOuter(b []byte) (ephemeral x25519.Key, entries [][]byte, inner []byte, err error) {
	r := reader{b: b}
	ephemeral = r.array32()
	count := int(r.uint16())
	if count == 0 || count > MaxClients || count%clientGrid != 0 {
		return ephemeral, nil, nil, fmt.Errorf("its outer layer has %d entries for clients", count)
	}
	for i := range count {
		entries = append(entries, r.take(clientEntry))
		if i > 0 && bytes.Compare(entries[i-1], entries[i]) >= 0 {
			return ephemeral, nil, nil, errors.New("its entries for clients are not in rising order")
		}
	}
	if n := len(r.b) - macSize; r.short || n <= 0 || n%contentGrid != 0 {
		return ephemeral, nil, nil, errors.New("its inner layer has a length that is not lawful")
	}
	return ephemeral, entries, r.b, nil
}

// layerKeys makes the keys of a descriptor's layers. All are bound to the address, by the subcredential, and to all that the
// envelope says, its random salt included: so each key is used once, and every nonce is zero.
type layerKeys struct {
	subcredential [32]byte
	head          [32]byte // of the envelope
}

func (e *Envelope) keys(a Address) *layerKeys {
	return &layerKeys{subcredential: Subcredential(a, e.Blinded), head: sum(e.appendHead(nil))}
}

func (k *layerKeys) aead(info string, secret []byte) cipher.AEAD {
	return newAEAD(derive(append(k.subcredential[:len(k.subcredential):len(k.subcredential)], secret...), k.head[:], info, 32))
}

func (k *layerKeys) seal(info string, secret, plain []byte) []byte {
	return k.aead(info, secret).Seal(nil, zeroNonce(), plain, nil)
}

func (k *layerKeys) open(info string, secret, sealed []byte) ([]byte, bool) {
	plain, err := k.aead(info, secret).Open(nil, zeroNonce(), sealed, nil)
	return plain, err == nil
}

// clients makes the outer layer up to the inner one, and the cookie with which that one is to be sealed: zeros when everybody is
// let in.
func (k *layerKeys) clients(clients []ClientKey, random io.Reader) (outer []byte, cookie [cookieSize]byte, err error) {
	fail := func(err error) ([]byte, [cookieSize]byte, error) { return nil, [cookieSize]byte{}, err }
	if len(clients) > MaxClients {
		return fail(fmt.Errorf("%w: it has %d, at most %d fit", ErrClients, len(clients), MaxClients))
	}
	var secret, public x25519.Key
	if err := errors.Join(readRandom(random, secret[:]), readRandom(random, cookie[:])); err != nil {
		return fail(fmt.Errorf("onion: making a descriptor: %w", err))
	}
	x25519.KeyGen(&public, &secret)
	count := max((len(clients)+clientGrid-1)/clientGrid, 1) * clientGrid
	entries := make([][]byte, 0, count)
	for i, c := range clients {
		var shared x25519.Key
		if !x25519.Shared(&shared, &secret, (*x25519.Key)(&c)) {
			return fail(fmt.Errorf("%w: client %d: its key is a point of low order", ErrClients, i+1))
		}
		if slices.Contains(clients[:i], c) {
			return fail(fmt.Errorf("%w: client %d is there twice", ErrClients, i+1))
		}
		mark, key := k.entry(shared, public, c)
		entries = append(entries, newAEAD(key).Seal(mark, zeroNonce(), cookie[:], nil))
	}
	for len(entries) < count {
		fake := make([]byte, clientEntry)
		if err := readRandom(random, fake); err != nil {
			return fail(fmt.Errorf("onion: making a descriptor: %w", err))
		}
		entries = append(entries, fake)
	}
	slices.SortFunc(entries, bytes.Compare)
	outer = append(public[:], byte(count>>8), byte(count))
	for _, e := range entries {
		outer = append(outer, e...)
	}
	if len(clients) == 0 {
		cookie = [cookieSize]byte{}
	}
	return outer, cookie, nil
}

// entry returns a client's mark and key.
func (k *layerKeys) entry(shared, ephemeral x25519.Key, client ClientKey) (mark, key []byte) {
	secret := slices.Concat(k.subcredential[:], shared[:], ephemeral[:], client[:])
	out := derive(secret, k.head[:], clientInfo, markSize+32)
	return out[:markSize:markSize], out[markSize:]
}

// openCookie looks for the entry of a client and opens it.
func (k *layerKeys) openCookie(s *ClientSecret, ephemeral x25519.Key, entries [][]byte) ([]byte, bool) {
	var shared x25519.Key
	if !x25519.Shared(&shared, &s.secret, &ephemeral) {
		return nil, false
	}
	mark, key := k.entry(shared, ephemeral, s.Key())
	for _, e := range entries {
		if bytes.Equal(e[:markSize], mark) {
			if cookie, err := newAEAD(key).Open(nil, zeroNonce(), e[markSize:], nil); err == nil {
				return cookie, true
			}
		}
	}
	return nil, false
}

// newAEAD is AES-256-GCM (NIST SP 800-38D) with a key that is used once.
func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for another length than 32
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has the right block size
	}
	return aead
}

func zeroNonce() []byte { return make([]byte, 12) }
