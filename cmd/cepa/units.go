package main

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// unit is a unit and how many bytes, or bytes a second, it has.
type unit struct {
	name  string
	bytes int64
}

// maxQuantity bounds what a rate or an amount may be, in bytes: sums of a few
// of them must not overflow.
const maxQuantity = math.MaxInt64 / 8

// maxQuantityText bounds the text of a rate or an amount, in bytes: 19 digits
// before the point, as many behind it, and a unit.
const maxQuantityText = 48

// quantity is what a kind of flag takes: a number and one of its units.
type quantity struct {
	what, example string
	units         []unit // decimal ones first, ascending
}

// rates are bytes a second.
func rates() *quantity {
	return &quantity{"a rate", "500KB/s, 1.5 MB/s or 8Mbit/s", []unit{
		{"KB/s", 1e3},
		{"MB/s", 1e6},
		{"GB/s", 1e9},
		{"KiB/s", 1 << 10},
		{"MiB/s", 1 << 20},
		{"kbit/s", 1e3 / 8},
		{"Mbit/s", 1e6 / 8},
		{"Gbit/s", 1e9 / 8},
	}}
}

// amounts are bytes.
func amounts() *quantity {
	return &quantity{"an amount", "64KiB, 1.5 MB or 20GB", []unit{
		{"KB", 1e3},
		{"MB", 1e6},
		{"GB", 1e9},
		{"TB", 1e12},
		{"KiB", 1 << 10},
		{"MiB", 1 << 20},
		{"GiB", 1 << 30},
		{"TiB", 1 << 40},
	}}
}

// parseSize reads an amount such as "64KiB" or "1.5 MB" as bytes.
func parseSize(s string) (int64, error) { return amounts().parse(s) }

// parseRate reads a rate such as "500KB/s" or "8 Mbit/s" as bytes per second.
func parseRate(s string) (int64, error) { return rates().parse(s) }

// exactSize prints an amount so that parseSize reads the same.
func exactSize(v int64) string { return amounts().format(v) }

// exactRate prints a rate so that parseRate reads the same.
func exactRate(v int64) string { return rates().format(v) }

// parse reads a decimal number, at most one space, and a unit, nothing before,
// between or after. Parts of a byte are dropped. Errors say what is wrong and
// give examples.
func (q *quantity) parse(s string) (int64, error) {
	v, err := q.value(s)
	if err != nil {
		return 0, fmt.Errorf("%s is not %s: %w; write a number and a unit, such as %s", quoted(s), q.what, err, q.example)
	}
	return v, nil
}

func (q *quantity) value(s string) (int64, error) {
	switch {
	case s == "":
		return 0, errors.New("it is empty")
	case len(s) > maxQuantityText:
		return 0, fmt.Errorf("it is longer than %d characters", maxQuantityText)
	case s[0] == '-':
		return 0, errors.New("it is negative")
	}
	end := 0
	for end < len(s) && (s[end] == '.' || s[end] >= '0' && s[end] <= '9') {
		end++
	}
	whole, fraction, point := strings.Cut(s[:end], ".")
	if whole == "" || point && (fraction == "" || strings.Contains(fraction, ".")) {
		return 0, errors.New("it does not begin with a decimal number")
	}
	perUnit, err := q.unit(strings.TrimPrefix(s[end:], " "))
	if err != nil {
		return 0, err
	}
	// Digits and dots only, so it is a number.
	n, _ := new(big.Int).SetString(whole+fraction, 10)
	n.Mul(n, big.NewInt(perUnit))
	n.Quo(n, new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(len(fraction))), nil))
	switch {
	case n.Sign() == 0:
		return 0, errors.New("it is less than one byte")
	case n.Cmp(big.NewInt(maxQuantity)) > 0:
		return 0, errors.New("it is too large")
	}
	return n.Int64(), nil
}

// unit returns how many bytes the unit has.
func (q *quantity) unit(name string) (int64, error) {
	if name == "" {
		return 0, errors.New("the unit is missing")
	}
	names := make([]string, len(q.units))
	for i, u := range q.units {
		if u.name == name {
			return u.bytes, nil
		}
		names[i] = u.name
	}
	for _, u := range q.units {
		if strings.EqualFold(u.name, name) {
			return 0, fmt.Errorf("the unit is written %s, not %s", u.name, name)
		}
	}
	return 0, fmt.Errorf("%s is none of the units %s", quoted(name), strings.Join(names, ", "))
}

// format prints v, which is above 0, in the largest decimal unit that it fills.
func (q *quantity) format(v int64) string {
	best := q.units[0]
	for _, u := range q.units {
		if v >= u.bytes && u.bytes%1000 == 0 && !strings.Contains(u.name, "bit") {
			best = u
		}
	}
	text := strconv.FormatInt(v/best.bytes, 10)
	if rest := v % best.bytes; rest > 0 {
		digits := len(strconv.FormatInt(best.bytes, 10)) - 1
		text += "." + strings.TrimRight(fmt.Sprintf("%0*d", digits, rest), "0")
	}
	return text + " " + best.name
}

// quoted prints what somebody wrote, and no more of it than an error needs.
func quoted(s string) string {
	if len(s) > maxQuantityText {
		return strconv.Quote(s[:maxQuantityText]) + "…"
	}
	return strconv.Quote(s)
}

// formatRate prints bytes per second for people, rounded.
func formatRate(v int64) string { return formatBytes(float64(v)) + "/s" }

// formatBytes prints an amount for people, rounded, in decimal units.
func formatBytes(v float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "KB"}} {
		if v >= u.size {
			return strconv.FormatFloat(v/u.size, 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + " B"
}

// parseDays reads a time in whole days, such as "90d", or as Go writes times, such as
// "36h".
func parseDays(s string) (time.Duration, error) {
	if digits, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(digits, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}
