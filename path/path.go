// Package path chooses the relays of circuits: a consensus and randomness in, hops out. It knows no keys, clocks or
// connections. What a client stays with for long, guards (Guards) and the relays behind them where others can make it build
// circuits (Vanguards), is decided here too; who calls it keeps their state.
//
// Every path of a Chooser keeps these rules; those of Vanguards are in vanguards.go:
//
//   - only relays that are Running and Valid; first hops are guards, exits are exits that are not BadExit and whose
//     policy allows the port; MiddleOnly relays are neither first nor last;
//   - no relay twice, no two relays of one family, and no two with any addresses in one IPv4 /16 or IPv6 /32;
//   - relays are chosen at random by weight, so that traffic is spread as bandwidth is (weights.go). Weights decide
//     how often a relay is chosen, never whether a path exists: if the rules leave only relays without weight for a
//     position, one of those is taken.
package path

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"cepa/directory"
)

const (
	// DefaultLength is the number of hops of a path for which nothing else is asked: with three, no relay knows both
	// ends.
	DefaultLength = 3
	// MaxLength is the highest hop index that relays accept (doc/spec.md section 2).
	MaxLength = 8

	// maxTries bounds how often a draw that breaks a rule is repeated before all relays are looked at. In the real
	// network more than 90 of 100 draws are good, so that the second way is rare.
	maxTries = 16
	// maxWork bounds the relays looked at for one path: enough to try all paths of three in a network of 100, and
	// about a tenth of a second.
	maxWork = 1 << 20
)

// ErrRequest is wrapped by errors about a Request that no network could satisfy.
var ErrRequest = errors.New("path request makes no sense")

// Request says what a path is for. The zero value asks for three hops that need not lead outside.
type Request struct {
	// Exit asks that the last hop opens streams to Port, over IPv6 if IPv6 is set, else over IPv4. Port 0 stands for
	// any port: an exit that opens streams to at least one.
	Exit bool
	Port uint16
	IPv6 bool
	// Length is the number of hops, 1 to MaxLength (2 at least with Exit, as guards refuse to be exits). 0 means
	// DefaultLength.
	Length int
	// Guard is the first hop if not nil. It needs no Guard flag, and Exclude is not asked about it.
	Guard *directory.Relay
	// Exclude refuses relays if not nil. It must always say the same about the same relay during one call.
	Exclude func(*directory.Relay) bool
}

// Chooser chooses paths by one consensus. It never changes: any number of goroutines may use it.
type Chooser struct {
	consensus *directory.Consensus
	relays    []candidate
	guards    int // relays that may be guards
	total     [classes]uint64
	shares    shares
	guard     table
	middle    table
	exit      table
}

// candidate is a relay and what it may be.
type candidate struct {
	*directory.Relay
	usable bool // Running and Valid
	guard  bool
	exit   bool
	last   bool // may be last in a path that needs no exit
}

// New prepares to choose from c, which must not be changed afterwards; the paths point into it. It takes time in
// proportion to the number of relays, a path then to its logarithm. The error says that c is nil or has impossible
// weights; too few relays are no error here.
func New(c *directory.Consensus) (*Chooser, error) {
	if c == nil {
		return nil, errors.New("path: no consensus")
	}
	ch := &Chooser{consensus: c, relays: make([]candidate, len(c.Relays))}
	for i := range c.Relays {
		r := &c.Relays[i]
		open := !r.Flags.Has(directory.FlagMiddleOnly)
		usable := isUsable(r)
		ch.relays[i] = candidate{
			Relay:  r,
			usable: usable,
			guard:  isGuard(r),
			exit: usable && open && r.Flags.Has(directory.FlagExit) && !r.Flags.Has(directory.FlagBadExit) &&
				!r.Exit.IsZero(),
			last: usable && open,
		}
		if ch.relays[i].guard {
			ch.guards++
		}
	}
	if err := ch.weigh(); err != nil {
		return nil, err
	}
	return ch, nil
}

