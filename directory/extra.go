package directory

import (
	"errors"
	"fmt"
	"slices"
)

// Bounds of a descriptor's extra information.
const (
	// HistoryUnit is to what the use of a day is rounded up, in bytes: coarse, so that it tells nothing about single streams. A relay at
	// the lowest rate moves 7 of them a day.
	HistoryUnit = 256 << 20
	// MaxHistory is how many days a descriptor may tell.
	MaxHistory = 7

	// maxDay is the last day of the year 9999, counted from 1970.
	maxDay = maxUnixTime / (24 * 3600)
	// maxDayUnits bounds the use of a day in HistoryUnits: 2^58 bytes.
	maxDayUnits = 1 << 30
)

// Extra is what a relay says about its state and its past. The zero value says nothing.
type Extra struct {
	// Hibernating says that the relay takes no links until its next month begins: authorities do not call it running.
	Hibernating bool
	// Overloaded says that the relay dropped CREATEs for lack of capacity in the last 24 hours.
	Overloaded bool
	// FirstDay is the day of the first of History, in whole days since 1970, UTC; 0 without a history.
	FirstDay uint64
	// History is the use of whole days, one after the other without a gap, at most MaxHistory; the present day is not among them.
	History []DayUse
}

// DayUse is what a relay read and wrote in a day (UTC), in HistoryUnits, rounded up.
type DayUse struct {
	Read, Written uint64
}

// Bits of the state on the wire.
const (
	extraHibernating = 1 << iota
	extraOverloaded
	extraStates = 1<<iota - 1
)

type extraWire struct {
	_        struct{} `cbor:",toarray"`
	State    uint64
	FirstDay uint64
	History  []dayWire
}

type dayWire struct {
	_             struct{} `cbor:",toarray"`
	Read, Written uint64
}

// IsZero reports whether it says nothing.
func (e *Extra) IsZero() bool {
	return !e.Hibernating && !e.Overloaded && e.FirstDay == 0 && len(e.History) == 0
}

func (e *Extra) validate() error {
	switch n := uint64(len(e.History)); {
	case n > MaxHistory:
		return fmt.Errorf("a history of %d days: at most %d are allowed", n, MaxHistory)
	case n == 0 && e.FirstDay != 0:
		return errors.New("a first day without a history")
	case e.FirstDay > maxDay-n:
		return fmt.Errorf("first day %d of the history is out of range", e.FirstDay)
	}
	if slices.ContainsFunc(e.History, func(d DayUse) bool { return d.Read > maxDayUnits || d.Written > maxDayUnits }) {
		return errors.New("the use of a day is out of range")
	}
	return nil
}

func (e *Extra) wire() *extraWire {
	w := &extraWire{FirstDay: e.FirstDay}
	if e.Hibernating {
		w.State |= extraHibernating
	}
	if e.Overloaded {
		w.State |= extraOverloaded
	}
	for _, d := range e.History {
		w.History = append(w.History, dayWire{Read: d.Read, Written: d.Written})
	}
	return w
}

// extra converts the wire form; bounds are left to validate.
func (w *extraWire) extra() (Extra, error) {
	if w.State > extraStates {
		return Extra{}, fmt.Errorf("state %#x has unknown bits", w.State)
	}
	e := Extra{Hibernating: w.State&extraHibernating != 0, Overloaded: w.State&extraOverloaded != 0, FirstDay: w.FirstDay}
	for _, d := range w.History {
		e.History = append(e.History, DayUse{d.Read, d.Written})
	}
	return e, nil
}
