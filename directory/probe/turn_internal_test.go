package probe

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"cepa/crypto/identity"
	"cepa/directory"
)

// TestTurns: no two authorities may begin to measure the same relay within half a minute of each other, in a small network none that measure at all; and
// each gets to measure every relay in time.
func TestTurns(t *testing.T) {
	for _, c := range []struct{ authorities, relays int }{{1, 10}, {4, 12}, {4, 1000}, {4, 7200}, {9, 70_000}} {
		network := &directory.Network{}
		for i := range c.authorities {
			network.Authorities = append(network.Authorities, directory.Authority{Identity: identity.ID(sha256.Sum256(fmt.Append(nil, i)))})
		}
		var all []*measurer
		for i := range c.authorities {
			all = append(all, &measurer{p: &Prober{cfg: Config{Network: network}}, cfg: Measure{Every: 24 * time.Hour}, index: i})
		}
		for r := range 8 {
			id := identity.ID(sha256.Sum256(fmt.Append(nil, "relay", r)))
			turns := make([]int, c.authorities)
			last, lastAt := -1, time.Time{}
			for at := time.Unix(1_700_000_000, 0); at.Before(time.Unix(1_700_000_000, 0).Add(24 * time.Hour)); at = at.Add(10 * time.Second) {
				whose := -1
				for i, m := range all {
					if !m.turn(id, c.relays, at) {
						continue
					}
					if whose >= 0 {
						t.Fatalf("%+v: authorities %d and %d may measure at once", c, whose, i)
					}
					whose = i
					turns[i]++
				}
				small := time.Duration(c.relays*c.authorities)*measureTime <= 24*time.Hour
				if whose >= 0 {
					if small && last >= 0 && whose != last && at.Sub(lastAt) < turnEnd {
						t.Fatalf("%+v: authority %d begins %v after authority %d", c, whose, at.Sub(lastAt), last)
					}
					last, lastAt = whose, at
				}
			}
			for i, n := range turns {
				if n < 24*360/c.authorities/2 {
					t.Errorf("%+v: authority %d has its turn for %d of 8,640 times", c, i, n)
				}
			}
		}
	}
}
