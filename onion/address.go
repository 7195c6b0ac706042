package onion

import (
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"strings"

	"cepa/crypto/identity"
)

const (
	// Suffix ends every address. Names under .alt are outside of the DNS (RFC 9476): no resolver should ever ask for one.
	Suffix = ".cepa.alt"

	// addressVersion is the only version there is.
	addressVersion = 1
	// addressContext precedes what the checksum is over. It is of cepa, so that an address of another network that has
	// the same form does not fit by chance.
	addressContext = "cepa/1 onion address"
	// addressSize is key (32), checksum (2) and version (1): exactly 56 digits of base32, with no bit to spare.
	addressSize = identity.IDSize + addressCheck + 1
	// addressCheck is the length of the checksum in bytes. It guards against mistakes in typing.
	addressCheck = 2
	// addressDigits is the length of the text before the suffix.
	addressDigits = addressSize * 8 / 5
	// maxHost is the longest name of a host in bytes (RFC 1035 section 2.3.4), and one for a dot at the end.
	maxHost = 254
	// maxLabel is the longest part of one between dots.
	maxLabel = 63
	// otherSuffix ends the addresses of Tor's onion services.
	otherSuffix = ".onion"
)

// The reasons in an AddressError.
var (
	ErrNotAddress     = errors.New("it is not a name that ends in .cepa.alt, as the addresses of onion services do")
	ErrOtherNetwork   = errors.New("an address that ends in .onion belongs to another network: Tor's onion services are reached with Tor")
	ErrAddressLength  = errors.New("the part before .cepa.alt does not have 56 characters: the address was cut off or something was added")
	ErrAddressDigits  = errors.New("the part before .cepa.alt holds something else than the letters a to z and the digits 2 to 7")
	ErrAddressVersion = errors.New("its version is unknown: it is of another network, or this program is too old for it")
	ErrAddressCheck   = errors.New("its checksum does not match: there is a typing error in it")
	ErrAddressKey     = errors.New("its key is unacceptable: no service has this address")
)

// AddressError says that a text is not the address of an onion service. It does not repeat the text, because where somebody
// wants to go belongs in no log.
type AddressError struct {
	Reason error // one of the Err… above; may wrap a reason of crypto/identity
}

// Error says what is wrong.
func (e *AddressError) Error() string { return "onion: bad address: " + e.Reason.Error() }

// Unwrap returns the reason.
func (e *AddressError) Unwrap() error { return e.Reason }

// Address names an onion service: its Ed25519 identity. It is comparable and may be a map key. Parsed ones are usable keys;
// the functions that take one check it again.
type Address [identity.IDSize]byte

// AddressOf returns the address of the service with this identity.
func AddressOf(id identity.ID) Address { return Address(id) }

// ID returns the identity as which the address is a key.
func (a Address) ID() identity.ID { return identity.ID(a) }

// String returns the text form, lower case, with .cepa.alt.
func (a Address) String() string {
	b := append(make([]byte, 0, addressSize), a[:]...)
	b = append(b, addressChecksum(a)...)
	return strings.ToLower(addressEncoding().EncodeToString(append(b, addressVersion))) + Suffix
}

// IsAddress tells whether a host is under .cepa.alt, in any case and with or without a dot at the end: then ParseAddress says
// which service it names, or what is wrong with it.
func IsAddress(host string) bool { return hasSuffix(strings.TrimSuffix(host, "."), Suffix) }

// ParseAddress returns the address in the name of a host: the text form in any case, with a dot at the end or without, and with
// any labels before it ("www."), which are for the service to tell apart. Errors are *AddressError; for .onion it is
// ErrOtherNetwork.
func ParseAddress(host string) (Address, error) {
	a, err := parseAddress(host)
	if err != nil {
		return Address{}, &AddressError{Reason: err}
	}
	return a, nil
}

func parseAddress(host string) (Address, error) {
	if len(host) > maxHost {
		return Address{}, ErrNotAddress
	}
	host = strings.TrimSuffix(host, ".")
	if hasSuffix(host, otherSuffix) {
		return Address{}, ErrOtherNetwork
	}
	if !hasSuffix(host, Suffix) {
		return Address{}, ErrNotAddress
	}
	labels := strings.Split(host[:len(host)-len(Suffix)], ".")
	for _, l := range labels {
		if l == "" || len(l) > maxLabel {
			return Address{}, ErrAddressLength
		}
	}
	text := labels[len(labels)-1]
	if len(text) != addressDigits {
		return Address{}, ErrAddressLength
	}
	b, err := decodeBase32(text)
	if err != nil {
		return Address{}, ErrAddressDigits
	}
	a := Address(b[:identity.IDSize])
	switch {
	case b[addressSize-1] != addressVersion:
		return Address{}, ErrAddressVersion
	case subtle.ConstantTimeCompare(b[identity.IDSize:addressSize-1], addressChecksum(a)) != 1:
		return Address{}, ErrAddressCheck
	}
	if err := a.ID().CheckGroup(); err != nil {
		return Address{}, errors.Join(ErrAddressKey, err)
	}
	return a, nil
}

func addressChecksum(a Address) []byte {
	s := sum([]byte(addressContext), a[:], []byte{addressVersion})
	return s[:addressCheck]
}

// hasSuffix is strings.HasSuffix without regard to the case of ASCII letters.
func hasSuffix(s, suffix string) bool {
	return len(s) >= len(suffix) && asciiLower(s[len(s)-len(suffix):]) == suffix
}

// asciiLower leaves what is not ASCII alone, so that no sign of another alphabet turns into a letter.
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func asciiUpper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c + 'A' - 'a'
		}
	}
	return string(b)
}

// addressEncoding is base32 of RFC 4648 without padding.
func addressEncoding() *base32.Encoding { return base32.StdEncoding.WithPadding(base32.NoPadding) }

// decodeBase32 takes letters of either case. encoding/base32 skips line ends, which are refused here.
func decodeBase32(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, ErrAddressDigits
	}
	return addressEncoding().DecodeString(asciiUpper(s))
}
