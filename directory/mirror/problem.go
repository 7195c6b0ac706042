package mirror

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"time"

	"cepa/directory"
)

// ClockError says that nothing that was fetched is valid by this machine's clock, and that the clocks of most of those who answered differ from
// it. Theirs prove nothing, and nothing is accepted because of them; they are what to look at first.
type ClockError struct {
	// Ours is the date here, Theirs that of the sources, at one moment.
	Ours, Theirs time.Time
	// Agree is how many of the sources that answered, Answered, disagree with the clock here.
	Agree, Answered int
	// Err is why the last document was refused: it wraps directory.ErrExpired or directory.ErrFuture.
	Err error
}

// Error says by how much the clock is wrong, and what to do.
func (e *ClockError) Error() string {
	way, d := "behind", e.Theirs.Sub(e.Ours)
	if d < 0 {
		way, d = "ahead", -d
	}
	return fmt.Sprintf("this machine's clock seems to be %s %s: it says %s, and %d of the %d directory servers that answered say %s: set the clock (%v)",
		d.Round(time.Second), way, stamp(e.Ours), e.Agree, e.Answered, stamp(e.Theirs), e.Err)
}

// Unwrap returns why the last document was refused.
func (e *ClockError) Unwrap() error { return e.Err }

// NetworkError says that none of the sources could be reached.
type NetworkError struct {
	// Asked is how many sources were tried.
	Asked int
	// Err is what the last one met.
	Err error
}

// Error says what to look at.
func (e *NetworkError) Error() string {
	var why string
	var dns *net.DNSError
	switch {
	case errors.Is(e.Err, syscall.ENETUNREACH), errors.Is(e.Err, syscall.ENETDOWN):
		why = "this machine is not connected to the network"
	case errors.As(e.Err, &dns):
		why = "their names are not found: is this machine connected to the network?"
	case errors.Is(e.Err, syscall.ECONNREFUSED), errors.Is(e.Err, syscall.ECONNRESET):
		why = "connections are refused: they are down, or something on the way forbids it"
	default:
		why = "they do not answer: they are down, or something on the way drops the packets; check the connection to the network"
	}
	return fmt.Sprintf("none of the %d directory servers that were tried can be reached: %s (%v)", e.Asked, why, e.Err)
}

// Unwrap returns what the last source met.
func (e *NetworkError) Unwrap() error { return e.Err }

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// outcome is what the last try of a source came to.
type outcome struct {
	err      error
	answered bool          // in HTTP, whatever it said
	untimely bool          // what it has is not valid by our clock
	skew     time.Duration // of its clock against ours, where it answered
}

// diagnosis sums up the outcomes of the sources that were tried since the last success; last is the latest of them.
func diagnosis(outcomes map[string]outcome, last error, now time.Time) error {
	answered := 0
	var skews []time.Duration
	var untimely error
	for _, o := range outcomes {
		if o.answered {
			answered++
		}
		if o.untimely && o.skew.Abs() > directory.MaxClockSkew {
			skews = append(skews, o.skew)
			untimely = o.err
		}
	}
	switch {
	case last == nil:
		return nil
	case 2*len(skews) > answered:
		slices.Sort(skews)
		return &ClockError{Ours: now, Theirs: now.Add(skews[len(skews)/2]), Agree: len(skews), Answered: answered, Err: untimely}
	case answered == 0 && unreachable(last):
		return &NetworkError{Asked: len(outcomes), Err: last}
	}
	return last
}

// unreachable reports whether an attempt failed before anything was said.
func unreachable(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, ErrSlow) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// checkHead looks at the head of an answer, before what may be much is read: whether a document of these times can be of use. None of it is
// believed beyond that.
func (m *Mirror) checkHead(h http.Header, o *outcome) error {
	now := m.cfg.Now()
	o.answered = true
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		o.skew = date.Sub(now)
	}
	from, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return nil
	}
	claimed := directory.Consensus{ValidAfter: from, ValidUntil: from.Add(directory.ValidPeriods * m.cfg.Network.Interval)}
	if err := claimed.CheckTime(now); err != nil {
		o.untimely = true
		return err
	}
	if c := m.Current(); c != nil && !from.After(c.ValidAfter) {
		return ErrNotModified
	}
	return nil
}
