package directory

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Versions are what the authorities say of the software: the lowest version that they recommend, and the lowest that still may take part.
// Each is two to four numbers with dots between, or empty if they say nothing.
type Versions struct {
	Recommended, Required string
}

const (
	// maxVersionNumbers is how many numbers of a version count.
	maxVersionNumbers = 4
	// maxVersionDigits is the highest number of digits of each.
	maxVersionDigits = 9
)

// wire returns the wire form.
func (v Versions) wire() [2]string { return [2]string{v.Recommended, v.Required} }

func (v Versions) validate() error {
	for _, s := range []string{v.Recommended, v.Required} {
		if s == "" {
			continue
		}
		if _, rest, ok := versionNumbers(s); !ok || rest != "" || len(s) > MaxVersion {
			return fmt.Errorf("version %q: two to four numbers with dots between are wanted, such as 0.2.0", clip(s))
		}
	}
	return nil
}

// VersionBelow reports whether a version of the software is lower than least. Of version only its numbers count, not what follows them after a
// hyphen or plus sign. What has no numbers, such as a build from no release, is never below: whoever builds it looks after it.
func VersionBelow(version, least string) bool {
	want, _, ok := versionNumbers(least)
	if !ok {
		return false
	}
	have, rest, ok := versionNumbers(strings.TrimPrefix(version, "v"))
	if !ok || rest != "" && rest[0] != '-' && rest[0] != '+' {
		return false
	}
	return slices.Compare(have[:], want[:]) < 0
}

// versionNumbers reads the numbers that a version begins with. Those that are missing are 0.
func versionNumbers(s string) (numbers [maxVersionNumbers]uint64, rest string, ok bool) {
	for i := range maxVersionNumbers {
		end := 0
		for end < len(s) && '0' <= s[end] && s[end] <= '9' {
			end++
		}
		if end == 0 || end > maxVersionDigits || end > 1 && s[0] == '0' {
			return numbers, s, false
		}
		n, err := strconv.ParseUint(s[:end], 10, 64)
		if err != nil {
			return numbers, s, false
		}
		numbers[i], s = n, s[end:]
		if s == "" || s[0] != '.' {
			return numbers, s, i > 0
		}
		if i < maxVersionNumbers-1 {
			s = s[1:]
		}
	}
	return numbers, s, true
}

// computeVersions returns what the votes say: each of both versions if Threshold votes state it, the lower median of what they state.
func computeVersions(votes []*Vote, net *Network) Versions {
	median := func(of func(*Vote) string) string {
		var stated []string
		for _, v := range votes {
			if s := of(v); s != "" {
				stated = append(stated, s)
			}
		}
		if len(stated) < net.Threshold() {
			return ""
		}
		slices.SortFunc(stated, func(a, b string) int {
			x, _, _ := versionNumbers(a)
			y, _, _ := versionNumbers(b)
			return cmp.Or(slices.Compare(x[:], y[:]), strings.Compare(a, b))
		})
		return stated[(len(stated)-1)/2]
	}
	return Versions{
		Recommended: median(func(v *Vote) string { return v.Versions.Recommended }),
		Required:    median(func(v *Vote) string { return v.Versions.Required }),
	}
}
