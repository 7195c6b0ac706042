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

// sizeUnits are bytes for each unit that an amount may have.
func sizeUnits() map[string]float64 {
	return map[string]float64{
		"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}
}

// parseSize reads an amount such as "64KiB" or "1 MB" as bytes.
func parseSize(s string) (int64, error) {
	return parseUnit(s, "an amount", "64KiB, 1MB or 20GB", sizeUnits())
}

// parseRate reads a rate such as "500KB/s" or "8 Mbit/s" as bytes per second.
func parseRate(s string) (int64, error) {
	return parseUnit(s, "a rate", "500KB/s, 2MB/s or 8Mbit/s", rateUnits())
}

// parseUnit reads a decimal number and one of the units.
func parseUnit(s, what, examples string, units map[string]float64) (int64, error) {
	t := strings.TrimSpace(s)
	digits := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if digits <= 0 {
		return 0, fmt.Errorf("%q is not %s: write a number and a unit, such as %s", s, what, examples)
	}
	v, err := strconv.ParseFloat(t[:digits], 64)
	unit, ok := units[strings.TrimSpace(t[digits:])]
	if err != nil || !ok {
		return 0, fmt.Errorf("%q is not %s: write a number and a unit, such as %s", s, what, examples)
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
