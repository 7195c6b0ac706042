//go:build !race

package cell_test

import (
	"testing"

	"cepa/cell"
)

// TestAllocPool: once warm, taking, listing and returning cells allocates
// nothing.
func TestAllocPool(t *testing.T) {
	var p cell.Pool
	var l, m cell.List
	allocs := testing.AllocsPerRun(100, func() {
		p.GetList(&l, 1000)
		for c := l.Pop(); c != nil; c = l.Pop() {
			m.Push(c)
		}
		l.Append(&m)
		p.PutList(&l)
		p.Put(p.Get())
	})
	if allocs != 0 {
		t.Errorf("%v allocations for 1,000 cells", allocs)
	}
	if n := p.Outstanding(); n != 0 {
		t.Errorf("%d cells are out", n)
	}
}

// TestAllocParse: what is parsed for each cell allocates nothing, malformed or
// not as far as no error has to be made.
func TestAllocParse(t *testing.T) {
	inner := make([]byte, cell.BodySize-cell.LayerOverhead)
	payload := make([]byte, cell.Room(1))
	create, reply := body("01"), fill(cell.HopReplySize, 1)
	extend, destroy := fill(cell.ExtendSize, 1), body("01")
	for what, f := range map[string]func() error{
		"PutMessage and ParseMessage": func() error {
			cell.PutMessage(inner, cell.Data, 1, payload)
			_, err := cell.ParseMessage(inner)
			return err
		},
		"ParseAck":      func() error { _, err := cell.ParseAck(payload[:16]); return err },
		"ParseCredit":   func() error { _, err := cell.ParseCredit([]byte{0, 0, 0, 1}); return err },
		"ParseEnd":      func() error { _, err := cell.ParseEnd(payload[:1]); return err },
		"ParseCreate":   func() error { _, err := cell.ParseCreate(create); return err },
		"ParseDestroy":  func() error { _, err := cell.ParseDestroy(destroy); return err },
		"ParseExtend":   func() error { _, err := cell.ParseExtend(extend); return err },
		"ParseExtended": func() error { _, err := cell.ParseExtended(reply); return err },

		"ParseIntroduce":  func() error { _, err := cell.ParseIntroduce(payload[:cell.IntroduceSize]); return err },
		"ParseRendezvous": func() error { _, err := cell.ParseRendezvous(payload[:cell.RendezvousSize]); return err },
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if allocs := testing.AllocsPerRun(1000, func() { _ = f() }); allocs != 0 {
			t.Errorf("%s: %v allocations", what, allocs)
		}
	}
}
