//go:build !race

package work_test

import (
	"testing"

	"cepa/onion/work"
)

func TestVerifyAlloc(t *testing.T) {
	c, p := solved(t, 8)
	ask := work.Ask{Effort: 8, Seed: c.Seed}
	wrong := p
	wrong.Solution[15] ^= 1
	b := p.AppendTo(nil)
	out := make([]byte, 0, work.Size)
	if n := testing.AllocsPerRun(100, func() {
		if p.Verify(c) != nil || wrong.Verify(c) == nil || ask.Check(&p, &c.Key, sealed) != nil {
			t.Error("a good proof is refused, or a wrong one is not")
		}
		if q, err := work.Parse(b); err != nil || len(q.AppendTo(out)) != work.Size {
			t.Error("a proof does not parse")
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
