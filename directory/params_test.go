package directory

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestParamTable(t *testing.T) {
	specs := ParamSpecs()
	if !slices.IsSortedFunc(specs, func(a, b ParamSpec) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the table is not sorted by name")
	}
	for _, s := range specs {
		if s.Min > s.Default || s.Default > s.Max || s.Unit == "" || s.Meaning == "" {
			t.Errorf("%s: the line makes no sense: %+v", s.Name, s)
		}
		if err := (Params{s.Name: 1}).validate(); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		for v, want := range map[int64]int64{math.MinInt64: s.Min, s.Min: s.Min, s.Default: s.Default, s.Max: s.Max, math.MaxInt64: s.Max} {
			if got := (Params{s.Name: v}).Get(s.Name); got != want {
				t.Errorf("%s set to %d is %d, want %d", s.Name, v, got, want)
			}
		}
		if got := Params(nil).Get(s.Name); got != s.Default {
			t.Errorf("%s is %d by default, want %d", s.Name, got, s.Default)
		}
	}
}

func TestUnknownParam(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("asking for an unknown parameter does not panic")
		}
	}()
	Params{"x": 1}.Get("x")
}
