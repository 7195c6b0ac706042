package directory

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"cepa/crypto/identity"
)

// Bounds of a relay's entry. Whoever lists more is refused, not trimmed.
const (
	// MaxNickname is the longest nickname in bytes.
	MaxNickname = 19
	// MaxAddresses is the highest number of addresses of one relay: two of each kind leave room for a move.
	MaxAddresses = 4
	// MaxFamilies is the highest number of families that a relay may belong to: its own, an older key of it, and two of those for whom it
	// runs. Each costs authorities a signature to verify.
	MaxFamilies = 4
	// MaxVersion is the longest software version in bytes.
	MaxVersion = 32
	// MaxWeight is the highest weight in KB/s (1 PB/s): sums over MaxRelays relays stay far below 2^63.
	MaxWeight = 1_000_000_000_000
)

// The layer ciphers that a relay may choose (doc/spec.md section 2).
const (
	// SuiteAESGCM is AES-256-GCM.
	SuiteAESGCM uint8 = 1
	// SuiteChaCha is ChaCha20-Poly1305, for relays without AES instructions.
	SuiteChaCha uint8 = 2
)

// Flags says what the authorities think of a relay. In a consensus each one was set by a majority of all configured
// authorities.
type Flags uint32

// The flags. Their values are part of the wire format.
const (
	// FlagRunning: the relay is up. A consensus lists no relay without it.
	FlagRunning Flags = 1 << iota
	// FlagValid: the relay may be used. A consensus lists no relay without it.
	FlagValid
	// FlagGuard: fit for the first hop.
	FlagGuard
	// FlagExit: opens streams to the outside; its PortPolicy says where to.
	FlagExit
	// FlagFast: fit for circuits that need bandwidth.
	FlagFast
	// FlagStable: fit for circuits that last.
	FlagStable
	// FlagHSDir: keeps descriptors of onion services.
	FlagHSDir
	// FlagBadExit: must not be the exit of any circuit.
	FlagBadExit
	// FlagMiddleOnly: must be neither first nor last hop of any circuit.
	FlagMiddleOnly

	// AllFlags is the union of all flags known to this version; a document with others is refused.
	AllFlags = FlagMiddleOnly<<1 - 1
)

// flagNames are the names in the order of the bits.
var flagNames = [...]string{"Running", "Valid", "Guard", "Exit", "Fast", "Stable", "HSDir", "BadExit", "MiddleOnly"}

// Has reports whether all the flags of want are set in f.
func (f Flags) Has(want Flags) bool { return f&want == want }

// String lists the names of the flags in f, separated by spaces; unknown bits appear in hexadecimal.
func (f Flags) String() string {
	var b strings.Builder
	for i, name := range flagNames {
		if f&(1<<i) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(name)
	}
	if rest := f &^ AllFlags; rest != 0 {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%#x", uint32(rest))
	}
	return b.String()
}

// ParseFlags parses what String prints: names separated by white space, each at most once.
func ParseFlags(s string) (Flags, error) {
	var f Flags
next:
	for _, word := range strings.Fields(s) {
		for i, name := range flagNames {
			if word != name {
				continue
			}
			if f&(1<<i) != 0 {
				return 0, fmt.Errorf("flag %s is listed twice", word)
			}
			f |= 1 << i
			continue next
		}
		return 0, fmt.Errorf("unknown flag %q", word)
	}
	return f, nil
}

// FamilyID names a family of relays run by one operator: it is the public key of the family (see Membership). Two relays of one family must
// not share a circuit.
type FamilyID [32]byte

// String returns the text form, that of an identity.
func (f FamilyID) String() string { return identity.ID(f).String() }

// Relay is a relay's entry in the consensus: all that a client needs to build circuits through it. Entries returned by a
// Consensus are shared and must not be changed.
type Relay struct {
	// Identity is the relay's long-term name; entries of a consensus are sorted by it.
	Identity identity.ID
	// OnionKey is the X25519 key of the hop handshake.
	OnionKey [32]byte
	// Suite is the relay's layer cipher: SuiteAESGCM or SuiteChaCha.
	Suite uint8
	// Nickname is for people only, and not unique: 1 to MaxNickname bytes of [A-Za-z0-9].
	Nickname string
	// Addresses are where the relay accepts links: 1 to MaxAddresses, all different, those of IPv4 first.
	Addresses []netip.AddrPort
	// Flags as agreed by the authorities.
	Flags Flags
	// Weight is the relay's share of the traffic in KB/s (1 KB = 1000 bytes), at most MaxWeight.
	Weight uint64
	// Exit sums up to which ports the relay opens streams; the zero value means none.
	Exit PortPolicy
	// Family holds at most MaxFamilies families, sorted, all different.
	Family []FamilyID
	// Version is the software version that the relay states: 1 to MaxVersion bytes of [A-Za-z0-9.+_-].
	Version string
}

