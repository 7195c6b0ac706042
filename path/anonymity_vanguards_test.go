package path

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"cepa/directory"
)

// found tells for so many services on which day an adversary who has a share of the weight of middles, and makes them build as
// many circuits as he likes, first has a relay beside their guard: in layer 2. He is taken to notice at once.
func found(t *testing.T, relays []directory.Relay, params directory.Params, share float64, services int) []float64 {
	const horizon = 4000 // days
	ch, err := New(&directory.Consensus{Relays: relays, Params: params})
	if err != nil {
		t.Fatal(err)
	}
	// Layers are drawn from the stable relays: his are.
	bad := map[string]bool{}
	var total uint64
	for i := range relays {
		if relays[i].Flags.Has(up | directory.FlagStable) {
			total += ch.middle.weight(i)
		}
	}
	left := uint64(share * float64(total))
	for _, i := range rand.New(seeded(uint64(share * 1000))).Perm(len(relays)) {
		if w := ch.middle.weight(i); relays[i].Flags.Has(up|directory.FlagStable) && w > 0 && w <= left {
			left -= w
			bad[relays[i].Identity.String()] = true
		}
	}
	var days []float64
	start := time.Unix(1_700_000_000, 0)
	for n := range services {
		random := seeded(uint64(n) + 1<<40)
		v, err := NewVanguards(VanguardState{})
		if err != nil {
			t.Fatal(err)
		}
		now, hit := start, false
		for !hit && now.Sub(start) < horizon*24*time.Hour {
			if _, err := v.Update(ch, random, now); err != nil {
				t.Fatal(err)
			}
			next := int64(1) << 60
			for _, x := range v.state.Layer2 {
				hit = hit || bad[x.Relay.String()]
				next = min(next, x.Until)
			}
			if !hit {
				now = time.Unix(next, 0)
			}
		}
		days = append(days, now.Sub(start).Hours()/24)
	}
	slices.Sort(days)
	return days
}

// TestAnonymityVanguards: how long a service's guard stays unknown, beside Tor's vanguards-lite in the same model.
func TestAnonymityVanguards(t *testing.T) {
	services := 70
	if *soak {
		services = 10_000
	}
	relays := realRelays(t)
	lite := directory.Params{directory.ParamVanguardLayer2: 4, directory.ParamVanguardLayer2Min: 1, directory.ParamVanguardLayer2Max: 12}
	rows := [][]string{{"hostile share of middles", "days until half are found", "goal", "Tor's vanguards-lite, same model", "found on day 0", "found within 30 days", "within 180 days"}}
	p := plot{title: "Services whose guard is found", x: "days", y: "share"}
	for k, c := range []struct {
		share float64
		goal  float64
	}{{0.01, 252}, {0.05, 56}, {0.10, 28}} {
		our := found(t, relays, nil, c.share, services)
		tors := found(t, relays, lite, c.share, services)
		within := func(days []float64, most float64) float64 {
			n, _ := slices.BinarySearchFunc(days, most, func(a, b float64) int {
				if a <= b {
					return -1
				}
				return 1
			})
			return float64(n) / float64(len(days))
		}
		half, halfTor := our[services/2], tors[services/2]
		t.Logf("%.0f %% hostile: half are found after %.1f days, with vanguards-lite after %.1f; %.1f %% on day 0", 100*c.share, half, halfTor, 100*within(our, 0))
		if slack := c.goal * 0.25; *soak && half < c.goal || half < c.goal-slack {
			t.Errorf("%.0f %% hostile: half of the guards are found after %.1f days, the goal is %.0f", 100*c.share, half, c.goal)
		}
		if half < 2*halfTor {
			t.Errorf("%.0f %% hostile: half are found after %.1f days, with vanguards-lite after %.1f: it should be twice as long", 100*c.share, half, halfTor)
		}
		rows = append(rows, []string{
			fmt.Sprintf("%.0f %%", 100*c.share), fmt.Sprintf("%.1f", half), fmt.Sprintf("%.0f", c.goal), fmt.Sprintf("%.1f", halfTor),
			fmt.Sprintf("%.3f", within(our, 0)), fmt.Sprintf("%.3f", within(our, 30)), fmt.Sprintf("%.3f", within(our, 180)),
		})
		for _, x := range []struct {
			name   string
			days   []float64
			dashed bool
		}{{"cepa", our, false}, {"Tor lite", tors, true}} {
			cv := curve{name: fmt.Sprintf("%s, %.0f %%", x.name, 100*c.share), colour: []string{"#1b7837", "#762a83", "#b35806"}[k], dashed: x.dashed}
			for d := 0.0; d <= 365; d += 5 {
				cv.x, cv.y = append(cv.x, d), append(cv.y, within(x.days, d))
			}
			p.curves = append(p.curves, cv)
		}
	}
	p.limits = map[string]float64{"half": 0.5}
	writeTable(t, "vanguards.csv", rows)
	writePlot(t, "vanguards.svg", p)
}
