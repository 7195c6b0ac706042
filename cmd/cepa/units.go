package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// rateUnits are bytes per second for each unit that a rate may have.
func rateUnits() map[string]float64 {
	return map[string]float64{
		"B/s": 1, "KB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9,
		"KiB/s": 1 << 10, "MiB/s": 1 << 20, "GiB/s": 1 << 30,
		"kbit/s": 1e3 / 8, "Kbit/s": 1e3 / 8, "Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8,
	}
}

// parseRate reads a rate such as "500KB/s" or "8 Mbit/s" as bytes per second.
func parseRate(s string) (int64, error) {
	t := strings.TrimSpace(s)
	digits := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if digits <= 0 {
		return 0, fmt.Errorf("%q is not a rate: write a number and a unit, such as 500KB/s, 2MB/s or 8Mbit/s", s)
	}
	v, err := strconv.ParseFloat(t[:digits], 64)
	unit, ok := rateUnits()[strings.TrimSpace(t[digits:])]
	if err != nil || !ok {
		return 0, fmt.Errorf("%q is not a rate: write a number and a unit, such as 500KB/s, 2MB/s or 8Mbit/s", s)
	}
	if v *= unit; v < 1 || v > math.MaxInt64/4 {
		return 0, fmt.Errorf("%q is out of range", s)
	}
	return int64(v), nil
}

// formatRate prints bytes per second for people.
func formatRate(v int64) string { return formatBytes(float64(v)) + "/s" }

// formatBytes prints an amount for people, in decimal units.
func formatBytes(v float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1e9, "GB"}, {1e6, "MB"}, {1e3, "KB"}} {
		if v >= u.size {
			return strconv.FormatFloat(v/u.size, 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + " B"
}