// InFamily reports whether r and other list a common family.
func (r *Relay) InFamily(other *Relay) bool {
	for _, a := range r.Family {
		for _, b := range other.Family {
			if a == b {
				return true
			}
		}
	}
	return false
}

// validate checks everything that the type's comment promises.
func (r *Relay) validate() error {
	if r.Flags&^AllFlags != 0 {
		return fmt.Errorf("unknown flags %#x", uint32(r.Flags&^AllFlags))
	}
	if r.Weight > MaxWeight {
		return fmt.Errorf("weight of %d KB/s is above %d", r.Weight, uint64(MaxWeight))
	}
	if err := errors.Join(checkNickname(r.Nickname), checkVersion(r.Version), checkSuite(r.Suite),
		checkAddresses(r.Addresses), checkFamily(r.Family)); err != nil {
		return err
	}
	return r.Exit.validate()
}

func checkNickname(s string) error {
	if s == "" || len(s) > MaxNickname {
		return fmt.Errorf("nickname has %d bytes: 1 to %d are allowed", len(s), MaxNickname)
	}
	for _, c := range []byte(s) {
		if !isAlphanumeric(c) {
			return fmt.Errorf("nickname %q: only letters and digits are allowed", s)
		}
	}
	return nil
}

func checkVersion(s string) error {
	if s == "" || len(s) > MaxVersion {
		return fmt.Errorf("version has %d bytes: 1 to %d are allowed", len(s), MaxVersion)
	}
	for _, c := range []byte(s) {
		if !isAlphanumeric(c) && c != '.' && c != '+' && c != '-' && c != '_' {
			return fmt.Errorf("version %q: only letters, digits and .+_- are allowed", s)
		}
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func checkSuite(s uint8) error {
	if s != SuiteAESGCM && s != SuiteChaCha {
		return fmt.Errorf("unknown layer cipher %d", s)
	}
	return nil
}

// checkAddresses refuses what nobody could connect to. Whether private addresses are welcome is the authorities' choice.
func checkAddresses(addrs []netip.AddrPort) error {
	if len(addrs) == 0 || len(addrs) > MaxAddresses {
		return fmt.Errorf("%d addresses: 1 to %d are allowed", len(addrs), MaxAddresses)
	}
	for i, a := range addrs {
		ip := a.Addr()
		switch {
		case !a.IsValid() || a.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast():
			return fmt.Errorf("address %v: not an address that accepts connections", a)
		case ip.Is4In6() || ip.Zone() != "":
			return fmt.Errorf("address %v: IPv4 inside IPv6 and zones are not allowed", a)
		case i > 0 && ip.Is4() && addrs[i-1].Addr().Is6():
			return fmt.Errorf("address %v: IPv4 addresses must come first", a)
		}
		for _, b := range addrs[:i] {
			if a == b {
				return fmt.Errorf("address %v is listed twice", a)
			}
		}
	}
	return nil
}

func checkFamily(ids []FamilyID) error {
	if len(ids) > MaxFamilies {
		return fmt.Errorf("%d families: at most %d are allowed", len(ids), MaxFamilies)
	}
	for i := 1; i < len(ids); i++ {
		if string(ids[i-1][:]) >= string(ids[i][:]) {
			return errors.New("families are not sorted or not all different")
		}
	}
	return nil
}

// checkText accepts at most limit bytes of printable text: nothing that could play with a terminal or a log.
func checkText(s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("text has %d bytes: at most %d are allowed", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return errors.New("text is not UTF-8")
	}
	for _, c := range s {
		if !isPrintable(c) {
			return fmt.Errorf("text holds the unprintable character %U", c)
		}
	}
	return nil
}
