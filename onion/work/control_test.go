package work_test

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cepa/onion/work"
)

func controller(t testing.TB, config work.ControllerConfig, now time.Time) *work.Controller {
	t.Helper()
	c, err := work.NewController(config, now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestControllerEffort: each load, and what is asked for after it.
func TestControllerEffort(t *testing.T) {
	now := time.Unix(1000, 0)
	c := controller(t, work.ControllerConfig{Capacity: 10, MaxEffort: 5000}, now) // 100 in an interval
	if e := c.Ask().Effort; e != 0 {
		t.Fatalf("effort %d at first", e)
	}
	for _, step := range []struct {
		name string
		load work.Load
		want uint32
	}{
		{"nothing", work.Load{}, 0},
		{"as much as can be done", work.Load{Arrived: 90, Served: 90}, 0},
		{"more, without work", work.Load{Arrived: 1000, Served: 100, Waiting: 40, Dropped: 860}, 64},
		{"work of 85 × 100", work.Load{Arrived: 200, Effort: 8500, Served: 100, Dropped: 100}, 100},
		{"far more: four times at most", work.Load{Arrived: 1000, Effort: 850_000, Served: 100, Dropped: 900}, 400},
		{"little lost: a quarter at least", work.Load{Arrived: 90, Effort: 90 * 400, Served: 100, Dropped: 1}, 500},
		{"many waiting: the same", work.Load{Arrived: 90, Effort: 90 * 400, Served: 100, Waiting: 51}, 625},
		{"a little too many: a sixteenth", work.Load{Arrived: 96, Effort: 96 * 500, Served: 100}, 664},
		{"what was aimed at", work.Load{Arrived: 85, Effort: 85 * 664, Served: 85}, 664},
		{"at the upper edge", work.Load{Arrived: 95, Effort: 95 * 664, Served: 95}, 664},
		{"just above the lower edge", work.Load{Arrived: 76, Effort: 76 * 664, Served: 76}, 664},
		{"few come, but some still wait", work.Load{Arrived: 50, Effort: 50 * 664, Served: 90, Waiting: 11}, 664},
		{"quiet", work.Load{Arrived: 75, Effort: 75 * 664, Served: 75, Waiting: 10}, 622},
		{"a service slower than it should be", work.Load{Arrived: 60, Effort: 60 * 1000, Served: 50, Dropped: 10}, 1411},
		{"one that serves nobody", work.Load{Arrived: 60, Effort: 60 * 1411, Dropped: 60}, 5000},
		{"the bound", work.Load{Arrived: 1 << 40, Effort: 1 << 63, Served: 100, Dropped: 1 << 40}, 5000},
	} {
		now = now.Add(work.Interval)
		ask, _, err := c.Update(now, step.load, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if ask.Effort != step.want || ask != c.Ask() {
			t.Fatalf("%s: effort %d, want %d", step.name, ask.Effort, step.want)
		}
	}
	intervals := 0
	for last := uint32(5000); last > 0; intervals++ {
		now = now.Add(work.Interval)
		ask, changed, err := c.Update(now, work.Load{}, rand.Reader)
		if err != nil || !changed {
			t.Fatalf("changed %v, %v", changed, err)
		}
		if ask.Effort >= last || ask.Effort > 0 && ask.Effort < last-last/16-1 || ask.Effort > 0 && ask.Effort < work.StartEffort {
			t.Fatalf("falls from %d to %d", last, ask.Effort)
		}
		last = ask.Effort
	}
	if took := time.Duration(intervals) * work.Interval; took < 5*time.Minute || took > 20*time.Minute {
		t.Errorf("falls from 5000 to 0 in %v", took)
	}
	if ask, changed, _ := c.Update(now.Add(work.Interval), work.Load{}, rand.Reader); changed || ask.Effort != 0 {
		t.Errorf("idle: effort %d, changed %v", ask.Effort, changed)
	}
}

// TestControllerBounds: whatever the loads and the times, the effort stays within bounds, rises by
// four times at most and never falls under load.
func TestControllerBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.Uint32Range(1, 1<<32-1).Draw(t, "most")
		now := time.Unix(1000, 0)
		c, err := work.NewController(work.ControllerConfig{Capacity: rapid.Float64Range(0.1, 1000).Draw(t, "capacity"), MaxEffort: most}, now, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 30).Draw(t, "updates") {
			now = now.Add(time.Duration(rapid.Int64Range(-1e9, 100e9).Draw(t, "passed")))
			load := work.Load{
				Arrived: rapid.IntRange(0, 1<<40).Draw(t, "arrived"), Effort: rapid.Uint64().Draw(t, "effort"), Served: rapid.IntRange(0, 1<<40).Draw(t, "served"),
				Dropped: rapid.IntRange(0, 1).Draw(t, "dropped"), Waiting: rapid.IntRange(0, 1<<20).Draw(t, "waiting"),
			}
			before := c.Ask()
			ask, changed, err := c.Update(now, load, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if changed != (ask != before) {
				t.Fatalf("changed is %v from %+v to %+v", changed, before, ask)
			}
			if ask.Effort > most || uint64(ask.Effort) > max(4*uint64(before.Effort), work.StartEffort) {
				t.Fatalf("effort %d after %d, at most %d", ask.Effort, before.Effort, most)
			}
			if load.Dropped > 0 && ask.Effort < before.Effort {
				t.Fatalf("effort falls from %d to %d though something was dropped", before.Effort, ask.Effort)
			}
			if ask.Seed == [32]byte{} {
				t.Fatal("a seed of zeros")
			}
		}
	})
}

// TestControllerSeeds: a seed lives for 105 to 135 minutes and is accepted for as long again.
func TestControllerSeeds(t *testing.T) {
	now := time.Unix(1000, 0)
	c := controller(t, work.ControllerConfig{}, now)
	if c.Ask().Previous != [32]byte{} {
		t.Fatal("there is a previous seed at first")
	}
	since := now
	lives := map[time.Duration]int{}
	for range 2000 {
		before := c.Ask()
		now = now.Add(time.Minute)
		ask, changed, err := c.Update(now, work.Load{}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if ask.Seed == before.Seed {
			if changed || ask.Previous != before.Previous {
				t.Fatal("the previous seed changes alone")
			}
			continue
		}
		if !changed || ask.Previous != before.Seed {
			t.Fatal("after a change the seed of before is not the previous one")
		}
		lives[now.Sub(since)]++
		since = now
	}
	if len(lives) < 5 {
		t.Errorf("seeds live for %v: not drawn anew", lives)
	}
	for life := range lives {
		if life < work.SeedLifeMin || life > work.SeedLifeMax+time.Minute {
			t.Errorf("a seed lived for %v", life)
		}
	}

	// Asleep for a day: what was the seed then is too old.
	old := c.Ask()
	ask, _, err := c.Update(now.Add(24*time.Hour), work.Load{}, rand.Reader)
	if err != nil || ask.Seed == old.Seed || ask.Previous != [32]byte{} {
		t.Errorf("after a day asleep the previous seed is %x (%v)", ask.Previous[:4], err)
	}
}

// TestControllerRandomness: the edges of a seed's life, and a source that fails.
func TestControllerRandomness(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, x := range []struct {
		fill byte
		want time.Duration
	}{{0x00, work.SeedLifeMin}, {0xff, work.SeedLifeMax}} {
		c, err := work.NewController(work.ControllerConfig{}, now, bytes.NewReader(bytes.Repeat([]byte{x.fill}, 36)))
		if err != nil {
			t.Fatal(err)
		}
		if _, changed, err := c.Update(now.Add(x.want-time.Second), work.Load{}, strings.NewReader("")); changed || err != nil {
			t.Errorf("%#x: changed %v (%v) a second before %v", x.fill, changed, err, x.want)
		}
		if _, changed, err := c.Update(now.Add(x.want), work.Load{}, strings.NewReader("")); changed || err == nil {
			t.Errorf("%#x: without randomness: changed %v, %v", x.fill, changed, err)
		}
		if _, changed, err := c.Update(now.Add(x.want), work.Load{}, rand.Reader); !changed || err != nil {
			t.Errorf("%#x: with randomness again: changed %v, %v", x.fill, changed, err)
		}
	}
	if _, err := work.NewController(work.ControllerConfig{}, now, strings.NewReader("short")); err == nil {
		t.Error("a controller without a seed")
	}
}