// isUsable reports whether a relay may be in a path.
func isUsable(r *directory.Relay) bool {
	return r.Flags.Has(directory.FlagRunning | directory.FlagValid)
}

// isGuard reports whether a relay may be a first hop.
func isGuard(r *directory.Relay) bool {
	return isUsable(r) && r.Flags.Has(directory.FlagGuard) && !r.Flags.Has(directory.FlagMiddleOnly)
}

// Pick chooses a path. Randomness is crypto/rand's if rand is nil. Errors:
//
//   - *NoPathError, which wraps ErrNoPath: the rules leave no relay for a position
//   - ErrRequest: r asks for what cannot be
//   - what rand returned
func (c *Chooser) Pick(rand io.Reader, r Request) ([]*directory.Relay, error) {
	s, err := c.search(r)
	if err != nil {
		return nil, err
	}
	s.rand = rand
	if r.Guard != nil {
		s.hops[0] = r.Guard
	}
	ok, err := s.fill(0)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, s.deepest
	}
	return s.hops, nil
}

// search checks a request, and returns the search for it with the order in which hops are chosen.
func (c *Chooser) search(r Request) (*search, error) {
	if r.Length == 0 {
		r.Length = DefaultLength
	}
	if r.Length < 1 || r.Length > MaxLength {
		return nil, fmt.Errorf("%w: %d hops, but 1 to %d are possible", ErrRequest, r.Length, MaxLength)
	}
	if r.Exit && r.Length == 1 {
		return nil, fmt.Errorf("%w: an exit must not be the first hop, ask for 2 hops or more", ErrRequest)
	}
	if g := r.Guard; g != nil && (!isUsable(g) || g.Flags.Has(directory.FlagMiddleOnly)) {
		return nil, fmt.Errorf("%w: the fixed first hop %s must not be one (flags: %v)", ErrRequest, g.Nickname, g.Flags)
	}
	s := &search{Chooser: c, request: r, hops: make([]*directory.Relay, r.Length)}
	// The scarcest first: the exit, then the guard, then the rest.
	if r.Length > 1 {
		last := PositionLast
		if r.Exit {
			last = PositionExit
		}
		s.order = append(s.order, step{r.Length - 1, last})
	}
	if r.Guard == nil {
		s.order = append(s.order, step{0, PositionGuard})
	}
	for i := 1; i < r.Length-1; i++ {
		s.order = append(s.order, step{i, PositionMiddle})
	}
	return s, nil
}

// PickGuard chooses a first hop by the weights of that position, one for which exclude (if not nil) is false. Randomness
// is crypto/rand's if rand is nil. Errors are those of Pick.
func (c *Chooser) PickGuard(rand io.Reader, exclude func(*directory.Relay) bool) (*directory.Relay, error) {
	hops, err := c.Pick(rand, Request{Length: 1, Exclude: exclude})
	if err != nil {
		return nil, err
	}
	return hops[0], nil
}

// Conflict reports whether a and b must not be in one path: they are the same relay, are of one family, or have
// addresses in the same IPv4 /16 or IPv6 /32.
func Conflict(a, b *directory.Relay) bool {
	if a == b || a.Identity == b.Identity || a.InFamily(b) {
		return true
	}
	for _, x := range a.Addresses {
		for _, y := range b.Addresses {
			if near(x.Addr().Unmap(), y.Addr().Unmap()) {
				return true
			}
		}
	}
	return false
}

// near reports whether x and y are in the same /16 or /32. (Addr.Prefix would do, at three times the cost.)
func near(x, y netip.Addr) bool {
	if x.Is4() != y.Is4() {
		return false
	}
	if x.Is4() {
		a, b := x.As4(), y.As4()
		return a[0] == b[0] && a[1] == b[1]
	}
	a, b := x.As16(), y.As16()
	return [4]byte(a[:4]) == [4]byte(b[:4])
}
