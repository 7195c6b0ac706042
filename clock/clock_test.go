package clock

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatch: jumps are told once, with their size, and nothing else is.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 10 * time.Second
		var shift atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var jumps []Jump
		go Watch(ctx, every, Tolerance, now, func(j Jump) { jumps = append(jumps, j) })
		for _, by := range []time.Duration{0, Tolerance, -Tolerance, Tolerance + 1, -40 * time.Second, 90 * time.Minute, -72 * time.Hour, 365 * 24 * time.Hour} {
			jumps = nil
			time.Sleep(7 * time.Minute)
			synctest.Wait()
			if len(jumps) != 0 {
				t.Errorf("%v before anything: told %v", by, jumps)
			}
			set := time.Now()
			shift.Add(int64(by))
			time.Sleep(every)
			synctest.Wait()
			if by <= Tolerance && by >= -Tolerance {
				if len(jumps) != 0 {
					t.Errorf("%v is told as %v", by, jumps)
				}
				continue
			}
			if len(jumps) != 1 || jumps[0].By != by || jumps[0].After.Sub(now()).Abs() > every {
				t.Errorf("%v is told as %v within %v", by, jumps, time.Since(set))
			}
		}
	})
}

func TestJumpLog(t *testing.T) {
	for by, want := range map[time.Duration]string{
		3 * time.Hour:   "jumped forward: this machine slept",
		-26 * time.Hour: "jumped back: the clock was set",
	} {
		var b bytes.Buffer
		Jump{by, time.Unix(1_700_000_000, 0)}.Log(slog.New(slog.NewTextHandler(&b, nil)))
		if !strings.Contains(b.String(), want) || !strings.Contains(b.String(), "level=WARN") || !strings.Contains(b.String(), "by="+by.Abs().String()) {
			t.Errorf("%v: %s", by, b.String())
		}
	}
}
