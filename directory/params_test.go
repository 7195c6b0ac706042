package directory

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
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

// TestLinkPadding: silences that links can be made with, whatever a consensus says.
func TestLinkPadding(t *testing.T) {
	const low, high = ParamLinkPaddingMin, ParamLinkPaddingMax
	for _, c := range []struct {
		params            Params
		shortest, longest time.Duration
	}{
		{nil, 1500 * time.Millisecond, 9500 * time.Millisecond},
		{Params{low: 2000, high: 5000}, 2 * time.Second, 5 * time.Second},
		{Params{low: 7000, high: 7000}, 7 * time.Second, 7 * time.Second},
		{Params{low: 3000}, 3 * time.Second, 9500 * time.Millisecond},
		{Params{high: 60_000}, 1500 * time.Millisecond, time.Minute},
		{Params{high: 1000}, time.Second, time.Second},
		{Params{low: 20_000}, 9500 * time.Millisecond, 9500 * time.Millisecond},
		{Params{low: 30_000, high: 2000}, 2 * time.Second, 2 * time.Second},
		{Params{low: 0, high: math.MaxInt64}, 100 * time.Millisecond, time.Minute},
		{Params{low: math.MinInt64, high: math.MinInt64}, 100 * time.Millisecond, 100 * time.Millisecond},
		{Params{low: math.MaxInt64, high: math.MaxInt64}, time.Minute, time.Minute},
	} {
		if shortest, longest := c.params.LinkPadding(); shortest != c.shortest || longest != c.longest {
			t.Errorf("%v: silences of %v to %v, want %v to %v", c.params, shortest, longest, c.shortest, c.longest)
		}
	}
}

// TestParamsAreSpecified: the table of doc/spec.md section 7 and that of the code are one.
func TestParamsAreSpecified(t *testing.T) {
	b, err := os.ReadFile("../doc/spec.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(b), "\n| parameter | default | bounds | unit | meaning |\n|---|---|---|---|---|\n")
	if !found {
		t.Fatal("doc/spec.md has no table of parameters")
	}
	text, _, _ := strings.Cut(rest, "\n\n")
	number := func(n int64) string {
		if n == MaxWeight {
			return "10^12"
		}
		s := strconv.FormatInt(n, 10)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	}
	lines := strings.Split(text, "\n")
	specs := ParamSpecs()
	if len(lines) != len(specs) {
		t.Fatalf("%d parameters in doc/spec.md, %d in the table", len(lines), len(specs))
	}
	for i, s := range specs {
		want := fmt.Sprintf("| `%s` | %s | %s…%s | %s | ", s.Name, number(s.Default), number(s.Min), number(s.Max), s.Unit)
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("doc/spec.md has %q, the table %q", lines[i], want)
		}
	}
}
